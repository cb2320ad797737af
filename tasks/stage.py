"""How `python -m tasks.<task>` runs: sections of params.yaml in, `run(store, …)` called, errors shown.

A stage's `run` names the sections it reads as its arguments and gets no others:

    def run(store: Store, select: Select, campaign: Campaign) -> None: ...
"""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from tasks.errors import GleanerError
from tasks.params import load
from tasks.params_sections import Params
from tasks.store import Store

TICK = "GLEANER_TICK"  # in the environment of all that a tick starts: its `tick_mark`


def sections(run: Callable[..., Any]) -> tuple[str, ...]:
    """The sections of params.yaml that a stage reads: the arguments of its `run` after the store."""
    return tuple(name for name in inspect.signature(run).parameters if name != "store")


def call(run: Callable[..., Any], store: Store, params: Params) -> Any:
    """Run a stage with the sections it declares and no others."""
    return run(store, **{name: getattr(params, name) for name in sections(run)})


def main(run: Callable[..., Any]) -> None:
    """Run a stage in the current folder as a process; exits non-zero with one clear error."""
    die_with_parent()
    sys.meta_path.insert(0, _NoPandas())
    sys.exit(guarded(lambda: _run_here(run)))


class _NoPandas(MetaPathFinder, Loader):
    """Tells pyarrow that pandas is not installed: it would import it with its first array, 0.8 s that no stage needs."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == "pandas" else None

    def create_module(self, spec: ModuleSpec) -> None:
        raise ImportError("stages work without pandas", name=spec.name)

    def exec_module(self, module: Any) -> None:
        raise ImportError("stages work without pandas", name="pandas")


def _run_here(run: Callable[..., Any]) -> None:
    store = Store(Path.cwd())
    params = load(store.path("params.yaml"))
    limit_threads(params.compute.threads)
    call(run, store, params)


def guarded(action: Callable[[], Any]) -> int:
    """Call `action`; print a GleanerError as one message and return its exit code, else 0."""
    try:
        action()
    except GleanerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def limit_threads(threads: int) -> None:
    """Fix the thread count of BLAS, OpenMP and (once imported) torch: it is part of the result's bytes."""
    from threadpoolctl import threadpool_limits

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    threadpool_limits(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def die_with_parent() -> None:
    """Ask Linux to kill this stage when the process that started it dies: no orphan writes over a re-run.

    A tick that died before this was asked is noticed too: everything it starts carries its process id.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
        tick = os.environ.get(TICK)
        if tick is not None and not tick_lives(tick):
            sys.exit("error: the tick that started this stage is gone; the next one runs it again")


def tick_mark(root: Path) -> str:
    """This process as the tick of a workspace: process id, when it began (ids are used again), workspace."""
    return f"{os.getpid()} {_began(os.getpid())} {root.resolve()}"


def tick_lives(mark: str) -> bool:
    """Whether the process of a mark is still there (Linux)."""
    pid, began, _ = mark.split(" ", 2)
    return _began(int(pid)) == began


def _began(pid: int) -> str:
    """When a process began, in clock ticks since the machine did; "" when there is none (or no Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""
