"""Small active-learning campaigns in memory, as the evidence that the checks see, healthy or with one bug in them.

    for evidence in campaign(np.random.default_rng(0), iterations=8): ...      # real learning, real selection

The learner is ridge regression on one-hot labels (a millisecond), so hundreds of campaigns fit into a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from monitoring.evidence import Array, Batch, Curve, Evidence, Model, Scores

Learner = Callable[[Array, Array, Array, int], Array]


@dataclass
class World:
    """A pool with truth: blobs that overlap, some of them reserved as holdout."""

    features: Array  # (N, D)
    classes: Array  # (N,)
    holdout: Array  # (N,) bool
    groups: Array  # (N,)
    count: int  # classes


def blobs(rng: np.random.Generator, items: int = 700, classes: int = 5, size: int = 10, spread: float = 0.55) -> World:
    """Gaussian classes around random centres, every fourth item reserved, no groups."""
    labels = rng.integers(classes, size=items)
    centres = rng.normal(size=(classes, size))
    features = centres[labels] + rng.normal(scale=spread * 2, size=(items, size))
    holdout = np.arange(items) % 4 == 0
    return World(features, labels, holdout, np.arange(items), classes)


def ridge(features: Array, labels: Array, everything: Array, classes: int) -> Array:
    """(N, C) probabilities: softmax of a ridge regression on the class indicators."""
    x = np.hstack([features, np.ones((len(features), 1))])
    target = np.eye(classes)[labels] - 1.0 / classes
    weights = np.linalg.solve(x.T @ x + 2.0 * np.eye(x.shape[1]), x.T @ target)
    logits = np.hstack([everything, np.ones((len(everything), 1))]) @ weights * 8.0
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass
class State:
    """What crosses iterations."""

    asked_in: Array
    representative: Array
    outcomes: list[Array] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    previous: Scores | None = None
    previous_model: Model | None = None


def campaign(
    rng: np.random.Generator,
    iterations: int = 8,
    *,
    world: World | None = None,
    learner: Learner = ridge,
    batch: int = 20,
    control: int = 2,
    flip: float = 1.0,
    answers: Callable[[int, Array], Array] = lambda iteration, classes: classes,
) -> list[Evidence]:
    """Evidence of each iteration. `flip` -1 turns the utility's sign; `answers` (iteration, truth) may answer wrongly."""
    world = world or blobs(rng)
    told = world.classes.copy()
    state = State(np.full(len(told), -1, dtype=np.int64), np.zeros(len(told), dtype=bool))
    found = []
    for iteration in range(iterations):
        evidence = _iterate(rng, iteration, world, told, state, learner, batch, control, flip)
        found.append(evidence)
        picked = evidence.batch.positions
        state.asked_in[picked] = iteration
        chosen = np.array([arm in ("seed", "control") for arm in evidence.batch.arms])
        state.representative[picked[chosen]] = True
        told[picked] = answers(iteration, world.classes[picked])
        state.previous, state.previous_model = evidence.scores, evidence.model
    return found


def _iterate(
    rng: np.random.Generator, iteration: int, world: World, told: Array, state: State, learner: Learner, batch: int,
    control: int, flip: float,
) -> Evidence:  # fmt: skip
    trained = (state.asked_in >= 0) & ~world.holdout
    probabilities = np.full((len(told), world.count), 1.0 / world.count)
    if trained.any():
        probabilities = learner(world.features[trained], told[trained], world.features, world.count)
    ordered = np.sort(probabilities, axis=1)
    utility = flip * (1.0 - (ordered[:, -1] - ordered[:, -2])) if trained.any() else np.zeros(len(told))
    predicted = probabilities.argmax(axis=1)
    scores = Scores(utility, predicted, ordered[:, -1].astype(np.float32).astype(np.float64))
    right = (predicted == world.classes)[world.holdout].astype(np.float64)
    state.outcomes.append(right)
    state.labels.append(int(trained.sum()))
    picked = _pick(rng, world, state, utility, batch, control, bool(trained.any()))
    measured = iteration > 0
    labeled = trained | (world.holdout & measured)
    return Evidence(
        iteration=iteration,
        remaining=None,
        groups=world.groups,
        holdout=world.holdout,
        labeled=labeled,
        trained=trained,
        trained_classes=len(np.unique(told[trained])),
        representative=state.representative.copy(),
        asked_in=np.where(world.holdout & measured, 0, state.asked_in),
        wrong=np.where(world.holdout & measured, (predicted != world.classes).astype(np.float64), np.nan),
        batch=picked,
        scores=scores,
        previous=state.previous,
        model=Model(f"weights of iteration {iteration}", int(trained.sum()), "margin"),
        previous_model=state.previous_model,
        by_utility=True,
        curve=curve(np.array(state.labels), np.array(state.outcomes)) if measured else curve_of_nothing(iteration),
    )


def _pick(
    rng: np.random.Generator, world: World, state: State, utility: Array, batch: int, control: int, model: bool
) -> Batch:
    free = np.flatnonzero((state.asked_in < 0) & ~world.holdout)
    if not model:
        return make_batch(rng.choice(free, batch, replace=False), ["seed"] * batch)
    random = rng.choice(free, control, replace=False)
    rest = np.setdiff1d(free, random)
    active = rest[np.argsort(-utility[rest], kind="stable")[: batch - control]]
    return make_batch(np.concatenate([random, active]), ["control"] * control + ["active"] * len(active))


def make_batch(positions: Array, arms: list[str]) -> Batch:
    """A batch whose item ids are made of the positions."""
    return Batch(tuple(f"{p:064x}" for p in positions), np.asarray(positions, dtype=np.int64), tuple(arms))


def curve(labels: Array, correct: Array) -> Curve:
    """A learning curve from what was right: labels (T,), correct (T, H)."""
    accuracy = correct.mean(axis=1)
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / correct.shape[1])
    numbers = np.arange(len(labels))
    return Curve(numbers, labels, accuracy, accuracy - half, accuracy + half, correct, np.arange(correct.shape[1]))


def curve_of_nothing(iteration: int) -> Curve:
    """The curve before there are holdout labels."""
    nothing = np.array([np.nan])
    labels = np.zeros(1, dtype=np.int64)
    return Curve(
        np.array([iteration]), labels, nothing, nothing, nothing, np.zeros((1, 0)), np.zeros(0, dtype=np.int64)
    )


def replaced(evidence: Evidence, **scores: Array) -> Evidence:
    """The evidence with other score columns."""
    return replace(evidence, scores=replace(evidence.scores, **scores))
