"""Simulated runs: the annotator, the holdout and the labels are the campaign's own; what a comparison says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.simulation import compare, uniform_needs
from tasks.curves import Runs, labels_needed, read_holdout, read_runs, with_holdout
from tasks.errors import BadInput, Busy
from tasks.evaluate import holdout_truth
from tasks.inputs import read_iteration
from tasks.ledger import task_key
from tasks.lock import campaign_lock
from tasks.params import load
from tasks.pool import read_info
from tasks.simulate import SCHEMA, Contender, annotator, simulate
from tasks.store import Store
from tasks.tables import ASKED, KNOWN_LABELS, LABELS
from tests.quick import copy, edit, image_folder, make_workspace, run_child

Array = npt.NDArray[Any]
HABITS = {"error_rate": 0.3, "skip_rate": 0.2, "unanswered_rate": 0.1}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three iterations with an annotator who errs, skips and forgets."""
    folder = tmp_path_factory.mktemp("simulated")
    changes = {"labeling.options": HABITS, "labeling.quorum": 0.5}
    root = make_workspace(folder / "workspace", image_folder(folder / "images"), **changes)
    run_child(root, 3)
    return Store(root)


@pytest.fixture(scope="module")
def results(campaign: Store) -> pa.Table:
    params = load(campaign.path("params.yaml"))
    return simulate(campaign, params, [Contender("uniform"), Contender("margin")], range(2), labels=30, workers=2)


def test_the_simulated_annotator_answers_what_the_campaigns_annotator_answered(campaign: Store) -> None:
    params, info, iteration = load(campaign.path("params.yaml")), read_info(campaign), read_iteration(campaign)
    assert info is not None
    answer = annotator(campaign, params, info.classes)
    labels = dict(zip(*campaign.read_table(LABELS, ["item_id", "label"]).to_pydict().values(), strict=True))
    asked = campaign.read_table(ASKED).to_pylist()
    said = [answer(task_key(iteration.campaign, row["iteration"], row["item_id"])) for row in asked]
    assert [row["state"] for row in asked] == [one["state"] for one in said]
    assert [labels.get(row["item_id"], "") for row in asked] == [one["label"] for one in said]
    assert {row["state"] for row in asked} == {"labeled", "skipped", "pending"}


def test_simulated_runs_are_measured_on_the_campaigns_holdout_labels(campaign: Store, results: pa.Table) -> None:
    items, groups = read_holdout(results)
    shared = set(items) & set(holdout_truth(campaign).item_ids)
    assert len(shared) > 0.8 * len(items)
    assert len(groups) == len(items) > 10


def test_only_answered_labels_count_as_spent(results: pa.Table) -> None:
    counts = [row["labels"] for row in results.to_pylist()]
    assert min(counts) < 9, "some of the first batch of 9 was not answered"
    assert max(counts) >= 30


def test_the_same_seeds_give_the_same_results(campaign: Store, results: pa.Table) -> None:
    params = load(campaign.path("params.yaml"))
    again = simulate(campaign, params, [Contender("margin"), Contender("uniform")], range(2), labels=30, workers=1)
    assert again.equals(results)
    assert read_holdout(again)[0] == read_holdout(results)[0]


