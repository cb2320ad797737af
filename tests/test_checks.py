"""Every check: a contract that all keep, bugs that each must find, and hundreds of healthy iterations it must not flag."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.checks._ranks import outscores, spearman
from monitoring.evidence import Batch, Curve, Evidence, Finding, Model, Scores, from_json, to_json
from tasks import plugins
from tests.campaigns import World, blobs, campaign, curve, make_batch, replaced

CHECKS = plugins.names("checks")


def run(name: str, evidence: Evidence, **limits: Any) -> Finding:
    with np.errstate(all="ignore"):
        finding: Finding = plugins.find("checks", name).check(evidence, **limits)
    return finding


def slow_world(rng: np.random.Generator) -> World:
    """Ten classes in thirty dimensions: more labels keep paying."""
    return blobs(rng, items=1000, classes=10, size=30, spread=0.75)


@pytest.fixture(scope="module")
def healthy() -> list[Evidence]:
    rng = np.random.default_rng(5)
    return campaign(rng, 8, world=slow_world(rng))


def hollow() -> Evidence:
    """Evidence with nothing in it."""
    none, number = np.zeros(0), np.zeros(0, dtype=np.int64)
    mask, scores = np.zeros(0, dtype=bool), Scores(none, number, none)
    no_curve = Curve(number, number, none, none, none, np.zeros((0, 0)), number)
    model, batch = Model("a", 10, "margin"), Batch((), number, ())
    return Evidence(
        3, None, number, mask, mask, mask, 0, mask, number, none, batch, scores, scores, model, model, True, no_curve
    )


def ruined(value: Any) -> Any:
    """The same evidence, with every float NaN and every row of the batch unknown."""
    if isinstance(value, np.ndarray):
        return np.full_like(value, np.nan) if value.dtype.kind == "f" else value
    if isinstance(value, Batch):
        return replace(value, positions=np.full_like(value.positions, -1))
    if isinstance(value, Scores | Curve | Evidence):
        return replace(value, **{f.name: ruined(getattr(value, f.name)) for f in fields(value)})
    return value


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_takes_evidence_and_limits_with_literal_defaults(name: str) -> None:
    entry = plugins.entry_point("checks", name)
    assert entry.evidence == ("evidence",)
    assert entry.options


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_passes_a_healthy_campaign_once_there_is_history(name: str, healthy: list[Evidence]) -> None:
    assert run(name, healthy[-1]).outcome == "pass"


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_never_passes_empty_evidence(name: str) -> None:
    assert run(name, hollow()).outcome != "pass"


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_fails_on_evidence_full_of_nan(name: str, healthy: list[Evidence]) -> None:
    assert run(name, ruined(healthy[-1])).outcome == "fail"


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_gives_the_same_finding_twice_and_leaves_the_evidence_alone(name: str, healthy: list[Evidence]) -> None:
    before = json.dumps(healthy[-1].scores.utility.tolist())
    assert run(name, healthy[-1]) == run(name, healthy[-1])
    assert json.dumps(healthy[-1].scores.utility.tolist()) == before


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_finding_says_what_why_and_what_to_do_and_survives_json(name: str, at: int, healthy: list[Evidence]) -> None:
    for evidence in (healthy[at], ruined(healthy[at]), hollow()):
        finding = run(name, evidence)
        assert finding.check == name
        assert all(len(text.split()) > 5 for text in (finding.what, finding.why, finding.todo))
        assert finding.causes
        text = json.dumps(to_json(3, [finding]), allow_nan=False)
        assert from_json(json.loads(text)) == (finding,)


def test_two_hundred_and_fifty_healthy_campaigns_raise_no_alarm() -> None:
    alarms: Counter[str] = Counter()
    first, iterations = "", 0
    for seed in range(250):
        rng = np.random.default_rng(seed)
        for evidence in campaign(rng, 8, world=slow_world(rng)):
            iterations += 1
            failed = [finding for finding in (run(name, evidence) for name in CHECKS) if finding.outcome == "fail"]
            alarms.update(finding.check for finding in failed)
            first = first or "".join(f"seed {seed}: {finding.what}" for finding in failed)
    assert iterations == 2000
    assert not alarms, first


# repeated_selections ---------------------------------------------------------------------------------------------


def rebatch(evidence: Evidence, rank: int, position: int, arm: str = "active") -> Evidence:
    """The batch with another item at a rank."""
    positions, arms = evidence.batch.positions.copy(), list(evidence.batch.arms)
    positions[rank], arms[rank] = position, arm
    return replace(evidence, batch=make_batch(positions, arms))


def faults(evidence: Evidence) -> dict[str, int]:
    finding = run("repeated_selections", evidence)
    assert finding.outcome == "fail"
    return {name: count for name, count in finding.evidence["counts"].items() if count}


def test_an_item_asked_about_before_is_found_and_named(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    again = int(healthy[0].batch.positions[0])
    pending = replace(now, labeled=np.where(np.arange(len(now.labeled)) == again, False, now.labeled))
    bad = rebatch(pending, 7, again)
    assert faults(bad) == {"asked about before": 1}
    assert run("repeated_selections", bad).evidence["items"] == [bad.batch.item_ids[7]]


def test_a_labeled_item_is_found_even_when_nobody_asked(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    labeled = now.labeled.copy()
    labeled[now.batch.positions[3]] = True
    assert faults(replace(now, labeled=labeled)) == {"labeled before": 1}


def test_a_reserved_item_outside_its_arm_is_found(healthy: list[Evidence]) -> None:
    fresh = healthy[0]
    assert faults(rebatch(fresh, 0, int(np.flatnonzero(fresh.holdout)[0]))) == {"reserved for measuring": 1}


def test_a_reserved_item_in_the_holdout_arm_is_right(healthy: list[Evidence]) -> None:
    fresh = healthy[0]
    asked = rebatch(fresh, 0, int(np.flatnonzero(fresh.holdout)[0]), "holdout")
    assert run("repeated_selections", asked).outcome == "pass"


def test_an_item_in_the_holdout_arm_that_is_not_reserved_is_found(healthy: list[Evidence]) -> None:
    fresh = healthy[0]
    position = int(fresh.batch.positions[0])
    assert faults(rebatch(fresh, 0, position, "holdout")) == {"in the holdout arm without being reserved": 1}


def test_an_item_whose_group_is_reserved_is_found(healthy: list[Evidence]) -> None:
    fresh = healthy[0]
    groups = fresh.groups.copy()
    groups[fresh.batch.positions[2]] = groups[np.flatnonzero(fresh.holdout)[0]]
    assert faults(replace(fresh, groups=groups)) == {"in one group with a reserved item": 1}


def test_an_item_that_is_twice_in_the_batch_is_found(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    assert faults(rebatch(now, 0, int(now.batch.positions[1]))) == {"repeated in the batch": 2}


def test_an_item_that_is_not_in_the_manifest_is_found(healthy: list[Evidence]) -> None:
    assert faults(rebatch(healthy[-1], 0, -1)) == {"not in the manifest": 1}


def test_an_empty_batch_fails_only_while_something_could_be_asked(healthy: list[Evidence]) -> None:
    empty = replace(healthy[-1], batch=make_batch(np.zeros(0, dtype=np.int64), []))
    assert run("repeated_selections", empty).outcome == "fail"
    assert run("repeated_selections", replace(empty, remaining=0)).outcome == "not_applicable"
    used_up = replace(empty, labeled=np.ones_like(empty.labeled))
    assert run("repeated_selections", used_up).outcome == "not_applicable"


@given(st.integers(0, 2**32 - 1), st.integers(1, 19))
@settings(max_examples=25, deadline=None)
def test_any_number_of_repeats_is_counted_exactly(seed: int, repeats: int) -> None:
    rng = np.random.default_rng(seed)
    found = campaign(rng, 3, world=blobs(rng, items=300))
    bad, before = found[2], found[1].batch.positions
    for rank in range(repeats):
        bad = rebatch(bad, rank, int(before[rank]))
    assert run("repeated_selections", bad).value == repeats


# stagnant_rankings -----------------------------------------------------------------------------------------------


def test_the_same_weights_after_new_labels_are_stale(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    assert now.previous_model is not None
    stale = replace(now, model=replace(now.model, sha256=now.previous_model.sha256))
    assert "weights" in run("stagnant_rankings", stale).what
    assert run("stagnant_rankings", stale).outcome == "fail"


def test_a_model_that_did_not_get_the_new_labels_is_stale(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    stale = replace(now, model=replace(now.model, labels=now.model.labels - 20))
    assert run("stagnant_rankings", stale).outcome == "fail"


def test_scores_of_the_iteration_before_are_stale_although_the_weights_are_new(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    assert now.previous is not None
    assert run("stagnant_rankings", replace(now, scores=now.previous)).outcome == "fail"


def test_utilities_of_the_iteration_before_are_stale_although_the_predictions_are_new(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    assert now.previous is not None
    assert run("stagnant_rankings", replaced(now, utility=now.previous.utility)).outcome == "fail"


def test_a_ranking_that_moves_by_rounding_alone_is_stale(healthy: list[Evidence]) -> None:
    now, noise = healthy[-1], 1 + 1e-6 * np.random.default_rng(0).random(len(healthy[-1].groups))
    assert now.previous is not None
    stale = replace(
        now, scores=Scores(now.previous.utility * noise, now.previous.predicted, now.previous.confidence * noise)
    )
    assert run("stagnant_rankings", stale).outcome == "fail"


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_scores_are_flat(healthy: list[Evidence], value: float) -> None:
    flat = replaced(healthy[-1], utility=np.full(len(healthy[-1].groups), value))
    assert run("stagnant_rankings", flat).outcome == "fail"
    assert run("score_gap", flat).outcome == "fail"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_score_that_is_not_finite_is_enough(healthy: list[Evidence], value: float) -> None:
    utility = healthy[-1].scores.utility.copy()
    utility[11] = value
    assert run("stagnant_rankings", replaced(healthy[-1], utility=utility)).outcome == "fail"
    assert run("score_gap", replaced(healthy[-1], utility=utility)).outcome == "fail"


def test_there_is_nothing_to_compare_in_the_first_two_iterations(healthy: list[Evidence]) -> None:
    assert [run("stagnant_rankings", e).outcome for e in healthy[:3]] == ["not_applicable", "not_applicable", "pass"]


def test_without_new_labels_nothing_has_to_move(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    assert now.previous is not None
    idle = replace(now, scores=now.previous, previous_model=now.model)
    assert run("stagnant_rankings", idle).outcome == "not_applicable"


# score_gap -------------------------------------------------------------------------------------------------------


def test_a_flipped_sign_is_found_in_nine_of_ten_iterations_and_every_campaign() -> None:
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        outcomes = [run("score_gap", e).outcome for e in campaign(rng, 6, world=slow_world(rng), flip=-1.0)]
        assert "fail" in outcomes
        found += [outcome == "fail" for outcome in outcomes[1:]]
    assert np.mean(found) >= 0.9


def test_a_selection_that_takes_the_lowest_scores_is_found(healthy: list[Evidence]) -> None:
    now = healthy[-1]
    free = np.flatnonzero(now.candidates())
    lowest = free[np.argsort(now.scores.utility[free])[:20]]
    bad = replace(now, batch=make_batch(lowest, ["active"] * 20))
    assert run("score_gap", bad).outcome == "fail"
    assert run("score_gap", replace(bad, by_utility=False)).outcome == "pass"


def test_picks_from_groups_that_were_asked_about_as_often_are_no_alarm() -> None:
    rng = np.random.default_rng(3)
    world = slow_world(rng)
    found = campaign(rng, 5, world=world)[-1]
    groups = np.where(np.arange(len(found.groups)) % 20 == 1, 10**4 + np.arange(len(found.groups)), found.groups % 5)
    fresh = np.flatnonzero(found.candidates() & (groups >= 10**4))
    restricted = replace(found, groups=groups, batch=make_batch(fresh, ["active"] * len(fresh)))
    assert run("score_gap", restricted).outcome == "pass"


def test_random_utilities_raise_no_alarm() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        evidence = campaign(rng, 3, world=blobs(rng, items=400))[-1]
        active = np.array([arm == "active" for arm in evidence.batch.arms])
        utility = rng.random(len(evidence.groups))
        utility[evidence.batch.positions[active]] = 1.0 + rng.random(int(active.sum()))
        assert run("score_gap", replaced(evidence, utility=utility)).outcome == "pass"


# no_improvement --------------------------------------------------------------------------------------------------


def measured(evidence: Evidence, labels: list[int], accuracy: list[float], items: int, seed: int = 0) -> Evidence:
    """Evidence with a curve of independent models of the given true accuracies."""
    rng = np.random.default_rng(seed)
    hard = rng.random(items)
    correct = np.array([(hard + rng.normal(scale=0.05, size=items)) < a for a in accuracy], dtype=np.float64)
    return replace(evidence, iteration=len(labels) - 1, curve=curve(np.array(labels), correct))


LABELS = [20, 40, 60, 80, 100, 120, 140, 160, 180]


def test_a_rising_curve_passes(healthy: list[Evidence]) -> None:
    rising = measured(healthy[-1], LABELS, [0.4, 0.5, 0.57, 0.62, 0.66, 0.69, 0.71, 0.73, 0.75], 300)
    assert run("no_improvement", rising).evidence["kind"] == "improving"


def test_a_flat_curve_is_saturation() -> None:
    kinds = []
    for seed in range(40):
        flat = measured(campaign(np.random.default_rng(0), 2)[-1], LABELS, [0.4, 0.6] + [0.62] * 7, 600, seed)
        kinds.append(run("no_improvement", flat).evidence.get("kind"))
    assert kinds.count("saturation") >= 30
    assert "degradation" not in kinds


def test_saturation_near_the_ceiling_passes_and_says_so(healthy: list[Evidence]) -> None:
    at_top = [measured(healthy[-1], LABELS, [0.7] + [0.97] * 8, 600, seed) for seed in range(20)]
    found = [run("no_improvement", evidence) for evidence in at_top]
    assert {finding.outcome for finding in found} == {"pass"}
    assert sum(finding.evidence["kind"] == "ceiling" for finding in found) >= 10
    assert sum(run("no_improvement", evidence, ceiling=0.99).outcome == "fail" for evidence in at_top) >= 10


def test_a_holdout_too_small_to_tell_is_not_applicable(healthy: list[Evidence]) -> None:
    finding = run("no_improvement", measured(healthy[-1], LABELS, [0.4, 0.6] + [0.62] * 7, 20))
    assert finding.outcome == "not_applicable"


@pytest.mark.parametrize("iterations", [2, 4, 9])
def test_a_model_that_got_worse_is_degradation(healthy: list[Evidence], iterations: int) -> None:
    accuracy = [0.6 + 0.02 * i for i in range(iterations - 1)] + [0.35]
    finding = run("no_improvement", measured(healthy[-1], LABELS[:iterations], accuracy, 300))
    assert (finding.outcome, finding.evidence["kind"]) == ("fail", "degradation")


def test_shuffled_answers_are_found_as_degradation() -> None:
    found = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)

        def answers(iteration: int, truth: Any, rng: np.random.Generator = rng) -> Any:
            return rng.permutation(10)[truth] if iteration >= 3 else truth

        evidence = campaign(rng, 8, world=slow_world(rng), batch=40, answers=answers)
        found += any(run("no_improvement", e).evidence.get("kind") == "degradation" for e in evidence)
    assert found >= 8


def test_one_accuracy_that_is_not_a_number_fails(healthy: list[Evidence]) -> None:
    broken = healthy[-1].curve.accuracy.copy()
    broken[-1] = np.nan
    assert (
        run("no_improvement", replace(healthy[-1], curve=replace(healthy[-1].curve, accuracy=broken))).outcome == "fail"
    )


def test_a_curve_without_this_iteration_fails(healthy: list[Evidence]) -> None:
    assert run("no_improvement", replace(healthy[-1], iteration=99)).outcome == "fail"


# rank statistics -------------------------------------------------------------------------------------------------

numbers = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


@given(numbers, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_spearman_is_scipys(values: list[int], random: Any) -> None:
    from scipy import stats

    a, b = np.array(values, dtype=float), np.array(random.sample(values, len(values)), dtype=float)
    expected = stats.spearmanr(a, b).statistic if np.ptp(a) > 0 else np.nan
    assert np.isclose(spearman(a, b), expected, equal_nan=True)


@given(numbers, numbers)
@settings(max_examples=50, deadline=None)
def test_outscores_counts_pairs(these: list[int], those: list[int]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in these for b in those]
    assert np.isclose(outscores(np.array(these, dtype=float), np.array(those, dtype=float)), np.mean(pairs))
