"""The utility points the right way: up where the model is unsure, down where it has learnt, and the batch follows it.

Three gaps, each a probability that should not be far above one half (digits, margin, networks linear and mlp):

    a right prediction outscores a wrong one, on the random holdout            0.00 to 0.23, flipped 0.74 to 0.89
    a representative training item outscores the other items                   0.06 to 0.48, flipped 0.77 to 0.92
    a candidate outscores an item that was picked for its utility              0.01,         flipped 0.99

Only the training items of the arms seed and control are compared: those that were picked *because* they are hard
stay hard, and outscore the candidates with probability 0.9 in a perfectly healthy campaign of 480 labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval

from monitoring.checks._ranks import chance_spread, outscores, ranks
from monitoring.evidence import About, Array, Evidence, Finding

ABOUT = About(
    "score_gap",
    why="With the sign flipped the loop asks about what the model already knows and is worse than random sampling.",
    causes=(
        "the utility or the sort in select has the wrong sign",
        "scores and items are joined in the wrong order",
        "the labels are shuffled or wrong, so the model is surest where it errs",
        "the strategy prefers typical items on purpose: then raise the limit or switch this check off",
    ),
    todo="Look at the batch's contact sheet: are these hard images? Compare utility and confidence in "
    "data/scores.parquet: for an uncertainty strategy they must run in opposite directions.",
)
LEAST = 5  # items on either side of a gap


@dataclass(frozen=True)
class Gap:
    """P(the side that should score lower outscores the other), over n and m items."""

    name: str
    value: float
    n: int
    m: int
    spread: float  # standard deviation of the value by chance

    def fails(self, limit: float, sigmas: float) -> bool:
        """Whether it is above the limit and above chance by more than `sigmas` standard deviations."""
        return not math.isfinite(self.value) or (self.value > limit and self.value > 0.5 + sigmas * self.spread)


def check(
    evidence: Evidence,
    *,
    limit: Annotated[float, Interval(ge=0, le=1)] = 0.6,
    sigmas: Annotated[float, Interval(ge=0)] = 3.0,
) -> Finding:
    """Fails when one of the gaps is above `limit`, and above one half by more than `sigmas` standard deviations."""
    if evidence.model.labels == 0 and not evidence.trained.any():
        return ABOUT.not_applicable("There are no training labels yet, so the scores mean nothing.")
    utility = evidence.scores.utility
    bad = ~np.isfinite(utility)
    if evidence.trained_classes < 2 and not bad.any():
        return ABOUT.not_applicable("All training labels are of one class so far, so the scores mean nothing.")
    if utility.size == 0 or bad.any():
        return ABOUT.fails(f"{int(bad.sum())} of {utility.size} items have no finite score.", None, limit)
    if np.ptp(utility) == 0:
        return ABOUT.fails(f"All {utility.size} items have the same score, {utility[0]:g}.", None, limit)
    gaps = [gap for gap in (_errors(evidence), _learnt(evidence), _picked(evidence)) if min(gap.n, gap.m) >= LEAST]
    if not gaps:
        return ABOUT.not_applicable(f"Fewer than {LEAST} items on either side of every gap: nothing can be compared.")
    return _judge(gaps, limit, sigmas)


def _judge(gaps: list[Gap], limit: float, sigmas: float) -> Finding:
    failing = [gap for gap in gaps if gap.fails(limit, sigmas)]
    worst = max(failing or gaps, key=lambda gap: gap.value)
    told = "; ".join(f"{gap.name} with probability {gap.value:.2f} ({gap.n} against {gap.m} items)" for gap in gaps)
    what = f"{told[0].upper()}{told[1:]}. Above {limit:g} the scores point the wrong way."
    say = ABOUT.fails if failing else ABOUT.passes
    return say(what, worst.value, limit, gaps={gap.name: gap.value for gap in gaps})


def _errors(evidence: Evidence) -> Gap:
    """Right predictions against wrong ones, on labeled holdout items: a random sample nothing was picked from."""
    utility, wrong = evidence.scores.utility, evidence.wrong
    return _gap("a right prediction outscores a wrong one", utility[wrong == 0], utility[wrong == 1])


def _learnt(evidence: Evidence) -> Gap:
    """Representative training items against all others (the candidates alone have lost their hardest items)."""
    utility, ours = evidence.scores.utility, evidence.representative
    return _gap("a representative training item outscores the others", utility[ours], utility[~ours])


def _gap(name: str, low: Array, high: Array) -> Gap:
    return Gap(name, outscores(low, high), len(low), len(high), chance_spread(len(low), len(high)))


def _picked(evidence: Evidence) -> Gap:
    """Candidates against the batch's active items, each among the candidates whose group was asked about as often.

    `select` takes a group's further items only when no group is less asked about, so other candidates are no rivals.
    """
    name = "a candidate outscores a picked item"
    positions = [p for p, arm in zip(evidence.batch.positions, evidence.batch.arms, strict=True) if arm == "active"]
    picked = np.array([p for p in positions if p >= 0], dtype=np.int64)
    candidates = np.flatnonzero(evidence.candidates())
    if not evidence.by_utility or len(picked) == 0 or len(candidates) == 0:
        return Gap(name, math.nan, 0, 0, math.inf)
    asked = np.bincount(evidence.groups[evidence.asked_in >= 0], minlength=int(evidence.groups.max()) + 1)
    shares = _shares_above(evidence.scores.utility, asked[evidence.groups], picked, candidates)
    return Gap(name, float(np.mean(shares)), len(shares), len(candidates), math.sqrt(1 / (12.0 * max(len(shares), 1))))


def _shares_above(utility: Array, level: Array, picked: Array, candidates: Array) -> Array:
    """For each picked candidate the share of its rivals that score higher (ties count half)."""
    found = []
    for number in np.unique(level[candidates]):
        rivals = candidates[level[candidates] == number]
        if len(rivals) > 1:
            above = 1 - (ranks(utility[rivals]) - 1) / (len(rivals) - 1)
            found.append(above[np.isin(rivals, picked)])
    return np.concatenate(found) if found else np.zeros(0)
