"""Products that are broken on purpose, which the other tests' assertions would not let pass."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks import artefacts, repository
from tasks.pointers import cached_files
from tasks.store import Store
from tasks.tables import TableKind
from tests.children import run_in_child
from tests.quick import broken, copy, found, state, tick


@pytest.fixture
def root(closed_iteration: Path, tmp_path: Path) -> Path:
    """A workspace of the test's own, iterations 0 and 1 closed."""
    return copy(closed_iteration, tmp_path / "workspace")


def pushes_blindly() -> None:
    """The labeling tool is sent everything again, whatever it holds."""
    from tasks.labeling import Receipt
    from tasks.labeling.oracle import Oracle

    def push(self: Oracle, tasks: Any) -> list[Receipt]:
        held = self._held
        Oracle._held = lambda self: {}  # type: ignore[method-assign]
        try:
            original(self, list(tasks))
        except KeyError:
            pass
        finally:
            Oracle._held = lambda self: held()  # type: ignore[method-assign]
        known = held()
        return [Receipt(task.key, str(known[task.key])) for task in tasks]

    original, Oracle.push = Oracle.push, push  # type: ignore[method-assign]


def forgets_what_was_asked() -> None:
    """Selection sees neither labels nor earlier batches."""
    original = Store.read_table

    def read_table(self: Store, kind: TableKind, columns: list[str] | None = None) -> pa.Table:
        table = original(self, kind, columns)
        hidden = kind.path.endswith(("asked.parquet", "labels.parquet")) and _inside("tasks.select")
        return table.slice(0, 0) if hidden else table

    Store.read_table = read_table  # type: ignore[method-assign]


def _inside(module: str) -> bool:
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False


def skips_the_cache_check(name: str) -> None:
    """DVC loses an object when it adds, and the product commits without looking."""
    from tasks import versions

    original = versions.add_data

    def add_data(root: Path, paths: Any) -> None:
        original(root, paths)
        if "data/ledger" in paths:
            next(file for file in cached_files(root) if file.path == "data/ledger/answer.parquet").object.unlink()

    versions.add_data = add_data
    if name == "blind":
        artefacts.check_cache = lambda *arguments: []


def tags_before_the_commit() -> None:
    """The tag is set first, so that it names the commit before."""
    from tasks import closing

    def _tag(campaign: Any, row: Any) -> None:
        repository.tag(campaign.root, row.number, "too early")
        repository.stage_own(campaign.root, row.params)
        repository.commit(campaign.root, "too late")

    closing._tag = _tag


@pytest.fixture(scope="module")
def undisturbed(closed_iteration: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """The state after iteration 2, and the checkpoints on the way."""
    after = copy(closed_iteration, tmp_path_factory.mktemp("undisturbed") / "workspace")
    ended = run_in_child(tick, after)
    return state(after), ended.passed


def test_a_push_that_is_not_idempotent_is_caught_by_the_crash_tests_comparison(
    root: Path, undisturbed: tuple[dict[str, Any], list[str]]
) -> None:
    expected, points = undisturbed
    kill_at = points.index("oracle:create:after") + 1
    assert run_in_child(tick, root, kill_at=kill_at).killed
    assert run_in_child(tick, root, twin=pushes_blindly).text == "recovered"
    assert len(state(root)["tool"]) > len(set(state(root)["tool"])), "double tasks"
    assert state(root) != expected


def test_a_selection_that_asks_again_is_blocked_before_it_is_exported(root: Path) -> None:
    ended = run_in_child(tick, root, twin=forgets_what_was_asked)
    assert (ended.error, "repeated_selections" in ended.text) == ("Blocked", True), ended
    assert "export:select:before" not in ended.passed
    assert repository.tags(root) == ["iter-0000", "iter-0001"]


def test_a_cache_that_lost_an_object_stops_the_tag(root: Path) -> None:
    ended = run_in_child(tick, root, twin=partial(skips_the_cache_check, "seeing"))
    assert "not tagged" in ended.text and "data/ledger/answer.parquet" in ended.text
    assert repository.tags(root) == ["iter-0000", "iter-0001"]
    assert tick(root) == "recovered"
    assert broken(root) == []


def test_a_product_that_commits_without_looking_into_the_cache_is_caught_by_verify(root: Path) -> None:
    assert run_in_child(tick, root, twin=partial(skips_the_cache_check, "blind")).text == "iteration 2"
    assert "iter-0002: data/ledger/answer.parquet: cache object" in found(root)["I4 a tag restores"]


def test_a_tag_before_its_commit_is_caught_by_verify(root: Path) -> None:
    assert run_in_child(tick, root, twin=tags_before_the_commit).text == "iteration 2"
    assert "iter-0002: its list of artefacts is of iteration 1" in found(root)["I4 a tag restores"]
