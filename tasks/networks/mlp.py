"""Two layers with dropout: the default head, for pixels of small images and for backbone features.

    state = fit(features, labels, classes=10, shape=(8, 8, 1), seed=0, hidden=256)
    predict(state, features)  ->  (N,10) logits;  sample(state, features, 20, rng)  ->  (20,N,10)

NumPy alone: importing torch would take several times as long as fitting a few hundred labels.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Interval

from tasks.networks import Array, Rng, Shape, State
from tasks.networks._dropout import sampled
from tasks.networks._scaling import scale, scaling
from tasks.networks._training import initial, kept, minimise


def fit(
    features: Array,
    labels: Array,
    classes: int,
    shape: Shape,
    seed: int,
    *,
    hidden: Annotated[int, Interval(ge=1)] = 256,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
    rate: Annotated[float, Interval(gt=0)] = 0.01,
    decay: Annotated[float, Interval(ge=0)] = 0.01,
    steps: Annotated[int, Interval(ge=1)] = 150,
    epochs: Annotated[int, Interval(ge=0)] = 10,
    batch: Annotated[int, Interval(ge=1)] = 512,
) -> State:
    """Fit by AdamW: at least `steps` steps and `epochs` passes, whole batches up to `batch` items.

    Raises ValueError when a feature is not finite. `shape` is not used.
    """
    mean, deviation = scaling(features)
    inputs, rng = scale(features, mean, deviation), np.random.default_rng(seed)
    sizes = {
        "hidden.weight": (hidden, inputs.shape[1]),
        "hidden.bias": (hidden,),
        "out.weight": (classes, hidden),
        "out.bias": (classes,),
    }
    weights = initial(sizes, rng)

    def slopes(chosen: Array, rng: Rng) -> State:
        return gradient(weights, inputs[chosen], labels[chosen], kept((len(chosen), hidden), dropout, rng))

    minimise(
        weights, slopes, count=len(labels), steps=steps, epochs=epochs, batch=batch, rate=rate, decay=decay, rng=rng
    )
    return {**weights, "mean": mean, "deviation": deviation, "dropout": np.array([dropout])}


def gradient(weights: State, inputs: Array, labels: Array, mask: Array) -> State:
    """Gradient of the mean cross-entropy of `labels` (B,) given scaled `inputs` (B,D) and a dropout `mask` (B,H)."""
    before = inputs @ weights["hidden.weight"].T + weights["hidden.bias"]
    active = np.maximum(before, 0.0) * mask
    logits = active @ weights["out.weight"].T + weights["out.bias"]
    error = np.exp(logits - logits.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1.0
    error /= len(labels)
    back = (error @ weights["out.weight"]) * mask * (before > 0.0)
    return {
        "hidden.weight": back.T @ inputs,
        "hidden.bias": back.sum(axis=0),
        "out.weight": error.T @ active,
        "out.bias": error.sum(axis=0),
    }


def predict(state: State, features: Array) -> Array:
    """Logits (N,C) float64 of features (N,D), without dropout."""
    return (embed(state, features) @ state["out.weight"].T + state["out.bias"]).astype(np.float64)


def embed(state: State, features: Array) -> Array:
    """Activations (N,H) float32 of the hidden layer."""
    inputs = scale(features, state["mean"], state["deviation"])
    active: Array = np.maximum(inputs @ state["hidden.weight"].T + state["hidden.bias"], 0.0, dtype=np.float32)
    return active


def sample(state: State, features: Array, draws: int, rng: Rng) -> Array:
    """Logits (T,N,C) float64 of `draws` networks with dropout on."""
    return sampled(
        embed(state, features), state["out.weight"].T, state["out.bias"], float(state["dropout"][0]), draws, rng
    )
