"""A Label Studio made of a dictionary behind a real socket: the endpoints that the adapter uses, and every fault on demand.

    with FakeLabelStudio() as server:
        tool = connect(place, url=server.url)
        server.fault = once(drop_after_commit("import"))

Shapes and habits are those of Label Studio 1.23; tests/test_label_studio_real.py does the same with that one.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "0123456789" * 4  # not spelled out: workspaces hold a copy of this file, and are searched for it
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: Any


@dataclass
class Answer:
    """What is sent back; a fault may change it, or drop the connection instead (status 0)."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # sent as it is
    hang: float = 0.0  # seconds before the first byte


#: told the request and what the server would answer after it did its work; gives what is sent
Fault = Callable[[Request, Answer], Answer]


class FakeLabelStudio:
    """A server with one project table, one task table, one annotation table."""

    def __init__(self) -> None:
        self.projects: dict[int, dict[str, Any]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.storages: list[dict[str, Any]] = []
        self.requests: list[Request] = []
        self.fault: Fault | None = None
        self.before: Callable[[Request], Answer | None] | None = None  # instead of doing anything
        self.authorized: Callable[[str], bool] = lambda given: given == f"Token {TOKEN}"
        self.sees: Callable[[str], bool] = lambda path: path.startswith("/data/") or Path(path).is_dir()
        self.clock = 0
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeLabelStudio:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # what people do -------------------------------------------------------------------------------------------

    def now(self) -> str:
        self.clock += 1
        return (START + timedelta(seconds=self.clock)).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def annotate(self, task: int, label: str | None, by: int = 1, **fields: Any) -> dict[str, Any]:
        """Submit an annotation; None is a skip."""
        with self._lock:
            result = [] if label is None else choice(label)
            annotation = {
                "id": 1 + max((a["id"] for t in self.tasks.values() for a in t["annotations"]), default=0),
                "completed_by": by, "result": result, "was_cancelled": label is None, "ground_truth": False,
                "created_at": (now := self.now()), "updated_at": now, "draft_created_at": None, "lead_time": 2.5,
                "result_count": len(result), "unique_id": str(uuid.uuid4()), "last_action": None, "task": task,
                "project": self.tasks[task]["project"], "parent_prediction": None, "parent_annotation": None, **fields,
            }  # fmt: skip
            self.tasks[task]["annotations"].append(annotation)
            self.tasks[task]["updated_at"] = now
            return annotation

    def accept(self, task: int, by: int = 1) -> dict[str, Any]:
        """Submit the suggestion as it stands."""
        suggestion = self.tasks[task]["predictions"][0]
        label = suggestion["result"][0]["value"]["choices"][0]
        return self.annotate(task, label, by, parent_prediction=suggestion["id"])

    def edit(self, annotation: dict[str, Any], label: str, *, stamp: bool = True) -> None:
        with self._lock:
            annotation["result"] = choice(label)
            if stamp:
                annotation["updated_at"] = self.tasks[annotation["task"]]["updated_at"] = self.now()

    def delete_annotation(self, annotation: dict[str, Any]) -> None:
        with self._lock:
            self.tasks[annotation["task"]]["annotations"].remove(annotation)
            self.tasks[annotation["task"]]["updated_at"] = self.now()

    def delete_task(self, task: int) -> None:
        with self._lock:
            del self.tasks[task]

    def by_key(self, key: str) -> list[int]:
        return [number for number, task in self.tasks.items() if task["data"].get("key") == key]

    def keys(self) -> list[str]:
        return [task["data"].get("key", "") for task in self.tasks.values()]

    def annotations(self) -> list[dict[str, Any]]:
        return [annotation for task in self.tasks.values() for annotation in task["annotations"]]

    def wipe(self) -> None:
        """Set up anew: the same address, the same token, nothing else."""
        with self._lock:
            self.projects.clear()
            self.tasks.clear()
            self.storages.clear()

    # what it answers ------------------------------------------------------------------------------------------

    def answer(self, request: Request, authorization: str) -> Answer:
        with self._lock:
            self.requests.append(request)
            instead = self.before(request) if self.before else None
            if instead is not None:
                return instead
            if not self.authorized(authorization):
                return Answer(401, {"detail": "Invalid token."})
            answer = self._route(request)
            return self.fault(request, answer) if self.fault else answer

    def _route(self, request: Request) -> Answer:
        for method, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and method == request.method:
                return handler(self, request, *(int(each) for each in match.groups()))
        return Answer(404, {"detail": "Not found."})

    def _whoami(self, request: Request) -> Answer:
        return Answer(200, {"id": 1, "email": "lead@example.com"})

    def _users(self, request: Request) -> Answer:
        return Answer(
            200, [{"id": n, "email": f"{name}@example.com"} for n, name in enumerate(("ann", "bob", "eve"), 1)]
        )

    def _project(self, request: Request, number: int) -> Answer:
        if number not in self.projects:
            return Answer(404, {"detail": "No Project matches the given query."})
        if request.method == "PATCH":
            version = request.body.get("model_version")
            known = {p["model_version"] for t in self.tasks.values() for p in t["predictions"]}
            if version and version not in known:
                return Answer(400, {"validation_errors": {"model_version": ["Model version doesn't exist."]}})
            self.projects[number].update(request.body)
        mine = [a for t in self.tasks.values() if t["project"] == number for a in t["annotations"]]
        counts = {
            "task_number": sum(t["project"] == number for t in self.tasks.values()),
            "total_annotations_number": sum(not a["was_cancelled"] for a in mine),
            "skipped_annotations_number": sum(a["was_cancelled"] for a in mine),
        }
        return Answer(200, {**self.projects[number], **counts})

    def _projects(self, request: Request) -> Answer:
        if request.method == "POST":
            number = 1 + max(self.projects, default=0)
            self.projects[number] = {"model_version": "", **request.body, "id": number}
            return Answer(201, self.projects[number])
        return Answer(200, {"count": len(self.projects), "next": None, "results": list(self.projects.values())})

    def _storage(self, request: Request) -> Answer:
        if request.method == "POST" and not self.sees(request.body["path"]):
            return Answer(400, {"validation_errors": {"non_field_errors": ["Absolute local path does not exist"]}})
        if request.method == "POST":
            self.storages.append({"id": len(self.storages) + 1, **request.body})
            return Answer(201, self.storages[-1])
        return Answer(200, [s for s in self.storages if [str(s["project"])] == request.query["project"]])

    def _import(self, request: Request, project: int) -> Answer:
        numbers = []
        for each in request.body:
            number = 1 + max(self.tasks, default=0)  # a deleted number is given again, as after a restored backup
            predictions = [{"id": number, "created_ago": "0 minutes", **p} for p in each.get("predictions", ())]
            self.tasks[number] = {
                "id": number, "project": project, "data": each["data"], "annotations": [], "predictions": predictions,
                "updated_at": self.now(),
            }  # fmt: skip
            numbers.append(number)
        return Answer(201, {"task_count": len(numbers), "task_ids": numbers})

    def _tasks(self, request: Request) -> Answer:
        query = json.loads(request.query["query"][0])
        found = [t for t in self.tasks.values() if [str(t["project"])] == request.query["project"]]
        for item in query["filters"]["items"]:
            found = [task for task in found if _kept(task, item["filter"].removeprefix("filter:tasks:"), item["value"])]
        found.sort(key=lambda task: task["id"])
        rows = [
            {
                **{k: t[k] for k in ("id", "data", "updated_at")},
                "annotations_ids": ",".join(str(a["id"]) for a in t["annotations"]),
            }
            for t in found[: int(request.query["page_size"][0])]
        ]
        return Answer(200, {"total": len(found), "tasks": rows})

    def _task(self, request: Request, number: int) -> Answer:
        if number not in self.tasks:
            return Answer(404, {"detail": "No Task matches the given query."})
        if request.method == "DELETE":
            del self.tasks[number]
            return Answer(204)
        return Answer(200, self.tasks[number])

    def _export(self, request: Request, project: int) -> Answer:
        wanted = {int(each) for each in request.query["ids[]"]}
        rows = [t for n, t in sorted(self.tasks.items()) if n in wanted and t["project"] == project]
        return Answer(
            200, [{**t, "annotations": [self._shown(t, a) for a in t["annotations"]], "drafts": []} for t in rows]
        )

    def _shown(self, task: dict[str, Any], annotation: dict[str, Any]) -> dict[str, Any]:
        self.clock += 1  # what is computed anew at each look
        prediction = {**task["predictions"][0], "created_ago": f"{self.clock} minutes"} if task["predictions"] else {}
        return {**annotation, "prediction": prediction}


Handler = Callable[..., Answer]
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", r"/api/current-user/whoami", FakeLabelStudio._whoami),
    ("GET", r"/api/users/", FakeLabelStudio._users),
    ("GET", r"/api/projects/(\d+)/", FakeLabelStudio._project),
    ("PATCH", r"/api/projects/(\d+)/", FakeLabelStudio._project),
    ("GET", r"/api/projects/", FakeLabelStudio._projects),
    ("POST", r"/api/projects/", FakeLabelStudio._projects),
    ("GET", r"/api/storages/localfiles/", FakeLabelStudio._storage),
    ("POST", r"/api/storages/localfiles/", FakeLabelStudio._storage),
    ("POST", r"/api/projects/(\d+)/import", FakeLabelStudio._import),
    ("GET", r"/api/tasks/", FakeLabelStudio._tasks),
    ("GET", r"/api/tasks/(\d+)/", FakeLabelStudio._task),
    ("DELETE", r"/api/tasks/(\d+)/", FakeLabelStudio._task),
    ("GET", r"/api/projects/(\d+)/export", FakeLabelStudio._export),
)


