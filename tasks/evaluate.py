"""Stage `evaluate`: this iteration's model on the holdout, and whether it is the new champion.

    accuracy 0.948 (0.919 to 0.968) on 300 holdout labels with 120 training labels; champion: iteration 4

Writes data/evaluation: metrics.json (flat), predictions.parquet (what each iteration's model said of the reserved
items, cumulative), curve.parquet (every iteration on the same, current holdout labels), per_class.parquet and
annotators.parquet.
The champion changes only when a paired test on the same items says so: else it were the maximum of noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks import agreement
from tasks.agreement import Votes
from tasks.annotators import annotators_table, read_votes
from tasks.columns import matrix
from tasks.head import DESCRIPTION
from tasks.inputs import Iteration, previous, read_iteration, read_labels
from tasks.measures import Said, Truth, measures, of_iteration, paired, per_class
from tasks.params_sections import Evaluate, Select
from tasks.stage import main
from tasks.statistics import Interval, accuracy
from tasks.store import Array, Store
from tasks.tables import (
    ANNOTATORS,
    ARMS,
    CORRECTION,
    CURVE,
    FROZEN_MANIFEST,
    HISTORY,
    LABELS,
    METRICS,
    PER_CLASS,
    PREDICTIONS,
    PREVIOUS_PREDICTIONS,
    PREVIOUS_SCORES,
    SCORES,
)

TRAINED = ("seed", "active", "control", CORRECTION)


def run(store: Store, evaluate: Evaluate, select: Select) -> None:
    """Measure, compare, write. Without holdout labels the measures are null."""
    iteration, head = read_iteration(store), store.read_json(DESCRIPTION)
    truth = holdout_truth(store)
    predictions = _predictions(store, iteration)
    said = of_iteration(predictions, iteration.number, truth, len(iteration.classes))
    interval = _interval(said, evaluate, iteration)
    facts = {"strategy": select.strategy, **_counts(store), **_of_head(head), **_control(store, iteration)}
    bounds = {"accuracy": interval.value, "accuracy_low": interval.low, "accuracy_high": interval.high}
    champion = _champion(store, iteration, truth, predictions, head, evaluate)
    store.write_table(PREDICTIONS, predictions)
    store.write_table(CURVE, _curve(store, iteration, truth, predictions, evaluate))
    votes = read_votes(store)
    store.write_table(PER_CLASS, _per_class(store, iteration, said, votes))
    store.write_table(ANNOTATORS, annotators_table(votes))
    people = agreement.measures(votes)
    metrics = {"iteration": iteration.number, **facts, **bounds, **measures(said), **champion, **people}
    store.write_json(METRICS, {key: _plain(value) for key, value in metrics.items()})


def holdout_truth(store: Store) -> Truth:
    """The frozen holdout labels, in item order."""
    labels = read_labels(store, holdout=True)
    order = np.argsort(labels.item_ids, kind="stable")
    manifest = store.read_table(FROZEN_MANIFEST, ["item_id", "group"])
    groups = dict(zip(manifest["item_id"].to_pylist(), manifest["group"].to_pylist(), strict=True))
    item_ids = labels.item_ids[order].tolist()
    return Truth(item_ids, labels.classes[order], np.array([groups[item] for item in item_ids], dtype=str))


def _predictions(store: Store, iteration: Iteration) -> pa.Table:
    """Earlier iterations' predictions and this one's, of all reserved items."""
    scores = store.read_table(SCORES, ["item_id", "split", "probabilities"])
    reserved = scores.filter(pc.equal(scores["split"], "holdout")).select(["item_id", "probabilities"])
    number = pa.array(np.full(reserved.num_rows, iteration.number, dtype=np.int32))
    now = reserved.add_column(0, "iteration", number).cast(PREDICTIONS.schema)
    if not store.exists(PREVIOUS_PREDICTIONS):
        return now.sort_by("item_id")
    before = store.read_table(PREVIOUS_PREDICTIONS)
    earlier = before.filter(pc.less(before["iteration"], iteration.number)).cast(PREDICTIONS.schema)
    return pa.concat_tables([earlier, now]).sort_by([("iteration", "ascending"), ("item_id", "ascending")])


def _interval(said: Said, evaluate: Evaluate, iteration: Iteration) -> Interval:
    rng = iteration.rng("evaluate")  # the same draws for every model: their intervals differ by the models alone
    return accuracy(said.correct, said.truth.groups, evaluate.confidence, evaluate.resamples, rng)


def _counts(store: Store) -> dict[str, int]:
    """Labels spent: always shown by arm and in total. A correction costs none and is trained on."""
    arms = store.read_table(LABELS, ["arm"])["arm"].to_pylist()
    spent = {f"labels_{arm}": arms.count(arm) for arm in (*ARMS, CORRECTION)}
    total = len(arms) - spent[f"labels_{CORRECTION}"]
    return {**spent, "labels_total": total, "training_labels": len(arms) - spent["labels_holdout"]}


def _of_head(head: dict[str, Any]) -> dict[str, Any]:
    keys = ("network", "backbone", "temperature", "training_accuracy", "cross_validated_accuracy")
    return {**{key: head[key] for key in keys}, "model_sha256": head["sha256"]}


def _champion(
    store: Store, iteration: Iteration, truth: Truth, predictions: pa.Table, head: dict[str, Any], evaluate: Evaluate
) -> dict[str, Any]:
    """Who is champion: the one before unless this model is shown to be better on the same labels.

    Without a model nobody is; while no holdout label measures both, the newest model is.
    """
    before = (previous(store, "metrics.json") or {}).get("champion")
    if not head["labels"]:
        return {"champion": before, "champion_changed": False, "champion_p": None}
    if before is None:
        return {"champion": iteration.number, "champion_changed": True, "champion_p": None}
    p = paired(truth, predictions, before, iteration.number, len(iteration.classes))
    changed = math.isnan(p) or p < evaluate.champion_p
    return {"champion": iteration.number if changed else before, "champion_changed": changed, "champion_p": p}


def _curve(store: Store, iteration: Iteration, truth: Truth, predictions: pa.Table, evaluate: Evaluate) -> pa.Table:
    """Every iteration's accuracy on the labels that all of them were asked about."""
    labels = _training_labels(store, iteration)
    classes = len(iteration.classes)
    numbers = [number for number in pc.unique(predictions["iteration"]).to_pylist() if number in labels]
    shared = truth
    for number in numbers:
        shared = of_iteration(predictions, number, shared, classes).truth
    # A holdout that was renewed altogether shares nothing: then each on what it knows.
    said = [of_iteration(predictions, number, shared if shared.item_ids else truth, classes) for number in numbers]
    intervals = [_interval(one, evaluate, iteration) for one in said]
    rows = {
        "iteration": numbers,
        "labels": [labels[number] for number in numbers],
        "accuracy": [interval.value for interval in intervals],
        "low": [interval.low for interval in intervals],
        "high": [interval.high for interval in intervals],
    }
    return pa.table({name: pa.array(rows[name], CURVE.schema.field(name).type) for name in CURVE.schema.names})


