"""A small workspace in a folder, for tests: a pool of synthetic digits, an open iteration, an oracle's answers.

world = build(tmp_path, items=120, group_size=3)
world.open()                 # iteration 0: nothing labeled
run_stages(world.store, world.params)
world.answer()               # the oracle answers the batch, the next iteration opens
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import stage
from tasks.inputs import Iteration, freeze
from tasks.params import parse
from tasks.params_sections import Params
from tasks.store import Array, Store
from tasks.tables import ARMS, ASKED, CORRECTION, FROZEN_MANIFEST, HISTORY, LABELS, MANIFEST, SELECTION, TableKind

PARAMS = Path(__file__).resolve().parent.parent / "params.yaml"
STAGES = ("embed", "train", "score", "select", "evaluate", "report")


@dataclass
class World:
    """A workspace with its truth: what the oracle would answer."""

    store: Store
    params: Params
    truth: dict[str, int]  # item_id -> class index
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    number: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def open(self, remaining: int | None = None) -> Iteration:
        """Freeze the inputs of the current iteration."""
        number, events = self.number, len(self.asked)
        iteration = Iteration("test", number, 1000 + number, self.classes, self.shape, events, remaining)
        manifest = self.store.read_table(MANIFEST)
        tables = {
            FROZEN_MANIFEST: manifest,
            LABELS: self._labels(),
            ASKED: rows(ASKED, self.asked),
            HISTORY: rows(HISTORY, self.history),
        }
        freeze(self.store, iteration, tables)
        return iteration

    def answer(self, skip: int = 0, pending: int = 0) -> None:
        """Close the iteration: all of the batch is labeled except its first `skip` and last `pending` items."""
        batch = self.store.read_table(SELECTION).sort_by("rank").to_pylist()
        metrics = self.store.read_json("data/evaluation/metrics.json")
        for place, row in enumerate(batch):
            state = "skipped" if place < skip else "pending" if place >= len(batch) - pending else "labeled"
            self.ask(row["item_id"], row["arm"], state, row["rank"])
        nan = float("nan")
        measured = {"accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
        self.history.append(
            {
                "iteration": self.number,
                **{arm: metrics[f"labels_{arm}"] for arm in (*ARMS, CORRECTION)},
                "asked": len(batch),
                **{name: nan if metrics[key] is None else metrics[key] for name, key in measured.items()},
                "model_sha256": metrics["model_sha256"],
                "champion": -1 if metrics["champion"] is None else metrics["champion"],
            }
        )
        self.number += 1

    def ask(self, item_id: str, arm: str, state: str = "labeled", rank: int = 0) -> None:
        """Write down that an item was asked about in the current iteration."""
        self.asked.append({"item_id": item_id, "iteration": self.number, "rank": rank, "arm": arm, "state": state})

    def change(self, section: str, **values: Any) -> None:
        """Change settings of a section."""
        changed = getattr(self.params, section).model_copy(update=values)
        self.params = self.params.model_copy(update={section: changed})

    def run(self, *stages: str) -> None:
        """Run stages in this process, all of them when none is named."""
        run_stages(self.store, self.params, *stages)

    def _labels(self) -> pa.Table:
        labeled = [row for row in self.asked if row["state"] == "labeled"]
        return rows(
            LABELS,
            [
                {
                    "item_id": row["item_id"],
                    "label": self.classes[self.truth[row["item_id"]]],
                    "class_index": self.truth[row["item_id"]],
                    "arm": row["arm"],
                    "asked_in": row["iteration"],
                    "event": event,
                }
                for event, row in enumerate(labeled)
            ],
        )


def rows(kind: TableKind, values: list[dict[str, Any]]) -> pa.Table:
    """A table of a kind from one dict a row."""
    return pa.Table.from_pylist(values, schema=kind.schema)


def run_stages(store: Store, params: Params, *stages: str) -> None:
    """Run stages in this process."""
    from importlib import import_module

    for name in stages or STAGES:
        stage.call(import_module(f"tasks.{name}").run, store, params)


def build(
    root: Path,
    items: int = 120,
    classes: int = 3,
    group_size: int = 1,
    share: float = 0.25,
    shards: int = 2,
    seed: int = 0,
) -> World:
    """A pool of 8x8 grey images of `classes` noisy shapes in groups of `group_size`, reserved by group."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(30, 226, (classes, 8, 8, 1))
    truth = rng.integers(0, classes, items)
    images = np.clip(shapes[truth] + rng.normal(0, 40, (items, 8, 8, 1)), 0, 255).astype(np.uint8)
    names = tuple(f"class {index}" for index in range(classes))
    return make(root, images, truth, names, np.arange(items) // group_size, share, shards)


def digits(root: Path) -> World:
    """scikit-learn's 1,797 digits, each its own group."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images[..., None] * (255 / 16)).astype(np.uint8)
    return make(root, images, data.target, tuple("0123456789"), np.arange(len(images)), 0.2, 2)


def make(
    root: Path, images: Array, truth: Array, classes: tuple[str, ...], groups: Array, share: float, shards: int
) -> World:
    """A workspace from arrays: images (N, H, W, channels) uint8, truth (N,), groups (N,) codes."""
    store = Store(root)
    text = PARAMS.read_text(encoding="utf-8")
    store.write_bytes("params.yaml", text.encode())
    ids = [hashlib.sha256(b"%d" % position + image.tobytes()).hexdigest() for position, image in enumerate(images)]
    shard = np.arange(len(images)) * shards // max(len(images), 1)
    for number in range(shards):
        store.write_array(f"data/pool/shard-{number:05d}.npy", images[shard == number])
    firsts = {group: ids[int(np.flatnonzero(groups == group)[0])] for group in np.unique(groups).tolist()}
    manifest = [_item(ids[i], i, shard, firsts[int(groups[i])], images.shape, share) for i in range(len(images))]
    store.write_table(MANIFEST, rows(MANIFEST, manifest))
    mode = "L" if images.shape[3] == 1 else "RGB"
    store.write_json("data/pool/pool.json", {"size": images.shape[1], "mode": mode, "classes": list(classes)})
    height, width, channels = images.shape[1:]
    known = {item: int(label) for item, label in zip(ids, truth, strict=True)}
    return World(store, parse(text), known, classes, (height, width, channels))


def _item(
    item_id: str, position: int, shard: Array, group: str, shape: tuple[int, ...], share: float
) -> dict[str, Any]:
    draw = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
    return {
        "item_id": item_id,
        "uri": f"image-{position}",
        "shard": int(shard[position]),
        "row": int((shard[:position] == shard[position]).sum()),
        "width": shape[2],
        "height": shape[1],
        "bytes": 100,
        "group": group,
        "sequence": "",
        "taken": "",
        "split": "holdout" if draw < share else "pool",
        "phash": 0,
        "ingest": 0,
    }
