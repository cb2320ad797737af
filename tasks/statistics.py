"""Measures with their uncertainty: accuracy with an interval, paired tests, labels to reach a target.

correct = np.array([1, 1, 0, 1])            # per holdout item
groups = np.array(["a", "a", "b", "c"])     # a burst is one draw, not three
accuracy(correct, groups, 0.95, 1000, rng)  ->  Interval(value=0.75, low=..., high=1.0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
CHUNK = 4_000_000  # resampled counts held at once


@dataclass(frozen=True)
class Interval:
    """A measured share with its confidence bounds, all in [0, 1]; NaN when nothing was measured."""

    value: float
    low: float
    high: float


NOTHING = Interval(math.nan, math.nan, math.nan)


def accuracy(correct: Array, groups: Array, confidence: float, resamples: int, rng: np.random.Generator) -> Interval:
    """Mean of `correct` (N,) in [0, 1] with an interval that respects `groups` (N,).

    The bounds are the outer hull of two intervals: the percentile bootstrap over whole groups (Field and
    Welsh 2007; it sees that items of a group agree) and Wilson's score interval (Wilson 1927) with the
    number of groups as its size. The second holds where the first collapses to a point: all right, all
    wrong, or hardly any errors. Raises ValueError for values outside [0, 1] or unequal lengths.
    """
    credit = np.asarray(correct, dtype=np.float64)
    if credit.shape != np.shape(groups) or credit.ndim != 1:
        raise ValueError(f"correct {credit.shape} and groups {np.shape(groups)} must be one-dimensional and alike.")
    if not len(credit):
        return NOTHING
    if not ((credit >= 0) & (credit <= 1)).all():
        raise ValueError("correct must hold numbers from 0 to 1 (NaN is not one).")
    sums, sizes = group_totals(credit, groups)
    means = _resampled_means(sums, sizes, resamples, rng)
    tail = (1.0 - confidence) / 2.0
    value = float(credit.mean())
    wilson_low, wilson_high = wilson(value, len(sizes), confidence)
    low = min(float(np.quantile(means, tail)), wilson_low, value)
    high = max(float(np.quantile(means, 1.0 - tail)), wilson_high, value)
    return Interval(value, max(low, 0.0), min(high, 1.0))


def wilson(share: float, count: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a binomial share seen in `count` > 0 draws (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    scale = 1.0 + z * z / count
    centre = (share + z * z / (2.0 * count)) / scale
    half = z / scale * math.sqrt(share * (1.0 - share) / count + z * z / (4.0 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def group_totals(values: Array, groups: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sum of values and number of items of each group (G,), in sorted order of the groups."""
    _, codes = np.unique(groups, return_inverse=True)
    codes = codes.reshape(-1)
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def _resampled_means(
    sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    count = len(sums)
    share = np.full(count, 1.0 / count)
    step = max(1, CHUNK // count)
    parts = []
    for start in range(0, resamples, step):
        weights = rng.multinomial(count, share, size=min(step, resamples - start))
        parts.append((weights @ sums) / (weights @ sizes))
    return np.concatenate(parts)


def better(challenger: Array, champion: Array, groups: Array) -> float:
    """One-sided p-value that `challenger` is right more often than `champion` on the same items.

    The exact sign-flip permutation test over groups (Fisher 1935): if both models were alike, each group's
    difference would be as likely positive as negative. With one item a group it is McNemar's exact test
    (McNemar 1947). `challenger`, `champion` (N,) bool, `groups` (N,). No disagreement gives 1.
    """
    difference = np.asarray(challenger, dtype=np.int64) - np.asarray(champion, dtype=np.int64)
    if difference.shape != np.shape(groups):
        raise ValueError(f"{difference.shape} answers but {np.shape(groups)} groups.")
    totals = np.rint(group_totals(difference.astype(np.float64), groups)[0]).astype(np.int64)
    return flip_tail(np.abs(totals[totals != 0]), int(totals.sum()))


def flip_tail(sizes: Array, seen: int) -> float:
    """P(sum of ±size >= seen), each sign a fair coin; exact, by convolution. `sizes` (G,) positive integers."""
    whole = int(np.sum(sizes)) if len(sizes) else 0
    chance = np.zeros(2 * whole + 1)
    chance[whole] = 1.0
    reach = 0
    for size in np.asarray(sizes, dtype=np.int64).tolist():
        inner = chance[whole - reach : whole + reach + 1].copy()
        reach += size
        chance[whole - reach : whole + reach + 1] = 0.0
        chance[whole - reach : whole + reach + 1 - 2 * size] += inner / 2.0
        chance[whole - reach + 2 * size : whole + reach + 1] += inner / 2.0
    return float(min(1.0, chance[whole + max(seen, -whole) :].sum()))


def labels_to_reach(labels: Sequence[float], accuracies: Sequence[float], target: float) -> float | None:
    """Labels at which a learning curve first reaches `target`, None when it never does.

    Between points the curve is linear, on its running maximum (a curve that dips must not count as not
    having been there). Points without a measurement (NaN) are left out. `labels` must grow.
    """
    points = [(x, y) for x, y in zip(labels, accuracies, strict=True) if math.isfinite(y)]
    if any(b[0] <= a[0] for a, b in pairwise(points)):
        raise ValueError("labels must grow from point to point.")
    before: tuple[float, float] | None = None
    for count, value in points:
        if value >= target:
            if before is None or value == before[1]:
                return float(count)
            share = (target - before[1]) / (value - before[1])
            return float(before[0] + share * (count - before[0]))
        before = (count, max(value, before[1] if before else value))
    return None