def _training_labels(store: Store, iteration: Iteration) -> dict[int, int]:
    history = store.read_table(HISTORY, ["iteration", *TRAINED]).to_pylist()
    known = {row["iteration"]: sum(row[arm] for arm in TRAINED) for row in history}
    return {**known, iteration.number: _counts(store)["training_labels"]}


def _per_class(store: Store, iteration: Iteration, said: Said, votes: Votes) -> pa.Table:
    classes = len(iteration.classes)
    training = np.bincount(read_labels(store, holdout=False).classes, minlength=classes)
    holdout = np.bincount(said.truth.classes, minlength=classes)
    counts = {"label": list(iteration.classes), "holdout": holdout, "training": training}
    return pa.table(
        {**counts, **per_class(said), **agreement.by_class(votes, iteration.classes)}, schema=PER_CLASS.schema
    )


def _control(store: Store, iteration: Iteration) -> dict[str, Any]:
    """Accuracy on answered control items as predicted before training on them, summed over iterations.

    A uniform sample of the images that were not asked about before, so it reads higher than the whole pool would; one
    iteration late, and of each iteration's own model. Answers that come later than that are not counted.
    """
    before = previous(store, "metrics.json") or {}
    right, seen = before.get("control_correct") or 0.0, before.get("control_measured") or 0
    if before.get("training_labels") and store.exists(PREVIOUS_SCORES):
        new = _control_credit(store, iteration)
        right, seen = right + float(new.sum()), seen + len(new)
    return {"control_correct": right, "control_measured": seen, "control_accuracy": right / seen if seen else None}


def _control_credit(store: Store, iteration: Iteration) -> Array:
    labels = store.read_table(LABELS)
    last = pc.and_(pc.equal(labels["arm"], "control"), pc.equal(labels["asked_in"], iteration.number - 1))
    answered = labels.filter(last).select(["item_id", "class_index"])
    scores = store.read_table(PREVIOUS_SCORES, ["item_id", "probabilities"])
    scores = scores.filter(pc.is_in(scores["item_id"], answered["item_id"]))
    guess = matrix(scores["probabilities"], len(iteration.classes)).argmax(axis=1)
    truth = dict(zip(answered["item_id"].to_pylist(), answered["class_index"].to_pylist(), strict=True))
    pairs = zip(scores["item_id"].to_pylist(), guess.tolist(), strict=True)
    return np.array([truth[item] == answer for item, answer in pairs], dtype=np.float64)


def _plain(value: Any) -> Any:
    """JSON knows no NaN: what was not measured is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main(run)
