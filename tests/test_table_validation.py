"""Great Expectations over the tables: each seeded fault is named with table, column, count and first bad values."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monitoring.tables import TableReport, render, validate
from tasks.errors import GleanerError
from tasks.store import Store
from tasks.tables import FROZEN_MANIFEST, LABELS, SCORES, SELECTION, TableKind
from tests.iteration_files import ITEMS, edit, item, put, write_iteration


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_iteration(tmp_path)


def broken(report: TableReport) -> set[tuple[str, str]]:
    return {(e.table, e.column) for e in report.expectations if not e.met}


def test_a_healthy_iteration_meets_every_expectation(store: Store) -> None:
    report = validate(store)
    assert report.passed, report.problems()
    assert {e.table for e in report.expectations} == {
        "manifest",
        "labels",
        "scores",
        "selection",
        "asked and selection",
    }
    assert report.iteration == 2


def test_validation_writes_nothing(store: Store) -> None:
    before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}
    validate(store)
    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*")} == before


FAULTS: list[tuple[TableKind, str, Callable[[list[Any]], list[Any]], tuple[str, str]]] = [
    (FROZEN_MANIFEST, "item_id", put(1, item(0)), ("manifest", "item_id")),
    (FROZEN_MANIFEST, "split", put(1, "train"), ("manifest", "split")),
    (FROZEN_MANIFEST, "shard", put(1, -1), ("manifest", "shard")),
    (FROZEN_MANIFEST, "row", put(1, 0), ("manifest", "place")),
    (LABELS, "item_id", put(1, item(0)), ("labels", "item_id")),
    (LABELS, "item_id", put(0, item(999)), ("labels", "in_manifest")),
    (LABELS, "class_index", put(0, 3), ("labels", "class_index")),
    (LABELS, "class_index", lambda column: [(c + 1) % 3 for c in column], ("labels", "fits")),
    (LABELS, "label", put(0, "cow"), ("labels", "label")),
    (LABELS, "arm", put(0, "holdout"), ("labels", "arm_fits_split")),
    (LABELS, "arm", put(0, "test"), ("labels", "arm")),
    (SCORES, "item_id", put(1, item(0)), ("scores", "item_id")),
    (SCORES, "utility", put(1, float("nan")), ("scores", "utility")),
    (SCORES, "utility", put(1, float("inf")), ("scores", "utility")),
    (SCORES, "probabilities", put(1, [0.5, 0.4, 0.05]), ("scores", "total")),
    (SCORES, "probabilities", put(1, [0.5, 0.5]), ("scores", "total")),
    (SCORES, "probabilities", put(1, []), ("scores", "total")),
    (SCORES, "probabilities", put(1, [float("nan"), 0.5, 0.5]), ("scores", "total")),
    (SCORES, "probabilities", put(1, [-0.5, 0.5, 1.0]), ("scores", "least")),
    (SELECTION, "item_id", put(1, item(999)), ("selection", "in_manifest")),
    (SELECTION, "item_id", put(1, item(0)), ("selection", "arm_fits_split")),
    (SELECTION, "item_id", put(1, item(0)), ("asked and selection", "item_id")),
    (SELECTION, "rank", put(1, 0), ("selection", "rank")),
    (SELECTION, "rank", put(1, 10), ("selection", "rank")),
    (SELECTION, "arm", put(1, ""), ("selection", "arm")),
    (SELECTION, "inclusion", put(1, float("nan")), ("selection", "inclusion")),
    (SELECTION, "predicted", put(1, 3), ("selection", "predicted")),
]


@pytest.mark.parametrize(
    ("kind", "column", "change", "expected"), FAULTS, ids=[f"{n}-{f[1]}" for n, f in enumerate(FAULTS)]
)
def test_a_seeded_fault_is_found(
    store: Store, kind: TableKind, column: str, change: Callable[[list[Any]], list[Any]], expected: tuple[str, str]
) -> None:
    edit(store, kind, **{column: change})
    report = validate(store)
    assert not report.passed
    assert expected in broken(report), report.problems()


def test_a_problem_names_the_number_of_bad_rows_and_the_first_items(store: Store) -> None:
    edit(store, SCORES, utility=lambda column: [float("nan")] * 7 + column[7:])
    (problem,) = validate(store).problems()
    assert problem.startswith(f"scores.utility: 7 of {ITEMS} rows are not: a number; first: nan (item {item(0)})")
    assert item(4) in problem
    assert item(5) not in problem


def test_a_row_that_is_missing_from_the_scores_is_found(store: Store) -> None:
    path = store.path(SCORES.path)
    pq.write_table(pq.read_table(path).slice(1), path)
    assert broken(validate(store)) == {("scores", "*")}


def test_a_column_that_is_missing_is_found(store: Store) -> None:
    path = store.path(SCORES.path)
    pq.write_table(pq.read_table(path).drop_columns(["utility"]), path)
    assert broken(validate(store)) == {("data/scores.parquet", "utility")}


def test_an_iteration_without_labels_or_batch_is_fine(store: Store) -> None:
    for kind in (LABELS, SELECTION):
        pq.write_table(kind.schema.empty_table(), store.path(kind.path))
    report = validate(store)
    assert report.passed, report.problems()


def test_a_damaged_file_is_an_error_that_names_it(store: Store) -> None:
    store.path(SCORES.path).write_bytes(b"PAR1 no more")
    with pytest.raises(GleanerError, match=r"scores\.parquet"):
        validate(store)


def test_the_page_is_escaped_and_loads_nothing(store: Store) -> None:
    edit(store, LABELS, label=put(0, "<script>alert(1)</script>"))
    page = render(validate(store))
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert "NOT MET" in page


def test_a_hundred_thousand_rows_take_seconds(store: Store) -> None:
    count, ids = 100_000, [item(n) for n in range(100_000)]
    manifest = pq.read_table(store.path(FROZEN_MANIFEST.path)).slice(0, 1).to_pydict()
    columns = {name: values * count for name, values in manifest.items()}
    reserved = np.arange(count) % 4 == 0
    columns |= {"item_id": ids, "row": list(range(count)), "split": np.where(reserved, "holdout", "pool").tolist()}
    pq.write_table(pa.table(columns, schema=FROZEN_MANIFEST.schema), store.path(FROZEN_MANIFEST.path))
    scores = {"item_id": ids, "split": columns["split"], "probabilities": [[0.25, 0.25, 0.5]] * count}
    pq.write_table(pa.table({**scores, "utility": np.zeros(count)}, schema=SCORES.schema), store.path(SCORES.path))
    start = time.process_time()
    report = validate(store)
    assert report.passed, report.problems()
    assert time.process_time() - start < 10
