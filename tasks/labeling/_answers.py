"""The files that people put into an exchange folder, read as they come: CSV, JSON, COCO, Label Studio's exports.

What a JSON file is, is told by its content, never by its name. An answer needs `key` or `image`, and `label` (a class,
or `skip`); `annotator`, `seconds` and `ground_truth` are optional. An empty label is no answer yet. A row, or a whole
file, that cannot be read becomes an event with the file's name and the reason: it is quarantined and shown, never
lost, and the other rows count.

    answers(Path("iteration-0003/answers.csv"), {"0000_1f3a.png": "deer:3:1f3a…"})  ->  RawEvent(…), …
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.labeling import MOST_SECONDS, RawEvent, Uninterpretable
from tasks.labeling._coco import is_coco, read_coco
from tasks.labeling._label_studio_format import details, read_result
from tasks.labeling._rows import SHOWN, Row, plain
from tasks.labeling._tables import read_table

SKIP = "skip"
READ = (".csv", ".tsv", ".json")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
YES = ("true", "1", "yes")
NO = ("", "false", "0", "no")
UPLOAD = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of a file that was uploaded to it


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


def answers(file: Path, keys: Mapping[str, str]) -> Iterator[RawEvent]:
    """One event a row that has a label; `keys` maps the batch's images to task keys."""
    where = f"{file.parent.name}/{file.name}"
    seen: Counter[str] = Counter()
    images = {key: image for image, key in keys.items()}
    try:
        rows = _read_rows(file)
    except (ValueError, csv.Error, OSError, RecursionError) as error:
        yield RawEvent(where, {"file": where, "error": f"{where} cannot be read: {error}"})
        return
    for row in rows:
        payload = _payload(row, keys, f"{where}, row {row.number}")
        if payload is None:
            continue
        name = str(payload.get("key") or f"row {row.number}")
        name = f"{name}#annotation {row.annotation}" if row.annotation else name
        seen[name] += 1
        yield RawEvent(
            f"{where}#{name}#{seen[name]}",
            {"file": where, **payload},
            row=row.number,
            image=images.get(payload.get("key", ""), _name(row.image)),
        )


def _read_rows(file: Path) -> list[Row]:
    suffix = file.suffix.lower()
    if suffix in SPREADSHEETS:
        raise Uninterpretable(f"a {suffix} file; save the table as .csv (comma or semicolon, UTF-8)")
    text = file.read_text(encoding="utf-8-sig")
    return list(_read_json(json.loads(text, object_pairs_hook=_once))) if suffix == ".json" else read_table(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; JSON would silently keep the last of two answers of one name."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Uninterpretable(f"{twice[:SHOWN]!r} is there twice in one object; keep one")
    return found


def _read_json(value: Any) -> Iterator[Row]:
    if isinstance(value, dict) and is_coco(value):
        yield from read_coco(value)
        return
    if isinstance(value, dict):
        is_task = isinstance(value.get("data"), dict)
        value = [value] if is_task else [{"image": image, "label": label} for image, label in value.items()]
    if not isinstance(value, list) or (value and not any(isinstance(entry, dict) for entry in value)):
        raise Uninterpretable(
            "it must be a list of answers or a mapping from image to label, a COCO file, or an export of Label Studio"
        )
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, dict):
            shape = 'an answer must be an object such as {"image": "0000_1f3a.png", "label": "deer"}'
            yield Row(number, error=shape, value=str(entry)[:SHOWN])
        elif isinstance(entry.get("data"), dict):
            yield from _annotations(number, entry)
        else:
            yield plain(number, entry)


def _annotations(number: int, task: dict[str, Any]) -> Iterator[Row]:
    """What was answered to one task of a Label Studio export: each annotation is an answer of its own."""
    about = {"key": task["data"].get("key"), "image": task["data"].get("image")}
    annotations = task.get("annotations", [])
    if not isinstance(annotations, list):
        yield Row(number, error="`annotations` must be a list", value=str(annotations)[:SHOWN], **about)
        return
    for annotation in annotations:
        if not isinstance(annotation, dict):
            reason = f"an annotation must be an object, not {str(annotation)[:SHOWN]}"
            yield Row(number, error=reason, value=str(annotation)[:SHOWN], **about)
            continue
        told = {**about, **details(annotation, task.get("predictions")), "annotation": str(annotation.get("id") or "")}
        try:
            kind, label = read_result(annotation)
        except Uninterpretable as reason:
            yield Row(number, error=f"annotation {told['annotation'][:SHOWN]}: {reason}", **told)
            continue
        yield Row(number, label=label or None, skipped=kind == "skip", **told)


def _payload(row: Row, keys: Mapping[str, str], where: str) -> dict[str, Any] | None:
    """One row as an answer, or as what is wrong with it; None while its label is empty."""
    if not row.error and not row.skipped and _empty(row.label):
        return None
    image = _name(row.image)
    key = ("" if row.key is None else str(row.key).strip()) or _key(image, keys)
    try:
        return {"key": key, **_told(row, key, image)}
    except _Refused as refused:
        known = {"key": key} if key else {}
        value = str(refused.value)[:SHOWN]
        return {**known, "error": f"{where}: {refused}", "row": row.number, "value": value}


def _told(row: Row, key: str, image: str) -> dict[str, Any]:
    if row.error:
        raise _Refused(row.error, row.value)
    if not key:
        raise _Refused(f"no task for image {image[:SHOWN]!r}; use the names in batch.csv", image)
    truth = {"ground_truth": True} if _flag(row.ground_truth) else {}
    accepted = {} if row.accepted is None else {"accepted": row.accepted}
    return {**_label(row), "annotator": str(row.annotator or ""), **_seconds(row.seconds), **truth, **accepted}


class _Refused(ValueError):
    """A row that is no answer: why, and the value that is wrong."""

    def __init__(self, reason: str, value: Any) -> None:
        super().__init__(reason)
        self.value = value


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _name(image: Any) -> str:
    """The file's name, of a path or an address as any tool writes it."""
    return "" if image is None else Path(str(image).strip().replace("\\", "/")).name


def _key(image: str, keys: Mapping[str, str]) -> str:
    for name in (image, image.partition("?")[0]):
        found = keys.get(name) or keys.get(UPLOAD.sub("", name, count=1) if UPLOAD.match(name) else name)
        if found:
            return found
    return ""


def _label(row: Row) -> dict[str, str]:
    if not row.skipped and not isinstance(row.label, str):
        shown = str(row.label)[:SHOWN]
        raise _Refused(f"label must be text, not {shown}; write a class in quotes, or skip", shown)
    label = "" if row.skipped else row.label.strip()
    return {"kind": "skip", "label": ""} if row.skipped or label.lower() == SKIP else {"kind": "label", "label": label}


def _seconds(given: Any) -> dict[str, float]:
    if _empty(given):
        return {}
    try:
        seconds = float(given.strip().replace(",", ".") if isinstance(given, str) else given)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if 0 <= seconds <= MOST_SECONDS:
        return {"seconds": seconds}
    allowed = f"a number from 0 to {MOST_SECONDS:.0f}"
    raise _Refused(f"seconds must be {allowed}, not {str(given)[:80]}; correct it, or leave it empty", given)


def _flag(given: Any) -> bool:
    """Yes or no, as people write it."""
    word = "" if given is None else str(given).strip().lower()
    if word not in (*YES, *NO):
        raise _Refused(f"ground_truth must be true or false, not {word[:80]}; correct it, or leave it empty", given)
    return word in YES
