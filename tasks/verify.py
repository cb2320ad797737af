"""`gleaner verify`: every invariant of a campaign, checked; what is broken is named.

Each function yields what it finds wrong, nothing when all is well. `deep` reads every cached byte of every tag again;
without it sizes and presence are compared. The names I1 … I9 are those of docs/invariants.md.

    verify(Path("demo"))   ->   [Violation("I4 a tag restores", "iter-0003: data/pool/…: cache object … is missing")]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tasks import committed, disclosure, pool, repository, verify_tags
from tasks.campaign import IDENTITY, LEDGER, utc_now
from tasks.digests import digests
from tasks.errors import BadInput, GleanerError
from tasks.features import pool_shard
from tasks.ledger import Damaged, Ledger, open_ledger, require_no_loss
from tasks.leftovers import stale_locks, unfinished
from tasks.lock import is_locked
from tasks.serving import FOLDER as SERVING
from tasks.store import Store, sha256
from tasks.tables import LABELS
from tasks.verify_ledger import CHECKS, Check

MANY = 20  # violations of one invariant that are listed; the rest is counted
#: what reading a damaged file can raise beside GleanerError (a damaged Parquet file: ValueError)
DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, Damaged)


@dataclass(frozen=True)
class Violation:
    """One broken invariant."""

    invariant: str
    what: str


def verify(root: Path, *, deep: bool = False) -> list[Violation]:
    """All violations found in a workspace. Reads only; does not need the lock. Raises BadInput where no campaign is."""
    store = Store(root)
    if not store.exists(IDENTITY):
        raise BadInput(f"{root.resolve()} is Gleaner's own code, not a campaign. `gleaner init DIR` makes a workspace.")
    if store.exists(LEDGER):
        repository.require_branch(root)  # the ledger is of the newest iteration, the files would be of an older one
    checks: list[tuple[str, Callable[[], Iterator[str]]]] = [
        ("the ledger is there", lambda: _lost(store)),
        ("I6 every file is accounted for", lambda: _ingest(store)),
        ("splits and groups", lambda: _splits(store)),
        ("I4 a tag restores", lambda: verify_tags.restorable(store, deep)),
        ("I4 what git holds of a tag", lambda: verify_tags.held_by_git(store)),
        ("I9 nothing half-written", lambda: _leftovers(store)),
        ("I3 annotators saw the bytes we know", lambda: _serving(store, deep)),
        ("I7 no secret in files", lambda: disclosure.secrets_in_files(store, deep)),
    ]
    found = [Violation(name, what) for name, check in checks for what in _guarded(check)]
    return found + (_with_ledger(store, deep) if store.exists(LEDGER) else [])


def _lost(store: Store) -> Iterator[str]:
    require_no_loss(store.path(LEDGER))
    yield from ()


def _guarded(check: Callable[[], Iterator[str]]) -> list[str]:
    found: list[str] = []
    try:
        for what in check():
            found.append(what)  # noqa: PERF402 - what was found before an error counts
    except GleanerError as error:
        found.append(str(error))
    except DAMAGE as error:
        found.append(f"cannot be checked, a file is damaged: {type(error).__name__}: {error}")
    return found[:MANY] + [f"… and {len(found) - MANY} more"] * (len(found) > MANY)


def _with_ledger(store: Store, deep: bool) -> list[Violation]:
    found: list[Violation] = []
    try:
        with open_ledger(store.path(LEDGER), utc_now, write=False) as ledger:
            checks: list[tuple[str, Check]] = [
                *CHECKS,
                ("I5 the data are those committed", partial(_as_committed, deep)),
            ]
            for name, check in checks:
                found += [Violation(name, what) for what in _guarded(partial(check, store, ledger))]
    except GleanerError as error:
        found.append(Violation("the ledger is sound", str(error)))
    return found


def _as_committed(deep: bool, store: Store, ledger: Ledger) -> Iterator[str]:
    if is_locked(store.root):
        return  # somebody is writing just now
    committed.require_history(store, ledger.latest())
    read = committed.read_again if deep else partial(digests, remember=False)
    yield from committed.differences(store, ledger.latest(), read)


def _ingest(store: Store) -> Iterator[str]:
    if not store.exists(pool.POOL):
        return
    manifest = pool.read_manifest(store)
    sightings = pool.read_sightings(store).to_pydict()
    items = set(manifest["item_id"].to_pylist())
    if len(items) != len(manifest):
        yield f"manifest.parquet: {len(manifest) - len(items)} items are there more than once"
    yield from _outcomes(sightings, items)
    rows = Counter(manifest["shard"].to_pylist())
    for shard, count in sorted(rows.items()):
        held = len(store.read_array(pool_shard(shard)))
        if held != count:
            yield f"{pool_shard(shard)} holds {held} images, the manifest says {count}"
    info = pool.read_info(store)
    if info is not None and info.items != len(manifest):
        yield f"{pool.POOL} counts {info.items} items, the manifest holds {len(manifest)}"


def _outcomes(sightings: dict[str, list[str]], items: set[str]) -> Iterator[str]:
    files = list(zip(*(sightings[name] for name in ("uri", "sha256", "outcome", "reason")), strict=True))
    if len({file[:2] for file in files}) != len(files):
        yield "sightings.parquet: a file with the same bytes is there more than once"
    unknown = {outcome for _, _, outcome, _ in files} - {"accepted", "duplicate", "quarantined"}
    if unknown:
        yield f"sightings.parquet: unknown outcomes {sorted(unknown)}"
    accepted = {digest for _, digest, outcome, _ in files if outcome == "accepted"}
    for item in sorted(accepted ^ items):
        yield f"item {item[:12]} is in {'the manifest' if item in items else 'the sightings'} only"
    for uri, digest, outcome, reason in files:
        if outcome != "accepted" and not reason:
            yield f"{uri}: {outcome}, and no reason is given"
        if outcome == "duplicate" and digest not in items:
            yield f"{uri}: a duplicate of item {digest[:12]}, which is not in the pool"


def _splits(store: Store) -> Iterator[str]:
    if not store.exists(pool.POOL):
        return
    manifest = pool.read_manifest(store).select(["item_id", "group", "split"]).to_pydict()
    split_of: dict[str, str] = {}
    for item, group, split in zip(*manifest.values(), strict=True):
        if split_of.setdefault(group, split) != split:
            yield f"group {group[:12]} straddles pool and holdout (item {item[:12]})"
    if store.exists(LABELS):
        splits = dict(zip(manifest["item_id"], manifest["split"], strict=True))
        labels = store.read_table(LABELS, ["item_id", "arm"]).to_pydict()
        for item, arm in zip(*labels.values(), strict=True):
            if (splits.get(item) == "holdout") != (arm == "holdout"):
                yield f"label of item {item[:12]}: arm {arm}, but its split is {splits.get(item)}"


def _leftovers(store: Store) -> Iterator[str]:
    if is_locked(store.root):
        return  # somebody is writing just now
    for path in unfinished(store.root):
        yield f"{path.relative_to(store.root)}: was never finished; the next start removes it"
    for path in stale_locks(store.root):
        yield f"{path.relative_to(store.root)}: a lock of a process that may be gone; the next tick clears it"


def _serving(store: Store, deep: bool) -> Iterator[str]:
    """Copies for annotators: their sizes, their bytes too for the newest thousand (`deep`: for all)."""
    copies = [path for path in store.path(SERVING).glob("*/*") if path.is_file() and not path.name.startswith(".")]
    if not copies:
        return
    manifest = pool.read_manifest(store).select(["item_id", "bytes"])
    sizes = dict(zip(manifest["item_id"].to_pylist(), manifest["bytes"].to_pylist(), strict=True))
    newest = np.argsort([-path.stat().st_mtime_ns for path in copies], kind="stable")[: None if deep else 1000]
    read = {copies[int(position)] for position in newest}
    for path in sorted(copies):
        item = path.name.partition(".")[0]
        if path.stat().st_size != sizes.get(item) or (path in read and sha256(path) != item):
            yield f"{path.relative_to(store.root)}: its bytes are not those of the item it is named after"
