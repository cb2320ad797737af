"""Killed with SIGKILL at every effect of an iteration, and during recovery: the next ticks converge to the same state."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.quick import broken, copy, image_folder, make_workspace, run_child, state

SLICES = 6
POINTS_AT_LEAST = 30  # an iteration has more effects than this; fewer means that checkpoints were lost
PAIRS = 8


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A campaign after iteration 0, and what an undisturbed iteration 1 makes of it."""
    folder = tmp_path_factory.mktemp("crash")
    before = make_workspace(folder / "before", image_folder(folder / "images"))
    run_child(before, 1)
    after = copy(before, folder / "after")
    _, points = run_child(after, 2)
    assert broken(after) == []
    return {"folder": folder, "before": before, "points": points, "state": state(after)}


def test_every_kind_of_effect_has_a_checkpoint(calm: dict[str, Any]) -> None:
    assert len(calm["points"]) >= POINTS_AT_LEAST
    kinds = {point.split(":")[0] for point in calm["points"]}
    assert {"import", "open", "stage", "stages", "export", "oracle", "close"} <= kinds


@pytest.mark.parametrize("part", range(SLICES))
def test_a_kill_at_any_effect_changes_nothing_in_the_end(calm: dict[str, Any], part: int, tmp_path: Path) -> None:
    for point in range(1 + part, len(calm["points"]) + 1, SLICES):
        root = copy(calm["before"], tmp_path / f"at-{point}")
        killed, _ = run_child(root, 2, kill_at=point)
        assert killed, f"checkpoint {point} was not reached"
        run_child(root, 2)
        _assert_converged(root, calm, calm["points"][point - 1])


@pytest.mark.parametrize("seed", range(PAIRS))
def test_a_second_kill_during_recovery_changes_nothing_either(calm: dict[str, Any], seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    first, second = rng.randint(1, len(calm["points"])), rng.randint(1, 12)
    root = copy(calm["before"], tmp_path / "twice")
    assert run_child(root, 2, kill_at=first)[0]
    run_child(root, 2, kill_at=second)
    run_child(root, 2)
    _assert_converged(root, calm, f"{first} then {second}")


def _assert_converged(root: Path, calm: dict[str, Any], where: str) -> None:
    found = state(root)
    for part, expected in calm["state"].items():
        assert found[part] == expected, f"killed at {where}: {part} differs"
    assert broken(root) == [], where
