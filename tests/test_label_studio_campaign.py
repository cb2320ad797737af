"""A campaign with people on the real Label Studio, which is killed in the middle of exports and imports: nothing is lost or doubled."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tenacity

from tasks.campaign import LEDGER, open_campaign
from tasks.export import send_again
from tasks.labeling.label_studio import TOKEN_FILE
from tasks.ledger import open_ledger
from tasks.store import Store
from tests.children import run_in_child
from tests.killing_proxy import Kill, KillingProxy
from tests.quick import broken, closed, edit, image_folder, make_workspace, tick
from tests.real_label_studio import Person, RealLabelStudio

pytestmark = pytest.mark.slow

ITERATIONS = 4
LOOKS = 4  # at the end: a deletion is seen, its task sent again, the iteration that is due meanwhile made
IMPORT, EXPORT, PAGES, PROJECT = r"/import$", r"/export$", r"^/api/tasks/$", r"^/api/projects/\d+/$"


def kills(rng: np.random.Generator) -> list[list[Kill]]:
    """For each iteration, when the server is killed, one after the other."""

    def soon() -> float:
        return float(rng.uniform(0.0, 0.12))

    return [
        [Kill("POST", r"^/api/projects/$", "after"), Kill("POST", IMPORT, "during", after_seconds=soon())],
        [Kill("GET", EXPORT, "before"), Kill("POST", IMPORT, "after")],
        [Kill("GET", PAGES, "during", nth=2, after_seconds=soon()), Kill("PATCH", PROJECT, "after")],
        [Kill("GET", EXPORT, "during", after_seconds=soon()), Kill("POST", IMPORT, "during", after_seconds=soon())],
    ]


def visit(root: Path) -> str:
    """What `gleaner tick` does, in process."""
    told = tick(root)
    if told.startswith("waiting"):
        with open_campaign(root, "tick") as campaign:
            send_again(campaign)
    return told


def impatient() -> None:
    """In the child: retries without waiting."""
    tenacity.nap.time.sleep = lambda seconds: None  # type: ignore[attr-defined]


class People:
    """Three annotators who skip, disagree, change their minds, delete, and leave part of a batch undone."""

    def __init__(self, server: RealLabelStudio, root: Path, rng: np.random.Generator) -> None:
        self.server, self.rng = server, rng
        self.all = [server.person(f"{name}@example.com") for name in ("ann", "bob", "eve")]
        table = pq.read_table(root / "data/pool/known_labels.parquet").to_pydict()
        self.known = dict(zip(table["item_id"], table["label"], strict=True))

    @property
    def project(self) -> int:
        (project,) = self.server.admin.get("/api/projects/")["results"]
        return int(project["id"])

    def tasks(self) -> list[dict[str, Any]]:
        page = self.server.admin.get(f"/api/tasks/?project={self.project}&fields=all&page_size=1000")
        return sorted(page["tasks"], key=lambda task: int(task["id"]))

    def work(self, share: float) -> None:
        """Two of the three look at about this share of the tasks that nobody has answered."""
        for task in self.tasks():
            if not task["annotations"] and self.rng.random() < share:
                for place in self.rng.permutation(len(self.all))[:2]:
                    self._answer(self.all[int(place)], task)

    def _answer(self, person: Person, task: dict[str, Any]) -> None:
        truth, chance = self.known[task["data"]["item_id"]], self.rng.random()
        if chance < 0.12:
            person.skip(task["id"])
        elif chance < 0.3:
            person.label(task["id"], str((int(truth) + 1) % 3))
        else:
            person.label(task["id"], truth)

    def change_their_minds(self) -> None:
        """After an import: two edits, an annotation and a task deleted."""
        done = [task for task in self.tasks() if task["annotations"]]
        chosen = [done[int(n)] for n in self.rng.permutation(len(done))[:4]]
        for task in chosen[:2]:
            self.all[0].edit(task["annotations"][0]["id"], self.known[task["data"]["item_id"]])
        self.all[1].delete_annotation(chosen[2]["annotations"][0]["id"])
        self.all[2].delete_task(chosen[3]["id"])


@pytest.mark.parametrize("seed", [0])
def test_people_label_a_campaign_while_the_server_is_killed(real: RealLabelStudio, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = make_workspace(tmp_path / "workspace", image_folder(tmp_path / "images"), **{"holdout.labels": 6})
    with KillingProxy(real) as proxy:
        prepare(root, real, proxy)
        people = People(real, root, rng)
        for number, plan in enumerate(kills(rng)):
            while closed(root) <= number:
                if number:
                    people.work(0.7)
                disturbed(root, real, proxy, plan.pop(0) if plan else None)
            if number:
                people.change_their_minds()
        people.work(0.3)
        for _ in range(LOOKS):
            if not settled(root, real):
                assert run_in_child(visit, root).error == ""
        assert len(proxy.killed) >= 2 * ITERATIONS - 1
    assert closed(root) >= ITERATIONS
    audit(root, real)


def prepare(root: Path, real: RealLabelStudio, proxy: KillingProxy) -> None:
    """The campaign asks two people about each item, and goes on when six of ten items are settled."""
    options = {"url": proxy.url, "document_root": str(real.served)}
    changes = {"tool": "label_studio", "options": options, "overlap": 2, "resolution": "majority", "minimum_votes": 2}
    edit(root, {f"labeling.{name}": value for name, value in {**changes, "quorum": 0.6}.items()})
    Store(root).write_bytes(TOKEN_FILE, real.admin.token.encode())


def disturbed(root: Path, real: RealLabelStudio, proxy: KillingProxy, kill: Kill | None) -> None:
    """A tick during which the server may die, and its restart."""
    before = len(proxy.killed)
    proxy.plan = kill
    ended = run_in_child(visit, root, twin=impatient)
    proxy.plan = None
    assert not ended.error or "Unreachable" in ended.kinds, ended.text
    if len(proxy.killed) > before:
        real.start()


def settled(root: Path, real: RealLabelStudio) -> bool:
    """Whether the ledger holds what the tool does, and no task is missing there."""
    return told(root).keys() == stored(real).keys() and set(keys(real)) == set(asked(root))


def stored(real: RealLabelStudio) -> dict[str, tuple[Any, bool]]:
    """Annotations in the server's own database: unique id -> (result, skipped)."""
    rows = real.rows("SELECT unique_id, result, was_cancelled FROM task_completion")
    return {_plain(unique): (json.loads(result), bool(skipped)) for unique, result, skipped in rows}


