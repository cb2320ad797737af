"""Offer image files to the collector, with what the workspace's newest model says of them.

for path, offer in offer_files(Path("."), [Path("a.jpg")], random_only=False): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks import head, plugins
from tasks.collector import Collector, Offer
from tasks.errors import BadInput, GleanerError
from tasks.images import Refused, decode
from tasks.params import load
from tasks.params_sections import Params
from tasks.store import Store


def offer_files(root: Path, paths: Sequence[Path], *, random_only: bool) -> Iterator[tuple[Path, Offer]]:
    """Offer each file. An image that cannot be decoded, or a campaign without a model, is offered without a prediction."""
    collector, predict = Collector(root), None if random_only else _Predictor(Store(root))
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}.") from None
        yield path, collector.offer(content, predict(content) if predict else None)


class _Predictor:
    """The newest head of the workspace over its backbone."""

    def __init__(self, store: Store) -> None:
        self._params: Params = load(store.path("params.yaml"))
        self._head = head.read(store) if store.exists(head.DESCRIPTION) else None
        if self._head is not None and self._head.trained:
            pool, embed = self._params.pool, self._params.embed
            self._backbone = plugins.find("backbones", embed.backbone).load(pool.size, pool.mode, **embed.options)
            self._head.require(self._backbone.version)

    def __call__(self, content: bytes) -> Mapping[str, float] | None:
        pool = self._params.pool
        if self._head is None or not self._head.trained:
            return None
        try:
            image = decode(content, pool.size, pool.mode, pool.max_pixels).pixels
        except Refused:
            return None
        chances = self._head.probabilities(self._backbone.embed(image[None], 1))[0]
        if not np.isfinite(chances).all():
            raise GleanerError("the newest model gives numbers that are not finite; --random-only asks none.")
        return dict(zip(self._head.classes, np.clip(chances, 0.0, 1.0).tolist(), strict=True))
