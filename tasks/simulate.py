"""Compare strategies in process: the same stages, an oracle, neither DVC nor Prefect; many seeds in parallel.

    simulate(Store(Path("demo")), params, [Contender("uniform"), Contender("margin")], seeds=range(5), labels=300, workers=2)
    ->  one row a strategy, seed and iteration: training labels, accuracy on the holdout, which items were right

Needs known labels for the items it asks about, and measures on the reserved holdout. Each run has a folder of its
own with the pool's features linked in, so that it goes through the very `run` functions that DVC calls. Answers come
from the oracle with the habits that params.yaml gives it (its delays left out), by the campaign's own keys: the same
question gets the same answer, right or wrong.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import embed, evaluate, inputs, pool, score, select, train
from tasks.campaign import IDENTITY
from tasks.curves import with_holdout
from tasks.errors import BadInput
from tasks.labeling.oracle import Habits
from tasks.ledger import task_key
from tasks.lock import campaign_lock
from tasks.measures import Truth, of_iteration
from tasks.params_sections import Options, Params
from tasks.stage import call, limit_threads
from tasks.store import Store
from tasks.tables import ASKED, FROZEN_MANIFEST, HISTORY, KNOWN_LABELS, LABELS, PREDICTIONS, SELECTION

SCHEMA = pa.schema(
    {
        "strategy": pa.string(),
        "seed": pa.int64(),
        "labels": pa.int64(),  # training labels
        "accuracy": pa.float64(),
        "correct": pa.list_(pa.float64()),
    }
)


@dataclass(frozen=True)
class Contender:
    """A strategy to compare."""

    strategy: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run: a contender with a seed."""

    root: Path
    params: Params
    contender: Contender
    seed: int
    labels: int  # training labels to spend


@dataclass(frozen=True)
class Run:
    """What a job measured, in the order of `truth.item_ids`."""

    truth: Truth
    rows: list[dict[str, Any]]


def simulate(
    store: Store,
    params: Params,
    contenders: Sequence[Contender],
    seeds: Iterable[int],
    labels: int,
    workers: int,
    on_done: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Run every contender with every seed. `on_done(done, total)` after each run.

    Columns: strategy, seed, labels, accuracy and `correct`, a number an item of `tasks.curves.read_holdout`.
    Raises BadInput where nothing can be measured.
    """
    _require_measurable(store, params)
    with campaign_lock(store.root, "simulate"):  # a tick may be writing features too
        call(embed.run, store, params)
    jobs = [Job(store.root.resolve(), params, contender, seed, labels) for seed in seeds for contender in contenders]
    runs: list[Run] = []
    report = on_done or (lambda done, total: None)
    with _processes(max(1, min(workers, len(jobs)))) as executor:
        report(0, len(jobs))
        for future in as_completed([executor.submit(run_job, job) for job in jobs]):
            runs.append(future.result())
            report(len(runs), len(jobs))
    return _results(runs)


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Workers that leave Ctrl-C to this process and end with it at once."""
    ignore = (signal.SIGINT, signal.SIG_IGN)
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=signal.signal, initargs=ignore)
    try:
        yield executor
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _results(runs: list[Run]) -> pa.Table:
    """All runs on the holdout items that all of them know the label of."""
    items = sorted(set.intersection(*[set(run.truth.item_ids) for run in runs]))
    if not items:
        raise BadInput("no holdout item has a label that all runs know: nothing can be measured. See holdout.labels.")
    groups = dict(zip(runs[0].truth.item_ids, runs[0].truth.groups.tolist(), strict=True))
    rows = []
    for run in runs:
        at = [run.truth.item_ids.index(item) for item in items]
        for row in run.rows:
            correct = row["correct"][at]
            rows.append({**row, "accuracy": float(correct.mean()), "correct": correct.tolist()})
    rows.sort(key=lambda row: (row["strategy"], row["seed"], row["labels"]))
    return with_holdout(pa.Table.from_pylist(rows, schema=SCHEMA), items, [groups[item] for item in items])


def _require_measurable(store: Store, params: Params) -> None:
    if not store.exists(KNOWN_LABELS) or not store.read_table(KNOWN_LABELS).num_rows:
        raise BadInput(
            f"{store.root}: a simulation needs images with known labels. `gleaner ingest` a source that has them."
        )
    if not params.holdout.labels:
        raise BadInput("params.yaml: holdout.labels: a comparison is measured on holdout labels; set it above 0.")


