"""The ledger under every order of events: each once, a change is a revision, states go forward, views stay frozen."""

from __future__ import annotations

import json
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tasks.errors import GleanerError
from tasks.labeling import RawEvent, Receipt, read_answer
from tasks.ledger import TABLES, Asked, Frozen, Ledger, open_ledger, task_key
from tasks.resolution import Policy
from tasks.snapshot import rebuild, write_snapshot
from tasks.store import Store

CAMPAIGN = "deer-1"
TOOL = "tool:1"
CLASSES = ("deer", "fox")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # hundreds of commits: no disk needed
FROZEN = Frozen("0" * 64, "params", "lock", "abc")


def clock() -> str:
    return "2026-01-01T00:00:00+00:00"


def row(item: str, rank: int, arm: str = "active") -> dict[str, Any]:
    return {
        "item_id": item, "rank": rank, "arm": arm, "utility": 0.5, "inclusion": 0.0, "predicted": 0, "confidence": 0.9,
    }  # fmt: skip


def event(item: str, label: str = "deer", annotation: str | None = None, iteration: int = 0) -> RawEvent:
    kind = "skip" if label == "" else "label"
    return RawEvent(annotation or item, {"key": task_key(CAMPAIGN, iteration, item), "kind": kind, "label": label})


def export(ledger: Ledger, number: int, items: list[str]) -> None:
    """Take an iteration from open to closed."""
    ledger.open_iteration("abc")
    ledger.select(number, CAMPAIGN, [row(item, rank) for rank, item in enumerate(items)], FROZEN)
    ledger.sent(number, TOOL, [Receipt(key, f"t{i}") for i, key in enumerate(ledger.unsent(number))])
    ledger.close(number, {"asked": len(items)})


def interpret(ledger: Ledger, classes: tuple[str, ...] = CLASSES) -> int:
    return ledger.interpret_events(read_answer, classes)


def contents(ledger: Ledger) -> dict[str, Any]:
    return {name: ledger.rows(name) for name in TABLES}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "ledger.sqlite", clock, create=True) as opened:
        yield opened


@pytest.fixture
def asked(ledger: Ledger) -> Ledger:
    """Items a to e were asked about."""
    export(ledger, 0, list("abcde"))
    return ledger


# events ---------------------------------------------------------------------------------------------------


def test_an_event_is_stored_once_however_often_it_is_pulled(asked: Ledger) -> None:
    assert asked.store_events(TOOL, [event("a"), event("b"), event("a")]) == 2
    assert asked.store_events(TOOL, [event("b"), event("a")]) == 0
    assert asked.last_event() == 2


