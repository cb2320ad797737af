"""For each invariant a campaign that breaks it, which `gleaner verify` names."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks import artefacts, repository
from tasks.campaign import LEDGER
from tasks.errors import BadInput
from tasks.ingest import ingest
from tasks.lock import campaign_lock
from tasks.pointers import Cached, cached_files
from tasks.store import Store
from tasks.tables import MANIFEST, SIGHTINGS, TableKind
from tasks.verify import MANY, Violation, verify
from tests.quick import broken, copy, found, tick


@pytest.fixture
def root(closed_iteration: Path, tmp_path: Path) -> Path:
    """A workspace of the test's own, iterations 0 and 1 closed."""
    return copy(closed_iteration, tmp_path / "workspace")


def sql(root: Path, *statements: str) -> None:
    """Change the ledger behind its back."""
    with closing(sqlite3.connect(root / LEDGER)) as db, db:
        for statement in statements:
            assert db.execute(statement).rowcount != 0, statement


def change(root: Path, kind: TableKind, **columns: Callable[[list[Any]], list[Any]]) -> None:
    """Change columns of a table."""
    table = Store(root).read_table(kind)
    for name, make in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(
            place, table.schema.field(name), pa.array(make(table[name].to_pylist()), table.schema.field(name).type)
        )
    Store(root).write_table(kind, table)


def test_a_healthy_campaign_breaks_nothing(root: Path) -> None:
    assert verify(root) == verify(root, deep=True) == []


def test_a_folder_that_is_no_campaign_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="gleaner init"):
        verify(tmp_path)


# I1, I2, I3: the ledger and what annotators saw -------------------------------------------------------------

LEDGER_TWINS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "event deleted": ("I1", r"label event 1 is gone", ("DELETE FROM label_event WHERE seq = 1",)),
    "event and its answer deleted": (
        "the ledger holds what was tagged",
        r"1 rows of label_event .*not in the ledger",
        ("DELETE FROM answer WHERE seq = 1", "DELETE FROM label_event WHERE seq = 1"),
    ),
    "newest event deleted": (
        "I1",
        r"label event \d+ is gone",
        (
            "DELETE FROM answer WHERE seq = (SELECT max(seq) FROM label_event)",
            "DELETE FROM label_event WHERE seq = (SELECT max(seq) FROM label_event)",
        ),
    ),
    "answer missing": ("I1", r"event 2 is neither an answer nor", ("DELETE FROM answer WHERE seq = 2",)),
    "answer and quarantined": ("I1", r"event 2 is more than one of", ("INSERT INTO quarantine VALUES (2, 'twin')",)),
    "revision skipped": ("I1", r"has the revisions \[1\]", ("UPDATE label_event SET revision = 1 WHERE seq = 3",)),
    "payload edited": (
        "the ledger holds what was tagged",
        r"rows of label_event",
        ("UPDATE label_event SET payload = '{}' WHERE seq = 1",),
    ),
    "label edited": (
        "the ledger holds what was tagged",
        r"rows of answer",
        ("UPDATE answer SET label = '2' WHERE label = '1'",),
    ),
    "holdout item in a training arm": (
        "I2 nothing",
        r"holdout split was asked in arm active",
        ("UPDATE selection SET arm = 'active' WHERE arm = 'holdout'",),
    ),
    "task of another campaign": (
        "I2 no two",
        r"task deer:0:x is not of iteration 0",
        ("UPDATE outbox SET key = 'deer:0:x' WHERE item_id = (SELECT item_id FROM selection WHERE iteration = 0)",),
    ),
    "task never sent": ("I2 no two", r"never confirmed", ("UPDATE outbox SET task_id = NULL",)),
    "task lost": (
        "I2 no two",
        r"is in the selection only",
        ("DELETE FROM outbox WHERE item_id = (SELECT item_id FROM selection WHERE iteration = 1)",),
    ),
    "item that is not in the pool": (
        "I2 nothing",
        r"item twin was asked about and is not in the pool",
        ("UPDATE selection SET item_id = 'twin' WHERE rank = 0 AND iteration = 1",),
    ),
    "duplicate selection": (
        "I2 nothing",
        r"was selected 2 times",
        (
            "CREATE TABLE copied AS SELECT * FROM selection",
            "INSERT INTO copied SELECT item_id, 1, rank + 900, arm, utility, inclusion, predicted, confidence"
            " FROM selection WHERE iteration = 0 LIMIT 1",
            "DROP TABLE selection",
            "ALTER TABLE copied RENAME TO selection",
        ),
    ),
    "two tasks with one key": (
        "I2 no two",
        r"two tasks have the key",
        (
            "CREATE TABLE copied AS SELECT * FROM outbox",
            "INSERT INTO copied SELECT * FROM outbox LIMIT 1",
            "DROP TABLE outbox",
            "ALTER TABLE copied RENAME TO outbox",
        ),
    ),
    "ledger of another campaign": (
        "the ledger is sound",
        r"ledger is of campaign deer",
        ("UPDATE meta SET value = 'deer-1' WHERE key = 'campaign'",),
    ),
    "iteration not numbered": (
        "a closed iteration",
        r"without gaps",
        ("INSERT INTO iteration (number, state, event_seq, base_commit, opened_at) VALUES (7, 'open', 0, '', '')",),
    ),
}