def run_job(job: Job) -> Run:
    """One contender with one seed, from the first batch to the last label."""
    limit_threads(job.params.compute.threads)
    with tempfile.TemporaryDirectory(prefix="gleaner-") as folder:
        store = Store(Path(folder))
        store.path("data").mkdir()
        store.path("data/features").symlink_to(job.root / "data/features")
        spent = _campaign(store, job)
        return _measured(store, job, spent)


def _campaign(store: Store, job: Job) -> dict[int, int]:
    """Ask, answer, train until the labels are spent. Iteration -> training labels of its model."""
    home = Store(job.root)
    params, campaign = _params(job), home.read_json(IDENTITY)["id"]
    info = pool.read_info(home)
    assert info is not None
    manifest = pool.read_manifest(home)
    classes = params.labeling.classes or info.classes
    answer = annotator(home, params, classes)
    asked: list[dict[str, Any]] = []
    spent: dict[int, int] = {}
    while True:
        number = len(spent)
        seed = int(np.random.SeedSequence([params.campaign.seed, number]).generate_state(1)[0])
        spent[number] = sum(row["arm"] != "holdout" and row["state"] == "labeled" for row in asked)
        iteration = inputs.Iteration(campaign, number, seed, classes, info.shape, len(asked), None)
        inputs.freeze(store, iteration, _tables(manifest, asked, classes))
        for stage in (train, score, select, evaluate):
            call(stage.run, store, params)
        batch = store.read_table(SELECTION).to_pylist()
        if spent[number] >= job.labels or not batch:
            return spent
        asked += [{**row, "iteration": number, **answer(task_key(campaign, number, row["item_id"]))} for row in batch]


def annotator(home: Store, params: Params, classes: tuple[str, ...]) -> Callable[[str], dict[str, str]]:
    """Key -> state and label. The oracle as params.yaml has it, a faultless one beside any other tool."""
    habits = Habits(**params.labeling.options) if params.labeling.tool == "oracle" else Habits()
    known = dict(zip(*(home.read_table(KNOWN_LABELS)[c].to_pylist() for c in ("item_id", "label")), strict=True))

    def answer(key: str) -> dict[str, str]:
        said = habits.answer(key, known.get(key.rpartition(":")[2]), classes)
        if said is None or said["label"] not in ("", *classes):  # a class nobody named is no answer
            return {"state": "pending", "label": ""}
        return {"state": "labeled" if said["kind"] == "label" else "skipped", "label": said["label"]}

    return answer


def _measured(store: Store, job: Job, spent: dict[int, int]) -> Run:
    """Every iteration's model on all holdout labels that the run ended with."""
    truth, predictions = evaluate.holdout_truth(store), store.read_table(PREDICTIONS)
    classes = len(inputs.read_iteration(store).classes)
    rows = []
    for number, labels in spent.items():
        if labels:
            correct = of_iteration(predictions, number, truth, classes).correct
            rows.append({"strategy": job.contender.strategy, "seed": job.seed, "labels": labels, "correct": correct})
    return Run(truth, rows)


def _params(job: Job) -> Params:
    """The campaign's params with the contender's strategy; `uniform` is random from its first batch."""
    cold = "uniform" if job.contender.strategy == "uniform" else job.params.select.cold_start
    chosen = {"strategy": job.contender.strategy, "options": job.contender.options, "cold_start": cold, "control": 0.0}
    return job.params.model_copy(
        update={
            "campaign": job.params.campaign.model_copy(update={"seed": job.seed}),
            "select": job.params.select.model_copy(update=chosen),
        }
    )


def _tables(manifest: pa.Table, asked: list[dict[str, Any]], classes: tuple[str, ...]) -> dict[Any, pa.Table]:
    labels = [
        {
            "item_id": row["item_id"],
            "label": row["label"],
            "class_index": classes.index(row["label"]),
            "arm": row["arm"],
            "asked_in": row["iteration"],
            "event": event,
        }
        for event, row in enumerate(asked, start=1)
        if row["state"] == "labeled"
    ]
    states = [{name: row[name] for name in ASKED.schema.names} for row in asked]
    return {
        FROZEN_MANIFEST: manifest,
        LABELS: pa.Table.from_pylist(labels, schema=LABELS.schema),
        ASKED: pa.Table.from_pylist(states, schema=ASKED.schema),
        HISTORY: HISTORY.schema.empty_table(),
    }