def test_the_same_annotation_id_of_another_server_is_another_event(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a")])
    assert asked.store_events("tool:2", [event("a")]) == 1


def test_the_order_of_keys_in_a_payload_is_no_change(asked: Ledger) -> None:
    asked.store_events(TOOL, [RawEvent("1", {"key": "k", "label": "deer"})])
    assert asked.store_events(TOOL, [RawEvent("1", {"label": "deer", "key": "k"})]) == 0


def test_a_change_there_and_back_is_three_revisions(asked: Ledger) -> None:
    for label in ("deer", "fox", "deer"):
        assert asked.store_events(TOOL, [event("a", label)]) == 1
    columns, rows = asked.rows("label_event")
    assert [r[columns.index("revision")] for r in rows] == [0, 1, 2]
    interpret(asked)
    assert asked.asked()[0].label == "deer"
    assert asked.asked()[0].event == 3


def test_the_newest_answer_counts_and_a_skip_takes_a_label_back(asked: Ledger) -> None:
    for label, state in (("deer", "labeled"), ("", "skipped"), ("fox", "labeled")):
        asked.store_events(TOOL, [event("a", label)])
        interpret(asked)
        assert (asked.asked()[0].state, asked.asked()[0].label) == (state, label)
    assert [item.state for item in asked.asked()[1:]] == ["pending"] * 4


def test_a_pull_that_breaks_off_stores_nothing(asked: Ledger) -> None:
    def broken() -> Iterator[RawEvent]:
        yield event("a")
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asked.store_events(TOOL, broken())
    assert asked.last_event() == 0
    assert asked.store_events(TOOL, [event("a")]) == 1


# quarantine -----------------------------------------------------------------------------------------------


def test_an_unknown_class_waits_in_quarantine_until_it_is_known(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a", "lynx")])
    assert interpret(asked) == 0
    (waiting,) = asked.quarantined()
    assert "unknown class 'lynx'; allowed: deer, fox" in waiting["reason"]
    assert asked.asked()[0].state == "pending"
    assert interpret(asked, (*CLASSES, "lynx")) == 1
    assert asked.quarantined() == []
    assert asked.asked()[0].label == "lynx"
    assert interpret(asked, (*CLASSES, "lynx")) == 0, "replayed once"


def test_an_unknown_key_waits_in_quarantine_until_it_is_asked(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("z", iteration=1)])
    assert interpret(asked) == 0
    assert "unknown task key 'deer-1:1:z'" in asked.quarantined()[0]["reason"]
    export(asked, 1, ["z"])
    assert interpret(asked) == 1
    assert asked.quarantined() == []


def test_an_old_event_that_becomes_known_does_not_overrule_a_newer_one(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a", "lynx")])
    asked.store_events(TOOL, [event("a", "deer")])
    interpret(asked)
    interpret(asked, (*CLASSES, "lynx"))
    assert asked.asked()[0].label == "deer"


def test_every_event_is_either_an_answer_or_in_quarantine(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a"), event("b", "lynx"), RawEvent("x", {}), RawEvent("y", {"error": "broken"})])
    interpret(asked)
    answers = {r[0] for r in asked.rows("answer")[1]}
    waiting = {r[0] for r in asked.rows("quarantine")[1]}
    assert answers == {1}
    assert waiting == {2, 3, 4}


# selection and states -------------------------------------------------------------------------------------


def test_an_item_is_never_selected_twice(asked: Ledger) -> None:
    asked.open_iteration("abc")
    before = contents(asked)
    with pytest.raises(Exception, match="UNIQUE"):
        asked.select(1, CAMPAIGN, [row("z", 0), row("a", 1)], FROZEN)
    assert contents(asked) == before, "the batch goes in whole or not at all"


def test_a_repeated_item_is_told_to_a_person_as_one_message(tmp_path: Path) -> None:
    with (
        pytest.raises(GleanerError, match="breaks an invariant"),
        open_ledger(tmp_path / "l", clock, create=True) as made,
    ):
        export(made, 0, ["a", "a"])


STEPS: dict[str, Any] = {
    "open": lambda ledger: ledger.open_iteration("abc"),
    "select": lambda ledger: ledger.select(0, CAMPAIGN, [row("a", 0), row("b", 1)], FROZEN),
    "send": lambda ledger: ledger.sent(0, TOOL, [Receipt(task_key(CAMPAIGN, 0, i), i) for i in "ab"]),
    "close": lambda ledger: ledger.close(0, {}),
}


@pytest.mark.parametrize("done", range(1, 5))
@pytest.mark.parametrize("wrong", sorted(STEPS))
def test_an_iteration_only_goes_forward_one_step_at_a_time(ledger: Ledger, done: int, wrong: str) -> None:
    order = list(STEPS)
    for name in order[:done]:
        STEPS[name](ledger)
    if order.index(wrong) == done or (wrong == "open" and done == 4):
        STEPS[wrong](ledger)
        return
    before = contents(ledger)
    with pytest.raises((GleanerError, Exception), match=r"cannot go from|is not closed yet|UNIQUE"):
        STEPS[wrong](ledger)
    assert contents(ledger) == before


def test_an_iteration_is_exported_when_every_task_has_its_receipt(ledger: Ledger) -> None:
    STEPS["open"](ledger)
    STEPS["select"](ledger)
    keys = ledger.unsent(0)
    assert keys == [task_key(CAMPAIGN, 0, "a"), task_key(CAMPAIGN, 0, "b")]
    ledger.sent(0, TOOL, [Receipt(keys[1], "t2")])
    assert ledger.unsent(0) == keys[:1]
    assert ledger.iterations()[0].state == "selected"
    ledger.sent(0, TOOL, [Receipt(keys[0], "t1")])
    assert ledger.iterations()[0].state == "exported"


def test_an_empty_batch_can_be_closed(ledger: Ledger) -> None:
    export(ledger, 0, [])
    assert ledger.iterations()[0].state == "closed"


# frozen views ---------------------------------------------------------------------------------------------


def test_what_was_known_at_an_event_never_changes_afterwards(asked: Ledger) -> None:
    views: dict[int, list[Asked]] = {}
    for label, item in [("deer", "a"), ("fox", "b"), ("fox", "a"), ("", "b"), ("deer", "c"), ("deer", "a")]:
        asked.store_events(TOOL, [event(item, label)])
        interpret(asked)
        views[asked.last_event()] = asked.asked()
        assert {seq: asked.asked(event_seq=seq) for seq in views} == views


def test_clocks_that_jump_change_nothing(tmp_path: Path) -> None:
    times = iter(f"{year}-01-01T00:00:00+00:00" for year in [*range(2030, 1990, -1)])
    with open_ledger(tmp_path / "ledger.sqlite", lambda: next(times), create=True) as ledger:
        export(ledger, 0, ["a"])
        for label in ("deer", "fox"):
            ledger.store_events(TOOL, [event("a", label)])
            interpret(ledger)
        assert ledger.asked()[0].label == "fox"


# snapshots ------------------------------------------------------------------------------------------------

STRANGE = {
    "nul": "a\x00b", "surrogate": "\ud800", "pair": "\ud83d\ude00", "formula": "=cmd|' /C calc'!A0", "script": "<script>alert(1)</script>",
    "right to left": "\u202etxt.exe", "long": "x" * 2**20, "line ends": "a\r\nb\u2028c", "quote": "'; DROP TABLE answer; --", "empty": "",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(STRANGE))
def test_strange_text_survives_everywhere(tmp_path: Path, name: str) -> None:
    text, store = STRANGE[name], Store(tmp_path)
    with open_ledger(tmp_path / "ledger.sqlite", clock, create=True) as ledger:
        export(ledger, 0, ["a", "b"])
        key = task_key(CAMPAIGN, 0, "a")
        pulled = [
            RawEvent("1", {"key": key, "label": "deer", "annotator": text, "comment": text}),
            RawEvent(f"annotation {text}", {"key": key, "label": text}),
            RawEvent("3", {"error": text, text: [text]}),
            RawEvent("4", {"key": text, "label": "deer"}),
        ]
        assert ledger.store_events(TOOL, pulled) == 4
        assert ledger.store_events(TOOL, pulled) == 0, "the same text is no change"
        assert interpret(ledger) == 1
        columns, rows = ledger.rows("label_event")
        kept = json.loads(rows[0][columns.index("payload")])
        assert kept["comment"].encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")
        write_snapshot(store, ledger)
        before = contents(ledger)
    rebuild(store, tmp_path / "again.sqlite", clock, lambda made: None)
    with open_ledger(tmp_path / "again.sqlite", clock) as again:
        assert contents(again) == before
        assert again.store_events(TOOL, pulled) == 0, "a rebuilt ledger knows what it has seen"


def test_a_class_may_have_any_name(asked: Ledger) -> None:
    for name in ("=cmd", "\u202edeer", "<b>", "x" * 2**20):
        asked.store_events(TOOL, [event("a", name)])
        interpret(asked, (*CLASSES, name))
        assert asked.asked()[0].label == name


def test_a_payload_with_nan_is_kept_and_quarantined(asked: Ledger) -> None:
    payload = {"key": task_key(CAMPAIGN, 0, "a"), "label": "deer", "seconds": float("nan")}
    assert asked.store_events(TOOL, [RawEvent("1", payload)]) == 1
    assert asked.store_events(TOOL, [RawEvent("1", payload)]) == 0
    assert interpret(asked) == 0
    assert "seconds" in asked.quarantined()[0]["reason"]


def test_a_snapshot_is_the_same_bytes_for_the_same_rows(asked: Ledger, tmp_path: Path) -> None:
    asked.store_events(TOOL, [event("a"), event("b", "lynx")])
    interpret(asked)
    for name in ("one", "two"):
        write_snapshot(Store(tmp_path / name), asked)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n / "data/ledger").iterdir()} for n in ("one", "two"))
    assert one == two
    assert set(one) == {f"{name}.parquet" for name in TABLES}


