"""`gleaner simulate`: strategies side by side, with a progress bar, a table and a plot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tasks import plugins
from tasks.params import load
from tasks.simulate import Arm, labels_needed, mean_curve, simulate
from tasks.store import Store, replacing

FOLDER = ".gleaner/simulations"


@dataclass(frozen=True)
class Comparison:
    """Strategies on the same images, head and holdout."""

    strategies: tuple[str, ...]
    labels: int
    seeds: int
    final: dict[str, float]  # mean accuracy at the end
    random_needs: dict[str, str]  # labels that uniform needs for a strategy's final accuracy, in words
    results: Path
    plot: Path

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "strategies": list(self.strategies), "labels": self.labels, "seeds": self.seeds, "final_accuracy": self.final,
            "uniform_needs": self.random_needs, "results": str(self.results), "plot": str(self.plot),
        }  # fmt: skip

    def text(self) -> str:
        """A table for people."""
        lines = [
            f"{self.seeds} seeds, up to {self.labels} training labels each; mean accuracy on the holdout at the end:"
        ]
        for name in self.strategies:
            needs = f"   uniform needs {self.random_needs[name]} for that" if name in self.random_needs else ""
            lines.append(f"  {name:<18} {self.final[name]:.1%}{needs}")
        return "\n".join([*lines, f"curves: {self.plot}", f"numbers: {self.results}"])


def compare(root: Path, strategies: tuple[str, ...], labels: int, seeds: int) -> Comparison:
    """Run the comparison and write results and plot into the workspace."""
    store = Store(root)
    params = load(store.path("params.yaml"))
    names = tuple(dict.fromkeys(strategies or (params.select.strategy, "uniform")))
    for name in names:
        plugins.require("strategies", name)
    arms = [Arm(name, params.select.options if name == params.select.strategy else {}) for name in names]
    with progress("simulate") as on_done:
        results = simulate(store, params, arms, range(seeds), labels, params.compute.workers, on_done)
    final = {name: mean_curve(results, name)[1][-1] for name in names}
    name = "-".join(names)
    write_results(store.path(f"{FOLDER}/{name}.parquet"), results)
    plot = f"{FOLDER}/{name}.png"
    store.write_bytes(plot, draw(results, names, "strategies on the same images, head and holdout"))
    needs = {n: uniform_needs(results, final[n]) for n in names if n != "uniform" and "uniform" in names}
    return Comparison(names, labels, seeds, final, needs, store.path(f"{FOLDER}/{name}.parquet"), store.path(plot))


def write_results(path: Path, results: pa.Table) -> None:
    """Keep the raw numbers."""
    with replacing(path) as handle:
        pq.write_table(results, handle)


def uniform_needs(results: pa.Table, target: float) -> str:
    """'540 labels (95 % interval 480 to 620)', or that it never got there."""
    reached = labels_needed(results, "uniform", target, np.random.default_rng(0))
    most = max(mean_curve(results, "uniform")[0])
    if reached.labels is None:
        return f"more than {most} labels"
    if reached.low is None or reached.high is None:
        return f"about {reached.labels:.0f} labels ({reached.reached} of {reached.seeds} seeds got there within {most})"
    return f"{reached.labels:.0f} labels (95 % interval {reached.low:.0f} to {reached.high:.0f}, over its {reached.seeds} seeds)"


def draw(results: pa.Table, strategies: tuple[str, ...], title: str) -> bytes:
    """Mean learning curves with the range of the seeds."""
    from tasks.plots import compare_curves

    return compare_curves([curve(results, name) for name in strategies], title)


def curve(results: pa.Table, strategy: str) -> Any:
    """One strategy's mean curve with its lowest and highest seed."""
    from tasks.plots import Curve

    labels, mean = mean_curve(results, strategy)
    by_count: dict[int, list[float]] = {count: [] for count in labels}
    for row in results.to_pylist():
        if row["strategy"] == strategy and row["labels"] in by_count:
            by_count[row["labels"]].append(row["accuracy"])
    low, high = ([f(by_count[count]) for count in labels] for f in (min, max))
    return Curve(strategy, np.array(labels), np.array(mean), np.array(low), np.array(high))


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """A bar of finished runs."""
    columns = (TextColumn("{task.description:<20}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
