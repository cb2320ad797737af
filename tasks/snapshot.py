"""The ledger as Parquet: `data/ledger/<table>.parquet`, sorted, the same bytes for the same rows.

Snapshots travel with the tag through DVC; `rebuild` makes a ledger from them in a fresh clone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import GleanerError
from tasks.ledger import TABLES, Ledger, open_ledger
from tasks.store import Store, remove_folder, replace_folder, replacing

FOLDER = "data/ledger"
BUILDING = "data/.ledger.new"


def write_snapshot(store: Store, ledger: Ledger) -> None:
    """Write every table of the ledger; the folder changes as a whole."""
    building = store.path(BUILDING)
    remove_folder(building)
    for name in TABLES:
        columns, rows = ledger.rows(name)
        types = ledger.column_types(name)
        values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
        arrays = [pa.array(v, type=_arrow(types[c])) for c, v in zip(columns, values, strict=True)]
        with replacing(building / f"{name}.parquet") as handle:
            pq.write_table(pa.table(dict(zip(columns, arrays, strict=True))), handle, compression="zstd")
    replace_folder(building, store.path(FOLDER))


def _arrow(declared: str) -> pa.DataType:
    return {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string()}[declared]


def read_snapshot(store: Store, name: str) -> tuple[list[str], list[tuple[object, ...]]]:
    """A table's columns and rows as of the snapshot."""
    path = store.path(f"{FOLDER}/{name}.parquet")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise GleanerError(f"{path} cannot be read: {error}") from None
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, list(zip(*columns, strict=True)) if table.num_rows else []


def rebuild(store: Store, path: Path, now: Callable[[], str], adjust: Callable[[Ledger], None]) -> None:
    """Make a new ledger at `path` from the snapshot; it appears whole, after `adjust` has seen it."""
    temporary = path.with_name(path.name + ".rebuilding")
    for suffix in ("", "-wal", "-shm"):
        temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    with open_ledger(temporary, now, create=True) as ledger:
        for name in TABLES:
            columns, rows = read_snapshot(store, name)
            ledger.insert_rows(name, columns, rows)
        adjust(ledger)
        ledger.backup(path)
    for suffix in ("", "-wal", "-shm"):
        temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
