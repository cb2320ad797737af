"""Stage `train`: fit the head on all training labels and calibrate it. Writes models/head.

    40 labels (never the holdout's)  ->  head.safetensors + head.json
    {"network": "mlp", "labels": 40, "temperature": 1.3, "training_accuracy": 1.0, ...}

The temperature comes from cross-validation on the labels: a validation split would starve a 60-label model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from tasks import plugins
from tasks.calibration import cross_validate, folds, learnable, temperature
from tasks.errors import GleanerError
from tasks.features import Features
from tasks.head import NONE, write
from tasks.inputs import Iteration, read_iteration, read_labels
from tasks.params_sections import Compute, Train
from tasks.stage import limit_threads, main
from tasks.store import Array, Store
from tasks.tables import FROZEN_MANIFEST


@dataclass(frozen=True)
class Examples:
    """What is learned from."""

    features: Array  # (N, D)
    labels: Array  # (N,) int64
    groups: Array  # (N,) str


def run(store: Store, train: Train, compute: Compute) -> None:
    """Fit, calibrate, write. Without a training label the network is "none"."""
    limit_threads(compute.threads)
    iteration = read_iteration(store)
    features = Features.open(store)
    examples = _examples(store, features, len(iteration.classes))
    state, measures = _learn(examples, train, iteration) if len(examples.labels) else ({}, {})
    description = {
        "network": train.network if len(examples.labels) else NONE,
        "options": train.options,
        "backbone": features.version,
        "dimension": features.dimension,
        "shape": list(iteration.shape),
        "classes": list(iteration.classes),
        "labels": len(examples.labels),
        "temperature": 1.0,
        "training_accuracy": None,
        "cross_validated_accuracy": None,
    }
    write(store, state, {**description, **measures})


def _examples(store: Store, features: Features, classes: int) -> Examples:
    labels = read_labels(store, holdout=False)
    manifest = store.read_table(FROZEN_MANIFEST, ["item_id", "shard", "row", "group"])
    place = {item: position for position, item in enumerate(manifest["item_id"].to_pylist())}
    for item, label in zip(labels.item_ids.tolist(), labels.classes.tolist(), strict=True):
        if item not in place or not 0 <= label < classes:
            raise GleanerError(f"train: item {item} is not in the pool, or {label} is none of its {classes} classes.")
    # Item order, so that the order in which answers arrived changes nothing.
    order = np.argsort(labels.item_ids, kind="stable")
    at = np.array([place[item] for item in labels.item_ids[order].tolist()], dtype=np.int64)
    groups = np.array(manifest["group"].to_pylist(), dtype=str)
    values = features.of(manifest["shard"].to_numpy()[at], manifest["row"].to_numpy()[at])
    return Examples(values, labels.classes[order], groups[at])


def _learn(examples: Examples, train: Train, iteration: Iteration) -> tuple[dict[str, Array], dict[str, Any]]:
    network = plugins.find("networks", train.network)
    fit = partial(_fit, network, train, iteration)
    state = fit(examples.features, examples.labels)
    logits = network.predict(state, examples.features)
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise GleanerError(f"train: {train.network} gives {len(broken)} of its examples logits that are not finite.")
    accuracy = float((logits.argmax(axis=1) == examples.labels).mean())
    return state, {"training_accuracy": accuracy, **_calibrate(examples, fit, network, train.folds, iteration)}


def _fit(network: ModuleType, train: Train, iteration: Iteration, features: Array, labels: Array) -> dict[str, Array]:
    try:
        state: dict[str, Array] = network.fit(
            features, labels, len(iteration.classes), iteration.shape, iteration.seed, **train.options
        )
    except ValueError as error:
        raise GleanerError(f"train: {train.network}: {error}") from error
    return state


Fit = Callable[[Array, Array], dict[str, Array]]


def _calibrate(examples: Examples, fit: Fit, network: ModuleType, count: int, iteration: Iteration) -> dict[str, Any]:
    """Temperature and accuracy of models that did not see what they are asked; {} where that cannot be had."""
    if count < 2 or len(np.unique(examples.labels)) < 2:
        return {}
    fold = folds(examples.labels, count, iteration.rng("train"), examples.groups)
    if len(np.unique(fold)) < 2:
        return {}
    logits = cross_validate(fit, network.predict, examples.features, examples.labels, fold)
    if not np.isfinite(logits).all():
        raise GleanerError("train: logits of cross-validation are not finite.")
    known = learnable(examples.labels, fold)
    measured = float((logits.argmax(axis=1) == examples.labels).mean())
    scale = temperature(logits[known], examples.labels[known])
    return {"cross_validated_accuracy": measured, "temperature": scale if math.isfinite(scale) else 1.0}


if __name__ == "__main__":
    main(run)
