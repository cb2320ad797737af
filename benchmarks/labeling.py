"""What exactly-once costs with Label Studio, beside the bare calls of the same endpoints: `make bench`.

    python -m benchmarks.labeling --tasks 10000

One server of its own; each side is a process of its own, exports that many tasks, lets the server turn the suggestions
into annotations (not timed), and imports them. A bare call is sent once, nothing is looked at twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from flows.label_studio import install, running
from tasks.labeling import Place, Task
from tasks.labeling import label_studio as adapter
from tasks.labeling._label_studio_api import TOKEN
from tasks.labeling._label_studio_format import labeling_config
from tasks.labeling._label_studio_format import task as as_json
from tasks.labeling._label_studio_tasks import CHUNK
from tasks.ledger import task_key

CAMPAIGN, CLASSES = "bench-1", ("deer", "fox")
IMAGES = "https://images.example"


@dataclass
class Clock:
    """Wall seconds of each step, and the client's peak memory in MiB after it."""

    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun
        self.memory[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print; the numbers are kept in benchmarks/results/labeling.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--side", choices=tuple(SIDES), help="run one side against --url and print its numbers")
    parser.add_argument("--url")
    asked = parser.parse_args()
    if asked.side:
        clock = Clock()
        with clock.step("start"):
            pass
        SIDES[asked.side](clock, asked.url, asked.tasks)
        print(json.dumps({"seconds": clock.seconds, "memory": clock.memory}))
        return
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as folder, running(Path(folder), install(), 0) as server:
        url, account, _ = server
        found = {side: _measured(side, url, account.token, asked.tasks) for side in SIDES}
    _show(asked.tasks, found)


def _measured(side: str, url: str, token: str, tasks: int) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.labeling", "--side", side, "--url", url, "--tasks", str(tasks)]
    ended = subprocess.run(command, env={**os.environ, TOKEN: token}, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, dict[str, float]] = json.loads(ended.stdout)
    return result


def _bare(clock: Clock, url: str, number: int) -> None:
    with httpx.Client(base_url=url, timeout=600.0, headers={"Authorization": f"Token {os.environ[TOKEN]}"}) as client:
        config = {"title": "bare", "label_config": labeling_config(CLASSES)}
        project = client.post("/api/projects/", json=config).json()["id"]
        with clock.step("export"):
            wanted = [as_json(task, f"{IMAGES}/{task.item_id}.png", CLASSES) for task in _tasks(number)]
            for start in range(0, number, CHUNK):
                path = f"/api/projects/{project}/import?return_task_ids=true"
                client.post(path, json=wanted[start : start + CHUNK]).raise_for_status()
        _annotate(client, project)
        with clock.step("import"):
            listed = [row["id"] for page in range(1, 1 + -(-number // CHUNK)) for row in _page(client, project, page)]
            found: list[Any] = []
            for start in range(0, number, CHUNK):
                query: dict[str, Any] = {
                    "exportType": "JSON",
                    "download_all_tasks": "true",
                    "ids[]": listed[start : start + CHUNK],
                }
                found += client.get(f"/api/projects/{project}/export", params=query).json()
        assert sum(len(task["annotations"]) for task in found) == number
        client.delete(f"/api/projects/{project}/").raise_for_status()


def _page(client: httpx.Client, project: int, page: int) -> list[dict[str, Any]]:
    query: dict[str, Any] = {
        "project": project,
        "page": page,
        "page_size": CHUNK,
        "fields": "all",
        "include": "id,updated_at",
    }
    rows: list[dict[str, Any]] = client.get("/api/tasks/", params=query).json()["tasks"]
    return rows


def _through_adapter(clock: Clock, url: str, number: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), CAMPAIGN, CLASSES, Path(folder) / "known_labels.parquet")
        tool = adapter.connect(place, url=url, image_url=IMAGES)
        with clock.step("export"):
            tool.push(_tasks(number))
        project = int(tool.address.split("/projects/")[1].split("/")[0])
        headers = {"Authorization": f"Token {tool.api.token}"}
        with httpx.Client(base_url=url, timeout=600.0, headers=headers) as client:
            _annotate(client, project)
            with clock.step("import"):
                live = [event for page in tool.pull("") for event in page.events]
                assert list(tool.deleted(live)) == []
            assert len(live) == number
            client.delete(f"/api/annotations/{live[0].payload['annotation']['id']}/").raise_for_status()
            with clock.step("a deletion found"):
                assert len(list(tool.deleted(live))) == 1
            client.delete(f"/api/projects/{project}/").raise_for_status()


def _annotate(client: httpx.Client, project: int) -> None:
    """The server makes an annotation of every suggestion."""
    everything = {"selectedItems": {"all": True, "excluded": []}, "ordering": []}
    path = f"/api/dm/actions/?id=predictions_to_annotations&project={project}"
    client.post(path, json=everything).raise_for_status()


def _tasks(number: int) -> list[Task]:
    items = [hashlib.sha256(b"%d" % each).hexdigest() for each in range(number)]
    return [
        Task(task_key(CAMPAIGN, 0, item), item, 0, rank, "active", Path("image.png"), 0.5, CLASSES[rank % 2], 0.9)
        for rank, item in enumerate(items)
    ]


SIDES: dict[str, Callable[[Clock, str, int], None]] = {"bare": _bare, "adapter": _through_adapter}


def _show(tasks: int, found: dict[str, dict[str, dict[str, float]]]) -> None:
    bare, ours = found["bare"], found["adapter"]
    print(
        f"{tasks} tasks{'':<{24 - len(str(tasks))}}{'adapter s':>10}{'bare s':>8}{'ratio':>7}{'adapter MiB':>13}{'bare MiB':>10}"
    )
    for step in [name for name in ours["seconds"] if name != "start"]:
        own, peak = ours["seconds"][step], ours["memory"][step]
        alone = bare["seconds"].get(step)
        beside = f"{alone:>8.1f}{own / alone:>7.2f}" if alone else f"{'-':>8}{'-':>7}"
        memory = f"{bare['memory'][step]:>10.0f}" if alone else f"{'-':>10}"
        print(f"{step:<30}{own:>10.1f}{beside}{peak:>13.0f}{memory}")
    print(
        f"memory is the client's peak so far; at its start {ours['memory']['start']:.0f} and {bare['memory']['start']:.0f} MiB"
    )
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "labeling.json").write_text(json.dumps({"tasks": tasks, **found}, indent=2))


if __name__ == "__main__":
    main()
