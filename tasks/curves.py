"""Learning curves of simulated runs, and how many labels one strategy needs to be as accurate as another. Pure.

    runs = read_runs(results, "uniform")          # of tasks/simulate.py
    _, groups = read_holdout(results)
    labels_needed(runs, read_runs(results, "margin").correct[:, -1], groups, rng)
    ->  Reached(labels=500.0, low=390.0, high=640.0, most=800)

Both sides are measured on the same holdout items, so an item that is hard for both moves neither bound.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.statistics import labels_to_reach

Array = npt.NDArray[Any]
HOLDOUT = b"holdout"  # key of the results' metadata: {"items": [...], "groups": [...]}, the order of `correct`


@dataclass(frozen=True)
class Runs:
    """A strategy's runs on one grid of label counts; between a run's own counts its answers are interpolated."""

    labels: Array  # (L,) int64, growing
    correct: Array  # (S, L, N): per seed, count and holdout item, 1 right, 0 wrong (between: ties, interpolation)

    @property
    def accuracy(self) -> Array:
        """(S, L): a curve a seed."""
        return np.asarray(self.correct.mean(axis=2))


@dataclass(frozen=True)
class Reached:
    """Labels needed for a target, None where that is beyond `most`."""

    labels: float | None  # by the mean curve
    low: float | None  # 95 % bootstrap interval over seeds and holdout groups
    high: float | None
    most: int  # labels at the end of the curve


def read_runs(results: pa.Table, strategy: str) -> Runs:
    """The runs of one strategy. Raises KeyError when it is not in the results."""
    curves: dict[int, dict[int, Array]] = {}
    for row in results.to_pylist():
        if row["strategy"] == strategy:
            curves.setdefault(row["seed"], {})[row["labels"]] = np.array(row["correct"])
    if not curves:
        raise KeyError(strategy)
    first, last = max(min(curve) for curve in curves.values()), min(max(curve) for curve in curves.values())
    counts = {count for curve in curves.values() for count in curve if first <= count <= last} or {first}
    labels = np.array(sorted(counts), dtype=np.int64)
    return Runs(labels, np.array([_on_grid(curves[seed], labels) for seed in sorted(curves)]))


def _on_grid(curve: dict[int, Array], labels: Array) -> Array:
    """(L, N): the curve's answers at `labels`, linear between its own counts, constant beyond them."""
    counts = np.array(sorted(curve))
    answers = np.array([curve[count] for count in counts.tolist()], dtype=np.float64)
    at = np.interp(labels, counts, np.arange(len(counts)))
    below = np.floor(at).astype(np.int64)
    share = (at - below)[:, None]
    mixed: Array = answers[below] * (1.0 - share) + answers[np.minimum(below + 1, len(counts) - 1)] * share
    return mixed


def with_holdout(results: pa.Table, items: list[str], groups: list[str]) -> pa.Table:
    """Note on the results which holdout items `correct` is about, and their groups."""
    return results.replace_schema_metadata({HOLDOUT: json.dumps({"items": items, "groups": groups})})


def read_holdout(results: pa.Table) -> tuple[list[str], Array]:
    """Item ids (N) and groups (N,) of `correct`."""
    value = json.loads((results.schema.metadata or {})[HOLDOUT])
    return value["items"], np.array(value["groups"], dtype=str)


def labels_needed(
    runs: Runs, reference: Array, groups: Array, rng: np.random.Generator, resamples: int = 1000
) -> Reached:
    """Labels that `runs` need, on their mean curve, to be as accurate as `reference`.

    `reference` (R, N): answers of the other side's runs on the same items, right 1, wrong 0; one row is one model,
    whose own luck then is not in the interval. `groups` (N,), N > 0. The bootstrap draws seeds of both sides and whole
    holdout groups (Efron and Tibshirani 1993, percentile); a draw that never gets there counts as beyond the end.
    """
    _, codes = np.unique(groups, return_inverse=True)
    size, seeds, others = int(codes.max()) + 1, len(runs.correct), len(reference)
    draws = np.empty(resamples)
    for draw in range(resamples):
        weight = rng.multinomial(size, np.full(size, 1.0 / size))[codes].astype(np.float64)
        target = (reference[rng.integers(others, size=others)] @ weight).mean() / weight.sum()
        curve = (runs.correct @ weight)[rng.integers(seeds, size=seeds)].mean(axis=0) / weight.sum()
        draws[draw] = _beyond(labels_to_reach(runs.labels.tolist(), curve.tolist(), float(target)))
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
    value = labels_to_reach(
        runs.labels.tolist(), runs.accuracy.mean(axis=0).tolist(), float(reference.mean(axis=1).mean())
    )
    return Reached(value, _known(float(low)), _known(float(high)), int(runs.labels[-1]))


def _beyond(labels: float | None) -> float:
    return math.inf if labels is None else labels


def _known(labels: float) -> float | None:
    return labels if math.isfinite(labels) else None