def test_events_after_a_rebuild_get_new_numbers(asked: Ledger, tmp_path: Path) -> None:
    asked.store_events(TOOL, [event("a"), event("b")])
    write_snapshot(Store(tmp_path), asked)
    rebuild(Store(tmp_path), tmp_path / "again.sqlite", clock, lambda made: None)
    with open_ledger(tmp_path / "again.sqlite", clock) as again:
        again.store_events(TOOL, [event("c")])
        assert again.last_event() == 3


def test_a_fork_keeps_what_was_answered_and_forgets_what_was_not(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a"), event("b", "")])
    interpret(asked)
    asked.forget_unanswered()
    assert [(i.item_id, i.state) for i in asked.asked()] == [("a", "labeled"), ("b", "skipped")]
    assert asked.check() == []
    export(asked, 1, ["c", "d"])


# damage ---------------------------------------------------------------------------------------------------


def test_a_missing_damaged_or_newer_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(GleanerError, match="read-only"), open_ledger(path, clock):
        pass
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(GleanerError, match=r"damaged .*ledger\.sqlite\.backup"), open_ledger(path, clock):
        pass
    path.unlink()
    with open_ledger(path, clock, create=True) as made:
        made._db.execute("PRAGMA user_version = 99")
    with pytest.raises(GleanerError, match="has version 99"), open_ledger(path, clock):
        pass


def test_a_backup_is_a_whole_ledger(asked: Ledger, tmp_path: Path) -> None:
    asked.store_events(TOOL, [event("a")])
    asked.backup(tmp_path / "copy.sqlite")
    with open_ledger(tmp_path / "copy.sqlite", clock) as copy:
        assert contents(copy) == contents(asked)


# several people, deletions, other servers ------------------------------------------------------------------


def test_a_deleted_annotation_no_longer_counts_and_its_bytes_are_kept(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a"), event("a", "fox", annotation="second")])
    interpret(asked)
    assert asked.asked()[0].label == "fox"
    gone = RawEvent("second", {"deleted": "annotation 2 is not in task 1"}, deleted=True)
    assert asked.store_events(TOOL, [gone]) == 1
    assert asked.store_events(TOOL, [gone]) == 0
    assert interpret(asked) == 0
    assert asked.asked()[0].label == "deer"
    assert [e.annotation_id for e in asked.live(TOOL)] == ["a"]
    assert "fox" in asked.rows("label_event")[1][1][asked.rows("label_event")[0].index("payload")]


def test_an_annotation_that_comes_back_counts_again(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a"), RawEvent("a", {"deleted": "gone"}, deleted=True), event("a")])
    interpret(asked)
    assert asked.asked()[0].state == "labeled"
    assert [e.annotation_id for e in asked.live(TOOL)] == ["a"]


def test_the_only_answer_deleted_leaves_the_item_waiting(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a")])
    interpret(asked)
    before = asked.last_event()
    asked.store_events(TOOL, [RawEvent("a", {"deleted": "gone"}, deleted=True)])
    assert asked.asked()[0].state == "pending"
    assert asked.asked(event_seq=before)[0].state == "labeled", "as of then it had a label"


def test_live_annotations_are_those_of_the_tool_in_their_newest_revision(asked: Ledger) -> None:
    asked.store_events(TOOL, [event("a"), event("a", "fox"), event("b", "lynx")])
    asked.store_events("tool:2", [event("c")])
    interpret(asked)
    assert [(e.annotation_id, e.payload["label"]) for e in asked.live(TOOL)] == [("a", "fox"), ("b", "lynx")]


def test_a_page_and_its_cursor_are_stored_together(asked: Ledger) -> None:
    def broken() -> Iterator[RawEvent]:
        yield event("a")
        raise RuntimeError("the tool went away")

    asked.store_events(TOOL, [], "page 1")
    with pytest.raises(RuntimeError):
        asked.store_events(TOOL, broken(), "page 2")
    assert (asked.cursor(TOOL), asked.last_event()) == ("page 1", 0)
    asked.store_events(TOOL, [event("a")], "page 2")
    assert (asked.cursor(TOOL), asked.cursor("tool:2")) == ("page 2", "")


def test_ground_truth_lead_time_and_acceptance_are_kept(asked: Ledger) -> None:
    said = {"key": task_key(CAMPAIGN, 0, "a"), "label": "deer", "annotator": "ann", "seconds": 4.5}
    asked.store_events(TOOL, [RawEvent("1", {**said, "accepted": True}), event("a", "fox", annotation="2")])
    asked.store_events(TOOL, [RawEvent("3", {**said, "annotator": "lead", "label": "fox", "ground_truth": True})])
    asked.store_events(TOOL, [event("a", "deer", annotation="4")])
    interpret(asked)
    assert [(c.vote.annotator, c.vote.truth, c.seconds, c.accepted) for c in asked.cast()] == [
        ("ann", False, 4.5, True), ("", False, None, None), ("lead", True, 4.5, None), ("", False, None, None),
    ]  # fmt: skip
    assert asked.asked()[0].label == "fox"


def test_votes_are_resolved_by_the_policy_given(asked: Ledger) -> None:
    for number, (who, label) in enumerate([("ann", "deer"), ("bob", "fox")]):
        payload = {"key": task_key(CAMPAIGN, 0, "a"), "label": label, "annotator": who}
        asked.store_events(TOOL, [RawEvent(str(number), payload)])
    interpret(asked)
    found = {p.resolution: asked.asked(p)[0] for p in (Policy("first"), Policy("latest"), Policy("majority", 2, 2))}
    assert {name: a.state + a.label for name, a in found.items()} == {
        "first": "labeleddeer", "latest": "labeledfox", "majority": "disputed",
    }  # fmt: skip


def test_the_tool_that_holds_the_tasks_is_known_until_it_is_given_up(asked: Ledger) -> None:
    assert asked.instance() == TOOL
    asked.send_elsewhere(0, "the server was lost")
    assert asked.instance() == ""
    assert asked.rows("decision")[1][-1][1:5] == ("resend", 0, TOOL, "the server was lost")
    asked.sent_again("tool:2", [Receipt(task_key(CAMPAIGN, 0, "a"), "t9")])
    assert asked.instance() == "tool:2"


def test_a_batch_is_closed_early_with_the_reason(asked: Ledger) -> None:
    assert asked.decided("close", 0) is None
    asked.decide("close", 0, "batch", "ann is ill")
    assert asked.decided("close", 0) == "ann is ill"
    assert asked.decided("close", 1) is None
    assert asked.decided("deletions", 0) is None


def test_a_ledger_of_version_1_is_migrated_with_all_it_holds(asked: Ledger, tmp_path: Path) -> None:
    asked.store_events(TOOL, [event("a"), event("b", "lynx")])
    interpret(asked)
    asked.decide("accept", 0, "score_gap", "known")
    now = contents(asked)
    old = tmp_path / "old.sqlite"
    with sqlite3.connect(old) as db:
        db.executescript(VERSION_1)
        for name, (columns, rows) in now.items():
            kept = [c for c in columns if c not in ("deleted", "truth", "accepted")]
            values = [[r[columns.index(c)] for c in kept] for r in rows if (name, r[0]) != ("meta", "instance")]
            db.executemany(f"INSERT INTO {name} ({','.join(kept)}) VALUES ({','.join('?' * len(kept))})", values)
    with pytest.raises(GleanerError, match="has version 1.*run a tick"), open_ledger(old, clock, write=False):
        pass
    with open_ledger(old, clock) as migrated:
        assert contents(migrated) == now
        migrated.decide("resend", 0, "x", "y")
        assert migrated.check() == []


VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE iteration (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL CHECK (state IN ('open','selected','exported','closed')),
    event_seq INTEGER NOT NULL, base_commit TEXT NOT NULL, opened_at TEXT NOT NULL,
    params TEXT, dvc_lock TEXT, selection_sha256 TEXT, outcome TEXT, closed_at TEXT
) STRICT;
CREATE TABLE selection (
    item_id TEXT PRIMARY KEY, iteration INTEGER NOT NULL REFERENCES iteration(number), rank INTEGER NOT NULL,
    arm TEXT NOT NULL CHECK (arm IN ('seed','active','control','holdout')), utility REAL, inclusion REAL NOT NULL,
    predicted INTEGER NOT NULL, confidence REAL, UNIQUE (iteration, rank)
) STRICT;
CREATE TABLE outbox (
    key TEXT PRIMARY KEY, item_id TEXT NOT NULL UNIQUE REFERENCES selection(item_id),
    instance TEXT, task_id TEXT, sent_at TEXT
) STRICT;
CREATE TABLE label_event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, instance TEXT NOT NULL, annotation_id TEXT NOT NULL,
    revision INTEGER NOT NULL, payload TEXT NOT NULL, payload_sha256 TEXT NOT NULL, received_at TEXT NOT NULL,
    UNIQUE (instance, annotation_id, revision)
) STRICT;
CREATE TABLE answer (
    seq INTEGER PRIMARY KEY REFERENCES label_event(seq), item_id TEXT NOT NULL REFERENCES selection(item_id),
    kind TEXT NOT NULL CHECK (kind IN ('label','skip')), label TEXT NOT NULL, annotator TEXT NOT NULL, seconds REAL
) STRICT;
CREATE INDEX answer_item ON answer (item_id, seq);
CREATE TABLE quarantine (seq INTEGER PRIMARY KEY REFERENCES label_event(seq), reason TEXT NOT NULL) STRICT;
CREATE TABLE decision (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL CHECK (kind IN ('stop','resume','accept')),
    iteration INTEGER NOT NULL, subject TEXT NOT NULL, reason TEXT NOT NULL, decided_at TEXT NOT NULL
) STRICT;
PRAGMA user_version = 1;
"""


# any order at all -----------------------------------------------------------------------------------------

PULLS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["deer", "fox", "lynx", ""])), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=PULLS, seed=st.integers(0, 2**16))
def test_repeated_shuffled_overlapping_pulls_change_nothing(history: list[tuple[str, str]], seed: int) -> None:
    """A tool tells its newest answer to each task; telling it again, in any order and in any pieces, adds nothing."""
    rng = random.Random(seed)
    newest: dict[str, RawEvent] = {}
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
        open_ledger(Path(folder) / "l", clock, create=True) as ledger,
    ):
        export(ledger, 0, list("abcde"))
        changes = 0
        for item, label in history:
            told = event(item, label)
            changes += newest.get(item) != told
            newest[item] = told
            ledger.store_events(TOOL, newest.values())
        interpret(ledger)
        before = contents(ledger)
        assert ledger.last_event() == changes, "as many events as changes"
        for _ in range(3):
            page = rng.choices(list(newest.values()), k=len(newest) * 2) if newest else []
            assert ledger.store_events(TOOL, page) == 0
            interpret(ledger)
        assert contents(ledger) == before


class Campaign(RuleBasedStateMachine):
    """Annotators, ticks, new classes, crashes and snapshots in any order, beside a model of plain dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.classes: tuple[str, ...] = CLASSES
        self.items: list[tuple[str, int]] = []  # (item, iteration) asked about
        self.payloads: dict[str, list[str]] = {}  # annotation -> labels, one a revision
        self.views: dict[int, dict[str, str]] = {}  # event -> states of the items asked about then
        self.numbers = count()

    @initialize()
    def create(self) -> None:
        with open_ledger(self.path, clock, create=True) as ledger:
            export(ledger, 0, [])
        self.iterations = 1

    def open(self) -> Any:
        return open_ledger(self.path, clock)

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(size=st.integers(0, 3))
    def ask(self, size: int) -> None:
        batch = [f"item {next(self.numbers)}" for _ in range(size)]
        with self.open() as ledger:
            export(ledger, self.iterations, batch)
        self.items += [(item, self.iterations) for item in batch]
        self.iterations += 1

    @precondition(lambda self: self.items)
    @rule(data=st.data(), label=st.sampled_from(["deer", "fox", "lynx", ""]), again=st.booleans())
    def answer(self, data: st.DataObject, label: str, again: bool) -> None:
        item, iteration = data.draw(st.sampled_from(self.items))
        told = event(item, label, iteration=iteration)
        revisions = self.payloads.setdefault(item, [])
        new = not revisions or revisions[-1] != label
        with self.open() as ledger:
            assert ledger.store_events(TOOL, [told] * (2 if again else 1)) == int(new)
            interpret(ledger, self.classes)
            if "lynx" in self.classes:  # from here on nothing waits for a class: what is known is final
                self.views[ledger.last_event()] = {a.item_id: a.state + a.label for a in ledger.asked()}
        if new:
            revisions.append(label)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        item, _ = data.draw(st.sampled_from(self.items))
        with self.open() as ledger:
            ledger.open_iteration("abc")
            with pytest.raises(sqlite3.IntegrityError):
                ledger.select(self.iterations, CAMPAIGN, [row(item, 0)], FROZEN)
            ledger.select(self.iterations, CAMPAIGN, [], FROZEN)
            ledger.sent(self.iterations, "", [])
            ledger.close(self.iterations, {})
        self.iterations += 1

    @rule()
    def learn_a_class(self) -> None:
        self.classes = (*CLASSES, "lynx")
        with self.open() as ledger:
            interpret(ledger, self.classes)

    @rule()
    def clone(self) -> None:
        store = Store(Path(self.folder.name))
        with self.open() as ledger:
            write_snapshot(store, ledger)
            before = contents(ledger)
        fresh = self.path.with_name(f"ledger-{next(self.numbers)}.sqlite")
        rebuild(store, fresh, clock, lambda made: None)
        self.path = fresh
        with self.open() as ledger:
            assert contents(ledger) == before

    @invariant()
    def the_ledger_is_what_the_model_says(self) -> None:
        with self.open() as ledger:
            columns, rows = ledger.rows("label_event")
            stored: dict[str, list[str]] = {}
            for r in rows:
                stored.setdefault(r[columns.index("annotation_id")], []).append(
                    json.loads(r[columns.index("payload")])["label"]
                )
            assert stored == {k: v for k, v in self.payloads.items() if v}
            found = ledger.asked()
            assert [(a.item_id, a.iteration) for a in found] == self.items
            for asked in found:
                last = next(iter(self.payloads.get(asked.item_id, [])[-1:]), None)  # what it replaced does not count
                unread = last is None or last not in ("", *self.classes)
                expected = "pending" if unread else f"labeled{last}" if last else "skipped"
                assert asked.state + asked.label == expected
            waiting = {r[0] for r in ledger.rows("quarantine")[1]}
            answered = {r[0] for r in ledger.rows("answer")[1]}
            assert waiting | answered == {r[0] for r in rows}
            assert not waiting & answered
            assert ledger.check() == []
            for seq, view in self.views.items():
                now = {a.item_id: a.state + a.label for a in ledger.asked(event_seq=seq)}
                assert {item: now[item] for item in view} == view


TestCampaign = Campaign.TestCase
TestCampaign.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
