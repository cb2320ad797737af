"""Writes that fail leave the old file, and tables that cannot be right are refused."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import store as store_module
from tasks.errors import GleanerError
from tasks.store import Store, replace_folder, replacing
from tasks.tables import SIGHTINGS, TableKind

KIND = TableKind(
    "t.parquet", pa.schema([pa.field("id", pa.string(), False), pa.field("x", pa.float64(), False)]), ("id",)
)
BIG = 50_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def table(count: int, seed: int = 0) -> pa.Table:
    values = np.random.default_rng(seed).random(count)
    return pa.table({"id": [f"{n:064x}" for n in range(count)], "x": values}, schema=KIND.schema)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does to a write, in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITES: dict[str, tuple[str, Callable[[Store, int], None], Callable[[Store], Any]]] = {
    "bytes": ("f", lambda s, n: s.write_bytes("f", b"x" * n * 8), lambda s: (s.root / "f").read_bytes()),
    "json": ("f.json", lambda s, n: s.write_json("f.json", list(range(n))), lambda s: s.read_json("f.json")),
    "table": ("t.parquet", lambda s, n: s.write_table(KIND, table(n)), lambda s: s.read_table(KIND).to_pydict()),
    "array": ("a.npy", lambda s, n: s.write_array("a.npy", np.arange(n)), lambda s: s.read_array("a.npy").tolist()),
    "tensors": (
        "m.safetensors",
        lambda s, n: s.write_tensors("m.safetensors", {"w": np.arange(n)}),
        lambda s: s.read_tensors("m.safetensors")["w"].tolist(),
    ),
}


@pytest.mark.parametrize("name", sorted(WRITES))
def test_a_full_disk_leaves_the_old_file_and_nothing_else(store: Store, name: str) -> None:
    file, write, read = WRITES[name]
    write(store, 10)
    before = read(store)
    with (
        pytest.raises(GleanerError, match=rf"cannot write .*{file}: .* MB are free there\. Free some space"),
        disk_of(4096),
    ):
        write(store, BIG)
    assert read(store) == before
    assert [p.name for p in store.root.iterdir()] == [file], "no temporary file stays"


@pytest.mark.parametrize("name", sorted(WRITES))
def test_a_file_is_flushed_before_it_takes_its_name(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        order.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    WRITES[name][1](store, 10)
    assert order == ["file", "rename", "folder"]


def test_an_error_while_writing_leaves_the_old_file(store: Store) -> None:
    store.write_bytes("f", b"old")
    with pytest.raises(ZeroDivisionError), replacing(store.path("f")) as handle:
        handle.write(b"half" * (1 // 0))
    assert store.path("f").read_bytes() == b"old"
    assert len(list(store.root.iterdir())) == 1


def test_a_device_that_is_full_says_so() -> None:
    """`/dev/full` answers every write with ENOSPC, as a full disk does."""
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "wb", buffering=0) as handle:
        handle.write(b"x")
    message = str(store_module.disk_error(caught.value, Path("/tmp/model.npy")))
    assert message.startswith("cannot write /tmp/model.npy: No space left on device.")
    assert "Free some space" in message


def test_a_file_of_somebody_else_is_not_a_full_disk() -> None:
    message = str(store_module.disk_error(PermissionError(13, "Permission denied"), Path("/tmp/photos.csv")))
    assert message.startswith("cannot use /tmp/photos.csv: Permission denied. It must be readable and writable")
    assert "Free some space" not in message


def test_a_process_killed_while_writing_leaves_the_old_file(store: Store) -> None:
    store.write_bytes("f", b"old")
    code = (
        "import os, signal; from pathlib import Path; from tasks.store import replacing\n"
        f"with replacing(Path({str(store.path('f'))!r})) as handle:\n"
        "    handle.write(b'new' * 100000); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == -9
    assert store.path("f").read_bytes() == b"old"
    store.write_bytes("f", b"new")
    assert [p.name for p in store.root.iterdir()] == ["f"], "the next write clears what was left"


# tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"id": "a", "x": 1.0}, {"id": "a", "x": 2.0}], r"t\.parquet: key \('a',\) is there more than once"),
        ([{"id": None, "x": 1.0}, {"id": "a", "x": 2.0}], r"t\.parquet: 1 nulls in column 'id'"),
        ([{"id": "a", "x": None}, {"id": "b", "x": None}], r"t\.parquet: 2 nulls in column 'x'"),
        ([{"id": "a"}], r"t\.parquet: columns missing: x"),
    ],
)
def test_a_table_that_cannot_be_right_is_not_written(store: Store, rows: list[dict[str, Any]], expected: str) -> None:
    store.write_table(KIND, table(3))
    with pytest.raises(GleanerError, match=expected):
        store.write_table(KIND, pa.Table.from_pylist(rows))
    assert store.read_table(KIND).num_rows == 3


def test_a_key_of_two_columns_may_repeat_in_one(store: Store) -> None:
    seen = {"uri": "a", "sha256": "x", "size": 1, "mtime_ns": 1, "outcome": "accepted", "reason": "", "ingest": 0}
    store.write_table(SIGHTINGS, pa.Table.from_pylist([seen, {**seen, "sha256": "y"}]))
    with pytest.raises(GleanerError, match=r"\('a', 'x'\) is there more than once"):
        store.write_table(SIGHTINGS, pa.Table.from_pylist([seen, seen]))


def test_columns_come_in_the_declared_order_and_others_are_left_out(store: Store) -> None:
    store.write_table(KIND, pa.table({"more": [1], "x": [1], "id": ["a"]}))
    assert store.read_table(KIND).schema.names == ["id", "x"]


def test_the_same_table_is_the_same_bytes(store: Store) -> None:
    store.write_table(KIND, table(1000))
    first = store.path("t.parquet").read_bytes()
    store.write_table(KIND, table(1000))
    assert store.path("t.parquet").read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet", b"\x00" * 1000])
def test_a_damaged_file_is_an_error_that_names_it(store: Store, content: bytes) -> None:
    for name in ("t.parquet", "f.json", "a.npy", "m.safetensors"):
        store.path(name).write_bytes(content)
    with pytest.raises(GleanerError, match=r"t\.parquet cannot be read"):
        store.read_table(KIND)
    with pytest.raises(GleanerError, match=r"f\.json is not valid JSON"):
        store.read_json("f.json")
    with pytest.raises(GleanerError, match=r"a\.npy cannot be read"):
        store.read_array("a.npy")
    with pytest.raises(GleanerError, match=r"m\.safetensors is not a readable"):
        store.read_tensors("m.safetensors")


def test_a_missing_file_says_what_to_do(store: Store) -> None:
    with pytest.raises(GleanerError, match=r"t\.parquet not found\. `gleaner status`"):
        store.read_table(KIND)
    with pytest.raises(GleanerError, match=r"f\.json not found"):
        store.read_json("f.json")
    with pytest.raises(GleanerError, match=r"a\.npy"):
        store.read_array("a.npy")


def test_no_pickle_is_opened(store: Store) -> None:
    np.save(store.path("a.npy"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(GleanerError, match="cannot be read"):
        store.read_array("a.npy")
    with pytest.raises(ValueError, match="Object arrays"):
        store.write_array("b.npy", np.array([{"a": 1}], dtype=object))
    assert not store.exists("b.npy")


# JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_json_has_no_nan(store: Store, value: Any) -> None:
    store.write_json("f.json", 1)
    with pytest.raises(GleanerError, match=r"f\.json is not written: .*NaN"):
        store.write_json("f.json", value)
    assert store.read_json("f.json") == 1


def test_json_is_sorted_readable_and_the_same_bytes(store: Store) -> None:
    store.write_json("f.json", {"b": 1, "a": "Füchse"})
    assert store.path("f.json").read_text(encoding="utf-8") == '{\n  "a": "Füchse",\n  "b": 1\n}\n'
    assert json.loads(store.path("f.json").read_bytes())


# folders --------------------------------------------------------------------------------------------------


def folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "f").write_text(content)
    return path


def test_a_folder_replaces_another_whole(tmp_path: Path) -> None:
    target = folder(tmp_path / "data", "old")
    (target / "gone").write_text("")
    replace_folder(folder(tmp_path / ".data.new", "new"), target)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert [(p.name, p.read_text()) for p in target.iterdir()] == [("f", "new")]


def test_a_folder_may_be_the_first_of_its_name(tmp_path: Path) -> None:
    replace_folder(folder(tmp_path / ".data.new", "new"), tmp_path / "data")
    assert (tmp_path / "data/f").read_text() == "new"


@pytest.mark.parametrize("step", range(1, 6))
def test_a_crash_at_any_step_of_a_replacement_is_repaired_by_doing_it_again(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder(tmp_path / "data", "old")
    passed = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == step:
                raise KeyboardInterrupt
            return real(*arguments)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying(os.replace))
        patched.setattr(store_module, "flush_folder", dying(store_module.flush_folder))
        patched.setattr(store_module, "remove_folder", dying(store_module.remove_folder))
        with pytest.raises(KeyboardInterrupt):
            replace_folder(folder(tmp_path / ".data.new", "new"), target)
    kept = {p.read_text() for p in tmp_path.rglob("f")}
    assert kept & {"old", "new"}, "one of them is whole, under some name"
    if target.exists():
        assert (target / "f").read_text() in ("old", "new")
    new = tmp_path / ".data.new"
    replace_folder(new if new.exists() else folder(new, "new"), target)
    assert [p.name for p in tmp_path.iterdir()] == ["data"], "nothing is left over"
    assert (target / "f").read_text() == "new"
