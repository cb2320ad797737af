"""Feature extractors, one file each; the file name is the value of embed.backbone.

A file defines `load(size, mode, *, options) -> Backbone`; options are keyword-only with a type and a literal default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Embed(Protocol):
    """Images to features."""

    def __call__(self, images: npt.NDArray[np.uint8], batch: int) -> npt.NDArray[np.float32]:
        """(N, H, W, channels) uint8 -> (N, D) float32, `batch` images in one forward pass."""


@dataclass(frozen=True)
class Backbone:
    """A loaded feature extractor. Safe to call from several threads."""

    version: str  # safe as a file name; changes with name, weights, image size and preprocessing
    dimension: int  # D
    embed: Embed


def describe(*parts: Any) -> str:
    """A version from its parts: describe('pixels', 8, 'L') -> 'pixels-8-L'."""
    text = "-".join(str(part) for part in parts)
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)
