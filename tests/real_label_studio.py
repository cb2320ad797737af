"""The real Label Studio for tests: installed once, migrated once, killed and started again at will; and its people.

with RealLabelStudio(folder) as server:                 # a copy of the migrated template, on a free port
    ann = server.person("ann@example.com")
    ann.label(ann.next(project), "fox")
    server.kill(); server.start()                       # the same port, the same data
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sqlite3
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx

from flows import label_studio as program
from flows.label_studio import Account
from tasks.labeling import LabelingTool, Place
from tasks.labeling import label_studio as adapter
from tasks.labeling._label_studio_images import SERVING
from tasks.labeling.label_studio import LabelStudio
from tasks.ledger import task_key

__all__ = ["LabelingTool", "Person", "RealLabelStudio", "choice", "connected", "task_key"]

PASSWORD = "one-for-all-people"


def choice(label: str) -> list[dict[str, Any]]:
    """A result that chooses one class."""
    return [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]


class RealLabelStudio:
    """A server over a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, 0
        self.url = ""
        self._up = ExitStack()
        self._people: dict[str, Person] = {}

    def __enter__(self) -> RealLabelStudio:
        shutil.copytree(_template(), self.root / program.FOLDER)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._up.close()

    def start(self) -> None:
        """Start it, again where it was before."""
        running = program.running(self.root, program.install(), self.port)
        self.url, self.account, self.process = self._up.enter_context(running)
        port = int(self.url.rpartition(":")[2])
        assert self.port in (0, port), "it came up at another port"
        self.port = port

    def kill(self) -> None:
        """SIGKILL, to its children as well."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._up.close()

    @property
    def served(self) -> Path:
        """The folder of which it may serve files."""
        return self.root / SERVING

    @property
    def admin(self) -> Person:
        """Whoever runs the server."""
        return self.person(self.account.email)

    def person(self, email: str) -> Person:
        """An account, which accepts the invitation when it is asked for the first time."""
        if email not in self._people:
            own = email == self.account.email
            session = log_in(self.url, self.account) if own else self._sign_up(email)
            self._people[email] = Person(
                self.url, email, session.get("/api/current-user/token").json()["token"], session
            )
        return self._people[email]

    def _sign_up(self, email: str) -> httpx.Client:
        page = self.admin.get("/api/invite")["invite_url"]
        session = httpx.Client(base_url=self.url, timeout=60.0, follow_redirects=True)
        session.get(page)
        form = {"email": email, "password": PASSWORD, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
        session.post(page, data=form, headers={"Referer": self.url}).raise_for_status()
        return session

    def wipe(self) -> None:
        """Delete every project."""
        for project in self.admin.get("/api/projects/?page_size=1000")["results"]:
            self.admin.call("DELETE", f"/api/projects/{project['id']}/")

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What its own database says."""
        with closing(sqlite3.connect(self.root / program.FOLDER / "label_studio.sqlite3", timeout=30)) as db:
            return db.execute(statement).fetchall()


class Person:
    """What somebody does with an account."""

    def __init__(self, url: str, email: str, token: str, session: httpx.Client) -> None:
        self.email, self.token, self.session = email, token, session
        self._client = httpx.Client(base_url=url, timeout=120.0, headers={"Authorization": f"Token {token}"})

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """A request that must succeed."""
        response = self._client.request(method, path, json=body)
        assert response.status_code < 400, f"{method} {path}: {response.status_code} {response.text[:300]}"
        return response

    def get(self, path: str) -> Any:
        """JSON of a resource."""
        return self.call("GET", path).json()

    def next(self, project: int) -> dict[str, Any] | None:
        """The task that Label All Tasks shows, None when there is none."""
        response = self._client.get(f"/api/projects/{project}/next")
        assert response.status_code in (200, 404), response.text[:300]
        return dict(response.json()) if response.status_code == 200 else None

    def submit(self, task: int, result: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """Submit an annotation."""
        body = {"result": result, "lead_time": 2.5, **fields}
        return dict(self.call("POST", f"/api/tasks/{task}/annotations/", body).json())

    def label(self, task: int, label: str, **fields: Any) -> dict[str, Any]:
        """Choose a class."""
        return self.submit(task, choice(label), **fields)

    def skip(self, task: int) -> dict[str, Any]:
        """Skip a task."""
        return self.submit(task, [], was_cancelled=True)

    def edit(self, annotation: int, label: str) -> None:
        """Choose another class."""
        self.call("PATCH", f"/api/annotations/{annotation}/", {"result": choice(label)})

    def delete_annotation(self, annotation: int) -> None:
        """Take an annotation away."""
        self.call("DELETE", f"/api/annotations/{annotation}/")

    def delete_task(self, task: int) -> None:
        """Take a task away, with its annotations."""
        self.call("DELETE", f"/api/tasks/{task}/")

    def personal_access_token(self) -> str:
        """A new one, from the account's page."""
        headers = {"X-CSRFToken": self.session.cookies["csrftoken"], "Referer": str(self.session.base_url)}
        return str(self.session.post("/api/token/", headers=headers).json()["token"])


def log_in(url: str, account: Account) -> httpx.Client:
    """A browser's session."""
    session = httpx.Client(base_url=url, timeout=60.0, follow_redirects=True)
    session.get("/user/login/")
    form = {"email": account.email, "password": account.password, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
    session.post("/user/login/", data=form, headers={"Referer": url}).raise_for_status()
    return session


def connected(server: RealLabelStudio, place: Place, **options: Any) -> LabelStudio:
    """The adapter of a place that shares its images with the server through the server's folder."""
    (place.workspace / adapter.TOKEN_FILE).parent.mkdir(parents=True, exist_ok=True)
    (place.workspace / adapter.TOKEN_FILE).write_text(server.admin.token)
    return adapter.connect(place, url=server.url, document_root=str(server.served), **options)


def _template() -> Path:
    """Data of a server that was started once: its database is migrated. Kept beside the installation."""
    home = program.install().parent.parent
    template = home.with_name(f"{home.name}-template")
    with open(home.with_name(f"{home.name}-template.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            with tempfile.TemporaryDirectory(dir=home.parent) as folder:
                with program.running(Path(folder), program.install(), 0):
                    pass
                (Path(folder) / program.FOLDER).rename(template)
    return template
