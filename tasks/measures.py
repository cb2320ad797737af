"""What a model says of labeled holdout items, and how right it is. Pure: tables and arrays in, numbers out.

said = of_iteration(predictions, 4, truth, classes=10)      # only items it was asked about
measures(said)  ->  {"holdout_labels": 300, "macro_f1": 0.94, "nll": 0.21, "ece": 0.03}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.calibration import ece
from tasks.columns import matrix
from tasks.statistics import better

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """The holdout's labels, in item order."""

    item_ids: list[str]
    classes: Array  # (M,) int64
    groups: Array  # (M,) str


@dataclass(frozen=True)
class Said:
    """What one iteration's model says of those labeled items that it was asked about."""

    truth: Truth
    probabilities: Array  # (M, C)

    @property
    def correct(self) -> Array:
        """(M,) in [0, 1]: a model that cannot decide between n classes is right one time in n."""
        best = self.probabilities == self.probabilities.max(axis=1, keepdims=True, initial=0.0)
        credit: Array = best[np.arange(len(best)), self.truth.classes] / best.sum(axis=1)
        return credit


def of_iteration(predictions: pa.Table, number: int, truth: Truth, classes: int) -> Said:
    """What the model of iteration `number` said (rows of PREDICTIONS) of the labeled items that it knew."""
    rows = predictions.filter(pc.equal(predictions["iteration"], number))
    place = {item: row for row, item in enumerate(rows["item_id"].to_pylist())}
    keep = [i for i, item in enumerate(truth.item_ids) if item in place]
    at = [place[truth.item_ids[i]] for i in keep]
    return Said(_only(truth, keep), matrix(rows["probabilities"], classes)[at])


def _only(truth: Truth, keep: list[int]) -> Truth:
    return Truth([truth.item_ids[i] for i in keep], truth.classes[keep], truth.groups[keep])


def measures(said: Said) -> dict[str, Any]:
    """Macro F1 over the classes that occur, negative log-likelihood, calibration error; None without labels."""
    count = len(said.truth.classes)
    truth, chances = said.truth.classes, said.probabilities
    scores = per_class(said)
    present = np.bincount(truth, minlength=chances.shape[1]) > 0
    likely = chances[np.arange(count), truth]
    return {
        "holdout_labels": count,
        "macro_f1": float(np.nan_to_num(scores["f1"][present]).mean()) if count else None,
        "nll": float(-np.log(np.maximum(likely, np.finfo(np.float32).tiny)).mean()) if count else None,
        "ece": ece(chances, truth) if count else None,
    }


def per_class(said: Said) -> dict[str, Array]:
    """Precision, recall and F1 per class (C,), NaN where there is nothing to divide by."""
    truth, guess = said.truth.classes, said.probabilities.argmax(axis=1)
    classes = said.probabilities.shape[1]
    hits = np.bincount(truth[truth == guess], minlength=classes).astype(np.float64)
    actual, claimed = np.bincount(truth, minlength=classes), np.bincount(guess, minlength=classes)
    with np.errstate(invalid="ignore"):
        return {"precision": hits / claimed, "recall": hits / actual, "f1": 2 * hits / (actual + claimed)}


def paired(truth: Truth, predictions: pa.Table, before: int, now: int, classes: int) -> float:
    """p-value that model `now` is better than `before`, on the labels both were asked about; NaN without any."""
    old = of_iteration(predictions, before, truth, classes)
    new = of_iteration(predictions, now, old.truth, classes)
    old = of_iteration(predictions, before, new.truth, classes)
    if not new.truth.item_ids:
        return math.nan
    right = [said.probabilities.argmax(axis=1) == said.truth.classes for said in (new, old)]
    return better(right[0], right[1], new.truth.groups)
