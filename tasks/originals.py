"""The original bytes of items, from the source that each ingest read (a campaign may have read several).

originals = Originals(store, params.source)
originals.read("cat/001.jpg", ingest=2)     # from where ingest 2 found it, else from where params.yaml points now
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.campaign import IDENTITY
from tasks.errors import BadInput
from tasks.images import Refused
from tasks.params_sections import Source as SourceParams
from tasks.sources import Source, open_source
from tasks.store import Store


def known_sources(store: Store) -> dict[str, dict[str, Any]]:
    """Number of an ingest -> the section `source` that it read."""
    sources: dict[str, dict[str, Any]] = store.read_json(IDENTITY).get("sources", {}) if store.exists(IDENTITY) else {}
    return sources


def described(source: SourceParams) -> dict[str, Any]:
    """What tells one source from another; whether it is watched does not."""
    return source.model_dump(exclude={"watch"})


def remember_source(store: Store, ingest: int, source: SourceParams) -> None:
    """Write down what an ingest read; the first note stays, for a later run that finds nothing new has no number."""
    identity, sources = store.read_json(IDENTITY), known_sources(store)
    if ingest and str(ingest) not in sources:
        store.write_json(IDENTITY, {**identity, "sources": {**sources, str(ingest): described(source)}})


class Originals:
    """Sources, opened when first asked for."""

    def __init__(self, store: Store, now: SourceParams) -> None:
        self._root: Path = store.root
        self._now = now
        self._then = known_sources(store)
        self._opened: dict[str, Source] = {}

    def read(self, uri: str, ingest: int) -> bytes:
        """The bytes, also of a folder that moved. Raises OSError, Refused or BadInput when they are gone."""
        then = self._then.get(str(ingest))
        try:
            return self._open(SourceParams(**then) if then else self._now).read(uri)
        except (OSError, Refused, BadInput):
            return self._open(self._now).read(uri)

    def _open(self, source: SourceParams) -> Source:
        key = json.dumps(described(source), sort_keys=True)
        if key not in self._opened:
            self._opened[key] = open_source(self._root, source)
        return self._opened[key]
