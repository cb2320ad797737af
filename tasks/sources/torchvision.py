"""A classification data set of torchvision, by its class name in torchvision.datasets.

    source: {kind: torchvision, path: ~/data, options: {name: CIFAR10}}
    ->  CIFAR10-train#00000000 …, labels "airplane", "automobile", …

The files must be there (`download: true` fetches them). Some of torchvision's readers unpickle the
archive that they have checked by MD5 (CIFAR10): use them on what torchvision itself downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import BadInput, did_you_mean
from tasks.sources import Found
from tasks.sources._arrays import bmp_of, index_of, uri

FIXED = True  # it never changes: not watched


def open_source(
    path: Path | None, *, name: str = "CIFAR10", split: str = "train", download: bool = False
) -> Torchvision:
    """Open `torchvision.datasets.<name>` with root `path`.

    split: "train" or "test", or another word that the data set knows. download: fetch what is missing.
    """
    kind = _find(name)
    accepts = inspect.signature(kind).parameters
    wanted = {"root": path, "train": split == "train", "split": split, "download": download}
    if "root" in accepts and path is None:
        raise BadInput(f"source.path is empty: {name} needs the folder that holds (or shall hold) its files.")
    try:
        data = kind(**{key: value for key, value in wanted.items() if key in accepts})
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        hint = "source.options: {download: true} fetches it."
        raise BadInput(f"torchvision.datasets.{name} in {path}: {error} {hint}") from None
    return Torchvision(f"{name}-{split}", data)


def _find(name: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise BadInput(f"source.kind torchvision needs torchvision: {error}.") from None
    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        hint = did_you_mean(name, datasets.__all__)
        raise BadInput(f"source.options.name: torchvision.datasets has no {name!r}.{hint}")
    return kind


class Torchvision:
    """An opened torchvision data set of (image, class number) pairs."""

    def __init__(self, name: str, data: Any) -> None:
        self._name = name
        self._data = data
        self._names = tuple(str(c) for c in getattr(data, "classes", ()))
        self._labels = tuple(self._label(t) for t in self._targets())
        self.classes = self._names or tuple(sorted(set(self._labels)))

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Found]:
        for i, label in enumerate(self._labels):
            yield Found(uri(self._name, i), -1, -1, label)

    def read(self, uri: str) -> bytes:
        """One image as BMP."""
        return bmp_of(self._data[index_of(uri, self._name, len(self))][0])

    def _targets(self) -> list[Any]:
        for attribute in ("targets", "labels"):
            if hasattr(self._data, attribute):
                return list(getattr(self._data, attribute))
        return [self._data[i][1] for i in range(len(self._data))]

    def _label(self, target: Any) -> str:
        try:
            number = int(target)
        except (TypeError, ValueError):
            raise BadInput(f"{self._name}: its targets are {type(target).__name__}, not class numbers.") from None
        return self._names[number] if self._names else str(number)
