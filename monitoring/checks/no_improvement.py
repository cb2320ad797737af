"""Labels buy accuracy: tells a curve that has stopped rising (saturation) from a model that got worse (degradation).

All accuracies are on the same holdout labels, and differences are paired item by item, group by group, so the noise
is that of the items two models disagree on (both sides are means over `window` iterations):

    0.912 at 120 labels, 0.861 at 60: gain 0.051 +- 0.014                           ->  pass, improving
    0.530 at 480 labels, 0.528 at 240: gain 0.002 +- 0.010, surely less than 0.02   ->  fail, saturation
    0.530 at 480 labels, 0.528 at 240: gain 0.002 +- 0.030                          ->  not applicable: cannot be told
    0.610 now, 0.905 at its best                                                    ->  fail, degradation
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval

from monitoring.evidence import About, Array, Curve, Evidence, Finding

ABOUT = About(
    "no_improvement",
    why="Labels that no longer raise the accuracy are money without effect; a falling accuracy means something broke.",
    causes=(
        "saturation: this network on these features has learnt what it can from this pool",
        "degradation: wrong labels in the last batches, another class order, changed params or features",
        "the holdout is too small to see the gain (the noise floor is large)",
    ),
    todo="Saturation: stop, or change backbone or network (their gain is free of labels). Degradation: look at the "
    "last batch's labels and at what changed in params.yaml since the best iteration; restore it with its tag.",
)


@dataclass(frozen=True)
class Change:
    """How much more accurate the latest model is than earlier ones, and how much of it noise may be."""

    gain: float
    noise: float  # standard error of the gain


def check(
    evidence: Evidence,
    *,
    window: Annotated[int, Interval(ge=1)] = 3,
    growth: Annotated[float, Interval(ge=1)] = 2.0,
    worth: Annotated[float, Interval(ge=0, le=1)] = 0.02,
    sigmas: Annotated[float, Interval(ge=0)] = 1.0,
    ceiling: Annotated[float, Interval(ge=0, le=1)] = 0.95,
    max_drop: Annotated[float, Interval(ge=0, le=1)] = 0.05,
    drop_sigmas: Annotated[float, Interval(ge=0)] = 4.0,
) -> Finding:
    """Fails for degradation, and for saturation below the ceiling.

    Saturation: while the labels grew by the factor `growth`, accuracy (means over `window` iterations) rose by less
    than `worth`, even granting `sigmas` standard errors; a gain beyond as many is an improvement, in between the
    holdout is too small to tell. Degradation: below the best mean of `window` earlier iterations by more than
    `max_drop` and by more than `drop_sigmas` standard errors. At `ceiling` and above, saturation is what one hopes for.
    """
    curve = _with_model(evidence.curve)
    if evidence.trained.any() and (len(curve.labels) == 0 or curve.iterations[-1] != evidence.iteration):
        return ABOUT.fails(f"The learning curve has no row for iteration {evidence.iteration}.", None, max_drop)
    if len(curve.labels) == 0:
        return ABOUT.not_applicable("No model was trained yet, so there is no accuracy.")
    if curve.correct.shape[1] == 0 and np.isnan(curve.accuracy).all():
        return ABOUT.not_applicable("There are no holdout labels, so no accuracy is measured.")
    if not np.isfinite(curve.accuracy).all():
        bad = curve.iterations[~np.isfinite(curve.accuracy)]
        return ABOUT.fails(f"The accuracy of iteration {bad[0]} is not a number.", None, max_drop, iterations=bad[:5])
    if len(curve.labels) == 1:
        return ABOUT.not_applicable("Only one model was measured yet; there is nothing to compare it with.")
    return _degraded(curve, window, max_drop, drop_sigmas) or _gained(curve, window, growth, worth, sigmas, ceiling)


def _with_model(curve: Curve) -> Curve:
    """The rows whose model was trained on at least one label."""
    keep = curve.labels > 0
    return Curve(
        curve.iterations[keep],
        curve.labels[keep],
        curve.accuracy[keep],
        curve.low[keep],
        curve.high[keep],
        curve.correct[keep],
        curve.groups,
    )


def _degraded(curve: Curve, window: int, max_drop: float, drop_sigmas: float) -> Finding | None:
    now = len(curve.labels) - 1
    width = min(window, now)
    means = np.convolve(curve.accuracy[:now], np.ones(width) / width, mode="valid")
    best = slice(int(means.argmax()), int(means.argmax()) + width)
    change = _change(curve, slice(now, now + 1), best)
    if not math.isfinite(change.noise):
        return ABOUT.fails("The noise of the accuracy cannot be computed.", None, max_drop)
    if -change.gain <= max_drop or -change.gain <= drop_sigmas * change.noise:
        return None
    what = (
        f"Degradation: accuracy {curve.accuracy[now]:.3f} with {curve.labels[now]} labels, but {means.max():.3f} "
        f"up to iteration {curve.iterations[best][-1]}: the drop is {_times(change)} times the noise."
    )
    return ABOUT.fails(what, change.gain, -max_drop, kind="degradation", noise=change.noise)


def _gained(curve: Curve, window: int, growth: float, worth: float, sigmas: float, ceiling: float) -> Finding:
    late = slice(max(len(curve.labels) - window, 0), len(curve.labels))
    base = _base(curve, window, growth)
    if base is None:
        return ABOUT.not_applicable(
            f"No degradation; whether labels still pay shows once they grew {growth:g}-fold over {window} iterations."
        )
    change, reached = _change(curve, late, base), float(curve.accuracy[late].mean())
    what = (
        f"Accuracy {reached:.3f} at {curve.labels[late].mean():.0f} labels, {curve.accuracy[base].mean():.3f} at "
        f"{curve.labels[base].mean():.0f}: gain {change.gain:.3f} +- {change.noise:.3f}."
    )
    margin = sigmas * change.noise
    if change.gain > margin:
        return ABOUT.passes(what, change.gain, margin, kind="improving")
    if reached >= ceiling and math.isfinite(margin):
        return ABOUT.passes(f"Saturated near the ceiling, as hoped. {what}", change.gain, ceiling, kind="ceiling")
    if change.gain + margin >= worth:
        return ABOUT.not_applicable(f"The holdout is too small to tell whether labels still pay. {what}")
    return ABOUT.fails(f"Saturation: {what} That is less than {worth:g}.", change.gain, worth, kind="saturation")


def _base(curve: Curve, window: int, growth: float) -> slice | None:
    """The latest `window` rows that are over before the last `window` begin and had `growth` times fewer labels."""
    late = curve.labels[-window:].mean()
    for end in range(len(curve.labels) - window, window - 1, -1):
        if curve.labels[end - window : end].mean() * growth <= late:
            return slice(end - window, end)
    return None


def _times(change: Change) -> str:
    return f"{-change.gain / change.noise:.1f}" if change.noise > 0 else "infinitely many"


def _change(curve: Curve, late: slice, early: slice) -> Change:
    """Mean of the rows `late` less mean of `early`: paired where all predicted an item, else from the intervals."""
    gain = float(curve.accuracy[late].mean() - curve.accuracy[early].mean())
    items = np.isfinite(curve.correct[late]).all(axis=0) & np.isfinite(curve.correct[early]).all(axis=0)
    if items.sum() < 2:
        errors = (curve.high - curve.low) / 3.92  # of 95 % intervals
        return Change(gain, float(np.hypot(errors[late].mean(), errors[early].mean())))
    difference = curve.correct[late][:, items].mean(axis=0) - curve.correct[early][:, items].mean(axis=0)
    return Change(float(difference.mean()), _clustered_error(difference, curve.groups[items]))


def _clustered_error(difference: Array, groups: Array) -> float:
    """Standard error of the mean when the items of a group go together (Liang and Zeger, 1986).

    At least that of one more and one fewer item changed: items that all agree do not prove that all others do.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, weights=difference - difference.mean())
    return max(math.sqrt(float(sums @ sums)), 1.0) / len(difference)
