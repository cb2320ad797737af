"""The frozen inputs of one iteration: `data/inputs/`, all that its stages may depend on besides features and code.

    data/inputs/
      iteration.json          number, seed, classes, image shape, what may still be spent
      manifest.parquet        the pool as of the opening
      labels.parquet          labels as of an event sequence number (training and holdout)
      asked.parquet           every item ever asked about, with its state
      votes.parquet           everybody's newest answer to each item
      history.parquet         one row a closed iteration
      previous/               of the iteration before: scores, findings, metrics, holdout predictions

The folder is built beside its place and renamed into it: either the old iteration's inputs or the new one's.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.store import Array, Store, remove_folder, replace_folder
from tasks.tables import ASKED, FROZEN_MANIFEST, HISTORY, LABELS, VOTES, TableKind

ITERATION = "data/inputs/iteration.json"
BUILDING = "data/.inputs.new"
#: what is carried over from the iteration before: file there -> name under data/inputs/previous
CARRIED = {
    "data/scores.parquet": "scores.parquet",
    "data/findings.json": "findings.json",
    "data/evaluation/metrics.json": "metrics.json",
    "data/evaluation/predictions.parquet": "predictions.parquet",
}


@dataclass(frozen=True)
class Iteration:
    """What a stage knows of the iteration it computes."""

    campaign: str  # campaign id
    number: int  # 0 is the first
    seed: int  # of this iteration: derived from the campaign's seed and the number
    classes: tuple[str, ...]  # class_index is the position here
    shape: tuple[int, int, int]  # height, width, channels of the pool's images
    event_seq: int  # labels are as of this label event
    remaining: int | None  # labels that the budget still allows, None without a budget

    def rng(self, stage: str) -> np.random.Generator:
        """A generator of this iteration's own for one stage."""
        return np.random.default_rng([self.seed, self.number, *stage.encode()])


def read_iteration(store: Store) -> Iteration:
    """Read data/inputs/iteration.json."""
    value = store.read_json(ITERATION)
    return Iteration(**{**value, "classes": tuple(value["classes"]), "shape": tuple(value["shape"])})


def freeze(store: Store, iteration: Iteration, tables: dict[TableKind, pa.Table]) -> None:
    """Write data/inputs/ whole: `tables` for FROZEN_MANIFEST, LABELS, ASKED, HISTORY, VOTES; `previous/` from the last outputs.

    The first time it must run before any stage of the iteration; again (params changed while it is open), any time.
    """
    building = store.path(BUILDING)
    remove_folder(building)
    staged = Store(building)
    for kind in (FROZEN_MANIFEST, LABELS, ASKED, HISTORY):
        staged.write_table(_moved(kind), tables[kind])
    staged.write_table(_moved(VOTES), tables.get(VOTES, VOTES.schema.empty_table()))  # nobody votes in a simulation
    staged.write_json("iteration.json", asdict(iteration))
    if iteration.number > 0:
        _carry(store, staged, iteration)
    replace_folder(building, store.path("data/inputs"))


def _carry(store: Store, staged: Store, iteration: Iteration) -> None:
    """What the iteration before left; once this one's inputs are frozen, its own stages may have replaced the originals."""
    kept = store.path("data/inputs/previous")
    before = read_iteration(store) if store.exists(ITERATION) else None
    (staged.root / "previous").mkdir()
    if before is not None and (before.number, before.campaign) == (iteration.number, iteration.campaign):
        for file in sorted(kept.iterdir()):
            shutil.copyfile(file, staged.root / "previous" / file.name)
        return
    for source, name in CARRIED.items():
        if store.exists(source):
            shutil.copyfile(store.path(source), staged.root / "previous" / name)


def _moved(kind: TableKind) -> TableKind:
    return TableKind(kind.path.removeprefix("data/inputs/"), kind.schema, kind.key)


@dataclass(frozen=True)
class Labels:
    """Training or holdout labels as arrays, in item order."""

    item_ids: Array  # (M,) str
    classes: Array  # (M,) int64 class indices
    arms: Array  # (M,) str


def read_labels(store: Store, holdout: bool) -> Labels:
    """The holdout's labels, or all others (what may be trained on)."""
    table = store.read_table(LABELS).to_pydict()
    keep = [i for i, arm in enumerate(table["arm"]) if (arm == "holdout") == holdout]
    return Labels(
        np.array([table["item_id"][i] for i in keep], dtype=str),
        np.array([table["class_index"][i] for i in keep], dtype=np.int64),
        np.array([table["arm"][i] for i in keep], dtype=str),
    )


def previous(store: Store, name: str) -> Any | None:
    """A JSON file of data/inputs/previous, None in the first iteration."""
    path = f"data/inputs/previous/{name}"
    return store.read_json(path) if store.exists(path) else None
