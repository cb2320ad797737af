"""Score and prediction tables as arrays: streamed, so that a million items by a thousand classes need no room.

read_scores(store, SCORES, item_ids).predicted     # (N,) class indices in the order of item_ids, -1: not valid
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from monitoring.evidence import Array, Scores
from tasks.errors import GleanerError
from tasks.store import Store
from tasks.tables import PREDICTIONS, TableKind

ROWS = 65_536
SUM_TOLERANCE = 1e-3  # float32 probabilities of a thousand classes add up to 1 within this


def read_scores(store: Store, kind: TableKind, ids: pa.Array) -> Scores:
    """The table's rows in the order of `ids` (N,). Raises GleanerError when it is missing or damaged."""
    count = len(ids)
    scores = Scores(np.full(count, np.nan), np.full(count, -1, dtype=np.int64), np.full(count, np.nan))
    names, utilities, tops, confidences = [], [np.zeros(0)], [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for rows in _stream(store, kind, ["item_id", "utility", "probabilities"]):
        top, confidence = predictions(rows.column("probabilities"))
        names.append(rows.column("item_id"))
        utilities.append(rows.column("utility").to_numpy(zero_copy_only=False))
        tops.append(top)
        confidences.append(confidence)
    found = pc.fill_null(pc.index_in(pa.chunked_array(names, pa.string()), value_set=ids), -1).to_numpy()
    rows_of, known = found[found >= 0], found >= 0
    scores.utility[rows_of] = np.concatenate(utilities)[known]
    scores.predicted[rows_of] = np.concatenate(tops)[known]
    scores.confidence[rows_of] = np.concatenate(confidences)[known]
    return scores


def predictions(column: pa.ListArray) -> tuple[Array, Array]:
    """Class (n,) and its probability (n,) of a list column; -1 and NaN where a row is no distribution."""
    lengths = column.value_lengths().fill_null(0).to_numpy()
    classes = int(lengths.max()) if len(lengths) else 0
    if classes == 0:
        return np.full(len(lengths), -1, dtype=np.int64), np.full(len(lengths), np.nan)
    whole = lengths == classes
    values = column.filter(pa.array(whole)).flatten().to_numpy(zero_copy_only=False).reshape(-1, classes)
    values = values.astype(np.float64)
    valid = np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1)
    valid &= np.abs(values.sum(axis=1) - 1) <= SUM_TOLERANCE
    top, confidence = np.full(len(lengths), -1, dtype=np.int64), np.full(len(lengths), np.nan)
    best = np.where(valid, np.nan_to_num(values).argmax(axis=1), -1)
    top[whole] = best
    confidence[whole] = np.where(valid, values[np.arange(len(values)), np.maximum(best, 0)], np.nan)
    return top, confidence


def distributions(store: Store, kind: TableKind, classes: int) -> tuple[Array, Array, Array]:
    """Sum, smallest and largest probability (n,) of each row in file order; NaN where it has not `classes` numbers."""
    parts = [np.full((3, 0), np.nan)]
    for rows in _stream(store, kind, ["probabilities"]):
        column = rows.column("probabilities")
        whole = column.value_lengths().fill_null(0).to_numpy() == classes
        values = column.filter(pa.array(whole)).flatten().to_numpy(zero_copy_only=False).reshape(-1, classes)
        part = np.full((3, len(whole)), np.nan)
        part[:, whole] = values.sum(axis=1, dtype=np.float64), values.min(axis=1), values.max(axis=1)
        parts.append(part)
    total, least, most = np.concatenate(parts, axis=1)
    return total, least, most


def read_outcomes(store: Store, iterations: Array, ids: pa.Array, classes: Array) -> Array:
    """(T, H) float64: 1 where the iteration's model is right on the holdout item, 0 wrong, NaN not predicted."""
    result = np.full((len(iterations), len(ids)), np.nan)
    if not store.exists(PREDICTIONS) or len(ids) == 0:
        return result
    row_of = {int(number): row for row, number in enumerate(iterations)}
    for rows in _stream(store, PREDICTIONS, ["iteration", "item_id", "probabilities"]):
        at = pc.index_in(rows.column("item_id"), value_set=ids)
        known = at.is_valid()
        rows, at = rows.filter(known), at.filter(known).to_numpy()
        row = np.array([row_of.get(number, -1) for number in rows.column("iteration").to_pylist()], dtype=np.int64)
        top, _ = predictions(rows.column("probabilities"))
        use = (row >= 0) & (top >= 0)
        result[row[use], at[use]] = top[use] == classes[at[use]]
    return result


def _stream(store: Store, kind: TableKind, columns: list[str]) -> Iterator[pa.RecordBatch]:
    path = store.path(kind.path)
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROWS, columns=columns)
    except FileNotFoundError:
        raise GleanerError(f"{path} not found. `gleaner status` says what to run first.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise GleanerError(f"{path} cannot be read: {error}. `gleaner verify` tells what is damaged.") from None
