"""A small convolutional network trained from scratch on pixels; wants the `pixels` backbone.

    state = fit(pixels (N,784) in [0,1], labels, classes=10, shape=(28, 28, 1), seed=0)
    predict(state, pixels)  ->  (N,10) logits

Three blocks of 3x3 convolution and ReLU, each halved by pooling while both sides are at least 8 pixels (8x8 ends at
4x4, 28x28 at 7x7, 32x32 at 4x4), a hidden layer with dropout, a linear layer. Features are images flattened row by
row with channels last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Interval

from tasks.networks import Array, Rng, Shape, State
from tasks.networks._dropout import sampled
from tasks.networks._scaling import scale, scaling
from tasks.networks._training import initial, kept, minimise

if TYPE_CHECKING:
    import torch

BACKBONE = "pixels"  # the only one it can learn from: read by tasks/params_plugins.py without an import
SMALLEST = 8  # images are halved while both sides are at least this
BLOCKS = 3
CHUNK = 512  # images in one forward pass


def fit(
    features: Array,
    labels: Array,
    classes: int,
    shape: Shape,
    seed: int,
    *,
    width: Annotated[int, Interval(ge=1)] = 16,
    hidden: Annotated[int, Interval(ge=1)] = 128,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
    rate: Annotated[float, Interval(gt=0)] = 0.004,
    decay: Annotated[float, Interval(ge=0)] = 0.01,
    steps: Annotated[int, Interval(ge=1)] = 200,
    epochs: Annotated[int, Interval(ge=0)] = 10,
    batch: Annotated[int, Interval(ge=1)] = 64,
) -> State:
    """Fit by AdamW; `width` is the first block's channels, doubled by each block.

    Raises ValueError when a feature is not finite or when features are not images of `shape`.
    """
    import torch
    from torch.nn.functional import cross_entropy

    _require_images(features, shape)
    mean, deviation = scaling(features)
    images, targets = _images(scale(features, mean, deviation), shape), torch.from_numpy(labels)
    rng = np.random.default_rng(seed)
    weights = initial(_shapes(shape, width, hidden, classes), rng)
    tensors = {name: torch.from_numpy(weight).requires_grad_() for name, weight in weights.items()}  # the same memory

    def slopes(chosen: Array, rng: Rng) -> State:
        active = _activations(tensors, images[chosen]) * torch.from_numpy(kept((len(chosen), hidden), dropout, rng))
        loss = cross_entropy(active @ tensors["out.weight"].T + tensors["out.bias"], targets[chosen])
        found = torch.autograd.grad(loss, list(tensors.values()))
        return {name: slope.numpy() for name, slope in zip(tensors, found, strict=True)}

    minimise(
        weights, slopes, count=len(labels), steps=steps, epochs=epochs, batch=batch, rate=rate, decay=decay, rng=rng
    )
    constants = {"mean": mean, "deviation": deviation, "dropout": np.array([dropout]), "shape": np.array(shape)}
    return {**weights, **constants}


def _require_images(features: Array, shape: Shape) -> None:
    if features.shape[1] != np.prod(shape):
        raise ValueError(
            f"the cnn reads pixels: images of {shape[0]}x{shape[1]}x{shape[2]} have {np.prod(shape)} values, "
            f"the features have {features.shape[1]}. Set embed.backbone to pixels, or train.network to mlp or linear."
        )


def _shapes(shape: Shape, width: int, hidden: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter, in the order they are drawn."""
    height, breadth, channels = shape
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(BLOCKS):
        filters = width * 2**block
        shapes |= {f"block{block}.weight": (filters, channels, 3, 3), f"block{block}.bias": (filters,)}
        channels = filters
        if _halved(height, breadth):
            height, breadth = height // 2, breadth // 2
    flat = height * breadth * channels
    shapes |= {"hidden.weight": (hidden, flat), "hidden.bias": (hidden,)}
    return shapes | {"out.weight": (classes, hidden), "out.bias": (classes,)}


def _halved(height: int, width: int) -> bool:
    return min(height, width) >= SMALLEST


def _images(features: Array, shape: Shape) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(features.reshape(-1, *shape).transpose(0, 3, 1, 2)))


def _activations(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Activations (N,H) of the hidden layer for images (N,channels,H,W)."""
    import torch
    from torch.nn.functional import conv2d, max_pool2d

    block = 0
    while f"block{block}.weight" in tensors:
        images = torch.relu(conv2d(images, tensors[f"block{block}.weight"], tensors[f"block{block}.bias"], padding=1))
        if _halved(images.shape[2], images.shape[3]):
            images = max_pool2d(images, 2)
        block += 1
    return torch.relu(images.flatten(1) @ tensors["hidden.weight"].T + tensors["hidden.bias"])


def predict(state: State, features: Array) -> Array:
    """Logits (N,C) float64 of pixels (N,D), without dropout."""
    return (embed(state, features) @ state["out.weight"].T + state["out.bias"]).astype(np.float64)


def embed(state: State, features: Array) -> Array:
    """Activations (N,H) float32 of the hidden layer."""
    import torch

    height, width, channels = (int(side) for side in state["shape"])
    _require_images(features, (height, width, channels))
    # torch warns about read-only arrays (memory-mapped weights): it would be given a way to write to them.
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in state.items()}
    result = np.empty((len(features), len(state["hidden.bias"])), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(features), CHUNK):
            part = scale(features[start : start + CHUNK], state["mean"], state["deviation"])
            result[start : start + CHUNK] = _activations(tensors, _images(part, (height, width, channels))).numpy()
    return result


def sample(state: State, features: Array, draws: int, rng: Rng) -> Array:
    """Logits (T,N,C) float64 of `draws` networks with dropout on the hidden layer."""
    return sampled(
        embed(state, features), state["out.weight"].T, state["out.bias"], float(state["dropout"][0]), draws, rng
    )
