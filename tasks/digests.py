"""SHA-256 and MD5 of a workspace's files. Each file is read once: again only when its size, time or inode changes.

digests(store, ["data/scores.parquet"])   ->   {"data/scores.parquet": Digest(size=…, sha256="…", md5="…")}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from tasks.store import Store

KNOWN = ".gleaner/digests.json"
BLOCK = 2**20


@dataclass(frozen=True)
class Digest:
    """What a file's bytes are. MD5 is DVC's name for them; SHA-256 is our proof."""

    size: int  # bytes
    sha256: str
    md5: str


def digests(store: Store, names: Iterable[str], *, remember: bool = True) -> dict[str, Digest]:
    """Digests of files named relative to the workspace. `remember` notes in the workspace what was read."""
    known = _read_known(store)
    before = dict(known)
    found: dict[str, Digest] = {}
    for name in names:
        status = store.path(name).stat()
        mark = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        if name not in known or known[name][0] != mark:
            known[name] = (mark, digest(store.path(name)))
        found[name] = known[name][1]
    if remember and known != before:
        kept = {name: [mark, *astuple(value)] for name, (mark, value) in known.items() if store.exists(name)}
        store.write_json(KNOWN, kept)
    return found


def digest(path: Path) -> Digest:
    """Read a file's bytes once for both."""
    ours, theirs, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with open(path, "rb") as handle:
        while block := handle.read(BLOCK):
            ours.update(block)
            theirs.update(block)
            size += len(block)
    return Digest(size, ours.hexdigest(), theirs.hexdigest())


def _read_known(store: Store) -> dict[str, tuple[str, Digest]]:
    try:
        known = json.loads(store.path(KNOWN).read_text(encoding="utf-8"))
        return {name: (mark, Digest(*value)) for name, (mark, *value) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
