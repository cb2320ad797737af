"""The tables of an iteration as data frames with derived columns, and the rule that each column must keep.

    for name, frame, rules in frames(store, iteration, tables): ...
    # "scores", item_id | split | utility | in_manifest | total | least | most, [Rule("item_id", ...), ...]

Lists of probabilities become their sum, smallest and largest number; joins become columns of True and False.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitoring.scores import distributions
from tasks.inputs import Iteration
from tasks.store import Store
from tasks.tables import ARMS, ASKED, CORRECTION, FROZEN_MANIFEST, LABELS, SCORES, SELECTION, TableKind

if TYPE_CHECKING:
    import pandas as pd

SUM_TOLERANCE = 1e-4
LARGEST = 1e300  # finite: NaN counts as missing, infinity is above this
LAST_PLACE = 2**31 - 1  # of an int32 shard or row


@dataclass(frozen=True)
class Rule:
    """One expectation on one column: the name of its class in great_expectations.expectations, and its arguments."""

    column: str
    kind: str
    means: str  # what a good row is
    arguments: dict[str, Any] = field(default_factory=dict)


Checked = tuple[str, "pd.DataFrame", list[Rule]]


def frames(store: Store, iteration: Iteration, tables: dict[TableKind, pa.Table]) -> Iterator[Checked]:
    """Name, data and rules of each table; data are read one table after the other."""
    manifest = tables[FROZEN_MANIFEST]
    yield _manifest(manifest)
    yield _labels(tables[LABELS], manifest, iteration.classes)
    yield _scores(store, tables[SCORES], manifest, len(iteration.classes))
    yield _selection(tables[SELECTION], manifest, len(iteration.classes))
    chosen = [*tables[ASKED]["item_id"].chunks, *tables[SELECTION]["item_id"].chunks]
    ever = pa.table({"item_id": pa.chunked_array(chosen, pa.string())})
    yield "asked and selection", _frame(ever, ["item_id"]), [_unique("item_id", "selected once over all iterations")]


def _manifest(manifest: pa.Table) -> Checked:
    place = manifest["shard"].to_numpy().astype(np.int64) * 2**32 + manifest["row"].to_numpy()
    return (
        "manifest",
        _frame(manifest, ["item_id", "split", "shard", "row", "group"], place=place),
        [
            _there("item_id"),
            _unique("item_id"),
            _one_of("split", ["pool", "holdout"]),
            _between("shard", 0, LAST_PLACE),
            _between("row", 0, LAST_PLACE),
            _unique("place", "a place in the shards of its own"),
            _there("group"),
        ],
    )


def _labels(labels: pa.Table, manifest: pa.Table, classes: tuple[str, ...]) -> Checked:
    index = pc.fill_null(pc.index_in(labels["label"], value_set=pa.array(classes, pa.string())), -1)
    fits = pc.equal(index, labels["class_index"])
    columns = ["item_id", "label", "class_index", "arm"]
    return (
        "labels",
        _frame(labels, columns, **_joined(labels, manifest), fits=fits),
        [
            *_identity(),
            _between("class_index", 0, len(classes) - 1),
            _one_of("label", list(classes)),
            _true("fits", "the class that class_index names"),
            *_arm_rules(CORRECTION),
        ],
    )


def _scores(store: Store, scores: pa.Table, manifest: pa.Table, classes: int) -> Checked:
    total, least, most = distributions(store, SCORES, classes)
    derived = {"total": total, "least": least, "most": most, "in_manifest": _joined(scores, manifest)["in_manifest"]}
    size = Rule("*", "ExpectTableRowCountToEqual", "as many rows as the manifest", {"value": manifest.num_rows})
    return (
        "scores",
        _frame(scores, ["item_id", "split", "utility"], **derived),
        [
            size,
            *_identity(),
            _one_of("split", ["pool", "holdout"]),
            _there("utility", "a number"),
            _between("utility", -LARGEST, LARGEST, "finite"),
            _there("total", f"{classes} probabilities"),
            _between("total", 1 - SUM_TOLERANCE, 1 + SUM_TOLERANCE, "probabilities that add up to 1"),
            _between("least", 0, 1),
            _between("most", 0, 1 + SUM_TOLERANCE),
        ],
    )


def _selection(selection: pa.Table, manifest: pa.Table, classes: int) -> Checked:
    columns = ["item_id", "rank", "arm", "inclusion", "predicted"]
    return (
        "selection",
        _frame(selection, columns, **_joined(selection, manifest)),
        [
            *_identity(),
            _unique("rank"),
            _between("rank", 0, max(selection.num_rows - 1, 0)),
            _there("inclusion", "a number"),
            _between("inclusion", 0, 1),
            _between("predicted", -1, classes - 1),
            *_arm_rules(),
        ],
    )


def _joined(table: pa.Table, manifest: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Whether each item is in the manifest, and whether the holdout arm is where the reserved items are."""
    at = pc.index_in(table["item_id"], value_set=manifest["item_id"].combine_chunks())
    split = manifest["split"].take(at)
    columns = {"in_manifest": at.is_valid()}
    if "arm" in table.column_names:
        same = pc.equal(pc.equal(split, "holdout"), pc.equal(table["arm"], "holdout"))
        columns["arm_fits_split"] = pc.fill_null(same, False)
    return columns


def _frame(table: pa.Table, columns: list[str], **derived: Any) -> pd.DataFrame:
    frame: pd.DataFrame = table.select(columns).to_pandas()
    for name, values in derived.items():
        frame[name] = values if isinstance(values, np.ndarray) else values.to_pandas()
    return frame


def _identity() -> list[Rule]:
    return [_there("item_id"), _unique("item_id"), _true("in_manifest", "an item of the manifest")]


def _arm_rules(*more: str) -> list[Rule]:
    return [_one_of("arm", [*ARMS, *more]), _true("arm_fits_split", "in the holdout arm exactly when reserved")]


def _there(column: str, means: str = "there") -> Rule:
    return Rule(column, "ExpectColumnValuesToNotBeNull", means)


def _unique(column: str, means: str = "there once") -> Rule:
    return Rule(column, "ExpectColumnValuesToBeUnique", means)


def _between(column: str, low: float, high: float, means: str = "") -> Rule:
    means = means or f"from {low:g} to {high:g}"
    return Rule(column, "ExpectColumnValuesToBeBetween", means, {"min_value": low, "max_value": high})


def _one_of(column: str, allowed: list[Any], means: str = "") -> Rule:
    return Rule(column, "ExpectColumnValuesToBeInSet", means or f"one of {allowed}", {"value_set": allowed})


def _true(column: str, means: str) -> Rule:
    return _one_of(column, [True], means)
