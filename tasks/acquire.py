"""Calling a strategy with the evidence that its entry point names, and nothing computed that it does not name.

strategy = acquire.strategy("margin", {})
acquire.ask(strategy, known, k=20, rng)     # margin names `probabilities`: (N,) utilities
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks import plugins
from tasks.errors import BadInput, GleanerError
from tasks.head import Head
from tasks.store import Array, Store
from tasks.tables import ASKED, CORRECTION, LABELS

DRAWS = 20  # dropout passes; a strategy sets its own by an option `draws`
#: evidence for which the candidates' features are read
FROM_FEATURES = frozenset({"features", "embeddings", "samples"})
FROM_LABELED = frozenset({"labeled_features", "labeled_embeddings"})


@dataclass(frozen=True)
class Strategy:
    """A strategy as params.yaml names it."""

    name: str
    function: Callable[..., Array]
    chooses: bool  # `batch`: gives positions; else `utility`: gives a number an item
    evidence: tuple[str, ...]
    options: dict[str, Any]
    draws: int

    @property
    def reads_features(self) -> bool:
        """Whether the candidates' features are needed."""
        return not FROM_FEATURES.isdisjoint(self.evidence)

    @property
    def reads_labeled(self) -> bool:
        """Whether the features of the items asked before are needed."""
        return not FROM_LABELED.isdisjoint(self.evidence)


@dataclass(frozen=True)
class Known:
    """What is known of N candidates."""

    count: int
    head: Head
    probabilities: Array  # (N, C), calibrated
    features: Array  # (N, D), or (0, D) when the strategy reads none
    labeled: Array  # (M, D) features of items asked before


def strategy(name: str, options: dict[str, Any]) -> Strategy:
    """Find a strategy. Raises BadInput for an unknown name."""
    entry = plugins.entry_point("strategies", name)
    function = getattr(plugins.find("strategies", name), entry.function)
    draws = {**entry.options, **options}.get("draws", DRAWS)
    return Strategy(name, function, entry.function == "batch", entry.evidence, options, draws)


def covered(store: Store, manifest: pa.Table) -> Array:
    """(N,) which items of the manifest a training label or an open question covers: `labeled_features` are theirs.

    An open question counts (its neighbours need not be asked too), a skipped one and the holdout do not.
    """
    asked = store.read_table(ASKED, ["item_id", "arm", "state"])
    known = pc.and_(pc.not_equal(asked["arm"], "holdout"), pc.not_equal(asked["state"], "skipped"))
    labels = store.read_table(LABELS, ["item_id", "arm"])
    corrected = labels.filter(pc.equal(labels["arm"], CORRECTION))
    chunks = [*asked.filter(known)["item_id"].chunks, *corrected["item_id"].chunks]
    result: Array = pc.is_in(manifest["item_id"], pa.chunked_array(chunks, pa.string()).combine_chunks()).to_numpy()
    return result


def ask(strategy: Strategy, known: Known, k: int, rng: np.random.Generator, dropout: np.random.Generator) -> Array:
    """Utilities (N,) or positions (k,) from a strategy. `dropout` draws the masks of `samples`.

    Raises GleanerError that names the strategy when it refuses its evidence.
    """
    values = [_evidence(name, strategy, known, k, rng, dropout) for name in strategy.evidence]
    try:
        return np.asarray(strategy.function(*values, **strategy.options))
    except ValueError as error:
        raise GleanerError(f"strategy {strategy.name!r} refused its evidence: {error}") from error


def _evidence(
    name: str, strategy: Strategy, known: Known, k: int, rng: np.random.Generator, dropout: np.random.Generator
) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "probabilities": lambda: known.probabilities,
        "features": lambda: known.features,
        "embeddings": lambda: known.head.embeddings(known.features),
        "samples": lambda: known.head.samples(known.features, strategy.draws, dropout),
        "labeled_features": lambda: known.labeled,
        "labeled_embeddings": lambda: known.head.embeddings(known.labeled),
        "count": lambda: known.count,
        "k": lambda: k,
        "rng": lambda: rng,
    }
    if name not in makers:
        raise BadInput(
            f"tasks/strategies/{strategy.name}.py asks for {name!r}, which is no evidence. "
            f"Allowed: {', '.join(makers)}."
        )
    return makers[name]()
