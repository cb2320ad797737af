"""What the checks look at (Evidence) and what they say (Finding). Arrays in, sentences out; no files here.

Everything per item is an array in the order of the frozen manifest, so a check needs no joins:

    candidates = ~evidence.holdout & ~evidence.labeled & (evidence.asked_in < 0)     # (N,) bool
    evidence.scores.utility[candidates]                                              # (n,) float64

A check is a pure function and passes only when it is provably fine: whatever it cannot show is a failure, and
what cannot exist yet (no iteration before, no model) is "not_applicable" with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Severity = Literal["block", "warn", "off"]
Outcome = Literal["pass", "fail", "not_applicable"]


@dataclass(frozen=True)
class Batch:
    """The items that would be asked about, in rank order."""

    item_ids: tuple[str, ...]  # k of them
    positions: Array  # (k,) int64 rows of the manifest, -1 where the item is not in it
    arms: tuple[str, ...]  # k of seed | active | control | holdout


@dataclass(frozen=True)
class Scores:
    """What a model says of each item of the manifest."""

    utility: Array  # (N,) float64, NaN where the table has no row
    predicted: Array  # (N,) int64 class index; -1 where there are no valid probabilities
    confidence: Array  # (N,) float64 probability of that class, NaN where there is none


@dataclass(frozen=True)
class Model:
    """Which head scored, and on how much it was trained."""

    sha256: str  # of its weights
    labels: int  # training labels; 0: there was no model
    strategy: str  # the acquisition function its utilities are of


@dataclass(frozen=True)
class Curve:
    """Accuracy of each iteration's model on the same, current holdout labels."""

    iterations: Array  # (T,) int64, increasing
    labels: Array  # (T,) int64 training labels
    accuracy: Array  # (T,) float64, NaN where it was not measured
    low: Array  # (T,) float64 interval
    high: Array  # (T,) float64
    correct: Array  # (T, H) float64: 1 right, 0 wrong, NaN unknown, on H labeled holdout items
    groups: Array  # (H,) int64 group of each of them


@dataclass(frozen=True)
class Evidence:
    """All that the checks may look at. N items of the manifest, C classes."""

    iteration: int
    remaining: int | None  # labels the budget still allows, None without a budget
    groups: Array  # (N,) int64 group number
    holdout: Array  # (N,) bool: reserved for measuring
    labeled: Array  # (N,) bool: has a label, training or holdout
    trained: Array  # (N,) bool: has a label that the model may learn from
    trained_classes: int  # different classes among them
    representative: Array  # (N,) bool: trained, and not chosen for its utility (arms seed and control)
    asked_in: Array  # (N,) int64 iteration that asked about it, -1 never
    wrong: Array  # (N,) float64 on labeled holdout items: 1 the model is wrong, 0 right; NaN elsewhere
    batch: Batch
    scores: Scores
    previous: Scores | None  # of the iteration before
    model: Model
    previous_model: Model | None
    by_utility: bool  # the strategy ranks by utility (else it chooses a whole batch)
    curve: Curve

    def candidates(self) -> Array:
        """(N,) bool: what could be asked about and is not reserved."""
        return np.asarray(~self.holdout & ~self.labeled & (self.asked_in < 0))


@dataclass(frozen=True)
class Finding:
    """What a check found, in words and numbers that need no look into the code."""

    check: str
    severity: Severity  # from params.yaml
    outcome: Outcome
    value: float | None  # the number that was judged
    limit: float | str  # what it was judged against
    what: str  # one sentence with the numbers
    why: str  # why it matters
    causes: tuple[str, ...]  # likely ones, the most likely first
    todo: str  # what to do
    evidence: dict[str, Any]  # small and JSON-able, e.g. the first item ids


@dataclass(frozen=True)
class About:
    """What is always the same in one check's findings."""

    check: str
    why: str
    causes: tuple[str, ...]
    todo: str

    def passes(self, what: str, value: float, limit: float | str, **evidence: Any) -> Finding:
        """A finding that all is provably well; a value that is no number is never that."""
        if not math.isfinite(value):
            return self.fails(f"The measured value is not a number. {what}", None, limit, **evidence)
        return self._finding("pass", what, value, limit, evidence)

    def fails(self, what: str, value: float | None, limit: float | str, **evidence: Any) -> Finding:
        """A finding that something is wrong or cannot be shown to be right."""
        return self._finding("fail", what, value, limit, evidence)

    def not_applicable(self, reason: str, **evidence: Any) -> Finding:
        """A finding that there is nothing to judge yet."""
        return self._finding("not_applicable", reason, None, "", evidence)

    def _finding(
        self, outcome: Outcome, what: str, value: float | None, limit: float | str, evidence: dict[str, Any]
    ) -> Finding:
        number = float(value) if value is not None and math.isfinite(value) else None
        return Finding(
            self.check, "warn", outcome, number, limit, what, self.why, self.causes, self.todo, _plain(evidence)
        )


def _plain(value: Any) -> Any:
    """JSON-able: NumPy scalars become Python's, numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def alarming(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that somebody should hear of: failed and not switched off."""
    return tuple(f for f in findings if f.severity != "off" and f.outcome == "fail")


def to_json(iteration: int, findings: Iterable[Finding]) -> dict[str, Any]:
    """The content of data/findings.json."""
    return {"iteration": iteration, "findings": [{**asdict(f), "causes": list(f.causes)} for f in findings]}


def from_json(value: dict[str, Any]) -> tuple[Finding, ...]:
    """The findings of a data/findings.json."""
    return tuple(Finding(**{**row, "causes": tuple(row["causes"])}) for row in value["findings"])
