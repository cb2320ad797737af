"""Two layers with dropout: the default head, for pixels of small images and for backbone features.

    state = fit(features, labels, classes=10, shape=(8, 8, 1), seed=0, hidden=256)
    predict(state, features)  ->  (N,10) logits;  sample(state, features, 20, rng)  ->  (20,N,10)

torch fits it; predictions are two matrix products in NumPy, so a process that only scores never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.networks import Array, Rng, Shape, State
from tasks.networks._dropout import sampled
from tasks.networks._scaling import scale, scaling

if TYPE_CHECKING:
    import torch


def fit(
    features: Array,
    labels: Array,
    classes: int,
    shape: Shape,
    seed: int,
    *,
    hidden: int = 256,
    dropout: float = 0.5,
    rate: float = 0.01,
    decay: float = 0.01,
    steps: int = 150,
    epochs: int = 10,
    batch: int = 512,
) -> State:
    """Fit by AdamW: at least `steps` steps and `epochs` passes, whole batches up to `batch` items.

    Raises ValueError when a feature is not finite. `shape` is not used.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from tasks.networks._training import arrays, dropped, minimise, parameters

    mean, deviation = scaling(features)
    inputs, targets = torch.from_numpy(scale(features, mean, deviation)), torch.from_numpy(labels)
    tensors = parameters(
        {
            "hidden.weight": (hidden, inputs.shape[1]),
            "hidden.bias": (hidden,),
            "out.weight": (classes, hidden),
            "out.bias": (classes,),
        },
        seed,
    )

    def loss(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        active = torch.relu(inputs[chosen] @ tensors["hidden.weight"].T + tensors["hidden.bias"])
        logits = dropped(active, dropout, generator) @ tensors["out.weight"].T + tensors["out.bias"]
        return cross_entropy(logits, targets[chosen])

    minimise(
        tensors, loss, count=len(labels), steps=steps, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed
    )
    return {**arrays(tensors), "mean": mean, "deviation": deviation, "dropout": np.array([dropout])}


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
