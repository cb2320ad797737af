"""From logits to probabilities that mean what they say: temperature scaling, folds, calibration error.

    fold = folds(labels, 5, rng)                                  # stratified, whole groups
    logits = cross_validate(fit, predict, features, labels, fold)  # every label predicted by a model that never saw it
    t = temperature(logits, labels)                               # 2.3: the network was overconfident
    probabilities = softmax(predict(state, pool), t)

Cross-validation, because a separate calibration split starves a model that has 60 labels.
Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
State = dict[str, Array]
TEMPERATURES = (0.05, 20.0)  # what a temperature is clipped to
PRIOR = 1.0  # standard deviation of log temperature around 0, worth about one label


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Probabilities (...,C) float64 of logits (...,C) divided by a temperature > 0; no overflow for finite logits."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max(axis=-1, keepdims=True)
    scaled /= temperature
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=-1, keepdims=True)
    return scaled


def temperature(logits: Array, labels: Array) -> float:
    """The temperature in [0.05, 20] under which logits (N,C) explain labels (N,) best; 1.0 when N is 0.

    Minimises the negative log-likelihood plus a weak log-normal prior around 1, which fades as 1/N: without it a
    few perfectly separated labels ask for a temperature of 0. Raises ValueError when a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinity: no temperature can be fitted to them.")
    if len(labels) == 0:
        return 1.0
    centred = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    chosen = centred[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        likelihood = np.log(np.exp(centred * scale).sum(axis=1)) - chosen * scale
        return float(likelihood.sum() + 0.5 * (log_temperature / PRIOR) ** 2)

    return float(np.exp(_minimum(loss, *np.log(TEMPERATURES))))


def _minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a function of one variable: a grid (it may have two valleys), then golden section."""
    grid = np.linspace(low, high, 33)
    best = int(np.argmin([loss(x) for x in grid]))
    a, b = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    ratio = (5**0.5 - 1) / 2
    for _ in range(40):
        left, right = b - ratio * (b - a), a + ratio * (b - a)
        a, b = (a, right) if loss(left) <= loss(right) else (left, b)
    return (a + b) / 2


def folds(labels: Array, count: int, rng: np.random.Generator, groups: Array | None = None) -> Array:
    """Fold (N,) int64 of each label, in [0, count): stratified by class, a group never in two folds.

    `groups` (N,) of any dtype; None means that every item is its own. With fewer groups than `count` there are as
    many folds as groups. Largest groups first, each to the fold that has least of its classes (as scikit-learn's
    StratifiedGroupKFold).
    """
    group = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)[1].reshape(-1)
    if len(labels) == 0:
        return np.zeros(0, dtype=np.int64)
    table = np.zeros((int(group.max()) + 1, int(labels.max()) + 1))
    np.add.at(table, (group, labels), 1)
    return _deal(table, max(1, min(count, len(table))), rng)[group]


def _deal(table: Array, count: int, rng: np.random.Generator) -> Array:
    """Fold of each group, given its labels per class (G,C)."""
    shuffled = rng.permutation(len(table))
    order = shuffled[np.argsort(-table[shuffled].sum(axis=1), kind="stable")]
    weights = 1.0 / np.maximum(table.sum(axis=0), 1.0)
    held = np.zeros((count, table.shape[1]))
    result = np.zeros(len(table), dtype=np.int64)
    for group in order:
        # Least of this group's classes; among equals the smallest fold, so that no fold stays empty.
        crowding = np.round(held @ (table[group] * weights), 9)
        fold = int(np.lexsort((held.sum(axis=1), crowding))[0])
        result[group] = fold
        held[fold] += table[group]
    return result


def cross_validate(
    fit: Callable[[Array, Array], State],
    predict: Callable[[State, Array], Array],
    features: Array,
    labels: Array,
    fold: Array,
) -> Array:
    """Logits (N,C) for each labeled item from a model fitted without its fold.

    `fit(features, labels)` has the network's other arguments bound; `fold` (N,) comes from `folds`. Raises
    ValueError with fewer than two folds: there would be nothing to fit on.
    """
    names = np.unique(fold)
    if len(names) < 2:
        raise ValueError(f"cross-validation needs two folds, there are {len(names)}: label items of more groups.")
    parts = {int(n): predict(fit(features[fold != n], labels[fold != n]), features[fold == n]) for n in names}
    logits = np.empty((len(labels), parts[int(names[0])].shape[1]), dtype=np.float64)
    for name, part in parts.items():
        logits[fold == name] = part
    return logits


def learnable(labels: Array, fold: Array) -> Array:
    """Mask (N,) of the labels whose class also occurs outside their own fold.

    The others were predicted by a model that could not know their class; the final model will know it, so they
    say nothing about its temperature.
    """
    return np.array([bool(((labels == c) & (fold != f)).any()) for c, f in zip(labels, fold, strict=True)], dtype=bool)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: one entry a bin of equal width, from confidence 0 to 1. Empty bins hold NaN means."""

    lower: Array  # (B,) confidence at which the bin starts
    upper: Array  # (B,)
    count: Array  # (B,) int64 items in the bin
    confidence: Array  # (B,) mean predicted probability of the predicted class
    accuracy: Array  # (B,) share of correct predictions


def reliability(probabilities: Array, labels: Array, bins: int = 15) -> Reliability:
    """Confidence against accuracy of the predicted class: probabilities (N,C), labels (N,) -> B bins."""
    confidence = probabilities.max(axis=1, initial=0.0)
    correct = probabilities.argmax(axis=1) == labels
    # Bins are (lower, upper], as in Guo et al.; a confidence of 0 belongs to the first.
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=w, minlength=bins) / count for w in (confidence, correct)]
    return Reliability(edges[:-1], edges[1:], count, means[0], means[1])


def ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean distance of confidence and accuracy over bins; NaN when N is 0."""
    if len(labels) == 0:
        return float("nan")
    table = reliability(probabilities, labels, bins)
    filled = table.count > 0
    gaps = np.abs(table.confidence[filled] - table.accuracy[filled])
    return float((gaps * table.count[filled]).sum() / len(labels))
