"""Labeling with nothing but a folder: a batch goes out as images and a table, answers come back as CSV or JSON.

    data/exchange/iteration-0003/
      batch.csv        rank, image, suggestion, confidence, label, annotator, seconds, key: fill in `label`
      images/          0000_1f3a….png, in the order to label
      tasks.json       ours: which image is which key (do not edit)
      answers.csv      or any other .csv / .json you put there: COCO and Label Studio's exports, too

The option `formats` adds batch.json, batch.coco.json or batch.label_studio.json (docs/exchange.md).

Changing an answer later is a new revision; nothing is overwritten. An answer that was imported is taken back with
`skip`; a cell that is only emptied leaves it as it is (an unsaved or half-written file must not undo labels). How files are read: `tasks/labeling/_answers.py`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.checkpoint import checkpoint
from tasks.errors import BadInput, GleanerError
from tasks.images import header_size
from tasks.labeling import Answer, Page, Place, RawEvent, Receipt, Task, read_answer
from tasks.labeling._answers import SKIP, answer_files, answers
from tasks.labeling._batch import batch_files
from tasks.store import Store, disk_error, remove_folder, replace_folder

TASKS = "tasks.json"
Rows = list[dict[str, str]]


def connect(
    place: Place,
    *,
    path: str = "data/exchange",
    formats: list[Literal["csv", "json", "coco", "label_studio"]] = ["csv"],  # noqa: B006 - options are read from the source: literals only
) -> Folder:
    """Exchange batches through `path`, relative to the workspace, written in `formats`.

    Raises BadInput for a class that means `skip`, and for no format at all.
    """
    if not formats:
        raise BadInput(
            "params.yaml: labeling.options.formats: at least one of csv, json, coco, label_studio is needed, e.g. [csv]: "
            "a batch without a file asks nobody."
        )
    taken = [name for name in place.classes if name.strip().lower() == SKIP]
    if taken:
        raise BadInput(
            f"params.yaml: labeling.classes: {taken[0]!r} cannot be a class with labeling.tool folder: it is the answer of "
            "somebody who skips an image. Rename the class."
        )
    _require_own(place.workspace / path, place.campaign)
    return Folder(place, place.workspace / path, tuple(formats))


@dataclass(frozen=True)
class Folder:
    """An exchange folder."""

    place: Place
    path: Path
    formats: tuple[str, ...] = ("csv",)

    @property
    def instance(self) -> str:
        """A folder belongs to one campaign."""
        return f"folder:{self.place.campaign}"

    @property
    def address(self) -> str:
        """The newest batch's folder."""
        batches = sorted(self.path.glob("iteration-*"))
        if not batches or "csv" not in self.formats:
            return str(batches[-1] if batches else self.path)
        return f"{batches[-1] / 'batch.csv'} (fill in the column `label`)"

    def push(self, tasks: Sequence[Task]) -> list[Receipt]:
        """Write the batch's folder whole, or adopt the one that is there and add what it lacks.

        Never touches a file that people may be editing. Raises GleanerError when the folder is another batch's.
        """
        if not tasks:
            return []
        target = self.path / f"iteration-{tasks[0].iteration:04d}"
        names = {task.key: f"{task.rank:04d}_{task.item_id[:12]}{task.image.suffix}" for task in tasks}
        try:
            if not target.exists():
                self._write(target, tasks, names)
            held = {row["key"]: row["image"] for row in _read_tasks(target)}
            missing = [task for task in tasks if task.key not in held]
            if missing:
                held |= self._add(target, missing, names, held)
        except OSError as error:
            raise disk_error(error, target) from error
        return [Receipt(task.key, f"{target.name}/{held[task.key]}") for task in tasks]

    def require(self) -> None:
        """The folder was looked at when it was opened."""

    def pull(self, cursor: str) -> Iterator[Page]:
        """Every answer in every file of every batch."""
        yield Page(list(self._events()))

    def deleted(self, live: Iterable[RawEvent]) -> list[RawEvent]:
        """A row that is gone may be a file half written: an answer is taken back with `skip`."""
        return []

    def _events(self) -> Iterator[RawEvent]:
        for batch in sorted(self.path.glob("iteration-*")):
            if re.fullmatch(r"iteration-\d{4,}", batch.name) and batch.is_dir():
                keys = {row["image"]: row["key"] for row in _read_tasks(batch)}
                for file in answer_files(batch, TASKS):
                    yield from answers(file, keys)

    def interpret(self, payload: dict[str, Any]) -> Answer:
        """Read one row."""
        return read_answer(payload)

    def lost(self, receipts: Sequence[Receipt]) -> list[str]:
        """Tasks whose folder is gone."""
        return [r.key for r in receipts if not (self.path / r.task_id.partition("/")[0]).exists()]

    def _write(self, target: Path, tasks: Sequence[Task], names: dict[str, str]) -> None:
        building = target.with_name(f".{target.name}.new")
        remove_folder(building)
        self._write_tasks(building, "batch", tasks, names, [])
        checkpoint("folder:create:before")
        replace_folder(building, target)
        checkpoint("folder:create:after")

    def _add(
        self, target: Path, missing: Sequence[Task], names: dict[str, str], held: dict[str, str]
    ) -> dict[str, str]:
        """Put tasks beside those that are there already, with files of their own."""
        if not held or {key.rpartition(":")[0] for key in held} != {task.key.rpartition(":")[0] for task in missing}:
            raise GleanerError(
                f"{target} holds another batch ({len(missing)} tasks are missing). Move it away and run again."
            )
        rows = [{"key": key, "image": image} for key, image in held.items()]
        self._write_tasks(target, f"batch-from-{missing[0].rank:04d}", missing, names, rows)
        return {task.key: names[task.key] for task in missing}

    def _write_tasks(self, folder: Path, stem: str, tasks: Sequence[Task], names: dict[str, str], before: Rows) -> None:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for task in tasks:
            shutil.copyfile(task.image, folder / "images" / names[task.key])
        sizes = {task.key: header_size(task.image.read_bytes()) for task in tasks} if "coco" in self.formats else {}
        store = Store(folder)
        files = batch_files(stem, self.formats, tasks, names, self.place.classes, sizes)
        for name, content in files.items():
            store.write_bytes(name, content)
        store.write_json(TASKS, [*before, *({"key": task.key, "image": names[task.key]} for task in tasks)])


def _require_own(path: Path, campaign: str) -> None:
    """Two campaigns in one folder would take each other's batches for their own."""
    for file in sorted(path.glob(f"iteration-*/{TASKS}")):
        try:
            owners = {str(row["key"]).partition(":")[0] for row in json.loads(file.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError, KeyError):
            continue  # said when its answers are read
        if owners and campaign not in owners:
            raise BadInput(
                f"params.yaml: labeling.options.path: {path} holds batches of campaign {min(owners)}, this one is {campaign}. "
                "Give it a folder of its own, e.g. path: data/exchange-2."
            )


def _read_tasks(batch: Path) -> Rows:
    if not (batch / TASKS).is_file():
        raise GleanerError(
            f"{batch / TASKS} is gone: it says which image is which task. Bring the file back, or move "
            f"{batch} away: its tasks that wait for an answer are then sent again."
        )
    rows = Store(batch).read_json(TASKS)
    if not isinstance(rows, list) or not all(isinstance(r, dict) and {"key", "image"} <= r.keys() for r in rows):
        raise GleanerError(f"{batch / TASKS} was changed: it must be the list that Gleaner wrote. Bring it back.")
    return rows
