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
from tasks.curves import Runs, labels_needed, read_holdout, read_runs
from tasks.params import load, parse
from tasks.params_sections import Params
from tasks.simulate import Contender, simulate
from tasks.store import Store, replacing
from tasks.workspace import set_value

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
            f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'}, up to {self.labels} training labels each; mean accuracy on the holdout at the end:"
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
    contenders = [_contender(root, name, params) for name in names]
    with progress("simulate") as on_done:
        results = simulate(store, params, contenders, range(seeds), labels, params.compute.workers, on_done)
    runs = {name: read_runs(results, name) for name in names}
    final = {name: float(runs[name].accuracy[:, -1].mean()) for name in names}
    name = "-".join(names)
    write_results(store.path(f"{FOLDER}/{name}.parquet"), results)
    plot = f"{FOLDER}/{name}.png"
    store.write_bytes(plot, draw(results, names, "strategies on the same images, head and holdout"))
    needs = {n: uniform_needs(results, runs[n].correct[:, -1]) for n in names if n != "uniform" and "uniform" in names}
    return Comparison(names, labels, seeds, final, needs, store.path(f"{FOLDER}/{name}.parquet"), store.path(plot))


def _contender(root: Path, name: str, params: Params) -> Contender:
    """A strategy with params.yaml's options if it is the one there. Raises BadInput when it does not fit the network."""
    plugins.require("strategies", name)
    if name == params.select.strategy:
        return Contender(name, params.select.options)
    text = (root / "params.yaml").read_text(encoding="utf-8")
    parse(set_value(set_value(text, "select", "strategy", name), "select", "options", {}))
    return Contender(name)


def write_results(path: Path, results: pa.Table) -> None:
    """Keep the raw numbers."""
    with replacing(path) as handle:
        pq.write_table(results, handle)


def uniform_needs(results: pa.Table, reference: Any) -> str:
    """'540 labels (95 % interval 480 to more than 800)' to answer as well as `reference` (R, N), NaN where unknown."""
    known = np.isfinite(reference).all(axis=0)
    runs, (_, groups) = read_runs(results, "uniform"), read_holdout(results)
    runs = Runs(runs.labels, runs.correct[:, :, known])
    reached = labels_needed(runs, reference[:, known], groups[known], np.random.default_rng(0))
    low, high = (f"more than {reached.most}" if n is None else f"{n:.0f}" for n in (reached.low, reached.high))
    if reached.labels is None:
        return f"more than {reached.most} labels" + (f" (95 % interval from {low})" if reached.low else "")
    return f"{reached.labels:.0f} labels (95 % interval {low} to {high})"


def draw(results: pa.Table, strategies: tuple[str, ...], title: str) -> bytes:
    """Mean learning curves with the range of the seeds."""
    from tasks.plots import compare_curves

    return compare_curves([curve(results, name) for name in strategies], title)


def curve(results: pa.Table, strategy: str, name: str = "") -> Any:
    """One strategy's mean curve with its lowest and highest seed, as `name` in the plot."""
    from tasks.plots import Curve

    runs = read_runs(results, strategy)
    each = runs.accuracy
    return Curve(name or strategy, runs.labels, each.mean(axis=0), each.min(axis=0), each.max(axis=0))


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """A bar of finished runs."""
    columns = (TextColumn("{task.description:<20}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
