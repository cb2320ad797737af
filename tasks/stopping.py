"""When a campaign ends: rules over its history, each off at zero; the first that holds gives the reason.

    history = [{"accuracy": 0.91, "low": 0.88}, {"accuracy": 0.97, "low": 0.955}]
    decide(Stop(target=0.95), history, spent=180, candidates_left=1200)
    ->  "target reached: the holdout accuracy is at least 0.955 (stop.target 0.95)"

A number that is not there never stops a campaign: an iteration without a measurement (NaN) counts neither
for the target nor for the gain. A number that cannot be is refused aloud.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Rules(Protocol):
    """The section `stop` of params.yaml (tasks.params.Stop)."""

    @property
    def labels(self) -> int:
        """Labels to spend in total, 0: no budget."""

    @property
    def target(self) -> float:
        """Holdout accuracy to reach for sure, 0: off."""

    @property
    def min_gain(self) -> float:
        """Accuracy to gain over `patience` iterations, 0: off."""

    @property
    def patience(self) -> int:
        """Iterations."""


def decide(stop: Rules, history: Sequence[Mapping[str, Any]], spent: int, candidates_left: int) -> str | None:
    """The reason to stop, None to go on.

    `history`: a mapping an iteration in order, with `accuracy` and `low` (its lower confidence bound) on the
    holdout, both NaN where nothing was measured (rows of HISTORY or CURVE). `spent`: labels of all arms.
    `candidates_left`: items that may still be asked for training. Raises ValueError for impossible numbers.
    """
    measured = _measured(history)
    return (
        _budget(stop, spent)
        or _target(stop, measured)
        or _gain(stop, measured)
        or ("pool exhausted: no image is left to ask about" if candidates_left <= 0 else None)
    )


def _measured(history: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    rows = [(float(row["accuracy"]), float(row["low"])) for row in history]
    known = [row for row in rows if not math.isnan(row[0])]
    for accuracy, low in known:
        if not 0.0 <= low <= accuracy <= 1.0:
            raise ValueError(f"history: accuracy {accuracy} with lower bound {low}: must be 0 <= low <= accuracy <= 1.")
    return known


def _budget(stop: Rules, spent: int) -> str | None:
    if stop.labels and spent >= stop.labels:
        return f"budget spent: {spent} labels of all arms (stop.labels {stop.labels})"
    return None


def _target(stop: Rules, measured: list[tuple[float, float]]) -> str | None:
    if stop.target and measured and measured[-1][1] >= stop.target:
        return f"target reached: the holdout accuracy is at least {measured[-1][1]:.3f} (stop.target {stop.target})"
    return None


def _gain(stop: Rules, measured: list[tuple[float, float]]) -> str | None:
    if not stop.min_gain or len(measured) <= stop.patience:
        return None
    before = measured[-1 - stop.patience][0]
    gain = max(accuracy for accuracy, _ in measured[-stop.patience :]) - before
    iterations = "iteration" if stop.patience == 1 else "iterations"
    if gain < stop.min_gain:
        return f"no more gain: accuracy grew by {gain:.3f} over {stop.patience} {iterations} (stop.min_gain {stop.min_gain})"
    return None