def _kept(task: dict[str, Any], name: str, value: Any) -> bool:
    if name == "data.batch":
        return bool(task["data"].get("batch") == value)
    return bool(task[name] > value if name == "id" else task[name] >= value)


def choice(label: str) -> list[dict[str, Any]]:
    """A result that chooses one class."""
    return [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]


# faults -----------------------------------------------------------------------------------------------------

DROP = Answer(0)


def at(number: int, path: str, answer: Answer | Callable[[Answer], Answer], *, method: str = "") -> Fault:
    """The `number`-th (from 1) answer to a matching request is another one; its work is done all the same."""
    seen = [0]

    def fault(request: Request, real: Answer) -> Answer:
        if re.search(path, request.path) and method in ("", request.method):
            seen[0] += 1
            if seen[0] == number:
                return answer(real) if callable(answer) else answer
        return real

    return fault


def always(path: str, answer: Answer | Callable[[Answer], Answer]) -> Fault:
    """Every answer to a matching request is another one."""

    def fault(request: Request, real: Answer) -> Answer:
        if not re.search(path, request.path):
            return real
        return answer(real) if callable(answer) else answer

    return fault


def _handler(server: FakeLabelStudio) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            url = urlsplit(self.path)
            request = Request(self.command, url.path, parse_qs(url.query), body)
            self._send(server.answer(request, self.headers.get("authorization", "")))

        def _send(self, answer: Answer) -> None:
            if answer.hang:
                time.sleep(answer.hang)
            if answer.status == 0:
                self.close_connection = True
                return
            content = answer.raw if answer.raw is not None else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            headers = {"content-type": "application/json", "content-length": str(len(content)), **answer.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if answer.status != 204:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked has given up
                    self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            return

    return Handler
