"""tasks/agreement.py: against hand-computed cases, and what must hold for any votes."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import agreement
from tasks.agreement import Votes


def votes(*rows: tuple[Any, ...]) -> Votes:
    """Rows of item, annotator, label, and perhaps seconds, accepted, arm, predicted."""
    full = [(*row, *(math.nan, -1, "active", "")[len(row) - 3 :]) for row in rows]
    columns = list(zip(*full, strict=True)) if full else [()] * 7
    items, annotators, labels, seconds, accepted, arms, predicted = columns
    return Votes(items, annotators, labels, np.array(seconds, float), np.array(accepted, np.int8), arms, predicted)


#: three people, five items; worked out by hand below
EXAMPLE = votes(
    ("1", "ann", "deer"), ("1", "bob", "deer"),
    ("2", "ann", "deer"), ("2", "bob", "fox"), ("2", "eve", "fox"),
    ("3", "ann", "fox"), ("3", "eve", "fox"),
    ("4", "ann", "fox"),
    ("5", "ann", ""), ("5", "bob", "deer"),
)  # fmt: skip


def test_a_vote_is_compared_with_everybody_elses_on_the_same_item() -> None:
    nan = math.nan
    expected = [0, 0, 1, 0.5, 0.5, 0, 0, nan, nan, nan]
    assert agreement.disagreement(EXAMPLE) == pytest.approx(expected, nan_ok=True)


def test_alpha_is_krippendorffs() -> None:
    # observed: 2 of 7 votes' weight differs; 3 deer and 4 fox are compared, so chance gives 2*3*4 / (7*6) = 4/7
    assert agreement.alpha(EXAMPLE) == pytest.approx(1 - (2 / 7) / (4 / 7))


def test_alpha_of_krippendorffs_own_example() -> None:
    # two observers, ten units, nominal (Computing Krippendorff's Alpha-Reliability, 2011, B): alpha = 0.095
    first, second = "0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"
    rows = [(str(n), who, c) for who, row in (("a", first), ("b", second)) for n, c in enumerate(row.split())]
    assert agreement.alpha(votes(*rows)) == pytest.approx(0.095, abs=5e-4)


def test_full_agreement_is_one_and_a_single_class_cannot_be_judged() -> None:
    both = [("1", "ann", "deer"), ("1", "bob", "deer")]
    assert math.isnan(agreement.alpha(votes(*both)))
    assert agreement.alpha(votes(*both, ("2", "ann", "fox"), ("2", "bob", "fox"))) == 1


def test_disagreement_is_told_by_annotator_and_by_class() -> None:
    rows = agreement.by_annotator(EXAMPLE)
    assert rows["annotator"] == ["ann", "bob", "eve"]
    assert rows["disagreement"] == pytest.approx([1 / 3, 0.25, 0.25])
    assert (rows["labels"], rows["skips"], rows["compared"]) == ([4, 3, 2], [1, 0, 0], [3, 2, 2])
    classes = agreement.by_class(EXAMPLE, ("deer", "fox", "lynx"))
    assert classes["compared"] == [3, 4, 0]
    assert classes["disagreement"] == pytest.approx([1 / 3, 0.25, math.nan], nan_ok=True)


def test_time_is_summed_and_a_label_costs_all_of_it() -> None:
    timed = votes(("1", "ann", "deer", 30.0), ("2", "ann", "", 30.0), ("3", "bob", "fox", 60.0), ("4", "bob", "fox"))
    found = agreement.measures(timed)
    assert (found["minutes_spent"], found["minutes_per_label"]) == (2.0, 1.0), "a skip costs, too"
    assert agreement.by_annotator(timed)["median_seconds"] == [30.0, 60.0]


def test_without_lead_times_no_cost_is_claimed() -> None:
    assert math.isnan(agreement.measures(EXAMPLE)["minutes_per_label"])


def test_suggestions_that_were_followed_are_told_beside_the_arms_where_they_are_hidden() -> None:
    told = votes(
        ("1", "ann", "deer", 1.0, 1, "active", "deer"), ("2", "ann", "fox", 1.0, 0, "active", "deer"),
        ("3", "ann", "deer", 1.0, -1, "active", "deer"), ("4", "ann", "fox", 1.0, -1, "control", "deer"),
        ("5", "ann", "deer", 1.0, -1, "holdout", "deer"), ("6", "ann", "deer", 1.0, -1, "seed", ""),
        ("7", "ann", "", 1.0, -1, "active", "deer"),
    )  # fmt: skip
    found = agreement.measures(told)
    assert (found["suggestions_used"], found["suggestions_accepted"]) == (2, 0.5)
    assert (found["match_suggested"], found["match_hidden"]) == pytest.approx((2 / 3, 0.5))


def test_nobody_has_said_anything_yet() -> None:
    found = agreement.measures(votes())
    assert found["annotators"] == 0
    assert all(math.isnan(found[name]) for name in ("agreement_alpha", "minutes_per_label", "match_hidden"))
    assert agreement.by_annotator(votes()) == {}


ROWS = st.lists(
    st.tuples(st.sampled_from("1234"), st.sampled_from(["ann", "bob", "eve"]), st.sampled_from(["deer", "fox", ""])),
    max_size=12,
    unique_by=lambda row: row[:2],
)


@given(rows=ROWS, seed=st.integers(0, 99))
def test_the_order_of_votes_changes_no_measure(rows: list[tuple[str, str, str]], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert agreement.measures(votes(*shuffled)) == pytest.approx(agreement.measures(votes(*rows)), nan_ok=True)


@given(rows=ROWS)
def test_shares_are_shares_and_by_annotator_adds_up_to_the_whole(rows: list[tuple[str, str, str]]) -> None:
    table, total = agreement.by_annotator(votes(*rows)), agreement.measures(votes(*rows))
    assert all(math.isnan(d) or 0 <= d <= 1 for d in table.get("disagreement", []))
    weights = table.get("compared", [])
    if sum(weights):
        weighted = sum(w * d for w, d in zip(weights, table["disagreement"], strict=True) if w) / sum(weights)
        assert total["disagreement"] == pytest.approx(weighted)
