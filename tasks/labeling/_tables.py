"""Tables: CSV from any spreadsheet in (comma, semicolon or tab, UTF-8), cells that no spreadsheet runs out.

inert("=1+1")  ->  "'=1+1"        active("'=1+1")  ->  "=1+1"
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tasks.labeling import Uninterpretable
from tasks.labeling._rows import SHOWN, Row, plain

FORMULA = ("=", "+", "-", "@", "\t", "\r")
DELIMITERS = (",", ";", "\t")
LONGEST_CELL = 2**24  # characters; csv's own limit is process-wide and refuses a file for one long comment


def inert(text: str) -> str:
    """Keep a spreadsheet from running a text as a formula; `active` takes it back, whatever the text is."""
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def active(text: str) -> str:
    """The text that `inert` was given."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(FORMULA) else text


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file without formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)])
    return text.getvalue().encode("utf-8", "backslashreplace")


def read_table(text: str) -> list[Row]:
    """The rows of a table. Raises csv.Error, and Uninterpretable when the columns are not those of answers."""
    first = text.partition("\n")[0]
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(text), strict=True, delimiter=max(DELIMITERS, key=first.count))
    columns = [name.strip().lower() for name in reader.fieldnames or []]
    if "label" not in columns or not {"key", "image"} & set(columns):
        raise Uninterpretable(
            f"it needs the columns `label` and `key` or `image`; it has: {', '.join(columns)[:SHOWN] or 'none'}. "
            "Name them in the first line, as batch.csv does"
        )
    if len({*columns} - {""}) != len([name for name in columns if name]):
        raise Uninterpretable(f"a column is there twice: {', '.join(columns)[:SHOWN]}. Keep one of them")
    reader.fieldnames = columns
    return list(_rows(reader))


def _rows(reader: csv.DictReader[str]) -> Iterator[Row]:
    """Each row, and where quotes go wrong one that says so: what stands before it is certain."""
    try:
        for cells in reader:
            yield _row(reader.line_num, cells)
    except csv.Error as error:
        reason = f"the table cannot be read from here on: {error}. Correct its quotes; the rows before count"
        yield Row(reader.line_num + 1, error=reason)


def _row(number: int, cells: dict[Any, Any]) -> Row:
    row = plain(number, {name: _cell(name, value) for name, value in cells.items()})
    beyond = [cell for cell in cells.get(None) or () if cell.strip()]
    if not beyond or not row.label:
        return row
    return replace(
        row, error="more cells than columns; quote the cells that hold a comma", value=", ".join(beyond)[:SHOWN]
    )


def _cell(name: Any, value: Any) -> Any:
    """Only what we write ourselves is taken back; an annotator may be called what they like."""
    return active(value.strip()) if name in ("key", "image", "label") and isinstance(value, str) else value
