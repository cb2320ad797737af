"""The training loop of the networks that descend a gradient: AdamW with a cosine schedule, all chance from one seed.

weights = initial({"out.weight": (10, 128), "out.bias": (10,)}, rng)
minimise(weights, slopes, count=len(labels), steps=200, epochs=10, batch=256, rate=0.01, decay=0.01, rng=rng)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tasks.networks import Array, Rng, State

#: (positions of a mini-batch (B,), generator for dropout) -> gradient of the mean loss, by name of the weights
Slopes = Callable[[Array, Rng], State]


def initial(shapes: dict[str, tuple[int, ...]], rng: Rng) -> State:
    """float32 weights by He et al. (ICCV 2015) over all axes but the first; biases (one axis) are zero."""
    return {
        name: rng.normal(scale=np.sqrt(2.0 / np.prod(shape[1:])), size=shape).astype(np.float32)
        if len(shape) > 1
        else np.zeros(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }


def minimise(
    weights: State,
    slopes: Slopes,
    *,
    count: int,
    steps: int,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    rng: Rng,
) -> None:
    """Train in place for `steps` steps, or for `epochs` passes over `count` items if that is more."""
    moments = {name: (np.zeros_like(weight), np.zeros_like(weight)) for name, weight in weights.items()}
    steps = max(steps, -(-epochs * count // batch))
    for step in range(steps):
        chosen = np.arange(count) if count <= batch else rng.integers(count, size=batch)
        cosine = rate * 0.5 * (1.0 + np.cos(np.pi * step / steps))
        for name, slope in slopes(chosen, rng).items():
            _adamw(weights[name], slope, *moments[name], step + 1, float(cosine), decay)


def _adamw(weight: Array, slope: Array, first: Array, second: Array, step: int, rate: float, decay: float) -> None:
    """One step in place. Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019)."""
    first += 0.1 * (slope - first)
    second += 0.001 * (slope * slope - second)
    spread = np.sqrt(second / (1.0 - 0.999**step)) + 1e-8
    weight *= 1.0 - rate * decay
    weight -= rate / (1.0 - 0.9**step) * first / spread


def kept(shape: tuple[int, int], dropout: float, rng: Rng) -> Array:
    """(B,H) float32: 0 for a dropped unit, else 1 / (1 - dropout)."""
    return np.divide(rng.random(shape, dtype=np.float32) >= dropout, 1.0 - dropout, dtype=np.float32)
