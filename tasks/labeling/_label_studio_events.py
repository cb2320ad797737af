"""Label Studio's annotations as raw events: from where to ask, what to keep of each, and what it means.

Each annotation is stored as it came; only what the server computes anew at each look is left out, so that a revision is
something that a person did. Drafts and predictions are no events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.labeling import Answer, RawEvent, Uninterpretable, read_answer
from tasks.labeling._label_studio_format import details, read_result

OVERLAP = timedelta(minutes=2)  # a transaction may become visible later than its time stamp says
DAY = timedelta(hours=24)
VOLATILE = ("created_ago", "created_username")


@dataclass(frozen=True)
class Since:
    """From where the next pull goes on: {"changed": newest time stamp seen, "all": when all tasks were read}."""

    changed: str = ""
    all: str = ""

    @staticmethod
    def read(cursor: str) -> Since:
        """A cursor as the ledger kept it; "" for the beginning, and again when the last look at all tasks is a day old."""
        since = Since(**json.loads(cursor)) if cursor else Since()
        fresh = since.all and abs(datetime.now(UTC) - datetime.fromisoformat(since.all)) < DAY
        return since if fresh else Since()

    def earlier(self) -> str:
        """The moment to ask from: a little before the newest change that was seen; "" asks for everything."""
        if not self.changed:
            return ""
        return (datetime.fromisoformat(self.changed) - OVERLAP).isoformat().replace("+00:00", "Z")

    def after(self, stamps: list[str]) -> str:
        """The cursor once everything of a pull is stored."""
        everything = self.all or datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps({"changed": max([self.changed, *stamps]), "all": everything})


def events_of(task: dict[str, Any], people: dict[int, str]) -> Iterator[RawEvent]:
    """One event an annotation of an exported task; `people` maps accounts to names."""
    data = task["data"]
    for annotation in task["annotations"]:
        kept = {name: _steady(value) for name, value in annotation.items() if name not in VOLATILE}
        payload = {"task": task["id"], "key": data.get("key"), "item_id": data.get("item_id"), "annotation": kept}
        name = (
            people.get(annotation.get("completed_by", 0)) if isinstance(annotation.get("completed_by"), int) else None
        )
        yield RawEvent(annotation["unique_id"], {**payload, **({"annotator": name} if name else {})})


def _steady(value: Any) -> Any:
    """Without what the server computes anew at each look."""
    return {k: v for k, v in value.items() if k not in VOLATILE} if isinstance(value, dict) else value


def number_of(event: RawEvent) -> int:
    """The server's number of the annotation, which it may give again; 0 when there is none."""
    annotation = event.payload.get("annotation")
    return int(annotation["id"]) if isinstance(annotation, dict) and isinstance(annotation.get("id"), int) else 0


def read_annotation(payload: dict[str, Any]) -> Answer:
    """What a stored annotation means. Raises Uninterpretable."""
    annotation, where = payload.get("annotation"), f"task {str(payload.get('task'))[:20]} in Label Studio"
    if not isinstance(annotation, dict):
        raise Uninterpretable(f"{where}: needs an annotation; got {str(payload)[:200]}")
    if not isinstance(payload.get("key"), str):
        raise Uninterpretable(f"{where}: it has no key of this campaign: somebody else made it")
    if str(payload.get("item_id")) != payload["key"].rpartition(":")[2]:
        raise Uninterpretable(f"{where}: its item_id is not that of its key: somebody changed the task's data")
    try:
        kind, label = read_result(annotation)
    except Uninterpretable as error:
        raise Uninterpretable(f"{where}: {error}") from None
    said = {**details(annotation), **({"annotator": payload["annotator"]} if "annotator" in payload else {})}
    return read_answer({"key": payload["key"], "kind": kind, "label": label, **said})
