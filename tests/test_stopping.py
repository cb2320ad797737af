"""tasks/stopping.py: each rule, its switch, and numbers that are missing or impossible."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tasks.params_sections import Stop
from tasks.stopping import decide

NAN = math.nan


def row(accuracy: float, low: float) -> dict[str, float]:
    return {"accuracy": accuracy, "low": low}


def stop(**values: Any) -> Stop:
    return Stop(**{"target": 0.0, **values})


def reason(rules: Stop, history: list[dict[str, float]], spent: int, candidates_left: int) -> str:
    """The reason to stop, "" to go on."""
    return decide(rules, history, spent, candidates_left) or ""


def test_all_rules_off_goes_on_for_ever() -> None:
    assert decide(stop(), [row(1.0, 1.0)] * 50, spent=10**6, candidates_left=1) is None


@pytest.mark.parametrize("spent,ends", [(499, False), (500, True), (501, True)])
def test_budget(spent: int, ends: bool) -> None:
    assert (decide(stop(labels=500), [], spent, 10) is not None) == ends
    assert not ends or "stop.labels 500" in reason(stop(labels=500), [], spent, 10)


def test_the_target_needs_the_lower_bound() -> None:
    assert decide(stop(target=0.95), [row(0.97, 0.94)], 10, 10) is None
    assert "0.951" in reason(stop(target=0.95), [row(0.97, 0.951)], 10, 10)


def test_only_the_newest_measurement_counts_for_the_target() -> None:
    assert decide(stop(target=0.95), [row(0.99, 0.96), row(0.9, 0.85)], 10, 10) is None


def test_small_gain_over_patience_iterations_stops() -> None:
    flat = [row(0.9, 0.8)] * 4
    assert decide(stop(min_gain=0.01, patience=3), flat[:3], 10, 10) is None
    assert "stop.min_gain 0.01" in reason(stop(min_gain=0.01, patience=3), flat, 10, 10)


def test_a_gain_inside_the_window_goes_on() -> None:
    history = [row(0.90, 0.8), row(0.93, 0.8), row(0.91, 0.8), row(0.91, 0.8)]
    assert decide(stop(min_gain=0.01, patience=3), history, 10, 10) is None


@pytest.mark.parametrize("rules", [{"target": 0.1}, {"min_gain": 0.5, "patience": 2}])
def test_what_was_not_measured_never_stops(rules: dict[str, float]) -> None:
    assert decide(stop(**rules), [row(NAN, NAN)] * 9, 10, 10) is None


def test_iterations_without_a_measurement_do_not_use_up_patience() -> None:
    history = [row(0.9, 0.8), row(NAN, NAN), row(NAN, NAN), row(0.9, 0.8)]
    assert decide(stop(min_gain=0.01, patience=2), history, 10, 10) is None


@pytest.mark.parametrize("bad", [row(0.9, NAN), row(math.inf, 0.9), row(0.9, 0.95), row(1.2, 0.9)])
def test_impossible_numbers_are_refused_aloud(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="history"):
        decide(stop(), [bad], 10, 10)


def test_an_empty_pool_ends_the_campaign() -> None:
    assert "pool exhausted" in reason(stop(), [], 10, 0)
