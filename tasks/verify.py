"""`gleaner verify`: every invariant of a campaign, checked; what is broken is named.

Each function yields what it finds wrong, nothing when all is well. `deep` reads every cached byte of every tag again;
without it sizes and presence are compared. The names I1 … I9 are those of docs/invariants.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from tasks import artefacts, pool, repository, versions
from tasks.campaign import IDENTITY, LEDGER, utc_now
from tasks.errors import GleanerError
from tasks.ledger import Ledger, open_ledger, task_key
from tasks.serving import FOLDER as SERVING
from tasks.store import TEMPORARY, Store, sha256
from tasks.tables import LABELS


@dataclass(frozen=True)
class Violation:
    """One broken invariant."""

    invariant: str
    what: str


def verify(root: Path, *, deep: bool = False) -> list[Violation]:
    """All violations found in a workspace. Reads only; does not need the lock."""
    store = Store(root)
    checks: list[tuple[str, Callable[[], Iterator[str]]]] = [
        ("I6 every file is accounted for", lambda: _ingest(store)),
        ("splits and groups", lambda: _splits(store)),
        ("I4 a tag restores", lambda: _tags(store, deep)),
        ("I9 nothing half-written", lambda: _leftovers(store)),
        ("I3 annotators saw the bytes we know", lambda: _serving(store)),
    ]
    if store.exists(LEDGER):
        checks += [(name, lambda check=check: _with_ledger(store, check)) for name, check in LEDGER_CHECKS]
    return [Violation(name, what) for name, check in checks for what in _guarded(check)]


def _guarded(check: Callable[[], Iterator[str]]) -> list[str]:
    found: list[str] = []
    try:
        for what in check():
            found.append(what)  # noqa: PERF402 - what was found before an error counts
    except GleanerError as error:
        found.append(str(error))
    return found


def _ingest(store: Store) -> Iterator[str]:
    if not store.exists(pool.POOL):
        return
    manifest = pool.read_manifest(store)
    sightings = pool.read_sightings(store).to_pydict()
    outcomes = Counter(sightings["outcome"])
    unknown = set(outcomes) - {"accepted", "duplicate", "quarantined"}
    if unknown:
        yield f"sightings.parquet: unknown outcomes {sorted(unknown)}"
    accepted = {d for d, o in zip(sightings["sha256"], sightings["outcome"], strict=True) if o == "accepted"}
    items = set(manifest["item_id"].to_pylist())
    for item in sorted(accepted ^ items)[:5]:
        yield f"item {item[:12]} is in {'the manifest' if item in items else 'the sightings'} only"
    silent = sum(o != "accepted" and not r for o, r in zip(sightings["outcome"], sightings["reason"], strict=True))
    if silent:
        yield f"sightings.parquet: {silent} files were not accepted and no reason is given"
    rows = Counter(manifest["shard"].to_pylist())
    for shard, count in sorted(rows.items()):
        held = len(store.read_array(pool.shard_path(shard)))
        if held != count:
            yield f"{pool.shard_path(shard)} holds {held} images, the manifest says {count}"


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


def _tags(store: Store, deep: bool) -> Iterator[str]:
    unchanged: dict[str, artefacts.Entry] = {}
    for name in repository.tags(store.root):
        listed = artefacts.read_artefacts(
            repository.show(store.root, name, artefacts.ARTEFACTS), f"{name}:{artefacts.ARTEFACTS}"
        )
        files = listed["files"]
        if repository.tag_name(listed.get("iteration", -1)) != name:
            yield f"{name}: its list of artefacts is of iteration {listed.get('iteration')}"
        known = unchanged if deep else files
        for problem in artefacts.check_cache(files, versions.cached_files(store.root, name), known):
            yield f"{name}: {problem}"
        unchanged = files


def _leftovers(store: Store) -> Iterator[str]:
    for folder in ("data", "models"):
        for path in sorted(store.path(folder).rglob(f".*{TEMPORARY}")):
            yield f"{path.relative_to(store.root)}: a file that was never finished; the next start removes it"
    for name in (".git/index.lock", ".dvc/tmp/rwlock"):
        path = store.path(name)
        if path.exists() and (name == ".git/index.lock" or _held(path)):
            yield f"{name}: a lock of a process that may be gone; the next tick clears it"


def _held(rwlock: Path) -> bool:
    """Whether DVC's lock file names a reader or writer (an empty one stays behind after every command)."""
    try:
        return any(json.loads(rwlock.read_text(encoding="utf-8") or "{}").values())
    except ValueError:
        return True


