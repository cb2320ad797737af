"""tasks/statistics.py: against SciPy, hand values, and the coverage that an interval promises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.statistics import Interval, accuracy, better, flip_tail, labels_to_reach, wilson


def interval(correct: Sequence[float], groups: Sequence[int] | None = None, seed: int = 0) -> Interval:
    groups = list(range(len(correct))) if groups is None else groups
    return accuracy(np.array(correct), np.array(groups), 0.95, 500, np.random.default_rng(seed))


def test_the_value_is_the_mean_inside_its_bounds() -> None:
    measured = interval([1, 1, 0, 1, 0, 1, 1, 1])
    assert measured.value == 0.75
    assert 0.0 <= measured.low < 0.75 < measured.high <= 1.0


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong_still_has_a_width(right: float) -> None:
    measured = interval([right] * 20)
    assert measured.value == right
    assert measured.high - measured.low > 0.1


def test_wilson_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    expected = binomtest(45, 50).proportion_ci(0.95, "wilson")
    assert wilson(0.9, 50, 0.95) == pytest.approx((expected.low, expected.high))


def test_the_bootstrap_agrees_with_scipy_on_single_items() -> None:
    from scipy.stats import bootstrap

    correct = (np.random.default_rng(1).random(400) < 0.8).astype(float)
    expected = bootstrap((correct,), np.mean, method="percentile", rng=0, n_resamples=4000).confidence_interval
    measured = accuracy(correct, np.arange(400), 0.95, 4000, np.random.default_rng(0))
    assert measured.low == pytest.approx(expected.low, abs=0.008)
    assert measured.high == pytest.approx(expected.high, abs=0.008)


def test_items_that_agree_within_groups_widen_the_interval() -> None:
    draws = np.random.default_rng(2).random(40) < 0.7
    alone = interval(np.repeat(draws, 10).tolist())
    grouped = interval(np.repeat(draws, 10).tolist(), np.repeat(np.arange(40), 10).tolist())
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("share,count", [(0.97, 60), (0.8, 100)])
def test_the_interval_covers_the_truth_as_often_as_it_says(share: float, count: int) -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        correct = (rng.random(count) < share).astype(float)
        measured = accuracy(correct, np.arange(count), 0.95, 200, rng)
        hits += measured.low <= share <= measured.high
    assert hits >= 0.92 * 300


def test_nothing_measured_is_nan_and_nan_is_refused() -> None:
    assert math.isnan(interval([]).value)
    with pytest.raises(ValueError, match="NaN"):
        interval([1.0, float("nan")])


def test_group_names_and_their_order_change_nothing() -> None:
    first = interval([1, 0, 1, 1], [0, 0, 1, 2])
    assert interval([1, 0, 1, 1], [5, 5, 6, 7]) == first
    assert interval([1, 1, 0, 1], [1, 0, 0, 2]) == first


def test_paired_test_of_single_items_is_exact_mcnemar() -> None:
    from scipy.stats import binomtest

    new = np.array([1] * 12 + [0] * 3 + [1] * 50)
    old = np.array([0] * 12 + [1] * 3 + [1] * 50)
    assert better(new, old, np.arange(65)) == pytest.approx(binomtest(12, 15, alternative="greater").pvalue)


@given(st.lists(st.integers(1, 4), max_size=9), st.data())
def test_the_flip_test_counts_every_pattern_of_signs(sizes: list[int], data: st.DataObject) -> None:
    seen = data.draw(st.integers(-sum(sizes) - 2, sum(sizes) + 2))
    patterns = itertools.product((-1, 1), repeat=len(sizes))
    sums = [sum(sign * size for sign, size in zip(signs, sizes, strict=True)) for signs in patterns]
    assert flip_tail(np.array(sizes, dtype=np.int64), seen) == pytest.approx(np.mean([total >= seen for total in sums]))


def test_a_group_that_flips_together_counts_once() -> None:
    new, old = np.ones(20, dtype=bool), np.zeros(20, dtype=bool)
    assert better(new, old, np.arange(20)) < 1e-5
    assert better(new, old, np.zeros(20)) == 0.5


def test_equal_models_are_not_better() -> None:
    assert better(np.array([1, 0, 1]), np.array([1, 0, 1]), np.arange(3)) == 1.0


def test_false_champions_are_as_rare_as_the_level() -> None:
    rng = np.random.default_rng(4)
    wrong = [better(rng.random(200) < 0.9, rng.random(200) < 0.9, np.arange(200)) < 0.05 for _ in range(400)]
    assert np.mean(wrong) <= 0.075


@pytest.mark.parametrize(
    "labels,values,target,expected",
    [
        ([10, 20, 30], [0.5, 0.7, 0.9], 0.8, 25.0),
        ([10, 20, 30], [0.5, 0.7, 0.9], 0.5, 10.0),
        ([10, 20, 30], [0.5, 0.7, 0.9], 0.95, None),
        ([10, 20, 30, 40], [0.5, 0.7, 0.6, 0.9], 0.8, 35.0),  # the dip does not count: from 0.7 on
        ([10, 20, 30], [0.5, math.nan, 0.9], 0.7, 20.0),
        ([], [], 0.7, None),
    ],
)
def test_labels_to_reach(labels: list[float], values: list[float], target: float, expected: float | None) -> None:
    reached = labels_to_reach(labels, values, target)
    assert reached == (None if expected is None else pytest.approx(expected))


def test_labels_must_grow() -> None:
    with pytest.raises(ValueError, match="grow"):
        labels_to_reach([10, 10], [0.1, 0.2], 0.2)