@pytest.mark.parametrize(
    "changes,strategy,says",
    [
        ({"holdout.labels": 0}, "margin", r"holdout\.labels: a comparison is measured on holdout labels"),
        ({}, "bald", r"params\.yaml:\d+: select\.strategy: 'bald' needs samples, which train\.network 'linear'"),
        ({}, "margn", r"tasks/strategies has no 'margn'.*Did you mean 'margin'"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_fix(
    changes: dict[str, Any], strategy: str, says: str, campaign: Store, tmp_path: Path
) -> None:
    copied = copy(campaign.root, tmp_path / "copy")
    edit(copied, changes)
    with pytest.raises(BadInput, match=says):
        compare(copied, (strategy, "uniform"), labels=20, seeds=1)


def test_images_without_known_labels_cannot_be_compared(campaign: Store, tmp_path: Path) -> None:
    store = Store(copy(campaign.root, tmp_path / "copy"))
    store.write_table(KNOWN_LABELS, KNOWN_LABELS.schema.empty_table())
    with pytest.raises(BadInput, match="needs images with known labels"):
        compare(store.root, ("uniform",), labels=20, seeds=1)


def test_a_known_label_that_is_no_class_of_the_campaign_is_no_answer(campaign: Store, tmp_path: Path) -> None:
    copied = copy(campaign.root, tmp_path / "copy")
    edit(copied, {"labeling.classes": ["0", "1"], "labeling.options": {}})
    params = load(copied / "params.yaml")
    measured = simulate(Store(copied), params, [Contender("uniform")], range(1), labels=10, workers=1)
    known = dict(zip(*campaign.read_table(KNOWN_LABELS).to_pydict().values(), strict=True))
    assert {known[item] for item in read_holdout(measured)[0]} == {"0", "1"}


def test_a_comparison_waits_for_no_tick_but_says_who_works(campaign: Store, tmp_path: Path) -> None:
    copied = copy(campaign.root, tmp_path / "copy")
    with campaign_lock(copied, "a test"), pytest.raises(Busy, match="a test"):
        compare(copied, ("uniform",), labels=20, seeds=1)


def test_results_survive_a_file(results: pa.Table, tmp_path: Path) -> None:
    pq.write_table(results, tmp_path / "results.parquet")
    again = pq.read_table(tmp_path / "results.parquet")
    assert read_holdout(again)[0] == read_holdout(results)[0]
    assert np.array_equal(read_runs(again, "margin").correct, read_runs(results, "margin").correct)


def test_a_strategy_that_was_not_run_is_an_error(results: pa.Table) -> None:
    with pytest.raises(KeyError):
        read_runs(results, "entropy")


def test_runs_with_other_label_counts_are_compared_where_both_were() -> None:
    def row(seed: int, labels: int, right: int) -> dict[str, Any]:
        correct = [float(number < right) for number in range(10)]
        return {"strategy": "uniform", "seed": seed, "labels": labels, "accuracy": right / 10, "correct": correct}

    rows = [row(0, 10, 2), row(0, 20, 4), row(0, 30, 6), row(1, 15, 3), row(1, 25, 5)]
    runs = read_runs(pa.Table.from_pylist(rows, schema=SCHEMA), "uniform")
    assert runs.labels.tolist() == [15, 20, 25]
    assert np.allclose(runs.accuracy, [[0.3, 0.4, 0.5], [0.3, 0.4, 0.5]])


def staircase(seeds: int = 3, items: int = 20, steps: int = 10) -> Runs:
    """Every ten labels two more items are right, for good."""
    level = np.arange(1, steps + 1)[:, None] * items / steps
    correct = (np.arange(items)[None, :] < level).astype(np.float64)
    return Runs(np.arange(1, steps + 1) * 10, np.repeat(correct[None], seeds, axis=0))


def needed(
    runs: Runs, reference: Array, groups: Array | None = None
) -> tuple[float | None, float | None, float | None]:
    groups = np.arange(runs.correct.shape[2]) if groups is None else groups
    reached = labels_needed(runs, reference, groups, np.random.default_rng(0))
    return reached.labels, reached.low, reached.high


def test_what_is_as_good_at_fifty_labels_needs_fifty_and_the_shared_items_are_no_noise() -> None:
    runs = staircase()
    labels, low, high = needed(runs, runs.correct[:1, 4])
    assert labels == 50.0
    assert high == 50.0, "the same items are right in every resample"
    assert low is not None and 30.0 <= low <= 50.0, "a resample without the last items is reached earlier"


def test_other_items_right_is_noise() -> None:
    runs = staircase()
    _, low, high = needed(runs, runs.correct[:1, 4][:, ::-1])
    assert low is not None and high is not None
    assert low < 40.0 and high > 60.0


def test_what_is_never_reached_has_no_number() -> None:
    runs = staircase()
    poor = Runs(runs.labels[:5], runs.correct[:, :5])
    reached = labels_needed(poor, np.ones((1, 20)), np.arange(20), np.random.default_rng(0))
    assert (reached.labels, reached.low, reached.high, reached.most) == (None, None, None, 50)


def test_items_of_one_group_are_one_draw() -> None:
    runs = staircase()
    reference = runs.correct[:1, 4][:, ::-1]
    alone, grouped = needed(runs, reference), needed(runs, reference, np.arange(20) // 5)
    assert alone[0] == grouped[0]
    assert grouped[1] is not None and alone[1] is not None
    assert grouped[1] < alone[1]


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_interval_holds_the_value_and_stays_on_the_curve(seeds: int, at: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = staircase(seeds)
    runs = Runs(runs.labels, np.clip(runs.correct + (rng.random(runs.correct.shape) < 0.1), 0, 1))
    reached = labels_needed(runs, runs.correct[:, at], np.arange(20), rng, resamples=50)
    assert reached.labels is not None and reached.low is not None
    assert 10 <= reached.low <= (reached.high or 100) <= 100


def table(runs: Runs) -> pa.Table:
    rows = [
        {"strategy": "uniform", "seed": seed, "labels": int(count), "accuracy": float(right.mean()), "correct": right}
        for seed, curve in enumerate(runs.correct)
        for count, right in zip(runs.labels, curve, strict=True)
    ]
    items = [f"{number:02d}" for number in range(runs.correct.shape[2])]
    return with_holdout(pa.Table.from_pylist(rows, schema=SCHEMA), items, items)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (staircase().correct[:1, 4], "50 labels (95 % interval "),
        (np.where(np.arange(20) < 10, 1.0, np.nan)[None], "50 labels (95 % interval 40 to 50)"),
        (np.ones((1, 20)), "100 labels (95 % interval 90 to 100)"),
    ],
)
def test_the_words_for_it(reference: Array, words: str) -> None:
    assert words in uniform_needs(table(staircase()), reference)


def test_the_words_when_it_is_out_of_reach() -> None:
    runs = staircase()
    poor = Runs(runs.labels[:5], runs.correct[:, :5])
    assert uniform_needs(table(poor), np.ones((1, 20))) == "more than 50 labels"
