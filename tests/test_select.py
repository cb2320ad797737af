"""Selection: the rules of tasks/choose.py for any pool, and the stage with every strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import plugins
from tasks.choose import (
    Batch,
    Candidates,
    Picker,
    Plan,
    by_batches,
    by_utility,
    choose,
    first_plan,
    holdout_target,
    later_plan,
    tie_order,
)
from tasks.errors import BadInput, GleanerError
from tasks.tables import ASKED, FROZEN_MANIFEST, MANIFEST, SCORES, SELECTION
from tests.workspace import World, build

Pool = tuple[Candidates, np.ndarray]
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """A pool of up to 40 items in groups that do not straddle the holdout, and a utility each."""
    count = draw(st.integers(0, 40))
    groups = np.array(draw(st.lists(st.integers(0, 12), min_size=count, max_size=count)), dtype=np.int64)
    held = np.array(draw(st.lists(st.booleans(), min_size=13, max_size=13)))
    asked = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
    utility = np.array(draw(st.lists(FINITE, min_size=count, max_size=count)), dtype=np.float64)
    item_ids = np.array([f"item-{i:03d}" for i in range(count)], dtype=object)
    return Candidates(item_ids, groups, held[groups].astype(bool), asked), utility


PLANS = st.one_of(
    st.builds(Plan, active=st.integers(0, 50), control=st.integers(0, 10), holdout=st.integers(0, 20)),
    st.builds(Plan, seed=st.integers(1, 50), holdout=st.integers(0, 20)),
)


def rule(kind: str, utility: np.ndarray) -> Picker:
    """A ranking, or a batch-aware strategy that would take the same items."""
    if kind == "utility":
        return by_utility(utility, tie_order(np.arange(len(utility)).astype(str), 1))
    return by_batches(lambda positions, k, taken: np.argsort(-utility[positions], kind="stable")[:k])


def picked(pool: Pool, plan: Plan, kind: str) -> Batch:
    return choose(pool[0], plan, rule(kind, pool[1]), np.random.default_rng(0))


kinds = pytest.mark.parametrize("kind", ["utility", "batch"])


@kinds
@given(pool=pools(), plan=PLANS)
def test_nobody_is_asked_twice_and_every_arm_stays_in_its_split(kind: str, pool: Pool, plan: Plan) -> None:
    batch, candidates = picked(pool, plan, kind), pool[0]
    assert len(set(batch.positions.tolist())) == len(batch.positions)
    assert not candidates.asked[batch.positions].any()
    assert (candidates.reserved[batch.positions] == (batch.arms == "holdout")).all()


@kinds
@given(pool=pools(), plan=PLANS)
def test_each_arm_takes_exactly_what_is_planned_or_all_that_is_left(kind: str, pool: Pool, plan: Plan) -> None:
    batch, candidates = picked(pool, plan, kind), pool[0]
    eligible, free = len(candidates.eligible()), len(candidates.unmeasured())
    counts = {arm: int((batch.arms == arm).sum()) for arm in ("seed", "active", "control", "holdout")}
    assert counts["control"] == min(plan.control, eligible)
    assert counts["seed"] + counts["active"] == min(plan.seed + plan.active, eligible - counts["control"])
    assert counts["holdout"] == min(plan.holdout, free)
    assert not (counts["seed"] and counts["active"])


@kinds
@given(pool=pools(), plan=PLANS)
def test_a_group_waits_while_a_less_asked_group_has_a_candidate(kind: str, pool: Pool, plan: Plan) -> None:
    batch, candidates = picked(pool, plan, kind), pool[0]
    control = batch.positions[batch.arms == "control"]
    counts = np.zeros(13, dtype=int)
    np.add.at(counts, candidates.groups[np.concatenate([np.flatnonzero(candidates.asked), control])], 1)
    left = set(candidates.eligible().tolist()) - set(control.tolist())
    for position in batch.positions[np.isin(batch.arms, ["seed", "active"])].tolist():
        assert counts[candidates.groups[position]] == min(counts[candidates.groups[i]] for i in left)
        counts[candidates.groups[position]] += 1
        left.remove(position)


@given(pool=pools(), plan=PLANS)
def test_within_unseen_groups_the_ranking_is_the_strategys(pool: Pool, plan: Plan) -> None:
    batch, (candidates, utility) = picked(pool, plan, "utility"), pool
    active = batch.positions[batch.arms == "active"]
    seen = set(candidates.groups[candidates.asked].tolist()) | set(
        candidates.groups[batch.positions[batch.arms == "control"]].tolist()
    )
    firsts = []
    for position in active.tolist():
        if candidates.groups[position] not in seen:
            firsts.append(utility[position])
            seen.add(candidates.groups[position])
    assert firsts == sorted(firsts, reverse=True)


def test_the_control_arm_is_uniform_over_all_eligible_items() -> None:
    groups = np.array([0] * 8 + [1, 2])
    asked = np.array([True] + [False] * 9)
    candidates = Candidates(np.arange(10).astype(str), groups, np.zeros(10, dtype=bool), asked)
    drawn = np.zeros(10)
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        batch = choose(candidates, Plan(active=3, control=2), rule("utility", np.arange(10.0)), rng)
        drawn[batch.positions[batch.arms == "control"]] += 1
        assert (batch.inclusion[batch.arms == "control"] == 2 / 9).all()
    assert drawn[0] == 0
    np.testing.assert_allclose(drawn[1:] / 3000, 2 / 9, atol=0.035)


def test_control_items_stand_anywhere_in_the_batch() -> None:
    nobody = np.zeros(40, dtype=bool)
    candidates = Candidates(np.arange(40).astype(str), np.arange(40), nobody, nobody)
    plan, active = Plan(active=9, control=1), rule("utility", np.zeros(40))
    batches = [choose(candidates, plan, active, np.random.default_rng(seed)) for seed in range(300)]
    assert {batch.arms.tolist().index("control") for batch in batches} == set(range(10))


def test_active_items_keep_their_rank_between_the_other_arms() -> None:
    utility = np.linspace(1, 0, 30)
    reserved = np.arange(30) >= 20
    candidates = Candidates(np.arange(30).astype(str), np.arange(30), reserved, np.zeros(30, dtype=bool))
    batch = picked((candidates, utility), Plan(active=8, control=4, holdout=5), "utility")
    assert (np.diff(batch.positions[batch.arms == "active"]) > 0).all()


def test_equal_utilities_are_ordered_by_a_seeded_hash_not_by_arrival() -> None:
    item_ids = np.array([f"{i:064x}" for i in range(500)])
    order = np.argsort(tie_order(item_ids, 7))
    assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.15
    assert (np.argsort(tie_order(item_ids, 8)) != order).any()
    shuffled = np.random.default_rng(0).permutation(500)
    assert (tie_order(item_ids[shuffled], 7) == tie_order(item_ids, 7)[shuffled]).all()
    assert len(np.unique(tie_order(item_ids, 7))) == 500


@pytest.mark.parametrize("answer", [[0, 0], [0, 9], [-1, 0], [0], [0.0, 1.0]])
def test_a_strategy_that_breaks_its_contract_is_named(answer: list[float]) -> None:
    broken = by_batches(lambda positions, k, taken: np.array(answer))
    candidates = Candidates(np.arange(3).astype(str), np.arange(3), np.zeros(3, dtype=bool), np.zeros(3, dtype=bool))
    with pytest.raises(GleanerError, match="2 different positions of 3"):
        choose(candidates, Plan(active=2), broken, np.random.default_rng(0))


@pytest.mark.parametrize(
    "batch,control,holdout,remaining,expected",
    [
        (20, 0.1, 0, None, Plan(active=18, control=2)),
        (20, 0.0, 0, None, Plan(active=20)),
        (2, 0.01, 0, None, Plan(active=1, control=1)),
        (1, 0.1, 0, None, Plan(active=1)),
        (20, 1.0, 0, None, Plan(control=20)),
        (20, 0.1, 5, None, Plan(active=18, control=2, holdout=5)),
        (20, 0.1, 5, 22, Plan(active=18, control=2, holdout=2)),
        (20, 0.1, 5, 10, Plan(active=9, control=1)),
        (20, 0.1, 5, 0, Plan()),
        (20, 0.1, 5, -3, Plan()),
    ],
)
def test_shares_of_a_later_batch(
    batch: int, control: float, holdout: int, remaining: int | None, expected: Plan
) -> None:
    assert later_plan(batch, control, holdout, remaining) == expected


@given(st.integers(1, 50), st.integers(0, 400), st.integers(0, 500))
def test_a_first_batch_stays_in_the_budget_and_gives_both_something(first: int, labels: int, budget: int) -> None:
    holdout = holdout_target(labels, first, budget)
    if budget < 1 + (labels > 0):
        with pytest.raises(BadInput, match="stop.labels"):
            first_plan(first, holdout, budget)
        return
    plan = first_plan(first, holdout, budget)
    assert plan.seed + plan.holdout <= budget
    assert 1 <= plan.seed <= first
    assert (plan.holdout >= 1) == (labels >= 1)


# The stage, with files.


def pool_size(world: World) -> int:
    splits: list[str] = world.store.read_table(MANIFEST, ["split"])["split"].to_pylist()
    return splits.count("pool")


def start(tmp_path: Path, **more: Any) -> World:
    world = build(tmp_path, **{"items": 60, **more})
    world.change("train", network="linear", folds=2)
    world.change("select", batch=6, first_batch=8, control=0.2)
    world.change("holdout", labels=6)
    return world


def trained(tmp_path: Path, **more: Any) -> World:
    """A workspace at iteration 1: the first batch is answered, the head is trained."""
    world = start(tmp_path, **more)
    world.open()
    world.run("embed", "train", "score", "select", "evaluate")
    world.answer()
    world.open()
    world.run("train")
    return world


def selection(world: World) -> list[dict[str, Any]]:
    batch: list[dict[str, Any]] = world.store.read_table(SELECTION).to_pylist()
    return batch


def test_the_first_batch_is_seed_and_holdout_without_a_prediction(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.open()
    world.run("embed", "train", "score", "select")
    batch = selection(world)
    arms = [row["arm"] for row in batch]
    assert (arms.count("seed"), arms.count("holdout"), len(arms)) == (8, 6, 14)
    assert all(row["predicted"] == -1 and np.isnan(row["confidence"]) and np.isnan(row["utility"]) for row in batch)
    assert [row["rank"] for row in batch] == list(range(14))
    assert arms != sorted(arms) and arms != sorted(arms, reverse=True)


@pytest.mark.parametrize("strategy", plugins.names("strategies"))
def test_every_strategy_gives_a_batch_that_obeys_the_rules(tmp_path: Path, strategy: str) -> None:
    world = start(tmp_path, group_size=3)
    world.change("select", strategy=strategy)
    needs = plugins.entry_point("strategies", strategy).evidence
    if "samples" in needs:
        world.change("train", network="mlp")
    world.open()
    world.run("embed", "train", "score", "select", "evaluate")
    world.answer()
    world.open()
    world.run("train", "score", "select")
    batch = selection(world)
    arms = [row["arm"] for row in batch]
    assert (arms.count("active"), arms.count("control"), len(arms)) == (5, 1, 6)
    asked = set(world.store.read_table(ASKED)["item_id"].to_pylist())
    assert not asked & {row["item_id"] for row in batch}
    groups = {row["item_id"]: row["group"] for row in world.store.read_table(MANIFEST).to_pylist()}
    seen = {groups[item] for item in asked} | {row["group"] for row in batch if row["arm"] == "control"}
    unseen = {row["group"] for row in world.store.read_table(MANIFEST).to_pylist() if row["split"] == "pool"} - seen
    new = [row["group"] for row in batch if row["arm"] == "active"]
    assert len(set(new) & unseen) == min(5, len(unseen))


@pytest.mark.parametrize("strategy", ["kmeans", "k_center", "uniform"])
def test_every_cold_start_fills_the_first_batch_from_different_groups(tmp_path: Path, strategy: str) -> None:
    world = start(tmp_path, group_size=2)
    world.change("select", cold_start=strategy)
    world.open()
    world.run("embed", "train", "score", "select")
    seeds = [row["group"] for row in selection(world) if row["arm"] == "seed"]
    assert len(seeds) == len(set(seeds)) == 8


def test_selection_does_not_depend_on_the_order_of_the_manifest(tmp_path: Path) -> None:
    world = trained(tmp_path)
    world.run("score", "select")
    before = selection(world)
    for kind in (FROZEN_MANIFEST, SCORES):
        table = world.store.read_table(kind)
        world.store.write_table(kind, table.take(np.random.default_rng(0).permutation(table.num_rows)))
    world.run("select")
    assert selection(world) == before


def test_the_batch_holds_the_highest_utilities(tmp_path: Path) -> None:
    world = trained(tmp_path)
    world.change("select", control=0.0)
    world.run("score", "select")
    asked = set(world.store.read_table(ASKED)["item_id"].to_pylist())
    scores = [row for row in world.store.read_table(SCORES).to_pylist() if row["split"] == "pool"]
    best = sorted((row["utility"] for row in scores if row["item_id"] not in asked), reverse=True)[:6]
    assert [row["utility"] for row in selection(world)] == best


def test_predictions_in_the_batch_are_those_of_the_scores(tmp_path: Path) -> None:
    world = trained(tmp_path)
    world.run("score", "select")
    scores = {row["item_id"]: row["probabilities"] for row in world.store.read_table(SCORES).to_pylist()}
    for row in selection(world):
        assert row["predicted"] == int(np.argmax(scores[row["item_id"]]))
        assert row["confidence"] == pytest.approx(max(scores[row["item_id"]]))


@pytest.mark.parametrize("column,bad", [("utility", np.nan), ("utility", np.inf), ("probabilities", np.nan)])
def test_a_number_that_is_not_finite_is_never_ranked(tmp_path: Path, column: str, bad: float) -> None:
    world = trained(tmp_path)
    world.run("score")
    table = world.store.read_table(SCORES)
    values = table[column].to_pylist()
    values[3] = [bad] * 3 if column == "probabilities" else bad
    index = table.schema.get_field_index(column)
    field = table.schema.field(column)
    world.store.write_table(SCORES, table.set_column(index, field, pa.array(values, field.type)))
    with pytest.raises(GleanerError, match=table["item_id"][3].as_py()):
        world.run("select")


def test_scores_of_another_pool_are_refused(tmp_path: Path) -> None:
    world = trained(tmp_path)
    world.run("score")
    world.store.write_table(SCORES, world.store.read_table(SCORES).slice(1))
    with pytest.raises(GleanerError, match="not of the frozen manifest"):
        world.run("select")


def test_a_skipped_first_batch_is_followed_by_another_cold_start(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.open()
    world.run("embed", "train", "score", "select", "evaluate")
    world.answer(skip=14)
    world.open()
    world.run("train", "score", "select")
    arms = [row["arm"] for row in selection(world)]
    assert arms.count("seed") == 8
    assert not {row["item_id"] for row in selection(world)} & {row["item_id"] for row in world.asked}


def test_the_holdout_is_topped_up_for_skipped_answers_and_a_raised_target(tmp_path: Path) -> None:
    world = trained(tmp_path)
    world.change("holdout", labels=9)
    world.run("score", "select")
    assert [row["arm"] for row in selection(world)].count("holdout") == 3


def test_the_batch_stays_in_the_budget(tmp_path: Path) -> None:
    world = trained(tmp_path)
    world.change("holdout", labels=9)
    for remaining, size in ((0, 0), (3, 3), (7, 7), (50, 9)):
        world.open(remaining=remaining)
        world.run("score", "select")
        assert len(selection(world)) == size


def test_a_pool_that_is_used_up_gives_an_empty_batch(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.change("select", first_batch=200)
    world.open()
    world.run("embed", "train", "score", "select", "evaluate")
    assert len(selection(world)) == pool_size(world) + 6
    world.answer()
    world.open()
    world.change("holdout", labels=0)
    world.run("train", "score", "select", "evaluate", "report")
    assert selection(world) == []


def test_a_batch_larger_than_the_pool_takes_all_that_is_left(tmp_path: Path) -> None:
    world = trained(tmp_path)
    world.change("select", batch=500)
    world.run("score", "select")
    assert len(selection(world)) == pool_size(world) - 8


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_item_is_selected_twice_over_a_campaign_with_skips_and_open_questions(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    world = start(tmp_path_factory.mktemp("campaign"), seed=seed, group_size=2)
    world.open()
    world.run("embed")
    for _ in range(4):
        world.run("train", "score", "select", "evaluate")
        world.answer(skip=1, pending=2)
        world.open()
    items = [row["item_id"] for row in world.asked]
    assert len(items) == len(set(items)) > 25
