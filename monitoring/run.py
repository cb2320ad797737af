"""The stage `monitor`: gathers the evidence, runs every check of params.yaml, writes data/findings.json.

    $ python -m monitoring.run
    pass            repeated_selections   Of 20 items in the batch, 0 must not be asked about (...)

It exits 0 whatever it finds (a stage that fails records nothing in DVC): `export` reads the findings and refuses.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitoring.evidence import Array, Batch, Curve, Evidence, Finding, Model, Scores, to_json
from monitoring.scores import read_outcomes, read_scores
from tasks import plugins
from tasks.findings import FINDINGS
from tasks.inputs import previous, read_iteration
from tasks.params_sections import CheckSetting
from tasks.stage import main
from tasks.store import Store
from tasks.tables import ASKED, CURVE, FROZEN_MANIFEST, LABELS, METRICS, PREVIOUS_SCORES, SCORES, SELECTION

#: what a plug-in that is given evidence it does not understand may raise
CRASHES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def run(store: Store, monitor: dict[str, CheckSetting]) -> None:
    """Write data/findings.json: one finding a check, in the order of params.yaml."""
    evidence = gather(store)
    findings = [judge(name, setting, evidence) for name, setting in monitor.items()]
    store.write_json(FINDINGS, to_json(evidence.iteration, findings))
    for finding in findings:
        print(f"{finding.outcome:15} {finding.check:21} {finding.what}")


def judge(name: str, setting: CheckSetting, evidence: Evidence) -> Finding:
    """One check's finding with its severity. A check that crashes has shown nothing: it fails."""
    if setting.severity == "off":
        return replace(_blank(name, "Switched off in params.yaml."), outcome="not_applicable", severity="off")
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Finding = plugins.find("checks", name).check(evidence, **setting.limits)
    except CRASHES as error:
        found = _blank(name, f"The check itself failed: {type(error).__name__}: {error}.")
    return replace(found, severity=setting.severity)


def _blank(name: str, what: str) -> Finding:
    return Finding(
        name,
        "warn",
        "fail",
        value=None,
        limit="",
        what=what,
        why="A check that did not run proves nothing.",
        causes=("an error in the check", "evidence that the check does not expect"),
        todo=f"See monitoring/checks/{name}.py and monitor.{name} in params.yaml.",
        evidence={},
    )


def gather(store: Store) -> Evidence:
    """Read what the checks look at. Raises GleanerError that names a missing or damaged file."""
    iteration = read_iteration(store)
    manifest = store.read_table(FROZEN_MANIFEST, ["item_id", "group", "split"])
    labels, asked = store.read_table(LABELS), store.read_table(ASKED)
    ids, count = manifest["item_id"].combine_chunks(), manifest.num_rows
    groups = _codes(manifest["group"])
    training = labels.filter(pc.not_equal(labels["arm"], "holdout"))
    holdout_labels = labels.filter(pc.equal(labels["arm"], "holdout"))
    representative = training.filter(pc.is_in(training["arm"], pa.array(["seed", "control"])))
    scores = read_scores(store, SCORES, ids)
    has_previous = iteration.number > 0 and store.exists(PREVIOUS_SCORES)
    strategy = str(store.read_json(METRICS)["strategy"])
    return Evidence(
        iteration=iteration.number,
        remaining=iteration.remaining,
        groups=groups,
        holdout=pc.equal(manifest["split"], "holdout").to_numpy(),
        labeled=_mask(ids, labels["item_id"]),
        trained=_mask(ids, training["item_id"]),
        trained_classes=len(pc.unique(training["class_index"])),
        representative=_mask(ids, representative["item_id"]),
        asked_in=_spread(count, positions(asked["item_id"], ids), asked["iteration"].to_numpy(), -1),
        wrong=_wrong(scores, holdout_labels, ids),
        batch=_batch(store, ids),
        scores=scores,
        previous=read_scores(store, PREVIOUS_SCORES, ids) if has_previous else None,
        model=_model(store, strategy),
        previous_model=_previous_model(store),
        by_utility=plugins.entry_point("strategies", strategy).function == "utility",
        curve=_curve(store, holdout_labels, ids, groups),
    )


def positions(items: pa.ChunkedArray, ids: pa.Array) -> Array:
    """(M,) int64 rows of the manifest, -1 where an item is not in it."""
    found = pc.fill_null(pc.index_in(items, value_set=ids), -1)
    return np.asarray(found.to_numpy(), dtype=np.int64)


def _mask(ids: pa.Array, items: pa.ChunkedArray) -> Array:
    at = positions(items, ids)
    return _spread(len(ids), at, np.ones(len(at), dtype=bool), False)


def _spread(count: int, at: Array, values: Array, empty: Any) -> Array:
    """(count,) array with `values` at the rows `at`, those of -1 left out."""
    result = np.full(count, empty, dtype=values.dtype)
    result[at[at >= 0]] = values[at >= 0]
    return result


def _codes(names: pa.ChunkedArray) -> Array:
    if len(names) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(names.combine_chunks().dictionary_encode().indices.to_numpy(), dtype=np.int64)


def _wrong(scores: Scores, labels: pa.Table, ids: pa.Array) -> Array:
    classes = _spread(len(ids), positions(labels["item_id"], ids), labels["class_index"].to_numpy(), -1)
    known = (classes >= 0) & (scores.predicted >= 0)
    return np.where(known, (scores.predicted != classes).astype(np.float64), np.nan)


def _batch(store: Store, ids: pa.Array) -> Batch:
    table = store.read_table(SELECTION).sort_by("rank")
    return Batch(tuple(table["item_id"].to_pylist()), positions(table["item_id"], ids), tuple(table["arm"].to_pylist()))


def _model(store: Store, strategy: str) -> Model:
    head = store.read_json("models/head/head.json")
    return Model(str(head["sha256"]), int(head["labels"]), strategy)


def _previous_model(store: Store) -> Model | None:
    metrics = previous(store, "metrics.json")
    if metrics is None:
        return None
    return Model(str(metrics["model_sha256"]), int(metrics["training_labels"]), str(metrics["strategy"]))


def _curve(store: Store, holdout_labels: pa.Table, ids: pa.Array, groups: Array) -> Curve:
    table = store.read_table(CURVE).sort_by("iteration")
    iterations = table["iteration"].to_numpy().astype(np.int64)
    at = positions(holdout_labels["item_id"], ids)
    known = holdout_labels.filter(pa.array(at >= 0))
    accuracy, low, high = (table[name].to_numpy().astype(np.float64) for name in ("accuracy", "low", "high"))
    correct = read_outcomes(store, iterations, known["item_id"].combine_chunks(), known["class_index"].to_numpy())
    labels = table["labels"].to_numpy().astype(np.int64)
    return Curve(iterations, labels, accuracy, low, high, correct, groups[at[at >= 0]])


if __name__ == "__main__":
    main(run)
