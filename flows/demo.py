"""`make run`: a whole campaign on real images, a random arm beside it, and one table that says what it brought."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flows.run import Idle, run_ticks
from flows.screen import accuracy, show_table, spent
from flows.simulation import curve, progress, uniform_needs, write_results
from tasks import workspace
from tasks.campaign import IDENTITY
from tasks.counts import summary
from tasks.errors import BadInput
from tasks.ingest import take_in
from tasks.params import load
from tasks.pool import read_info
from tasks.simulate import Arm, simulate
from tasks.status import status
from tasks.store import Store
from tasks.tables import CURVE

ITERATIONS = 10
SEEDS = 5
RANDOM = ".gleaner/demo/random_arm.parquet"
PLOT = ".gleaner/demo/learning_curve.png"


def run_demo(target: Path) -> None:
    """Make the workspace if it is not there, run its campaign to the end, and print the closing table."""
    store = Store(target)
    if not store.exists(IDENTITY):
        template = Path(os.environ.get("GLEANER_TEMPLATE", Path(__file__).parent.parent))
        print(f"campaign {workspace.init(template, target)} in {target}")
    if read_info(store) is None:
        print(summary(take_in(target, None)))
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
    results = _random_arm(store, params, trained)
    learning = store.read_table(CURVE)
    _plot(store, learning, results)
    used = learning["labels"].to_pylist()[-1]
    needs = uniform_needs(results, state["accuracy"])
    show_table(f"Gleaner: campaign {state['campaign']}", _rows(store, state, used, needs))


def _random_arm(store: Store, params: Any, labels: int) -> Any:
    """Random sampling with the same head on the same holdout, up to four times the campaign's labels."""
    import pyarrow.parquet as pq

    path = store.path(RANDOM)
    if path.exists():
        return pq.read_table(path)
    quick = params.model_copy(update={"select": params.select.model_copy(update={"batch": 2 * params.select.batch})})
    with progress("random arm") as on_done:
        results = simulate(store, quick, [Arm("uniform")], range(SEEDS), 4 * labels, params.compute.workers, on_done)
    write_results(path, results)
    return results


def _plot(store: Store, learning: Any, results: Any) -> None:
    from tasks.plots import Curve, compare_curves

    columns = [learning[name].to_numpy() for name in ("labels", "accuracy", "low", "high")]
    curves = [Curve("this campaign (interval of the holdout)", *columns), curve(results, "uniform")]
    store.write_bytes(PLOT, compare_curves(curves, "what the labels brought: this campaign and random sampling"))


def _rows(store: Store, state: dict[str, Any], used: int, needs: str) -> list[tuple[str, str]]:
    return [
        ("labels spent", spent(state["labeled"], state["budget"])),
        ("accuracy", accuracy(state)),
        ("training labels used", f"{used} (seed, active and control)"),
        ("random sampling", f"needs {needs} for the same accuracy"),
        ("where it stands", state["next"]),
        (
            "look at",
            f"{store.path(PLOT)}\n{store.path('data/report/batch.png')}\n{store.path('data/report/report.md')}",
        ),
        ("open", f"gleaner ui --workspace {store.root}   (MLflow and Prefect in the browser)"),
        ("prove it", f"gleaner verify --deep --workspace {store.root}"),
    ]
