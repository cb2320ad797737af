"""`make run`: a whole campaign on real images, a random arm beside it, and one table that says what it brought."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.run import Idle, run_ticks
from flows.screen import accuracy, asked, show_table, spent
from flows.simulation import curve, progress, uniform_needs, write_results
from tasks import workspace
from tasks.campaign import IDENTITY
from tasks.counts import summary
from tasks.curves import read_holdout
from tasks.errors import BadInput
from tasks.evaluate import holdout_truth
from tasks.features import pool_shard
from tasks.ingest import ingest
from tasks.inputs import read_iteration
from tasks.measures import of_iteration
from tasks.params import load
from tasks.plots import Curve, Tile, compare_curves, contact_sheet
from tasks.pool import read_info, read_manifest
from tasks.simulate import Contender, simulate
from tasks.stage import guarded
from tasks.status import status
from tasks.store import Store
from tasks.tables import ASKED, CURVE, LABELS, PREDICTIONS

ITERATIONS = 11  # ten that ask, and one that trains on the last answers and finds the budget spent
SEEDS = 5
RANDOM = ".gleaner/demo/random_arm.parquet"
PLOT = ".gleaner/demo/learning_curve.png"
SHEET = ".gleaner/demo/selected.png"
SHOWN = 100  # images of the contact sheet


def start_demo(template: Path, target: Path) -> None:
    """Make the workspace if it is not there, and go on as that workspace's own code. Does not return."""
    if not Store(target).exists(IDENTITY):
        print(f"campaign {workspace.init(template, target)} in {target}", flush=True)
    os.chdir(target)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    os.execve(sys.executable, [sys.executable, "-m", "flows.demo"], environment)  # noqa: S606


def run_demo(target: Path) -> None:
    """Run the workspace's campaign to the end and print the closing table; again, it only prints."""
    store = Store(target)
    if read_info(store) is None:
        print(summary(ingest(target, None)))
    closed = store.read_json("data/artefacts.json")["iteration"] + 1 if store.exists("data/artefacts.json") else 0
    if closed < ITERATIONS:
        last = run_ticks(target, ITERATIONS - closed)[-1]
        if isinstance(last, Idle):
            print(f"{last.why}.")
    _close(store)


def _close(store: Store) -> None:
    params, state = load(store.path("params.yaml")), status(store.root)
    if state.get("accuracy") is None:
        raise BadInput(
            f"{store.root}: no accuracy was measured; the demo needs a source with known labels and a holdout."
        )
    trained = sum(state["labeled"][arm] for arm in ("seed", "active", "control"))
    correct = _correct(store)
    results = _random_arm(store, params, trained, len(correct))
    learning = store.read_table(CURVE)
    _plot(store, learning, results)
    store.write_bytes(SHEET, _sheet(store))
    used = learning["labels"].to_pylist()[-1]
    items, _ = read_holdout(results)
    needs = uniform_needs(results, np.array([[correct.get(item, np.nan) for item in items]]))
    show_table(f"Gleaner: campaign {state['campaign']}", _rows(store, state, used, needs))


def _correct(store: Store) -> dict[str, float]:
    """Labeled holdout item -> whether the campaign's last model is right about it."""
    iteration = read_iteration(store)
    said = of_iteration(store.read_table(PREDICTIONS), iteration.number, holdout_truth(store), len(iteration.classes))
    return dict(zip(said.truth.item_ids, said.correct.tolist(), strict=True))


def _random_arm(store: Store, params: Any, labels: int, holdout: int) -> pa.Table:
    """Random sampling: same head, same annotator, same holdout labels, up to four times the campaign's labels."""
    path = store.path(RANDOM)
    if path.exists() and len(read_holdout(before := pq.read_table(path))[0]) == holdout:
        return before
    cheaper = {
        "select": params.select.model_copy(update={"batch": 2 * params.select.batch}),  # random sets nest: only coarser
        "train": params.train.model_copy(update={"folds": 0}),  # the temperature moves no prediction
        "holdout": params.holdout.model_copy(update={"labels": holdout}),  # the first by hash: the campaign's own
    }
    quick = params.model_copy(update=cheaper)
    with progress("random arm") as on_done:
        results = simulate(
            store, quick, [Contender("uniform")], range(SEEDS), 4 * labels, params.compute.workers, on_done
        )
    write_results(path, results)
    return results


def _plot(store: Store, learning: Any, results: Any) -> None:
    trained = learning.filter(pc.greater(learning["labels"], 0))
    columns = [trained[name].to_numpy() for name in ("labels", "accuracy", "low", "high")]
    random = curve(results, "uniform", f"random sampling (mean and range of {SEEDS} seeds)")
    curves = [Curve("this campaign (interval of the holdout)", *columns), random]
    store.write_bytes(PLOT, compare_curves(curves, "what the labels brought: this campaign and random sampling"))


def _sheet(store: Store) -> bytes:
    """What was asked for training, in order; the number is the iteration, below it stands the answer."""
    rows = [row for row in store.read_table(ASKED).to_pylist() if row["arm"] in ("seed", "active")][:SHOWN]
    manifest = read_manifest(store).select(["item_id", "shard", "row"]).to_pylist()
    place = {row["item_id"]: (pool_shard(row["shard"]), row["row"]) for row in manifest}
    answers = dict(zip(*store.read_table(LABELS, ["item_id", "label"]).to_pydict().values(), strict=True))
    tiles = []
    for row in rows:
        shard, position = place[row["item_id"]]
        image = store.read_array(shard)[position]
        tiles.append(Tile(image, row["iteration"], row["arm"], answers.get(row["item_id"], "no answer")))
    return contact_sheet(tiles, f"the first {len(tiles)} images asked about (# iteration, answer below)")


def _rows(store: Store, state: dict[str, Any], used: int, needs: str) -> list[tuple[str, str]]:
    gleaner = _short(Path(sys.executable).parent / "gleaner")
    return [
        ("labels spent", spent(state["labeled"])),
        ("asked", asked(state)),
        ("accuracy", accuracy(state)),
        ("training labels used", f"{used} (seed, active and control)"),
        ("random sampling", f"needs {needs} for that accuracy"),
        ("where it stands", state["next"]),
        (
            "look at",
            "\n".join(_short(store.path(name)) for name in (PLOT, SHEET, "data/report/report.md")),
        ),
        ("open", f"{gleaner} ui --workspace {_short(store.root)}   (MLflow and Prefect in the browser)"),
        ("prove it", f"{gleaner} verify --deep --workspace {_short(store.root)}"),
    ]


def _short(path: Path) -> str:
    """A path as the user who typed `make run` would write it."""
    started = os.environ.get("GLEANER_STARTED_IN", ".")
    return min(str(path), os.path.relpath(path, started), key=len)


if __name__ == "__main__":
    sys.exit(guarded(lambda: run_demo(Path.cwd())))
