"""An undisturbed iteration, and whether a disturbed one came to the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.children import run_in_child
from tests.quick import broken, state, tick


@dataclass(frozen=True)
class Calm:
    """A campaign whose iterations 0 and 1 are closed, and what an undisturbed tick makes of it."""

    before: Path
    state: dict[str, Any]
    points: list[str]


def assert_converged(root: Path, calm: Calm) -> None:
    """The state is that of the undisturbed run, and no invariant is broken."""
    found = state(root)
    for part, expected in calm.state.items():
        assert found[part] == expected, f"{part} differs"
    assert broken(root) == []


def kill_after(root: Path, calm: Calm, point: str) -> None:
    """Tick and die right after a checkpoint."""
    assert run_in_child(tick, root, kill_at=calm.points.index(point) + 1).killed
