"""Matrices as Parquet list columns and back, without a Python object per row.

table = pa.table({"probabilities": to_lists(np.array([[0.9, 0.1], [0.2, 0.8]]))})
matrix(table["probabilities"], 2)  ->  array([[0.9, 0.1], [0.2, 0.8]])
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.errors import GleanerError


def to_lists(values: npt.NDArray[np.floating]) -> pa.ListArray:
    """A list<float32> column (N,) of a matrix (N, C)."""
    rows, columns = values.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * columns
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.float32).reshape(-1)))


def matrix(column: pa.ChunkedArray, columns: int) -> npt.NDArray[np.float64]:
    """A matrix (N, C) of a list column. Raises GleanerError when a row is longer.

    A shorter row is of a model that did not know the newest classes yet: they have probability 0.
    """
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy()
    lengths = np.diff(offsets)
    if (lengths > columns).any():
        raise GleanerError(
            f"row {int(np.argmax(lengths > columns))} of the probabilities has more than {columns} classes. "
            "Classes can be added to labeling.classes, not removed."
        )
    values = np.zeros((len(array), columns))
    values[np.arange(columns) < lengths[:, None]] = array.flatten().to_numpy(zero_copy_only=False)
    return values
