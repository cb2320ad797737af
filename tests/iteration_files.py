"""The files of one small, healthy iteration on disk, as the stages write them: 240 items, 3 classes, iteration 2.

store = write_iteration(tmp_path)                       # all that monitor and table validation read
edit(store, SCORES, utility=lambda column: ...)         # then break one column on purpose
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.inputs import Iteration, freeze
from tasks.store import Array, Store
from tasks.tables import (
    ASKED,
    CURVE,
    FROZEN_MANIFEST,
    HISTORY,
    LABELS,
    PREDICTIONS,
    PREVIOUS_SCORES,
    SCORES,
    SELECTION,
    TableKind,
)

CLASSES = ("cat", "dog", "owl")
ITEMS = 240
BATCH = 10


def item(number: int | np.integer[Any]) -> str:
    """The id of an item."""
    return f"{int(number):064x}"


def table(kind: TableKind, **columns: Any) -> pa.Table:
    """A table of a kind from columns."""
    return pa.table({name: pa.array(columns[name], kind.schema.field(name).type) for name in kind.schema.names})


def edit(store: Store, kind: TableKind, **changes: Callable[[list[Any]], list[Any]]) -> None:
    """Change columns of a table on disk, past the checks of Store."""
    path = store.path(kind.path)
    columns = pq.read_table(path).to_pydict()
    for name, change in changes.items():
        columns[name] = change(list(columns[name]))
    pq.write_table(table(kind, **columns), path)


def put(at: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    """A change of one row."""

    def change(column: list[Any]) -> list[Any]:
        column[at] = value
        return column

    return change


def write_iteration(root: Path, seed: int = 0) -> Store:
    """Write iteration 2 of a healthy campaign: 20 seed labels, 10 more since, all of the holdout labeled."""
    store, rng = Store(root), np.random.default_rng(seed)
    truth = rng.integers(3, size=ITEMS)
    reserved = np.arange(ITEMS) % 4 == 0
    pool = rng.permutation(np.flatnonzero(~reserved))
    first, second = pool[:20], pool[20:30]
    _freeze(store, truth, reserved, first, second)
    before, now = _probabilities(rng, truth, first, 1.0), _probabilities(rng, truth, pool[:30], 1.6)
    splits = np.where(reserved, "holdout", "pool")
    store.write_table(PREVIOUS_SCORES, _scores(before, splits))
    store.write_table(SCORES, _scores(now, splits))
    metrics = {"model_sha256": "a" * 64, "training_labels": 20, "strategy": "margin", "iteration": 1}
    store.write_json("data/inputs/previous/metrics.json", metrics)
    metrics = {"model_sha256": "b" * 64, "training_labels": 30, "strategy": "margin", "iteration": 2}
    store.write_json("data/evaluation/metrics.json", metrics)
    store.write_json("models/head/head.json", {"sha256": "b" * 64, "labels": 30, "network": "linear"})
    _evaluate(store, truth, reserved, before, now)
    _select(store, rng, now, pool[30:])
    return store


def _freeze(store: Store, truth: Array, reserved: Array, first: Array, second: Array) -> None:
    ids = [item(n) for n in range(ITEMS)]
    manifest = table(
        FROZEN_MANIFEST, item_id=ids, uri=[f"{n}.png" for n in range(ITEMS)], shard=[0] * ITEMS, row=range(ITEMS),
        width=[8] * ITEMS, height=[8] * ITEMS, bytes=[100] * ITEMS, group=ids, sequence=[""] * ITEMS, taken=[""] * ITEMS,
        split=["holdout" if r else "pool" for r in reserved], phash=[0] * ITEMS, ingest=[0] * ITEMS,
    )  # fmt: skip
    asked = [*first, *np.flatnonzero(reserved), *second]
    arms = ["seed"] * 20 + ["holdout"] * int(reserved.sum()) + ["active"] * 8 + ["control"] * 2
    when = [0] * (len(asked) - 10) + [1] * 10
    labels = table(
        LABELS, item_id=[item(n) for n in asked], label=[CLASSES[truth[n]] for n in asked], class_index=truth[asked],
        arm=arms, asked_in=when, event=range(len(asked)),
    )  # fmt: skip
    ever = table(
        ASKED, item_id=[item(n) for n in asked], iteration=when, rank=range(len(asked)), arm=arms,
        state=["labeled"] * len(asked),
    )  # fmt: skip
    history = table(
        HISTORY, iteration=[0, 1], seed=[0, 20], active=[0, 0], control=[0, 0], holdout=[0, 60], correction=[0, 0], asked=[80, 10],
        accuracy=[0.33, 0.7], low=[0.2, 0.6], high=[0.5, 0.8], model_sha256=["", "a" * 64], champion=[0, 1],
    )  # fmt: skip
    iteration = Iteration("c0ffee", 2, 7, CLASSES, (8, 8, 1), len(asked), None)
    freeze(store, iteration, {FROZEN_MANIFEST: manifest, LABELS: labels, ASKED: ever, HISTORY: history})


def _probabilities(rng: np.random.Generator, truth: Array, trained: Array, strength: float) -> Array:
    logits = rng.normal(size=(ITEMS, 3)) + strength * np.eye(3)[truth]
    logits[trained] += 3 * np.eye(3)[truth[trained]]
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def _scores(probabilities: Array, splits: Array) -> pa.Table:
    ordered = np.sort(probabilities, axis=1)
    return table(
        SCORES, item_id=[item(n) for n in range(ITEMS)], split=splits.tolist(), probabilities=probabilities.tolist(),
        utility=(1.0 - (ordered[:, -1] - ordered[:, -2])).tolist(),
    )  # fmt: skip


def _evaluate(store: Store, truth: Array, reserved: Array, before: Array, now: Array) -> None:
    held = np.flatnonzero(reserved)
    right = [float((p.argmax(axis=1) == truth)[held].mean()) for p in (before, now)]
    store.write_table(
        CURVE, table(CURVE, iteration=[1, 2], labels=[20, 30], accuracy=right, low=[r - 0.1 for r in right],
                     high=[r + 0.1 for r in right]),
    )  # fmt: skip
    rows = [(number, item(n), p[n].tolist()) for number, p in ((1, before), (2, now)) for n in held]
    names, ids, chances = zip(*rows, strict=True)
    store.write_table(PREDICTIONS, table(PREDICTIONS, iteration=names, item_id=ids, probabilities=chances))


def _select(store: Store, rng: np.random.Generator, now: Array, free: Array) -> None:
    ordered = np.sort(now, axis=1)
    utility = 1.0 - (ordered[:, -1] - ordered[:, -2])
    control = rng.choice(free, 1)
    rest = np.setdiff1d(free, control)
    chosen = np.concatenate([control, rest[np.argsort(-utility[rest])[: BATCH - 1]]])
    store.write_table(
        SELECTION,
        table(
            SELECTION, item_id=[item(n) for n in chosen], rank=range(BATCH), arm=["control"] + ["active"] * (BATCH - 1),
            utility=utility[chosen].tolist(), inclusion=[1 / len(free)] + [0.0] * (BATCH - 1),
            predicted=now[chosen].argmax(axis=1).tolist(), confidence=ordered[chosen, -1].tolist(),
            group=[item(n) for n in chosen],
        ),
    )  # fmt: skip
