"""The files that people put into an exchange folder, read as they come: CSV from any spreadsheet, or JSON.

An answer needs `key` or `image`, and `label` (a class, or `skip`); `annotator` and `seconds` are optional. An empty
label is no answer yet. A row, or a whole file, that cannot be read becomes an event with the file's name and the
reason: it is quarantined and shown, never lost, and the other rows count.

    answers(Path("iteration-0003/answers.csv"), {"0000_1f3a.png": "deer:3:1f3a…"})  ->  RawEvent(…), …
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.labeling import RawEvent, Uninterpretable

SKIP = "skip"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
READ = (".csv", ".tsv", ".json")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
DELIMITERS = (",", ";", "\t")
LONGEST_CELL = 2**24  # characters; csv's own limit is process-wide and refuses a file for one long comment


def inert(text: str) -> str:
    """Keep a spreadsheet from running a class name as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def answer_files(batch: Path, ours: str) -> list[Path]:
    """What people put into a batch's folder, without hidden files and a spreadsheet's lock files."""
    return sorted(
        file
        for file in batch.iterdir()
        if file.name != ours
        and not file.name.startswith((".", "~$"))
        and file.suffix.lower() in (*READ, *SPREADSHEETS)
        and file.is_file()
    )


def answers(file: Path, keys: dict[str, str]) -> Iterator[RawEvent]:
    """One event a row that has a label; `keys` maps the batch's images to task keys."""
    where = f"{file.parent.name}/{file.name}"
    seen: Counter[str] = Counter()
    try:
        rows = _read_rows(file)
    except (ValueError, csv.Error, OSError, RecursionError) as error:
        yield RawEvent(where, {"file": where, "error": f"{where} cannot be read: {error}"})
        return
    for number, row in rows:
        payload = _payload(row, keys, f"{where}, row {number}")
        if payload is None:
            continue
        name = str(payload.get("key") or f"row {number}")
        seen[name] += 1
        yield RawEvent(f"{where}#{name}#{seen[name]}", {"file": where, **payload})


def _read_rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    suffix = file.suffix.lower()
    if suffix in SPREADSHEETS:
        raise Uninterpretable(f"a {suffix} file; save the table as .csv (comma or semicolon, UTF-8)")
    text = file.read_text(encoding="utf-8-sig")
    return _read_json(text) if suffix == ".json" else _read_csv(text)


def _read_json(text: str) -> list[tuple[int, dict[str, Any]]]:
    value = json.loads(text)
    if isinstance(value, dict):
        value = [{"image": image, "label": label} for image, label in value.items()]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise Uninterpretable("it must be a list of answers or a mapping from image to label")
    return list(enumerate(value, start=1))


def _read_csv(text: str) -> list[tuple[int, dict[str, Any]]]:
    first = text.partition("\n")[0]
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(text), strict=True, delimiter=max(DELIMITERS, key=first.count))
    columns = [name.strip().lower() for name in reader.fieldnames or []]
    if "label" not in columns or not {"key", "image"} & set(columns):
        raise Uninterpretable(
            f"it needs the columns `label` and `key` or `image`; it has: {', '.join(columns)[:200] or 'none'}"
        )
    if len({*columns} - {""}) != len([name for name in columns if name]):
        raise Uninterpretable(f"a column is there twice: {', '.join(columns)[:200]}")
    reader.fieldnames = columns
    return [(reader.line_num, row) for row in reader]


def _payload(row: dict[str, Any], keys: dict[str, str], where: str) -> dict[str, Any] | None:
    """One row as an answer; None while its label is empty."""
    label = row.get("label")
    if label is None or (isinstance(label, str) and not label.strip()):
        return None
    image = Path(str(row.get("image") or "").strip().replace("\\", "/")).name
    key = str(row.get("key") or "").strip() or keys.get(image)
    if not key:
        reason = f"{where}: no task for image {image[:200]!r}; use the names in batch.csv"
        return {"error": reason, "row": {str(k): str(v) for k, v in row.items()}}
    if not isinstance(label, str):
        return {"key": key, "error": f"{where}: label must be text, not {str(label)[:200]}"}
    if any(cell.strip() for cell in row.get(None) or ()):  # type: ignore[call-overload]
        return {"key": key, "error": f"{where}: more cells than columns; quote the cells that hold a comma"}
    return {"key": key, **_label(label), "annotator": str(row.get("annotator") or ""), **_seconds(row, where)}


def _label(text: str) -> dict[str, str]:
    label = text.strip()
    if label.startswith("'") and label[1:].startswith(FORMULA):
        label = label[1:]  # a suggestion that was made inert, copied
    return {"kind": "skip", "label": ""} if label.lower() == SKIP else {"kind": "label", "label": label}


def _seconds(row: dict[str, Any], where: str) -> dict[str, Any]:
    given = row.get("seconds")
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}
    try:
        return {"seconds": float(given.strip().replace(",", ".") if isinstance(given, str) else given)}
    except (TypeError, ValueError, OverflowError):
        return {"error": f"{where}: seconds must be a number, not {str(given)[:80]}"}