def _serving(store: Store) -> Iterator[str]:
    for path in sorted(store.path(SERVING).glob("*/*")):
        if not path.name.startswith(".") and sha256(path) != path.name.split(".")[0]:
            yield f"{path.relative_to(store.root)}: its bytes are not those of the item it is named after"


def _with_ledger(store: Store, check: Callable[[Store, Ledger], Iterator[str]]) -> Iterator[str]:
    with open_ledger(store.path(LEDGER), utc_now) as ledger:
        yield from check(store, ledger)


def _database(store: Store, ledger: Ledger) -> Iterator[str]:
    yield from ledger.check()
    if ledger.get("campaign") != store.read_json(IDENTITY)["id"]:
        yield f"the ledger is of campaign {ledger.get('campaign')}, {IDENTITY} names another"


def _never_twice(store: Store, ledger: Ledger) -> Iterator[str]:
    asked = ledger.asked()
    for item, count in Counter(a.item_id for a in asked).items():
        if count > 1:
            yield f"item {item[:12]} was selected {count} times"
    splits = _split_of(store)
    for item in asked:
        if item.item_id not in splits:
            yield f"item {item.item_id[:12]} was asked about and is not in the pool"
        elif (splits[item.item_id] == "holdout") != (item.arm == "holdout"):
            yield f"item {item.item_id[:12]} of the {splits[item.item_id]} split was asked in arm {item.arm}"
    campaign = ledger.get("campaign") or ""
    for row in ledger.iterations():
        for task in ledger.batch(row.number):
            if task["key"] != task_key(campaign, row.number, task["item_id"]) and not _forked(store):
                yield f"task {task['key']} is not of iteration {row.number} of {campaign}"


def _forked(store: Store) -> bool:
    return store.read_json(IDENTITY).get("forked_from") is not None


def _split_of(store: Store) -> dict[str, str]:
    if not store.exists(pool.POOL):
        return {}
    table = pool.read_manifest(store).select(["item_id", "split"])
    return dict(zip(table["item_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def _every_event(store: Store, ledger: Ledger) -> Iterator[str]:
    columns, rows = ledger.rows("label_event")
    answered = {row[0] for row in ledger.rows("answer")[1]}
    refused = {row[0] for row in ledger.rows("quarantine")[1]}
    for seq in sorted({row[0] for row in rows} - answered - refused):
        yield f"label event {seq} is neither an answer nor in quarantine"
    for seq in sorted(answered & refused):
        yield f"label event {seq} is both an answer and in quarantine"
    revisions = Counter((row[columns.index("instance")], row[columns.index("annotation_id")]) for row in rows)
    newest = {
        (row[columns.index("instance")], row[columns.index("annotation_id")]): row[columns.index("revision")]
        for row in rows
    }
    for name, count in revisions.items():
        if newest[name] != count - 1:
            yield f"annotation {name[1]} of {name[0]} has {count} revisions, the newest is number {newest[name]}"


def _closed_is_tagged(store: Store, ledger: Ledger) -> Iterator[str]:
    closed = {repository.tag_name(row.number) for row in ledger.iterations() if row.state == "closed"}
    tagged = set(repository.tags(store.root))
    for name in sorted(closed - tagged):
        yield f"iteration {name} is closed in the ledger and has no tag"
    numbers = [row.number for row in ledger.iterations()]
    if numbers != list(range(len(numbers))):
        yield f"iterations are not numbered without gaps: {numbers}"
    pending = {repository.tag_name(row.number) for row in ledger.iterations() if row.state != "closed"}
    for name in sorted(tagged - closed - pending):
        yield f"tag {name} belongs to no iteration of the ledger"


def _snapshot_agrees(store: Store, ledger: Ledger) -> Iterator[str]:
    """What the newest snapshot says was asked and answered, the ledger still says."""
    for table in ("selection", "label_event", "answer"):
        path = store.path(f"data/ledger/{table}.parquet")
        if not path.exists():
            return
        old = pq.read_table(path)
        snapshot = set(zip(*[c.to_pylist() for c in old.columns], strict=True)) if old.num_rows else set()
        lost = snapshot - set(ledger.rows(table)[1])
        if lost:
            yield f"{len(lost)} rows of {table} in the newest snapshot are not in the ledger, e.g. {str(sorted(lost, key=str)[0])[:120]}"


LEDGER_CHECKS: tuple[tuple[str, Callable[[Store, Ledger], Iterator[str]]], ...] = (
    ("the ledger is sound", _database),
    ("I1 every label event once", _every_event),
    ("I2 nothing is asked twice", _never_twice),
    ("a closed iteration has its tag", _closed_is_tagged),
    ("the ledger holds what was tagged", _snapshot_agrees),
)
