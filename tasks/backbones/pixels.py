"""The pixels themselves, scaled to [0, 1]: an 8x8 grey image gives 64 features, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.backbones import Backbone, describe

CHANNELS = {"L": 1, "RGB": 3}


def load(size: int, mode: str) -> Backbone:
    """Flattened (H, W, channels) / 255 as float32."""
    return Backbone(describe("pixels", size, mode), size * size * CHANNELS[mode], _embed)


def _embed(images: npt.NDArray[Any], batch: int) -> npt.NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255.0)
