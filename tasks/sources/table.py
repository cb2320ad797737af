"""A table of images: CSV or Parquet with a column `path` and, if you like, `label`, `sequence`, `taken`.

    path,label,sequence,taken                    source: {kind: table, path: photos/index.csv}
    day1/0001.jpg,deer,burst-17,2024-05-01T06:12:00
    day1/0002.jpg,NA,burst-17,                   <- the label is the text "NA", not a missing value

Paths are relative to the table's own folder and may not leave it. An empty label means none. All values stay text.
"""

from __future__ import annotations

import csv
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import BadInput, did_you_mean
from tasks.sources import Found
from tasks.sources._files import read_below, uri_of

Rows = list[tuple[str, str, str, str]]


def open_source(
    path: Path | None,
    *,
    path_column: str = "path",
    label_column: str = "label",
    sequence_column: str = "sequence",
    taken_column: str = "taken",
) -> Table:
    """Read the table. The options name its columns; all but `path_column` may be missing."""
    if path is None or not path.is_file():
        raise BadInput(f"source.path: {str(path or '')!r} is not a file. Give a .csv or .parquet file.")
    columns = (path_column, label_column, sequence_column, taken_column)
    rows = _read_parquet(path, columns) if _is_parquet(path) else _read_csv(path, columns)
    _check(path, rows)
    found = sorted((_found(path.parent, row) for row in rows), key=lambda f: f.uri)
    return Table(path.parent, tuple(found))


class Table:
    """The rows of a table, sorted by path."""

    def __init__(self, root: Path, found: tuple[Found, ...]) -> None:
        self._root = root
        self._found = found
        self.classes = tuple(sorted({f.label for f in found if f.label is not None}))

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Found]:
        return iter(self._found)

    def read(self, uri: str) -> bytes:
        """The file's bytes, as they are now."""
        return read_below(self._root, uri)


def _is_parquet(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(4) == b"PAR1"


def _read_csv(path: Path, columns: tuple[str, ...]) -> Rows:
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            at = _positions(path, header, columns)
            return [_row(path, line, len(header), at, number) for number, line in enumerate(reader, 2) if line]
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    except csv.Error as error:
        raise BadInput(f"{path}: row {reader.line_num}: {error}.") from None


def _positions(path: Path, header: list[str], columns: tuple[str, ...]) -> tuple[int, ...]:
    if columns[0] not in header:
        raise BadInput(
            f"{path}: no column {columns[0]!r}. Columns there: {', '.join(header) or 'none'}."
            f"{did_you_mean(columns[0], header)} Name it in source.options.path_column."
        )
    for name, column in zip(("label", "sequence", "taken"), columns[1:], strict=True):
        if column not in header and column != name:
            raise BadInput(
                f"{path}: no column {column!r} (source.options.{name}_column). Columns there: {', '.join(header)}."
                f"{did_you_mean(column, header)}"
            )
    twice = sorted({c for c in columns if header.count(c) > 1})
    if twice:
        raise BadInput(f"{path}: column {twice[0]!r} is there more than once.")
    return tuple(header.index(c) if c in header else -1 for c in columns)


def _row(path: Path, line: list[str], width: int, at: tuple[int, ...], number: int) -> tuple[str, str, str, str]:
    if len(line) != width:
        raise BadInput(f"{path}: row {number} has {len(line)} values, the header {width}. Quote those with commas.")
    image, label, sequence, taken = (line[i] if i >= 0 else "" for i in at)
    return image, label, sequence, taken


def _read_parquet(path: Path, columns: tuple[str, ...]) -> Rows:
    try:
        file = pq.ParquetFile(path)
        header = file.schema_arrow.names
        _positions(path, header, columns)
        table = file.read(columns=[c for c in columns if c in header])
        texts = [_texts(table[c]) if c in header else [""] * len(table) for c in columns]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise BadInput(f"{path} cannot be read as Parquet with text columns: {error}.") from None
    return list(zip(texts[0], texts[1], texts[2], texts[3], strict=True))


def _texts(column: pa.ChunkedArray) -> list[str]:
    return list(pc.fill_null(column.cast(pa.string()), "").to_pylist())


def _check(path: Path, rows: Rows) -> None:
    """Refuse rows that cannot be meant; the first row after the header is row 2, as a spreadsheet shows it."""
    first: dict[str, int] = {}
    for number, (image, _, _, taken) in enumerate(rows, 2):
        if not image:
            raise BadInput(f"{path}: row {number}: the path is empty.")
        if image in first:
            raise BadInput(f"{path}: row {number}: {image!r} is already in row {first[image]}. Keep one of them.")
        first[image] = number
        if taken and not _is_time(taken):
            raise BadInput(f"{path}: row {number}: taken {taken!r} is not ISO 8601, such as 2024-05-01T06:12:00.")


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _found(root: Path, row: tuple[str, str, str, str]) -> Found:
    image, label, sequence, taken = row
    size, mtime = -1, -1
    inside = not image.startswith("/") and ".." not in image.split("/") and "\0" not in image
    if inside:
        try:
            status = (root / image).lstat()
            if stat.S_ISREG(status.st_mode):
                size, mtime = status.st_size, status.st_mtime_ns
        except OSError:  # missing: reading it says so
            pass
    return Found(uri_of(image.encode("utf-8", "surrogatepass")), size, mtime, label or None, sequence, taken)
