"""The training loop of the networks that are fitted by torch: AdamW with a cosine schedule, global RNG untouched.

tensors = parameters({"out.weight": (10, 128), "out.bias": (10,)}, seed=0)
minimise(tensors, loss, count=len(labels), steps=200, batch=256, rate=0.01, decay=0.01, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tasks.networks import State

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
#: (positions of a mini-batch, generator for dropout) -> mean loss
Loss = Callable[["torch.Tensor", "torch.Generator"], "torch.Tensor"]


def parameters(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    """Trainable tensors: weights by He et al. (ICCV 2015) over all axes but the first, biases (one axis) zero."""
    import torch

    rng = np.random.default_rng(seed)
    result: Tensors = {}
    for name, shape in shapes.items():
        values = np.zeros(shape)
        if len(shape) > 1:
            values = rng.normal(scale=np.sqrt(2.0 / np.prod(shape[1:])), size=shape)
        result[name] = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    return result


def minimise(
    tensors: Tensors,
    loss: Loss,
    *,
    count: int,
    steps: int,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    seed: int,
) -> None:
    """Train in place for `steps` steps, or for `epochs` passes over `count` items if that is more."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = list(tensors.values())
    moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
    steps = max(steps, -(-epochs * count // batch))
    for step in range(steps):
        chosen = torch.arange(count) if count <= batch else torch.randint(count, (batch,), generator=generator)
        slopes = torch.autograd.grad(loss(chosen, generator), weights)
        cosine = rate * 0.5 * (1.0 + np.cos(np.pi * step / steps))
        for weight, slope, (first, second) in zip(weights, slopes, moments, strict=True):
            _adamw(weight, slope, first, second, step + 1, float(cosine), decay)


def _adamw(
    weight: torch.Tensor,
    slope: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    step: int,
    rate: float,
    decay: float,
) -> None:
    """One step in place. Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019).

    Not torch.optim.AdamW: its first step imports torch's compiler, 3.6 CPU-seconds in each process that trains.
    """
    import torch

    with torch.no_grad():
        first.lerp_(slope, 0.1)
        second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        spread = (second / (1.0 - 0.999**step)).sqrt_().add_(1e-8)
        weight.mul_(1.0 - rate * decay).addcdiv_(first, spread, value=-rate / (1.0 - 0.9**step))


def dropped(hidden: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Dropout whose mask comes from `generator`; torch's own draws from the process-wide one."""
    import torch

    return hidden * (torch.rand(hidden.shape, generator=generator) >= rate) / (1.0 - rate)


def arrays(tensors: Tensors) -> State:
    """The trained values as NumPy arrays of their own."""
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
