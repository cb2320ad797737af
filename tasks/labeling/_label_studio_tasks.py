"""Tasks and annotations of a project: listed without trusting a page, imported without ever doubling one.

Pages go by `id greater than the last one`, so that tasks that come or go meanwhile do not shift them. A page that is
shorter than what it says is left is read again: it proves nothing about what is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.checkpoint import checkpoint
from tasks.errors import GleanerError, Unreachable
from tasks.labeling._label_studio_api import Api, NotFound, TryAgain

CHUNK = 500  # tasks in one request: the server imports each request whole or not at all
READS = 3  # of a list whose pages contradict each other


@dataclass(frozen=True)
class Held:
    """A task that the server has."""

    id: int
    key: str  # ours; "" when somebody else made the task
    updated_at: str
    annotations: tuple[int, ...]  # their numbers


def listed(api: Api, project: int, batch: str = "", since: str = "") -> list[Held]:
    """Tasks of a project, of one batch or changed at or after `since`. Raises Unreachable when pages contradict each other."""
    filters = [_filter("data.batch", "equal", "String", batch)] if batch else []
    filters += [_filter("updated_at", "greater_or_equal", "Datetime", since)] if since else []
    for _ in range(READS):
        found = _read(api, project, filters)
        if found is not None:
            return found
    raise Unreachable(
        f"{api.url}: the pages of project {project}'s tasks contradict each other, {READS} times. Tick again."
    )


def _read(api: Api, project: int, filters: list[dict[str, Any]]) -> list[Held] | None:
    found: dict[int, Held] = {}
    while True:
        last = max(found, default=0)
        page = _page(api, project, [*filters, _filter("id", "greater", "Number", last)])
        rows = [_held(row) for row in page["tasks"]]
        if len(rows) < min(CHUNK, page["total"]) or any(row.id <= last for row in rows):
            return None
        found.update((row.id, row) for row in rows)
        if page["total"] <= len(rows):
            return [found[number] for number in sorted(found)]


def _page(api: Api, project: int, filters: list[dict[str, Any]]) -> dict[str, Any]:
    query = {"filters": {"conjunction": "and", "items": filters}, "ordering": ["tasks:id"]}
    page = api.get(
        "/api/tasks/",
        {
            "project": project, "page_size": CHUNK, "query": json.dumps(query), "fields": "all",
            "include": "id,updated_at,annotations_ids,data",  # whole annotations cost the server four times as much
        },
    )  # fmt: skip
    if not isinstance(page, dict) or not isinstance(page.get("tasks"), list) or not isinstance(page.get("total"), int):
        raise Unreachable(f"{api.url} answers GET /api/tasks/ with something else than a page of tasks.")
    return page


def _held(row: Any) -> Held:
    try:
        data = row["data"] if isinstance(row["data"], dict) else {}
        annotations = tuple(int(each) for each in row["annotations_ids"].split(",") if each.strip())
        return Held(int(row["id"]), str(data.get("key") or ""), str(row["updated_at"]), annotations)
    except (TypeError, KeyError, ValueError, AttributeError):
        raise Unreachable(f"Label Studio answers with something else than a task: {str(row)[:200]}") from None


def _filter(name: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{name}", "operator": operator, "type": kind, "value": value}


def exported(api: Api, project: int, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Tasks with their annotations, by number; those that are gone are not in it."""
    query = {"exportType": "JSON", "download_all_tasks": "true", "ids[]": list(numbers)}
    rows = api.get(f"/api/projects/{project}/export", query) if numbers else []
    if not isinstance(rows, list) or not all(_is_task(row) for row in rows):
        raise Unreachable(f"{api.url} exports something else than tasks with annotations.")
    found = {int(row["id"]): row for row in rows}
    if not found.keys() <= set(numbers):
        raise Unreachable(f"{api.url} exports tasks that were not asked for.")
    return found


def _is_task(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("id"), int)
        and isinstance(row.get("data"), dict)
        and isinstance(row.get("annotations"), list)
        and all(isinstance(each, dict) and isinstance(each.get("unique_id"), str) for each in row["annotations"])
    )


def add(api: Api, project: int, batch: str, tasks: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Make sure that each task is there once; key -> number. Posts only what is missing, and looks again afterwards.

    A request whose answer was lost may have been carried out: then the next look finds its tasks.
    """
    lost: Unreachable | None = None
    for _ in range(READS):
        held = _by_key(api, project, batch)
        missing = [key for key in tasks if key not in held]
        if not missing:
            _keep_one(api, {key: held[key] for key in tasks})
            return {key: held[key][0].id for key in tasks}
        try:
            for chunk in _chunks(missing):
                checkpoint("label_studio:import:before")
                api.post(f"/api/projects/{project}/import?return_task_ids=true", [tasks[key] for key in chunk])
                checkpoint("label_studio:import:after")
        except TryAgain as error:
            lost = error
            api.sleep(error.wait or 1.0)
    raise lost or GleanerError(f"{api.url} imports tasks into project {project} and does not list them afterwards.")


def _by_key(api: Api, project: int, batch: str) -> dict[str, list[Held]]:
    """Tasks of the batch by key; of two with one key, the one that people worked on first."""
    found: dict[str, list[Held]] = {}
    for task in listed(api, project, batch):
        found.setdefault(task.key, []).append(task)
    return {key: sorted(each, key=lambda task: (not task.annotations, task.id)) for key, each in found.items()}


def _keep_one(api: Api, held: dict[str, list[Held]]) -> None:
    """A person's import can double a task; those that nobody worked on are taken away, the others stay."""
    for spare in [task for tasks in held.values() for task in tasks[1:] if not task.annotations]:
        if _untouched(api, spare.id):
            api.delete(f"/api/tasks/{spare.id}/")
            checkpoint("label_studio:spare:after")


def _untouched(api: Api, number: int) -> bool:
    """Looked at once more, drafts included: what is deleted is gone."""
    try:
        found = api.get(f"/api/tasks/{number}/")
    except NotFound:
        return False
    return isinstance(found, dict) and found.get("annotations") == [] and not found.get("drafts")


def _chunks(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]


def people_of(api: Api) -> dict[int, str]:
    """Accounts of the server: number -> e-mail address."""
    people = api.get("/api/users/")
    if not isinstance(people, list) or not all(isinstance(each, dict) and "id" in each for each in people):
        raise Unreachable(f"{api.url} answers GET /api/users/ with something else than a list of accounts.")
    return {each["id"]: str(each.get("email") or each["id"]) for each in people}
