"""Temperature scaling, folds that keep groups whole, out-of-fold logits, calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tasks import calibration

Array = npt.NDArray[Any]
finite = st.floats(-1e6, 1e6)


def overconfident(count: int, factor: float, seed: int = 0) -> tuple[Array, Array]:
    """Logits that are `factor` times too large for their labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(count, 5))
    labels = np.array([rng.choice(5, p=p) for p in calibration.softmax(logits)])
    return logits * factor, labels


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=finite), st.floats(0.05, 20))
def test_softmax_is_a_distribution_that_keeps_the_order(logits: Array, temperature: float) -> None:
    result = calibration.softmax(logits, temperature)
    np.testing.assert_allclose(result.sum(axis=1), 1.0)
    best = np.take_along_axis(result, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert (best == result.max(axis=1)).all()
    assert (result >= 0).all()


def test_softmax_by_hand_and_without_touching_its_argument() -> None:
    logits = np.array([[0.0, np.log(3.0) * 2]])
    np.testing.assert_allclose(calibration.softmax(logits, 2.0), [[0.25, 0.75]])
    assert logits.tolist() == [[0.0, np.log(3.0) * 2]]
    assert calibration.softmax(np.array([[1000.0, -1000.0]], np.float32)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_of_logits_that_are_too_large_is_found(factor: float) -> None:
    assert calibration.temperature(*overconfident(4000, factor)) == pytest.approx(factor, rel=0.06)


def test_the_temperature_minimises_the_likelihood_as_scipy_does() -> None:
    from scipy.optimize import minimize_scalar

    logits, labels = overconfident(3000, 3.0)

    def loss(t: float) -> float:
        return float(-np.log(calibration.softmax(logits, t)[np.arange(3000), labels]).mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
    assert calibration.temperature(logits, labels) == pytest.approx(best, rel=0.01)


def test_scaling_repairs_the_calibration_error() -> None:
    logits, labels = overconfident(4000, 4.0)
    before = calibration.ece(calibration.softmax(logits), labels)
    after = calibration.ece(calibration.softmax(logits, calibration.temperature(logits, labels)), labels)
    assert before > 0.15
    assert after < 0.03


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_few_separable_labels_do_not_ask_for_certainty(count: int) -> None:
    logits = np.eye(3)[np.arange(count) % 3] * 5.0
    assert 0.2 < calibration.temperature(logits, np.arange(count) % 3) < 1.0


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_few_wrong_labels_raise_the_temperature_within_bounds(count: int) -> None:
    logits = np.eye(3)[np.arange(count) % 3] * 5.0
    assert 1.0 < calibration.temperature(logits, (np.arange(count) + 1) % 3) <= 20.0


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 8), st.integers(1, 5)), elements=finite), st.integers(0, 2**32 - 1)
)
def test_a_temperature_is_always_between_its_bounds(logits: Array, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    assert 0.05 * 0.999 <= calibration.temperature(logits, labels) <= 20.0 * 1.001


def test_no_labels_or_one_class_leave_the_temperature_at_one() -> None:
    assert calibration.temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0
    assert calibration.temperature(np.zeros((4, 1)), np.zeros(4, np.int64)) == pytest.approx(1.0)


def test_logits_that_are_not_finite_have_no_temperature() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        calibration.temperature(np.array([[0.0, np.nan]]), np.array([0]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=60), st.integers(1, 8), st.integers(0, 2**32 - 1)
)
def test_groups_stay_whole_and_no_fold_is_empty(items: list[tuple[int, int]], count: int, seed: int) -> None:
    labels = np.array([label for label, _ in items], dtype=np.int64)
    groups = np.array([f"g{group}" for _, group in items], dtype=str)
    fold = calibration.folds(labels, count, np.random.default_rng(seed), groups)
    assert fold.shape == labels.shape
    assert fold.dtype == np.int64
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    assert set(fold) == set(range(min(count, len(set(groups)))))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_without_groups_each_class_is_spread_evenly(labels: list[int], count: int, seed: int) -> None:
    fold = calibration.folds(np.array(labels), count, np.random.default_rng(seed))
    used = min(count, len(labels))
    for label in set(labels):
        per_fold = np.bincount(fold[np.array(labels) == label], minlength=used)
        assert per_fold.max() - per_fold.min() <= 1


def test_folds_repeat_with_the_seed_and_differ_without() -> None:
    labels = np.arange(40) % 4
    dealt = [calibration.folds(labels, 5, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]


def test_every_label_is_predicted_by_a_model_that_never_saw_its_fold() -> None:
    features, labels = np.arange(12.0)[:, None], np.arange(12) % 3
    fold = calibration.folds(labels, 4, np.random.default_rng(0))

    def remember(seen: Array, _: Array) -> dict[str, Array]:
        return {"seen": seen}

    def recognise(state: dict[str, Array], asked: Array) -> Array:
        known = np.isin(asked[:, 0], state["seen"][:, 0]).astype(float)
        return np.stack([known, asked[:, 0], np.full(len(asked), len(state["seen"]))], axis=1)

    logits = calibration.cross_validate(remember, recognise, features, labels, fold)
    assert not logits[:, 0].any()
    assert logits[:, 1].tolist() == features[:, 0].tolist()
    assert logits[:, 2].tolist() == [12 - (fold == f).sum() for f in fold]


def test_one_fold_cannot_be_cross_validated() -> None:
    with pytest.raises(ValueError, match="two folds"):
        calibration.cross_validate(
            lambda x, y: {}, lambda s, x: x, np.zeros((3, 2)), np.zeros(3), np.zeros(3, np.int64)
        )


def test_a_class_that_is_in_one_fold_only_is_not_learnable() -> None:
    labels, fold = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 0, 1, 1])
    assert calibration.learnable(labels, fold).tolist() == [True, True, False, False, False]


def test_reliability_and_calibration_error_by_hand() -> None:
    confidence = np.array([0.55, 0.6, 0.95, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    table = calibration.reliability(probabilities, np.array([0, 1, 0, 0]), bins=10)
    assert table.count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    np.testing.assert_allclose(table.confidence[[5, 9]], [0.575, 0.975])
    np.testing.assert_allclose(table.accuracy[[5, 9]], [0.5, 1.0])
    np.testing.assert_allclose((table.lower[5], table.upper[5]), (0.5, 0.6))
    assert np.isnan(table.accuracy[0])
    error = calibration.ece(probabilities, np.array([0, 1, 0, 0]), bins=10)
    assert error == pytest.approx((2 * 0.075 + 2 * 0.025) / 4)


def test_certain_and_right_is_perfect_certain_and_wrong_is_the_worst() -> None:
    certain = np.eye(2)[[0, 1, 0]]
    assert calibration.ece(certain, np.array([0, 1, 0])) == 0.0
    assert calibration.ece(certain, np.array([1, 0, 1])) == 1.0


def test_the_calibration_error_of_nothing_is_unknown() -> None:
    assert np.isnan(calibration.ece(np.zeros((0, 3)), np.zeros(0, np.int64)))
