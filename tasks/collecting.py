"""Which images of a stream are kept: a random share of all, and a share of those the model is unsure about. Pure.

    rule = Stream(random_share=0.01, band=(0.3, 0.7), band_share=0.2, per_hour=50, ...)
    judge(rule, draws("salt", item_id), Guess("fox", 0.55), used)   ->   Verdict(True, "band", 0.198)

The draws are hashes of the image: offering it again does not change the verdict, and no process keeps a state. The random
share has limits of its own, so that it goes on when the band's are used up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

HOUR, DAY = 3600.0, 86400.0  # seconds
RANDOM, BAND = "random", "band"


class Rules(Protocol):
    """The section `stream` of params.yaml; a limit of 0 is none."""

    @property
    def random_share(self) -> float: ...
    @property
    def random_per_hour(self) -> int: ...
    @property
    def random_per_day(self) -> int: ...
    @property
    def band(self) -> tuple[float, float]: ...
    @property
    def band_share(self) -> float: ...
    @property
    def per_hour(self) -> int: ...
    @property
    def per_day(self) -> int: ...
    @property
    def per_class_per_day(self) -> int: ...
    @property
    def total(self) -> int: ...


@dataclass(frozen=True)
class Guess:
    """The model's top class and its calibrated probability."""

    label: str
    confidence: float


@dataclass(frozen=True)
class Verdict:
    """What becomes of an image."""

    kept: bool
    why: str  # "random" or "band" when kept, else the reason
    inclusion: float = 0.0  # probability that an image like it is kept for this reason, while there is room


@dataclass(frozen=True)
class Limit:
    """At most `most` kept images of a kind in any `seconds` (0: ever)."""

    name: str  # its key in params.yaml
    most: int  # 0: no limit
    why: str  # random | band
    seconds: float = 0.0
    label: str | None = None  # of this predicted class only


def draws(salt: str, item_id: str) -> tuple[float, float]:
    """Two independent numbers in [0, 1), the same for ever."""
    digest = hashlib.sha256(f"collect:{salt}:{item_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2.0**56, int.from_bytes(digest[8:15], "big") / 2.0**56


def wanted(rules: Rules, drawn: tuple[float, float], guess: Guess | None) -> Verdict:
    """Whether an image would be kept if there is room."""
    if drawn[0] < rules.random_share:
        return Verdict(True, RANDOM, rules.random_share)
    if guess is None:
        return Verdict(False, "not in the random share, and there is no prediction")
    low, high = rules.band
    if not low <= guess.confidence <= high:
        return Verdict(False, f"confidence {guess.confidence:.2f} is outside the band")
    if drawn[1] >= rules.band_share:
        return Verdict(False, "not in the band's share")
    return Verdict(True, BAND, (1.0 - rules.random_share) * rules.band_share)


def limits(rules: Rules, why: str, guess: Guess | None) -> tuple[Limit, ...]:
    """The limits that an image kept for this reason counts for."""
    if why == RANDOM:
        found = [
            Limit("random_per_hour", rules.random_per_hour, RANDOM, HOUR),
            Limit("random_per_day", rules.random_per_day, RANDOM, DAY),
        ]
    else:
        found = [
            Limit("per_hour", rules.per_hour, BAND, HOUR),
            Limit("per_day", rules.per_day, BAND, DAY),
            Limit("per_class_per_day", rules.per_class_per_day, BAND, DAY, guess.label if guess else None),
            Limit("total", rules.total, BAND),
        ]
    return tuple(limit for limit in found if limit.most)


def top(probabilities: Mapping[str, float] | None) -> Guess | None:
    """The most likely class (the first of equal ones by name); None without probabilities."""
    if not probabilities:
        return None
    label = min(probabilities, key=lambda name: (-probabilities[name], name))
    return Guess(label, float(probabilities[label]))
