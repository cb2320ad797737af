"""scikit-learn's bundled digits: 1,797 grey images of 8x8 pixels, ten classes. For trying things out.

params.yaml: source: {kind: digits}   ->   digits#00000000 … digits#00001796, labels "0" … "9"
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.errors import BadInput
from tasks.sources import Found
from tasks.sources._arrays import bmp, index_of, uri

FIXED = True  # it never changes: not watched


def open_source(path: Path | None) -> Digits:
    """Open it. Raises BadInput for a path: the images are part of scikit-learn."""
    if path is not None:
        raise BadInput(f'source.path: the kind digits reads no files, but the path is {path}. Set it to "".')
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(np.asarray(data.images) * (255.0 / 16.0)).astype(np.uint8)
    return Digits(pixels, tuple(str(label) for label in data.target))


class Digits:
    """The 1,797 images in memory (115 kB)."""

    classes = tuple("0123456789")

    def __init__(self, pixels: npt.NDArray[np.uint8], labels: tuple[str, ...]) -> None:
        self._pixels = pixels  # (1797, 8, 8)
        self._labels = labels

    def __len__(self) -> int:
        return len(self._pixels)

    def __iter__(self) -> Iterator[Found]:
        size = len(bmp(self._pixels[0]))
        for i, label in enumerate(self._labels):
            yield Found(uri("digits", i), size, -1, label)

    def read(self, uri: str) -> bytes:
        """One image as BMP."""
        return bmp(self._pixels[index_of(uri, "digits", len(self))])