def _plain(unique: str) -> str:
    return unique.replace("-", "")


def keys(real: RealLabelStudio) -> Counter[str]:
    """Keys of the tasks in the server's own database."""
    return Counter(json.loads(row[0])["key"] for row in real.rows("SELECT data FROM task"))


def told(root: Path) -> dict[str, tuple[Any, bool]]:
    """Annotations that stand in the ledger, as `stored`."""
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        live = [(event.annotation_id, event.payload["annotation"]) for event in ledger.live(ledger.instance())]
    assert len(live) == len(dict(live)), "an annotation stands twice"
    return {_plain(unique): (each["result"], each["was_cancelled"]) for unique, each in live}


def asked(root: Path) -> list[str]:
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        return [task["key"] for row in ledger.iterations() for task in ledger.batch(row.number)]


def majorities(real: RealLabelStudio) -> dict[str, str]:
    """Item -> class that two people chose, from the server's own database."""
    rows = real.rows("SELECT t.data, c.result, c.was_cancelled FROM task_completion c JOIN task t ON t.id = c.task_id")
    votes: dict[str, Counter[str]] = {}
    for data, result, skipped in rows:
        if not skipped:
            chosen = json.loads(result)[0]["value"]["choices"][0]
            votes.setdefault(json.loads(data)["item_id"], Counter())[chosen] += 1
    return {item: count.most_common(1)[0][0] for item, count in votes.items() if count.most_common(1)[0][1] >= 2}


def audit(root: Path, real: RealLabelStudio) -> None:
    """The ledger against the server's own database."""
    assert told(root) == stored(real)
    assert keys(real) == Counter(asked(root)), "every selected item has one task"
    assert len(real.admin.get("/api/projects/")["results"]) == 1
    with open_campaign(root, "tick") as campaign:
        known = {item.item_id: item.label for item in campaign.asked() if item.state == "labeled"}
    assert known == majorities(real)
    assert broken(root) == []
