"""Label Studio: a project a campaign, a task an item, people's annotations back, over its REST API.

    labeling: {tool: label_studio, options: {url: "http://127.0.0.1:8080"}}      token: LABEL_STUDIO_API_KEY

Everything that somebody else may do to the server is expected: it restarts in the middle of an import, answers twice,
loses tasks, is wiped. Tasks are known by our key, never by the server's numbers (a restored one gives those again);
annotations by their `unique_id`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tasks.errors import BadInput
from tasks.labeling import Answer, Page, Place, RawEvent, Receipt, Task
from tasks.labeling import _label_studio_project as projects
from tasks.labeling._label_studio_api import TOKEN, Api, NotFound
from tasks.labeling._label_studio_events import Since, events_of, number_of, read_annotation
from tasks.labeling._label_studio_format import task
from tasks.labeling._label_studio_images import IMAGES, SERVING, Images
from tasks.labeling._label_studio_project import Project
from tasks.labeling._label_studio_tasks import CHUNK, add, exported, listed, people_of
from tasks.store import Store

KIND = "label_studio"
TOKEN_FILE = ".gleaner/label-studio/token"  # noqa: S105 - where it is
NOTE = ".gleaner/label_studio.json"  # the project's number: where to look first, and the address when offline


def connect(
    place: Place,
    *,
    url: str = "http://127.0.0.1:8080",
    title: str = "",
    document_root: str = "",
    seen_by_server_as: str = "",
    image_url: str = "",
) -> LabelStudio:
    """A project of the server at `url`, called `title` (default: the campaign's id). Nothing is asked yet.

    Images: the server's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is `document_root` here (default: .gleaner/serving), and
    `seen_by_server_as` there (for containers); or they are behind `image_url` (https://… or s3://…, you put them there).
    """
    root = place.workspace / (document_root or SERVING)
    folder = place.campaign if document_root else IMAGES
    images = Images(root, seen_by_server_as or str(root), folder, image_url)
    return LabelStudio(place, Api(url.rstrip("/"), _token(place)), title or place.campaign, images)


def _token(place: Place) -> str:
    """From the environment, or of the server that `gleaner label-studio` started."""
    file = place.workspace / TOKEN_FILE
    kept = file.read_text(encoding="utf-8") if TOKEN not in os.environ and file.exists() else ""
    return os.environ.get(TOKEN, kept).strip()


@dataclass(frozen=True)
class LabelStudio:
    """A connection to the campaign's project."""

    place: Place
    api: Api
    title: str
    images: Images

    @property
    def instance(self) -> str:
        """The project's identity, known without asking the server; before there is a project, the tool's name alone."""
        if self._expected:
            return self.place.instance
        return f"{KIND}:{self._project.identity}" if self._project else KIND

    @property
    def address(self) -> str:
        """The project's page; known without asking the server."""
        number = self._note.get("project")
        return f"{self.api.url}/projects/{number}/data (Label All Tasks)" if number else self.api.url

    def require(self) -> None:
        """Raises Unreachable, or BadInput: no token, a wrong one, a server that does not hold the campaign's project."""
        if not self.api.token:
            raise BadInput(
                f"the environment variable {TOKEN} is not set: copy your token from Account & Settings in Label Studio "
                f"({self.api.url})."
            )
        self.api.get("/api/current-user/whoami")
        self._require_project()

    def _require_project(self) -> None:
        if self._expected and self._project is None:
            raise BadInput(
                f"{self.api.url} has no project with the line gleaner:{self.place.campaign}:{self._expected} in its "
                "description, and the campaign's tasks are in that one: this is another server, it was wiped, or its data "
                "are gone. Bring its database back or set labeling.options.url; if it is lost for good, `gleaner resend` "
                "sends the tasks that wait anew. Labels that were imported are kept either way."
            )

    @property
    def _expected(self) -> str:
        """Identity of the project that holds the campaign's tasks, "" when none does."""
        kind, _, identity = self.place.instance.partition(":")
        return identity if kind == KIND else ""

    @cached_property
    def _project(self) -> Project | None:
        found = projects.find(self.api, self.place.campaign, self._expected, self._note.get("project"))
        self._remember(found)
        return found

    @property
    def _note(self) -> dict[str, Any]:
        store = Store(self.place.workspace)
        noted = store.read_json(NOTE) if store.exists(NOTE) else {}
        return noted if isinstance(noted, dict) and noted.get("url") == self.api.url else {}

    def _remember(self, project: Project | None) -> None:
        wanted = {"url": self.api.url, "project": project.id if project else None}
        if project is not None and self._note != wanted:
            Store(self.place.workspace).write_json(NOTE, wanted)

    # out ------------------------------------------------------------------------------------------------------

    def push(self, tasks: Sequence[Task]) -> list[Receipt]:
        """Make the project if need be, and see to it that it holds every task once."""
        if not tasks:
            return []
        self._require_project()
        place = self.place
        if self._project is None:
            self._remember(projects.make(self.api, place.campaign, self.title, place.classes, place.overlap))
            vars(self).pop("_project")
        project = self._project
        assert project is not None
        projects.settle(self.api, project, place.classes, place.overlap)
        ordered = sorted(tasks, key=lambda each: each.rank)  # the community edition shows tasks in this order
        wanted = {each.key: task(each, self.images.publish(each), place.classes) for each in ordered}
        if self.images.local:
            projects.serve_folder(self.api, project, self.images.served)  # which must be there by now
        numbers = add(self.api, project.id, tasks[0].key.rpartition(":")[0], wanted)
        if any("predictions" in each for each in wanted.values()):
            projects.suggest(self.api, project, f"iteration-{tasks[0].iteration}")
        return [Receipt(each.key, str(numbers[each.key])) for each in tasks]

    def lost(self, receipts: Sequence[Receipt]) -> list[str]:
        """Tasks that are in no list, and not at their number either."""
        project = self._project
        if project is None or not receipts:
            return []
        batches = {receipt.key.rpartition(":")[0] for receipt in receipts}
        held = {each.key for batch in batches for each in listed(self.api, project.id, batch)}
        return [receipt.key for receipt in receipts if receipt.key not in held and self._gone(receipt)]

    def _gone(self, receipt: Receipt) -> bool:
        try:
            found = self.api.get(f"/api/tasks/{receipt.task_id}/")
        except NotFound:
            return True
        data = found.get("data") if isinstance(found, dict) else None
        return isinstance(data, dict) and data.get("key") != receipt.key

    # in -------------------------------------------------------------------------------------------------------

    def pull(self, cursor: str) -> Iterator[Page]:
        """Annotations of every task that changed since the last pull, foreign tasks included; once a day of all tasks,
        because not every change moves a time stamp."""
        project, since = self._project, Since.read(cursor)
        if project is None:
            return
        changed = listed(self.api, project.id, since=since.earlier())
        people = people_of(self.api) if changed else {}
        for start in range(0, len(changed), CHUNK):
            numbers = [each.id for each in changed[start : start + CHUNK]]
            tasks = exported(self.api, project.id, numbers)
            yield Page(
                [event for number in numbers if number in tasks for event in events_of(tasks[number], people)], cursor
            )
        yield Page([], since.after([each.updated_at for each in changed]))

    def deleted(self, live: Iterable[RawEvent]) -> Iterator[RawEvent]:
        """Annotations that are in no list and, looked at one by one, not in their task either."""
        project, known = self._project, list(live)
        if project is None or projects.annotation_count(projects.reread(self.api, project.id)) == len(known):
            return
        there = [number for each in listed(self.api, project.id) for number in each.annotations]
        numbers = [number_of(event) for event in known]
        missing = [
            e for e, number in zip(known, numbers, strict=True) if number not in there or numbers.count(number) > 1
        ]
        for start in range(0, len(missing), CHUNK):
            yield from self._looked_at(project, missing[start : start + CHUNK])

    def _looked_at(self, project: Project, events: list[RawEvent]) -> Iterator[RawEvent]:
        tasks = exported(self.api, project.id, sorted({int(event.payload["task"]) for event in events}))
        for event in events:
            number, key = int(event.payload["task"]), event.payload.get("key")
            found = tasks.get(number)
            if found is None and not self._gone(Receipt(str(key), str(number))):
                continue  # the export left it out, the server has it: in doubt it is there
            same = found is not None and found["data"].get("key") == key
            if same and found is not None and event.annotation_id in {a["unique_id"] for a in found["annotations"]}:
                continue
            why = (
                f"annotation {number_of(event)} is not in task {number} any more" if same else f"task {number} is gone"
            )
            yield RawEvent(event.annotation_id, {"deleted": why, "task": number, "key": key}, deleted=True)

    def interpret(self, payload: dict[str, Any]) -> Answer:
        """Read an annotation. Raises Uninterpretable for a foreign task, and for what is neither a class nor a skip."""
        return read_annotation(payload)
