"""Compare strategies in process: the same stages, an oracle, neither DVC nor Prefect; many seeds in parallel.

    simulate(Store(Path("demo")), params, [Arm("uniform"), Arm("margin")], seeds=range(5), labels=300, workers=2)
    ->  one row a strategy, seed and iteration: training labels, accuracy on the holdout

Needs known labels for the items it asks about, and measures on the reserved holdout. Each run has a folder of its
own with the pool's features linked in, so that it goes through the very `run` functions that DVC calls.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import embed, evaluate, inputs, pool, score, select, train
from tasks.errors import BadInput
from tasks.params import Options, Params
from tasks.stage import call, limit_threads
from tasks.statistics import labels_to_reach
from tasks.store import Store
from tasks.tables import ASKED, FROZEN_MANIFEST, HISTORY, KNOWN_LABELS, LABELS, MANIFEST, SELECTION

METRICS = "data/evaluation/metrics.json"


@dataclass(frozen=True)
class Arm:
    """A strategy to compare."""

    strategy: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run: an arm with a seed."""

    root: Path
    params: Params
    arm: Arm
    seed: int
    labels: int  # training labels to spend


@dataclass(frozen=True)
class Reached:
    """Labels that an arm needed for a target, over its seeds."""

    labels: float | None  # by the mean curve; None when it never got there
    low: float | None
    high: float | None
    reached: int  # seeds that got there
    seeds: int


def simulate(
    store: Store,
    params: Params,
    arms: Sequence[Arm],
    seeds: Iterable[int],
    labels: int,
    workers: int,
    on_done: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Run every arm with every seed. Columns: strategy, seed, labels, accuracy. `on_done(done, total)` after each run."""
    _require_known(store)
    call(embed.run, store, params)
    jobs = [Job(store.root.resolve(), params, arm, seed, labels) for seed in seeds for arm in arms]
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(workers, len(jobs))), mp_context=context) as executor:
        for done, future in enumerate(as_completed([executor.submit(run_job, job) for job in jobs]), start=1):
            rows += future.result()
            if on_done:
                on_done(done, len(jobs))
    return pa.Table.from_pylist(sorted(rows, key=lambda r: (r["strategy"], r["seed"], r["labels"])))


def _require_known(store: Store) -> None:
    if not store.exists(KNOWN_LABELS) or not store.exists(MANIFEST):
        raise BadInput(
            f"{store.root}: a simulation needs images with known labels. `gleaner ingest` a source that has them."
        )


def run_job(job: Job) -> list[dict[str, Any]]:
    """One arm with one seed, from the first batch to the last label."""
    limit_threads(job.params.compute.threads)
    with tempfile.TemporaryDirectory(prefix="gleaner-") as folder:
        store = Store(Path(folder))
        store.path("data").mkdir()
        store.path("data/features").symlink_to(job.root / "data/features")
        return list(_campaign(store, job))


def _campaign(store: Store, job: Job) -> Iterator[dict[str, Any]]:
    home = Store(job.root)
    params = _params(job)
    info = pool.read_info(home)
    assert info is not None
    manifest = pool.read_manifest(home)
    known = dict(zip(*(home.read_table(KNOWN_LABELS)[c].to_pylist() for c in ("item_id", "label")), strict=True))
    classes = params.labeling.classes or info.classes
    asked: list[dict[str, Any]] = []
    number = 0
    while True:
        seed = int(np.random.SeedSequence([params.campaign.seed, number]).generate_state(1)[0])
        spent = sum(row["arm"] != "holdout" for row in asked)
        iteration = inputs.Iteration("simulation", number, seed, classes, info.shape, len(asked), None)
        inputs.freeze(store, iteration, _tables(manifest, asked, known, classes))
        for stage in (train, score, select, evaluate):
            call(stage.run, store, params)
        accuracy = store.read_json(METRICS)["accuracy"]
        if accuracy is not None and spent:
            yield {"strategy": job.arm.strategy, "seed": job.seed, "labels": spent, "accuracy": accuracy}
        batch = [row for row in store.read_table(SELECTION).to_pylist() if row["item_id"] in known]
        if spent >= job.labels or not batch:
            return
        asked += [{**row, "iteration": number} for row in batch]
        number += 1


def _params(job: Job) -> Params:
    """The campaign's params with the arm's strategy: a random arm is random from its first batch."""
    cold = "uniform" if job.arm.strategy == "uniform" else job.params.select.cold_start
    chosen = {"strategy": job.arm.strategy, "options": job.arm.options, "cold_start": cold, "control": 0.0}
    return job.params.model_copy(
        update={
            "campaign": job.params.campaign.model_copy(update={"seed": job.seed}),
            "select": job.params.select.model_copy(update=chosen),
        }
    )


def _tables(
    manifest: pa.Table, asked: list[dict[str, Any]], known: dict[str, str], classes: tuple[str, ...]
) -> dict[Any, pa.Table]:
    labels = [
        {
            "item_id": row["item_id"],
            "label": known[row["item_id"]],
            "class_index": classes.index(known[row["item_id"]]),
            "arm": row["arm"],
            "asked_in": row["iteration"],
            "event": event,
        }
        for event, row in enumerate(asked, start=1)
    ]
    states = [{**{n: row[n] for n in ("item_id", "iteration", "rank", "arm")}, "state": "labeled"} for row in asked]
    return {
        FROZEN_MANIFEST: manifest,
        LABELS: pa.Table.from_pylist(labels, schema=LABELS.schema),
        ASKED: pa.Table.from_pylist(states, schema=ASKED.schema),
        HISTORY: HISTORY.schema.empty_table(),
    }


def mean_curve(results: pa.Table, strategy: str, seeds: Sequence[int] | None = None) -> tuple[list[int], list[float]]:
    """Labels and mean accuracy over seeds (a seed may be named more than once: a bootstrap draw)."""
    curves = _curves(results, strategy)
    drawn = list(curves) if seeds is None else list(seeds)
    labels = sorted(set.intersection(*[set(curves[seed]) for seed in drawn]))
    return labels, [float(np.mean([curves[seed][count] for seed in drawn])) for count in labels]


def _curves(results: pa.Table, strategy: str) -> dict[int, dict[int, float]]:
    curves: dict[int, dict[int, float]] = {}
    for row in results.to_pylist():
        if row["strategy"] == strategy:
            curves.setdefault(row["seed"], {})[row["labels"]] = row["accuracy"]
    return curves


def labels_needed(
    results: pa.Table, strategy: str, target: float, rng: np.random.Generator, resamples: int = 1000
) -> Reached:
    """Labels that a strategy's mean curve needs for `target`, with a 95 % bootstrap interval over seeds."""
    curves = _curves(results, strategy)
    seeds = sorted(curves)
    reached = sum(max(curve.values()) >= target for curve in curves.values())
    value = labels_to_reach(*mean_curve(results, strategy), target)
    draws = [
        labels_to_reach(*mean_curve(results, strategy, rng.choice(seeds, len(seeds)).tolist()), target)
        for _ in range(resamples)
    ]
    known = [draw for draw in draws if draw is not None]
    if value is None or len(known) < resamples:
        return Reached(value, min(known, default=None), None, reached, len(seeds))
    return Reached(value, float(np.quantile(known, 0.025)), float(np.quantile(known, 0.975)), reached, len(seeds))
