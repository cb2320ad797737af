"""From uint8 images to features with a torch module: normalise, channels last, no gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.backbones import Embed


def embedder(module: Any, mean: tuple[float, ...], std: tuple[float, ...], precision: str) -> Embed:
    """An `embed` that computes module((x - mean) / std) with x in 0..255; grey images are repeated to RGB.

    `mean` and `std` per channel. Batches are cut at fixed places, so the same images give the same bytes.
    """
    import torch

    module = module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shift = torch.tensor(mean).view(1, 3, 1, 1)
    scale = torch.tensor(std).view(1, 3, 1, 1)

    def forward(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        # A copy: a mapped shard is read-only, which torch has no word for.
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
        ready = ((pixels.expand(-1, 3, -1, -1) - shift) / scale).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
            features: npt.NDArray[np.float32] = module(ready).flatten(1).float().numpy()
        return features

    def embed(images: npt.NDArray[np.uint8], batch: int) -> npt.NDArray[np.float32]:
        parts = [forward(images[start : start + batch]) for start in range(0, len(images), batch)]
        return np.concatenate(parts)

    return embed
