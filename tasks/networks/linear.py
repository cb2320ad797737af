"""Multinomial logistic regression: the fastest head, and with a good backbone hard to beat.

    state = fit(features, labels, classes=10, shape=(8, 8, 1), seed=0)
    predict(state, features)  ->  (N,10) logits

NumPy and SciPy only: no process that fits or predicts pays for importing torch.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from tasks.networks import Array, Shape, State
from tasks.networks._scaling import scale, scaling


def fit(
    features: Array,
    labels: Array,
    classes: int,
    shape: Shape,
    seed: int,
    *,
    l2: Annotated[float, Interval(ge=0)] = 0.3,
    max_iterations: Annotated[int, Interval(ge=1)] = 200,
) -> State:
    """Fit by L-BFGS in float64. `l2` is the weight of the squared coefficients against one label's loss.

    The problem is convex and starts at zero, so `seed` and `shape` change nothing. Raises ValueError when a feature
    is not finite. Source: Bishop, "Pattern Recognition and Machine Learning" (2006), 4.3.4; Liu & Nocedal (1989).
    """
    from scipy.optimize import minimize

    mean, deviation = scaling(features)
    inputs = scale(features, mean, deviation).astype(np.float64)
    start = np.zeros((inputs.shape[1] + 1) * classes)
    result = minimize(
        _loss, start, (inputs, np.eye(classes)[labels], l2), "L-BFGS-B", jac=True, options={"maxiter": max_iterations}
    )
    weights = result.x.reshape(-1, classes)
    return {"mean": mean, "deviation": deviation, "weights": weights[:-1].copy(), "bias": weights[-1].copy()}


def _loss(flat: Array, inputs: Array, targets: Array, l2: float) -> tuple[float, Array]:
    """Mean negative log-likelihood plus ridge, and its gradient; the last row of the weights is the bias."""
    weights = flat.reshape(-1, targets.shape[1])
    logits = inputs @ weights[:-1] + weights[-1]
    logits -= logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    errors = np.exp(logits - normaliser) - targets
    slopes = weights[:-1] * l2
    gradient = np.vstack([inputs.T @ errors + slopes, errors.sum(axis=0)])
    loss: Any = ((normaliser - logits) * targets).sum() + 0.5 * (weights[:-1] * slopes).sum()
    return float(loss) / len(inputs), gradient.ravel() / len(inputs)


def predict(state: State, features: Array) -> Array:
    """Logits (N,C) float64 of features (N,D)."""
    return embed(state, features).astype(np.float64) @ state["weights"] + state["bias"]


def embed(state: State, features: Array) -> Array:
    """The standardised features (N,D) float32: what the last (and only) layer reads."""
    return scale(features, state["mean"], state["deviation"])
