"""What `gleaner verify` asks of the ledger: every event once, nothing asked twice, every closed iteration tagged.

Each check yields what it finds wrong. A fork carries what the other campaign asked before it; `forked_at` says until when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow.parquet as pq

from tasks import artefacts, pool, repository
from tasks.campaign import IDENTITY
from tasks.corrections import INSTANCE as CORRECTIONS
from tasks.ledger import IterationRow, Ledger, task_key
from tasks.store import Store

Check = Callable[[Store, Ledger], Iterator[str]]


def forked_at(store: Store) -> int | None:
    """The iteration that a fork began from, None in a campaign of its own."""
    origin = store.read_json(IDENTITY).get("forked_from")
    return None if origin is None else int(origin["iteration"])


def _sound(store: Store, ledger: Ledger) -> Iterator[str]:
    if ledger.get("campaign") != store.read_json(IDENTITY)["id"]:
        yield f"the ledger is of campaign {ledger.get('campaign')}, {IDENTITY} names another"
    yield from ledger.check()


def _every_event(store: Store, ledger: Ledger) -> Iterator[str]:
    columns, rows = ledger.rows("label_event")
    events = [dict(zip(columns, row, strict=True)) for row in rows]
    given = {int(event["seq"]) for event in events}
    for seq in sorted(set(range(1, ledger.events_given() + 1)) - given):
        yield f"label event {seq} is gone: numbers have no gaps"
    answered = {row[0] for row in ledger.rows("answer")[1]}
    refused = {row[0] for row in ledger.rows("quarantine")[1]}
    deleted = {int(event["seq"]) for event in events if event["deleted"]}
    for seq in sorted(given - answered - refused - deleted):
        yield f"label event {seq} is neither an answer nor in quarantine nor a deletion"
    for seq in sorted((answered & refused) | ((answered | refused) & deleted)):
        yield f"label event {seq} is more than one of an answer, in quarantine and a deletion"
    revisions: dict[tuple[str, str], list[int]] = {}
    for event in events:
        revisions.setdefault((event["instance"], event["annotation_id"]), []).append(event["revision"])
    for (instance, annotation), numbers in revisions.items():
        if numbers != list(range(len(numbers))):
            yield f"annotation {annotation} of {instance} has the revisions {numbers}"


def _never_twice(store: Store, ledger: Ledger) -> Iterator[str]:
    asked = ledger.asked()
    for item, count in Counter(a.item_id for a in asked).items():
        if count > 1:
            yield f"item {item[:12]} was selected {count} times"
    splits = _split_of(store)
    for a in asked if splits else ():
        if a.item_id not in splits:
            yield f"item {a.item_id[:12]} was asked about and is not in the pool"
        elif (splits[a.item_id] == "holdout") != (a.arm == "holdout"):
            yield f"item {a.item_id[:12]} of the {splits[a.item_id]} split was asked in arm {a.arm}"


def _answers_are_of_items(store: Store, ledger: Ledger) -> Iterator[str]:
    """Annotators answer what was asked; only a user's correction may be of another image, and that one is in the pool."""
    selected = {row[0] for row in ledger.rows("selection")[1]}
    columns, rows = ledger.rows("label_event")
    source = {row[columns.index("seq")]: row[columns.index("instance")] for row in rows}
    columns, rows = ledger.rows("answer")
    splits = _split_of(store)
    for row in rows:
        seq, item = row[columns.index("seq")], row[columns.index("item_id")]
        if item not in selected and source.get(seq) != CORRECTIONS:
            yield f"answer {seq} is to item {item[:12]}, which was never asked about"
        elif item not in selected and splits and item not in splits:
            yield f"correction {seq} is of item {item[:12]}, which is not in the pool"


def _split_of(store: Store) -> dict[str, str]:
    if not store.exists(pool.POOL):
        return {}
    table = pool.read_manifest(store).select(["item_id", "split"])
    return dict(zip(table["item_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def _own_tasks(store: Store, ledger: Ledger) -> Iterator[str]:
    campaign, inherited = ledger.get("campaign") or "", forked_at(store)
    selected = {row[0] for row in ledger.rows("selection")[1]}
    columns, rows = ledger.rows("outbox")
    keys = Counter(row[columns.index("key")] for row in rows)
    yield from (f"two tasks have the key {key}" for key, count in keys.items() if count > 1)
    for item in sorted(selected ^ {row[columns.index("item_id")] for row in rows}):
        yield f"item {item[:12]} is in {'the selection' if item in selected else 'the outbox'} only"
    for row in ledger.iterations():
        for task in ledger.batch(row.number):
            theirs = inherited is not None and row.number <= inherited
            if not theirs and task["key"] != task_key(campaign, row.number, task["item_id"]):
                yield f"task {task['key']} is not of iteration {row.number} of {campaign}"
            if row.state in ("exported", "closed") and task["task_id"] is None:
                yield f"task {task['key']} of iteration {row.number} was never confirmed by the labeling tool"


def _closed_is_tagged(store: Store, ledger: Ledger) -> Iterator[str]:
    closed = {repository.tag_name(row.number) for row in ledger.iterations() if row.state == "closed"}
    tagged = set(repository.tags(store.root))
    for name in sorted(closed - tagged):
        yield f"iteration {name} is closed in the ledger and has no tag"
    yield from _tags_hold(store, [row for row in ledger.iterations() if repository.tag_name(row.number) in tagged])
    numbers = [row.number for row in ledger.iterations()]
    if numbers != list(range(len(numbers))):
        yield f"iterations are not numbered without gaps: {numbers}"
    exported = {repository.tag_name(row.number) for row in ledger.iterations() if row.state == "exported"}
    for name in sorted(tagged - closed - exported):
        yield f"tag {name} belongs to no exported iteration of the ledger"


def _tags_hold(store: Store, rows: list[IterationRow]) -> Iterator[str]:
    """A tag that was moved holds other params, or other results, than the batch was computed with."""
    wanted = {
        f"{repository.tag_name(row.number)}:{name}": text
        for row in rows
        for name, text in (("params.yaml", row.params), ("dvc.lock", row.dvc_lock))
        if text is not None
    }
    found = repository.show_all(store.root, list(wanted))
    yield from (f"{name} is not what the ledger recorded" for name in wanted if found.get(name) != wanted[name])


def _snapshot_agrees(store: Store, ledger: Ledger) -> Iterator[str]:
    """What the newest snapshot says was asked and answered, the ledger still says."""
    if store.exists(artefacts.ARTEFACTS) and store.read_json(artefacts.ARTEFACTS)["campaign"] != ledger.get("campaign"):
        return  # a fork that has closed no iteration yet: the snapshot is the other campaign's
    for table in ("selection", "label_event", "answer"):
        path = store.path(f"data/ledger/{table}.parquet")
        if not path.exists():
            return
        old = pq.read_table(path)
        snapshot = set(zip(*[c.to_pylist() for c in old.columns], strict=True)) if old.num_rows else set()
        lost = snapshot - set(ledger.rows(table)[1])
        if lost:
            example = str(min(lost, key=str))[:120]
            yield f"{len(lost)} rows of {table} in the newest snapshot are not in the ledger, e.g. {example}"


CHECKS: tuple[tuple[str, Check], ...] = (
    ("the ledger is sound", _sound),
    ("I1 every label event once", _every_event),
    ("I2 nothing is asked twice", _never_twice),
    ("I1 every answer is to a question or a correction", _answers_are_of_items),
    ("I2 no two tasks with one key", _own_tasks),
    ("a closed iteration has its tag", _closed_is_tagged),
    ("the ledger holds what was tagged", _snapshot_agrees),
)
