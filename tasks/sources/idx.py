"""MNIST's idx files, plain or gzipped: one file of images, one of labels.

    apt-get install dataset-fashion-mnist
    source: {kind: idx, path: /usr/share/datasets/fashion-mnist}
    ->  train-images-idx3-ubyte.gz#00000000 …, 60,000 images of 28x28, labels "0" … "9"

Format (LeCun's MNIST page): two zero bytes, 08 for unsigned bytes, the number of dimensions, then each
dimension as a big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from tasks.errors import BadInput
from tasks.sources import Found
from tasks.sources._arrays import bmp, index_of, uri

FIXED = True  # it never changes: not watched


def open_source(
    path: Path | None,
    *,
    images: str = "train-images-idx3-ubyte.gz",
    labels: str = "train-labels-idx1-ubyte.gz",
    classes: list[str] = [],  # noqa: B006 - options are read from the source: literals only
) -> Idx:
    """Read both files into memory.

    images, labels: file names below `path` (with or without .gz); labels: "" when there are none.
    classes: names in the order of the label numbers; [] for the numbers themselves.
    """
    if path is None or not path.is_dir():
        raise BadInput(f"source.path: {str(path or '')!r} is not a folder. Give the folder of the idx files.")
    file = _locate(path, images)
    pixels = read_idx(file, 3)
    numbers = read_idx(_locate(path, labels), 1) if labels else None
    if numbers is not None and len(numbers) != len(pixels):
        raise BadInput(f"{path}: {images} holds {len(pixels)} images, {labels} {len(numbers)} labels. Are they a pair?")
    names = _names(numbers, classes)
    return Idx(file, pixels, numbers, names)


class Idx:
    """The images in memory (Fashion-MNIST: 47 MB)."""

    def __init__(
        self, file: Path, pixels: npt.NDArray[np.uint8], numbers: npt.NDArray[np.uint8] | None, names: tuple[str, ...]
    ) -> None:
        self._name = file.name
        self._mtime_ns = file.stat().st_mtime_ns
        self._pixels = pixels  # (N, H, W)
        self._numbers = numbers  # (N,)
        self._names = names
        self.classes = names if numbers is not None else ()

    def __len__(self) -> int:
        return len(self._pixels)

    def __iter__(self) -> Iterator[Found]:
        size = len(bmp(self._pixels[0])) if len(self) else 0
        for i in range(len(self)):
            label = None if self._numbers is None else self._names[int(self._numbers[i])]
            yield Found(uri(self._name, i), size, self._mtime_ns, label)

    def read(self, uri: str) -> bytes:
        """One image as BMP."""
        return bmp(self._pixels[index_of(uri, self._name, len(self))])


def _locate(folder: Path, name: str) -> Path:
    for candidate in (name, name.removesuffix(".gz"), f"{name}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
    raise BadInput(f"{folder} has no {name}. It holds: {there}. Name the file in source.options.")


def read_idx(file: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes. Raises BadInput for another magic number or length."""
    try:
        with _opened(file) as handle:
            shape = _shape(handle.read(4 + 4 * dimensions), dimensions, file)
            content = _read(handle, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{file} cannot be read: {error}. Copy or download it again.") from None
    if len(content) != math.prod(shape):
        more = "more" if len(content) > math.prod(shape) else f"{len(content)}"
        raise BadInput(f"{file}: the header declares {shape} = {math.prod(shape)} bytes, the file holds {more}.")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read(handle: IO[bytes], length: int) -> bytearray:
    """At most `length` bytes, in pieces: no memory is set aside for what a header only claims."""
    content = bytearray()
    while piece := handle.read(min(length - len(content), 2**24)):
        content += piece
    return content


def _opened(file: Path) -> IO[bytes]:
    with open(file, "rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(file)) if zipped else open(file, "rb")


def _shape(header: bytes, dimensions: int, file: Path) -> tuple[int, ...]:
    wanted = bytes([0, 0, 8, dimensions])
    if header[:4] != wanted or len(header) < 4 + 4 * dimensions:
        raise BadInput(
            f"{file} begins with {header[:4].hex(' ')}; an idx file of bytes in {dimensions} dimensions begins with "
            f"{wanted.hex(' ')}."
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if dimensions == 3 and shape[0] and not (shape[1] and shape[2]):
        raise BadInput(f"{file}: the header declares images of {shape[1]} x {shape[2]} pixels.")
    return shape


def _names(numbers: npt.NDArray[np.uint8] | None, classes: list[str]) -> tuple[str, ...]:
    top = int(numbers.max()) if numbers is not None and len(numbers) else -1
    if not classes:
        return tuple(str(i) for i in range(top + 1))
    if top >= len(classes):
        raise BadInput(f"source.options.classes names {len(classes)} classes, the labels go up to {top}.")
    if len(set(classes)) != len(classes):
        raise BadInput(f"source.options.classes: {classes}: give different names.")
    return tuple(classes)
