"""Labeling with nothing but a folder: a batch goes out as CSV + images, answers come back as CSV or JSON.

    data/exchange/iteration-0003/
      batch.csv        rank, image, suggestion, confidence, label, annotator, seconds, key: fill in `label`
      images/          0000_1f3a….png, in the order to label
      tasks.json       ours: which image is which key (do not edit)
      answers.csv      or any other .csv / .json you put there

An answer needs `key` or `image`, and `label` (a class, or `skip`); `annotator` and `seconds` are optional. An empty
label is no answer yet. Changing an answer later is a new revision; nothing is overwritten. A row that cannot be
read is quarantined with the file's name and the reason.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.checkpoint import checkpoint
from tasks.errors import GleanerError
from tasks.labeling import Answer, Place, RawEvent, Receipt, Task, Uninterpretable, read_answer
from tasks.store import Store, remove_folder, replace_folder

COLUMNS = ("rank", "image", "suggestion", "confidence", "label", "annotator", "seconds", "key")
SKIP = "skip"
TASKS = "tasks.json"
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def connect(place: Place, *, path: str = "data/exchange") -> Folder:
    """Exchange batches through `path`, relative to the workspace."""
    return Folder(place, place.workspace / path)


@dataclass(frozen=True)
class Folder:
    """An exchange folder."""

    place: Place
    path: Path

    @property
    def instance(self) -> str:
        """A folder belongs to one campaign."""
        return f"folder:{self.place.campaign}"

    def push(self, tasks: Sequence[Task]) -> list[Receipt]:
        """Write the batch's folder whole, or adopt the one that is there. Never touches a file people may be editing."""
        if not tasks:
            return []
        target = self.path / f"iteration-{tasks[0].iteration:04d}"
        if not target.exists():
            self._write(target, tasks)
        held = {row["key"]: row["image"] for row in _read_tasks(target)}
        missing = [task.key for task in tasks if task.key not in held]
        if missing:
            raise GleanerError(
                f"{target} holds another batch ({len(missing)} tasks are missing). Move it away and run again."
            )
        return [Receipt(task.key, f"{target.name}/{held[task.key]}") for task in tasks]

    def _write(self, target: Path, tasks: Sequence[Task]) -> None:
        building = target.with_name(f".{target.name}.new")
        remove_folder(building)
        (building / "images").mkdir(parents=True)
        names = {task.key: f"{task.rank:04d}_{task.item_id[:12]}{task.image.suffix}" for task in tasks}
        for task in tasks:
            shutil.copyfile(task.image, building / "images" / names[task.key])
        store = Store(building)
        store.write_bytes("batch.csv", _batch_csv(tasks, names))
        store.write_json(TASKS, [{"key": task.key, "image": names[task.key]} for task in tasks])
        checkpoint("folder:create:before")
        replace_folder(building, target)
        checkpoint("folder:create:after")

    def pull(self) -> Iterator[RawEvent]:
        """Every answer in every file of every batch."""
        for batch in sorted(self.path.glob("iteration-*")):
            keys = {row["image"]: row["key"] for row in _read_tasks(batch)}
            for file in sorted((*batch.glob("*.csv"), *batch.glob("*.json"))):
                if file.name != TASKS:
                    yield from _events(file, keys)

    def interpret(self, payload: dict[str, Any]) -> Answer:
        """Read one row."""
        return read_answer(payload)


def _batch_csv(tasks: Sequence[Task], names: dict[str, str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for task in tasks:
        confidence = "" if task.confidence is None else f"{task.confidence:.2f}"
        writer.writerow([task.rank, names[task.key], _inert(task.predicted or ""), confidence, "", "", "", task.key])
    return text.getvalue().encode()


def _inert(text: str) -> str:
    """Keep a spreadsheet from running a class name as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _read_tasks(batch: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = Store(batch).read_json(TASKS)
    return rows


def _events(file: Path, keys: dict[str, str]) -> Iterator[RawEvent]:
    where = f"{file.parent.name}/{file.name}"
    seen: Counter[str] = Counter()
    try:
        rows = _read_rows(file)
    except (ValueError, csv.Error, Uninterpretable) as error:
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
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".json":
        value = json.loads(text)
        if isinstance(value, dict):
            value = [{"image": image, "label": label} for image, label in value.items()]
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise Uninterpretable("it must be a list of answers or a mapping from image to label")
        return list(enumerate(value, start=1))
    reader = csv.DictReader(io.StringIO(text), strict=True)
    columns = reader.fieldnames or []
    if "label" not in columns or not {"key", "image"} & set(columns):
        raise Uninterpretable(
            f"it needs the columns `label` and `key` or `image`; it has: {', '.join(columns) or 'none'}"
        )
    return [(reader.line_num, row) for row in reader]


def _payload(row: dict[str, Any], keys: dict[str, str], where: str) -> dict[str, Any] | None:
    """One row as an answer; None while its label is empty."""
    label = row.get("label")
    if label is None or (isinstance(label, str) and not label.strip()):
        return None
    image = Path(str(row.get("image") or "")).name
    key = row.get("key") or keys.get(image)
    if not key:
        return {
            "error": f"{where}: no task for image {image!r}; use the names in batch.csv",
            "row": {str(k): str(v) for k, v in row.items()},
        }
    if not isinstance(label, str):
        return {"key": str(key), "error": f"{where}: label must be text, not {label!r}"}
    label = label.strip()
    skipped = label.lower() == SKIP
    payload: dict[str, Any] = {
        "key": str(key),
        "kind": "skip" if skipped else "label",
        "label": "" if skipped else label,
    }
    payload["annotator"] = str(row.get("annotator") or "")
    if row.get("seconds") not in (None, ""):
        try:
            payload["seconds"] = float(row["seconds"])
        except (TypeError, ValueError):
            payload["error"] = f"{where}: seconds must be a number, not {row['seconds']!r}"
    return payload
