"""What orchestration costs an iteration, beside the bare computation of the same iteration: `make bench`.

    python -m benchmarks.overhead --iterations 6

One process runs a campaign on digits through Prefect, DVC, Great Expectations and MLflow, and the same stages once more
in process on the same inputs. The first two iterations start servers and fill caches; they are shown, not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from flows import settings
from monitoring import run as monitor
from tasks import embed, evaluate, report, score, select, train
from tasks.ingest import ingest
from tasks.params import load
from tasks.stage import call, limit_threads
from tasks.store import Store
from tasks.workspace import init

TEMPLATE = Path(__file__).resolve().parent.parent
STAGES = {
    "embed": embed,
    "train": train,
    "score": score,
    "select": select,
    "evaluate": evaluate,
    "monitor": monitor,
    "report": report,
}
COLD = 2
IDLE_TICKS = 5


@dataclass
class Clock:
    """Wall seconds between the announcements of a flow's steps."""

    step: str = "look for work, start the flow"
    begun: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[self.step] = self.seconds.get(self.step, 0.0) + now - self.begun
        self.step, self.begun = step, now


def main() -> None:
    """Measure and print; the numbers are kept in benchmarks/results/overhead.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=6)
    iterations = parser.parse_args().iterations
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as folder:
        root = Path(folder) / "workspace"
        init(TEMPLATE, root, "bench")
        ingest(root, None)
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.environ["PYTHONPATH"] = str(root)
        clocks = [_orchestrated(root) for _ in range(iterations)]
        bare = _bare(root)
        idle = _idle(root)
    _show(clocks, bare, idle)


def _orchestrated(root: Path) -> dict[str, float]:
    clock = Clock()
    settings.prepare(root)
    from flows.iterate import ON_STEP, tick
    from flows.run import look

    settings.quiet_console()
    look(root)
    token = ON_STEP.set(clock)
    tick(str(root))
    ON_STEP.reset(token)
    clock("end")
    seconds = dict(clock.seconds)
    seconds["total"] = sum(seconds.values())
    return seconds


def _bare(root: Path) -> dict[str, float]:
    """The stages of the last iteration in this process, everything imported."""
    store, params = Store(root), load(root / "params.yaml")
    limit_threads(params.compute.threads)
    for _ in range(2):  # the first round imports
        seconds = {}
        for name, module in STAGES.items():
            begun = time.perf_counter()
            call(module.run, store, params)
            seconds[name] = time.perf_counter() - begun
    return {**seconds, "total": sum(seconds.values())}


def _idle(root: Path) -> list[float]:
    """`gleaner tick` with nothing due, as a cron job starts it."""
    gleaner = [str(Path(sys.executable).parent / "gleaner")]
    subprocess.run(
        [*gleaner, "stop", "--because", "benchmark", "--workspace", str(root)], check=True, capture_output=True
    )
    seconds = []
    for _ in range(IDLE_TICKS):
        begun = time.perf_counter()
        subprocess.run([*gleaner, "tick", "--workspace", str(root)], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begun)
    return seconds


def _show(clocks: list[dict[str, float]], bare: dict[str, float], idle: list[float]) -> None:
    warm = clocks[COLD:] or clocks
    rows = {step: statistics.median(clock.get(step, 0.0) for clock in warm) for step in warm[0]}
    print(f"{'step':<32}{'orchestrated s':>15}{'bare s':>10}")
    for step, seconds in rows.items():
        alone = f"{bare[step]:.2f}" if step in bare else "-"
        print(f"{step:<32}{seconds:>15.2f}{alone:>10}")
    cold = ", ".join(f"{clock['total']:.1f} s" for clock in clocks[:COLD])
    print(f"first {COLD} iterations: {cold}; warm ones: median of {len(warm)}")
    print(
        f"a tick with nothing due: {statistics.median(idle):.2f} s (median of {len(idle)}, {min(idle):.2f} to {max(idle):.2f})"
    )
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "overhead.json").write_text(
        json.dumps({"warm": rows, "all": clocks, "bare": bare, "idle": idle}, indent=2)
    )


if __name__ == "__main__":
    main()
