"""The loop with Label Studio, killed at every effect and cut off at every request: it converges to the undisturbed state."""

from __future__ import annotations

import copy as copies
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tenacity

from tasks.campaign import open_campaign
from tasks.labeling.label_studio import TOKEN_FILE
from tasks.store import Store
from tests.children import Ended, run_in_child
from tests.fake_label_studio import DROP, TOKEN, Answer, FakeLabelStudio, Request
from tests.quick import broken, closed, copy, edit, image_folder, make_workspace, state, tick


@dataclass
class Calm:
    """A campaign whose first batch was answered, and what an undisturbed tick makes of it."""

    server: FakeLabelStudio
    before: Path
    tables: tuple[Any, ...]  # the server's, as of then
    state: dict[str, Any]
    points: list[str]
    requests: int

    def reset(self) -> None:
        """Bring the server back to where it was before the tick."""
        self.server.fault = None
        self.server.requests.clear()
        self.server.projects, self.server.tasks, self.server.storages = copies.deepcopy(self.tables)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calm]:
    folder = tmp_path_factory.mktemp("label-studio")
    with FakeLabelStudio() as server:
        before = make_workspace(folder / "before", image_folder(folder / "images"))
        edit(before, {"labeling.tool": "label_studio", "labeling.options": {"url": server.url}})
        Store(before).write_bytes(TOKEN_FILE, TOKEN.encode())
        assert run_in_child(tick, before).text == "iteration 0"
        people_answer(server, before)
        tables = copies.deepcopy((server.projects, server.tasks, server.storages))
        server.requests.clear()
        after = copy(before, folder / "after")
        ended = run_in_child(tick, after)
        assert ended.text == "iteration 1"
        assert broken(after) == []
        requests = len(server.requests)
        yield Calm(server, before, tables, state(after), ended.passed, requests)


def people_answer(server: FakeLabelStudio, root: Path) -> None:
    """Labels, a skip, an edit and a draft-like empty result, on all tasks that wait."""
    table = pq.read_table(root / "data/pool/known_labels.parquet").to_pydict()
    known = dict(zip(table["item_id"], table["label"], strict=True))
    for place, (number, task) in enumerate(sorted(server.tasks.items())):
        if task["annotations"]:
            continue
        if place == 0:
            server.annotate(number, None, by=2)
            continue
        annotation = server.annotate(number, "0" if place == 1 else known[task["data"]["item_id"]])
        if place == 1:
            server.edit(annotation, known[task["data"]["item_id"]])


def recovered(calm: Calm, root: Path, where: str) -> None:
    """After a disturbance: tick until iteration 1 is closed, then compare everything."""
    for _ in range(4):
        if closed(root) == 2:
            break
        run_in_child(tick, root)
    found = state(root)
    for part, expected in calm.state.items():
        assert found[part] == expected, f"{where}: {part} differs"
    assert broken(root) == [], where
    assert set(Counter(calm.server.keys()).values()) == {1}, where
    assert len(calm.server.projects) == 1, where


def test_the_loop_passes_every_kind_of_effect_on_the_server(calm: Calm) -> None:
    kinds = {point for point in calm.points if point.startswith(("label_studio", "import:", "export:push"))}
    assert {"label_studio:import:before", "label_studio:import:after", "import:store:after"} <= kinds
    assert calm.requests >= 10


def points(calm: Calm, *prefixes: str) -> list[int]:
    return [n for n, point in enumerate(calm.points, start=1) if point.startswith(prefixes)]


def killed(calm: Calm, folder: Path, numbers: list[int]) -> None:
    for number in numbers:
        calm.reset()
        root = copy(calm.before, folder / f"at-{number}")
        assert run_in_child(tick, root, kill_at=number).killed
        recovered(calm, root, calm.points[number - 1])


def test_killed_around_the_import_into_the_server(calm: Calm, tmp_path: Path) -> None:
    killed(calm, tmp_path, points(calm, "label_studio:import", "import:store:after"))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_at_any_other_effect(calm: Calm, tmp_path: Path) -> None:
    done = points(calm, "label_studio:import", "import:store:after")
    killed(calm, tmp_path, [n for n in range(1, len(calm.points) + 1) if n not in done])


class Cut:
    """Every request from the `first`-th to the `last`-th is carried out, and its answer is lost."""

    def __init__(self, first: int, last: int) -> None:
        self.seen, self.first, self.last = 0, first, last

    def __call__(self, request: Request, answer: Answer) -> Answer:
        self.seen += 1
        return DROP if self.first <= self.seen <= self.last else answer


def impatient() -> None:
    """In the child: retries without waiting."""
    tenacity.nap.time.sleep = lambda seconds: None  # type: ignore[attr-defined]


def cut(calm: Calm, root: Path, first: int, last: int) -> Ended:
    calm.reset()
    calm.server.fault = Cut(first, last)
    ended = run_in_child(tick, root, twin=impatient)
    assert not ended.error or "Unreachable" in ended.kinds, ended.text
    calm.server.fault = None
    return ended


def cut_at(calm: Calm, folder: Path, numbers: range) -> None:
    for number in numbers:
        root = copy(calm.before, folder / f"cut-{number}")
        cut(calm, root, number, number)
        recovered(calm, root, f"request {number}")


def test_an_answer_lost_at_every_fifth_request(calm: Calm, tmp_path: Path) -> None:
    cut_at(calm, tmp_path, range(1, calm.requests + 1, 5))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("first", [2, 3, 4, 5])
def test_an_answer_lost_at_any_other_request(calm: Calm, first: int, tmp_path: Path) -> None:
    cut_at(calm, tmp_path, range(first, calm.requests + 1, 5))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_server_gone_from_any_request_on(calm: Calm, tmp_path: Path) -> None:
    for number in range(1, calm.requests + 1):
        root = copy(calm.before, tmp_path / f"gone-{number}")
        assert cut(calm, root, number, 10**6).error, f"request {number}: it must have failed"
        recovered(calm, root, f"gone from request {number} on")


def test_answers_that_are_gone_in_masses_are_forgotten_only_when_somebody_says_so(calm: Calm, tmp_path: Path) -> None:
    calm.reset()
    root = copy(calm.before, tmp_path / "masses")
    assert run_in_child(tick, root).text == "iteration 1"
    before = state(root)["ledger"]["label_event"]
    for task in calm.server.tasks.values():
        task["annotations"] = task["annotations"][:0]
    ended = run_in_child(tick, root)
    assert "BadInput" in ended.kinds
    assert re.search(r"29 of 29 answers are gone .*gleaner accept-deletions", ended.text)
    assert state(root)["ledger"]["label_event"] == before
    run_in_child(accept_deletions, root)
    assert run_in_child(tick, root).text.startswith("waiting")
    found = state(root)["ledger"]["label_event"]
    assert found[: len(before)] == before, "what was said is kept"
    assert len(found) == len(before) + 29
    assert broken(root) == []


def accept_deletions(root: Path) -> None:
    with open_campaign(root, "accept-deletions") as campaign:
        campaign.ledger.decide("deletions", 1, "answers", "a new start")
