"""The tracker's outbox: an iteration is shown in MLflow when MLflow is there, exactly once, and never holds up the loop.

Closing an iteration puts all that the tracker needs into `.gleaner/tracking/iter-0003/`; `flush` shows what is
waiting, oldest first, and removes it. A tracker that is down leaves the queue as it is for the next tick.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks import plugins, repository
from tasks.campaign import Campaign
from tasks.errors import GleanerError
from tasks.params import parse
from tasks.pointers import data_hashes
from tasks.store import Store, remove_folder, replace_folder
from tasks.trackers import IterationRecord, Tracker

FOLDER = ".gleaner/tracking"
ARTIFACTS = (
    "data/report", "data/evaluation", "data/selection.parquet", "data/findings.json", "data/artefacts.json",
)  # fmt: skip
SHEET, MODEL = "report/batch.png", "models/head"


def queue(campaign: Campaign, number: int) -> None:
    """Put an iteration into the outbox; the folder appears whole."""
    store, target = campaign.store, campaign.store.path(f"{FOLDER}/{repository.tag_name(number)}")
    building = target.with_name(f".{target.name}.new")
    remove_folder(building)
    for name in (*ARTIFACTS, MODEL):
        _copy(store.path(name), building / "files" / Path(name).name)
    if not campaign.ledger.batch(number):  # nothing was sent: a blank picture, or one of images nobody is asked about
        (building / "files" / SHEET).unlink(missing_ok=True)
    text = repository.show(campaign.root, repository.tag_name(number), "params.yaml")  # it may have been edited since
    Store(building).write_bytes("files/params.yaml", text.encode())
    Store(building).write_json("record.json", _record(campaign, number, text))
    replace_folder(building, target)


def _copy(source: Path, target: Path) -> None:
    """File by file: `shutil.copytree` collects its errors and hides which of them was a full disk."""
    files = [p for p in sorted(source.rglob("*")) if p.is_file()] if source.is_dir() else [source]
    for file in files:
        if file.exists():
            place = target / file.relative_to(source) if file != source else target
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _record(campaign: Campaign, number: int, text: str) -> dict[str, Any]:
    metrics = campaign.store.read_json("data/evaluation/metrics.json")
    return {
        "campaign": campaign.id,
        "name": campaign.params.campaign.name,
        "iteration": number,
        "params": dict(_flatten(parse(text).model_dump())),
        "metrics": {**_numbers(metrics), **_per_class(campaign)},
        "tags": {
            "git.commit": repository.head(campaign.root),
            "git.tag": repository.tag_name(number),
            **{f"dvc.{path}": digest for path, digest in data_hashes(campaign.root).items()},
        },
        "champion": metrics["champion"] == number,
    }


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flatten(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(inner) if isinstance(inner, dict | list | tuple) else str(inner)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}


def _per_class(campaign: Campaign) -> dict[str, float]:
    from tasks.tables import PER_CLASS

    rows = campaign.store.read_table(PER_CLASS).to_pylist()
    return {f"recall.{row['label']}": row["recall"] for row in rows if math.isfinite(row["recall"])}


def waiting(store: Store) -> list[Path]:
    """Iterations that the tracker has not shown yet, oldest first."""
    return sorted(store.path(FOLDER).glob("iter-*"))


def flush(campaign: Campaign, tracker: Tracker | None = None) -> list[str]:
    """Show all that waits; returns what went wrong (the queue keeps it for the next time)."""
    queued = waiting(campaign.store)
    if not queued:
        return []
    try:
        tracker = tracker or connect(campaign.root, campaign.params.track.tool)
        for folder in queued:
            tracker.log(read_record(folder))
            remove_folder(folder)
    except GleanerError as error:
        return [f"the tracker is not reachable, {len(waiting(campaign.store))} iterations wait for it: {error}"]
    return []


def connect(root: Path, tool: str) -> Tracker:
    """Connect to the tracker that params.yaml names; by default its files are in the workspace."""
    tracker: Tracker = plugins.find("trackers", tool).connect(root.resolve())
    return tracker


def read_record(folder: Path) -> IterationRecord:
    """One queued iteration."""
    value = Store(folder).read_json("record.json")
    files = folder / "files"
    model = files / Path(MODEL).name
    artifacts = tuple(sorted(path for path in files.iterdir() if path != model))
    return IterationRecord(**value, artifacts=artifacts, model=model if model.exists() else None)