@pytest.mark.parametrize("twin", LEDGER_TWINS)
def test_a_ledger_that_was_changed_behind_its_back_is_found(root: Path, twin: str) -> None:
    invariant, what, statements = LEDGER_TWINS[twin]
    sql(root, *statements)
    text = "".join(value for name, value in found(root).items() if name.startswith(invariant))
    assert re.search(what, text), found(root)


@pytest.mark.parametrize("how", ["garbage", "cut", "empty"])
def test_a_corrupted_ledger_is_named_once_with_the_way_out(root: Path, how: str) -> None:
    path = root / LEDGER
    content = path.read_bytes()
    path.write_bytes({"garbage": b"x" * len(content), "cut": content[: len(content) // 2], "empty": b""}[how])
    (text,) = [v.what for v in verify(root) if v.invariant == "the ledger is sound" and "backup" in v.what] or [""]
    assert "ledger.sqlite.backup in its place" in text, verify(root)
    shutil.copyfile(root / f"{LEDGER}.backup", path)
    assert not [v for v in verify(root) if v.invariant == "the ledger is sound"]


@pytest.mark.parametrize(("change_bytes", "deep"), [(lambda b: b + b"\0", False), (lambda b: b[:-1] + b"\xfe", True)])
def test_a_serving_copy_with_other_bytes_is_found(
    root: Path, change_bytes: Callable[[bytes], bytes], deep: bool
) -> None:
    served = sorted((root / ".gleaner/serving/images").glob("*/*"))[3]
    served.write_bytes(change_bytes(served.read_bytes()))
    assert served.name in found(root, deep=deep)["I3 annotators saw the bytes we know"]


# I4: what a tag promises ------------------------------------------------------------------------------------


def shared_object(root: Path) -> Cached:
    """A cache object that both tags hold."""
    return next(file for file in cached_files(root) if file.path.endswith("shard-00000.npy"))


def flip(path: Path) -> None:
    """Change one byte, not the size."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_flipped_byte_is_seen_by_deep_alone_with_object_and_iterations(root: Path) -> None:
    flip(shared_object(root).object)
    assert verify(root) == []
    text = found(root, deep=True)["I4 a tag restores"]
    assert "iter-0000 … iter-0001 (2 tags)" in text and "other bytes" in text
    assert str(shared_object(root).object) in text and text.count("\n") == 1, "named once"


def test_a_cut_object_is_seen_without_reading_it(root: Path) -> None:
    path = shared_object(root).object
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    text = found(root)["I4 a tag restores"]
    assert f"{path} has {len(content) - 1} bytes, not {len(content)}" in text and "iter-0000 … iter-0001" in text


@pytest.mark.parametrize("name", ["data/selection.parquet", "data/inputs"])
def test_a_missing_object_is_named_with_its_iteration(root: Path, name: str) -> None:
    pointer = next(file for file in cached_files(root, "iter-0000") if file.path.startswith(name))
    if name == "data/inputs":  # the listing of the folder
        text = repository.show(root, "iter-0000", "data/inputs.dvc")
        digest = re.findall(r"md5: (\S+\.dir)", text)[0]
        pointer = Cached(name, digest, root / ".dvc/cache/files/md5" / digest[:2] / digest[2:])
    pointer.object.unlink()
    text = found(root)["I4 a tag restores"]
    assert re.search(rf"iter-0000: {name}.*{pointer.object}.* is missing", text), text


@pytest.mark.parametrize("content", ["", "outs: []\n", "- nonsense\n", "outs: [\n"])
def test_an_empty_or_damaged_pointer_is_named(root: Path, content: str) -> None:
    (root / "data/inputs.dvc").write_text(content)
    assert "data/inputs.dvc" in found(root)["I4 a tag restores"]


def test_an_empty_pointer_is_healed_by_the_next_iteration(root: Path) -> None:
    (root / "data/inputs.dvc").write_bytes(b"")
    assert tick(root) == "iteration 2"
    assert broken(root) == []


def test_a_damaged_list_of_artefacts_is_named(root: Path) -> None:
    (root / artefacts.ARTEFACTS).write_text("{}")
    repository.stage_own(root)
    repository.commit(root, "a list without files")
    repository.git(root, "tag", "--force", "iter-0001")
    assert "its list of artefacts is of iteration -1" in found(root)["I4 a tag restores"]


def test_a_closed_iteration_without_a_tag_is_found(root: Path) -> None:
    repository.git(root, "tag", "--delete", "iter-0001")
    assert "iter-0001 is closed in the ledger and has no tag" in found(root)["a closed iteration has its tag"]


def test_a_tag_without_an_iteration_is_found(root: Path) -> None:
    repository.tag(root, 9, "not ours")
    assert "tag iter-0009 belongs to no" in found(root)["a closed iteration has its tag"]


def test_a_clone_without_data_says_so_in_one_line(root: Path, tmp_path: Path) -> None:
    repository.git(tmp_path, "clone", "--quiet", str(root), str(tmp_path / "clone"))
    (violation,) = verify(tmp_path / "clone")
    assert "data of this copy are not fetched" in violation.what and "dvc pull" in violation.what
    assert verify(tmp_path / "clone", deep=True) == [violation]


def test_a_lost_cache_is_summed_up(root: Path) -> None:
    shutil.rmtree(root / ".dvc/cache")
    assert 0 < len(verify(root)) <= MANY


def test_fifty_tags_are_verified_quickly(root: Path) -> None:
    listed = json.loads(repository.show(root, "iter-0001", artefacts.ARTEFACTS))
    for number in range(2, 50):
        (root / artefacts.ARTEFACTS).write_text(json.dumps({**listed, "iteration": number}))
        repository.stage_own(root)
        repository.commit(root, f"iteration {number}")
        repository.tag(root, number, f"iteration {number}")
    began = time.process_time()
    assert "I4 a tag restores" not in found(root)
    assert time.process_time() - began < 3.0


# I6, splits: the pool ---------------------------------------------------------------------------------------


def test_an_item_without_a_sighting_is_found(root: Path) -> None:
    table = Store(root).read_table(SIGHTINGS)
    Store(root).write_table(SIGHTINGS, table.slice(1))
    assert (
        f"item {table['sha256'][0].as_py()[:12]} is in the manifest only"
        in found(root)["I6 every file is accounted for"]
    )


def test_a_sighting_without_its_item_is_found(root: Path) -> None:
    Store(root).write_table(MANIFEST, Store(root).read_table(MANIFEST).slice(1))
    text = found(root)["I6 every file is accounted for"]
    assert "is in the sightings only" in text and "counts 120 items, the manifest holds 119" in text


def test_a_quarantined_file_without_a_reason_is_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "more/0").mkdir(parents=True)
    (tmp_path / "more/0/empty.png").write_bytes(b"")
    counts = ingest(root, tmp_path / "more")
    assert (counts.quarantined, broken(root)) == (1, [])
    change(root, SIGHTINGS, reason=lambda column: [""] * len(column))
    assert "0/empty.png: quarantined, and no reason" in found(root)["I6 every file is accounted for"]


def test_an_unknown_outcome_is_found(root: Path) -> None:
    change(root, SIGHTINGS, outcome=lambda column: ["lost", *column[1:]])
    assert "unknown outcomes ['lost']" in found(root)["I6 every file is accounted for"]


def test_a_shard_that_lost_images_is_found(root: Path) -> None:
    images = Store(root).read_array("data/pool/shard-00000.npy")
    Store(root).write_array("data/pool/shard-00000.npy", images[:-1])
    assert "holds 119 images, the manifest says 120" in found(root)["I6 every file is accounted for"]


def test_a_group_that_straddles_is_found(root: Path) -> None:
    splits = Store(root).read_table(MANIFEST)["split"].to_pylist()
    one = {"pool": splits.index("pool"), "holdout": splits.index("holdout")}
    change(root, MANIFEST, group=lambda c: [c[one["pool"]] if i == one["holdout"] else g for i, g in enumerate(c)])
    assert "straddles pool and holdout" in found(root)["splits and groups"]


def test_a_holdout_label_in_training_is_found(root: Path) -> None:
    swap = {"holdout": "pool", "pool": "holdout"}
    change(root, MANIFEST, split=lambda column: [swap[value] for value in column])
    assert "arm holdout, but its split is pool" in found(root)["splits and groups"]


# I8, I9: messages, leftovers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data/pool/manifest.parquet", b"PAR1 nonsense PAR1"),
        ("data/pool/sightings.parquet", b""),
        ("data/pool/pool.json", b"{}"),
        ("data/pool/shard-00000.npy", b""),
        ("data/inputs/labels.parquet", b"{}"),
        ("data/ledger/answer.parquet", b"PAR1 nonsense PAR1"),
        ("data/artefacts.json", b"[]"),
    ],
)
def test_no_damaged_file_ends_in_a_traceback(root: Path, name: str, content: bytes) -> None:
    (root / name).unlink()
    (root / name).write_bytes(content)
    violations = verify(root)
    assert violations and all(isinstance(v, Violation) and v.what for v in violations)


LEFTOVERS = (
    "data/.scores.parquet.writing",
    "data/pool/.manifest.parquet.writing",
    "models/head/.head.json.writing",
    ".params.yaml.writing",
    ".gleaner/.sha256.json.writing",
    ".gleaner/ledger.sqlite.rebuilding",
    "data/.inputs.new/manifest.parquet",
    ".gleaner/tracking/.iter-0001.old/record.json",
)


@pytest.mark.parametrize("name", LEFTOVERS)
def test_a_leftover_is_named_and_gone_after_the_next_start(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"half")
    place = name.rpartition("/")[0] if name.endswith((".parquet", "record.json")) else name
    assert f"{place}: was never finished" in found(root)["I9 nothing half-written"]
    with campaign_lock(root, "somebody"):
        assert verify(root) == [], "somebody is writing it just now"
    assert tick(root) == "iteration 2"
    assert broken(root) == []
    assert not (root / name).exists()
