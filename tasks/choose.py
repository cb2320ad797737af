"""The rules of a batch that hold for every strategy: arms, groups, order. Pure: arrays in, positions out.

    plan = Plan(seed=0, active=18, control=2, holdout=0)
    choose(candidates, plan, active, rng)  ->  Batch(positions=[7, 3, ...], arms=["active", "control", ...])

Candidates are in item order (sorted by id), so the order of arrival changes nothing. A group's next image
waits until no candidate of a less asked group is left; the control arm alone ignores groups, because a
uniform sample is what makes it an estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import BadInput, GleanerError

Array = npt.NDArray[Any]
#: (positions to choose from (N,), k, positions already in this batch (B,)) -> (k,) distinct indices into the first
Ask = Callable[[Array, int, Array], Array]
#: (candidates (N,) positions, group codes (all,), times asked per group (G,), k, already chosen (B,)) -> positions
Picker = Callable[[Array, Array, Array, int, Array], Array]


@dataclass(frozen=True)
class Plan:
    """How many of each arm a batch gets."""

    seed: int = 0
    active: int = 0
    control: int = 0
    holdout: int = 0


@dataclass(frozen=True)
class Candidates:
    """The pool as selection sees it, in item order."""

    item_ids: Array  # (N,) of str, sorted
    groups: Array  # (N,) int64 codes
    reserved: Array  # (N,) bool: in the holdout split
    asked: Array  # (N,) bool: labeled, pending or skipped
    excluded: Array | bool = False  # (N,) bool: never to be asked about
    biased: Array | bool = False  # (N,) bool: in the pool because of what a model said, hence in no random arm

    def eligible(self) -> Array:
        """Positions that may be asked about for training."""
        return np.flatnonzero(~self.reserved & ~self.asked & np.logical_not(self.excluded))

    def unmeasured(self) -> Array:
        """Reserved positions that were never asked about and may be."""
        return np.flatnonzero(self.reserved & ~self.asked & np.logical_not(self.excluded) & np.logical_not(self.biased))

    def representative(self) -> Array:
        """Eligible positions that the control arm is drawn from."""
        return np.flatnonzero(
            ~self.reserved & ~self.asked & np.logical_not(self.excluded) & np.logical_not(self.biased)
        )


@dataclass(frozen=True)
class Batch:
    """What is asked about, in rank order."""

    positions: Array  # (K,) int64 into the candidates
    arms: Array  # (K,) str
    inclusion: Array  # (K,) probability of inclusion of random arms, 0 for active and seed ones


def later_plan(batch: int, control: float, holdout: int, remaining: int | None) -> Plan:
    """Shares of a batch once there is a model: training first, `holdout` missing labels from what is left.

    `remaining` labels may still be spent, None without a budget.
    """
    size = batch if remaining is None else max(0, min(batch, remaining))
    random = int(size * control + 0.5)
    if control > 0.0 and size >= 2:
        random = max(random, 1)
    left = holdout if remaining is None else max(0, remaining - size)
    return Plan(active=size - random, control=random, holdout=min(holdout, left))


def first_plan(first_batch: int, holdout: int, remaining: int | None, *, begun: bool = False) -> Plan:
    """Shares while there are no training labels: the seed batch plus the holdout. `begun`: some were asked about.

    Raises BadInput when the budget leaves nothing for one of the two from the beginning.
    """
    if remaining is None:
        return Plan(seed=first_batch, holdout=holdout)
    if begun and remaining < 2:  # what was asked so far was skipped
        return Plan(seed=remaining)
    if remaining < 1 + (holdout > 0):
        raise BadInput(
            f"stop.labels leaves {remaining} labels, but the first batch needs at least one to train on"
            f"{' and one for the holdout' if holdout else ''}. Raise stop.labels in params.yaml."
        )
    seed = min(first_batch, remaining - (holdout > 0))
    return Plan(seed=seed, holdout=min(holdout, remaining - seed))


def holdout_target(labels: int, first_batch: int, budget: int | None) -> int:
    """Holdout labels to aim at: `holdout.labels`, or half of a `budget` in which it and the seed do not fit."""
    if budget is None or labels + first_batch <= budget:
        return labels
    return min(labels, max(budget // 2, 1))


def choose(candidates: Candidates, plan: Plan, active: Picker, rng: np.random.Generator) -> Batch:
    """Choose a batch. `active` gives the seed or active arm.

    Every arm takes exactly what the plan says or all that is left. The control arm is drawn first, so that
    each eligible item had the same chance.
    """
    eligible = candidates.eligible()
    uniform = candidates.representative()
    control = rng.choice(uniform, size=min(plan.control, len(uniform)), replace=False)
    counts = np.bincount(candidates.groups[candidates.asked], minlength=_group_count(candidates))
    counts += np.bincount(candidates.groups[control], minlength=len(counts))
    rest = np.setdiff1d(eligible, control, assume_unique=True)
    wanted = min(plan.seed + plan.active, len(rest))
    picked = active(rest, candidates.groups, counts, wanted, control) if wanted else rest[:0]
    _require_batch(picked, rest, wanted)
    holdout = _first_by_hash(candidates, plan.holdout)
    inclusion = {
        "control": len(control) / max(len(uniform), 1),
        "holdout": _holdout_share(candidates, len(holdout)),
    }
    arms = {"seed" if plan.seed else "active": picked, "control": control, "holdout": holdout}
    return _interleave(arms, inclusion, rng)


def by_utility(utility: Array, ties: Array) -> Picker:
    """Picker that walks down a ranking: highest `utility` (all,) first, equal ones by `ties` (all,)."""

    def walk(rest: Array, groups: Array, counts: Array, k: int, _: Array) -> Array:
        ranking = rest[np.lexsort((ties[rest], -utility[rest]))]
        level = counts[groups[ranking]] + _occurrence(groups[ranking])
        return ranking[np.argsort(level, kind="stable")[:k]]

    return walk


def by_batches(ask: Ask) -> Picker:
    """Picker for strategies that choose sets: asked among the least asked groups, one item of each, until full."""

    def fill(rest: Array, groups: Array, counts: Array, k: int, before: Array) -> Array:
        counts, chosen = counts.copy(), before[:0]
        while len(chosen) < k:
            level = counts[groups[rest]]
            open_ = rest[level == level.min()]
            picks = _asked(ask, open_, min(k - len(chosen), len(open_)), np.concatenate([before, chosen]))
            firsts = picks[_occurrence(groups[picks]) == 0]
            counts[groups[firsts]] += 1
            chosen = np.concatenate([chosen, firsts])
            rest = np.setdiff1d(rest, firsts, assume_unique=True)
        return chosen

    return fill


def tie_order(item_ids: Array, seed: int) -> Array:
    """(N,) uint64: a seeded hash of each item id, the same whatever the order of the items."""
    encoded = np.array([str(item).encode() for item in item_ids.tolist()] or [b""], dtype="S")[: len(item_ids)]
    width = -(-encoded.dtype.itemsize // 8) or 1
    words = encoded.astype(f"S{width * 8}").view("<u8").reshape(len(item_ids), width)
    mixed = np.full(len(item_ids), seed % 2**64, dtype=np.uint64)
    for column in words.T:
        mixed = _mix(mixed ^ column)
    return mixed


def _mix(value: Array) -> Array:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = value ^ (value >> np.uint64(31))
    return mixed


def _occurrence(codes: Array) -> Array:
    """(N,) how many equal codes stand before each position: [5, 5, 2, 5] -> [0, 1, 0, 2]."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    new = np.ones(len(codes), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    result = np.empty(len(codes), dtype=np.int64)
    result[order] = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    return result


def _asked(ask: Ask, open_: Array, k: int, taken: Array) -> Array:
    indices = np.asarray(ask(open_, k, taken))
    right = indices.shape == (k,) and np.issubdtype(indices.dtype, np.integer) and len(np.unique(indices)) == k
    if not right or indices.min() < 0 or indices.max() >= len(open_):
        raise GleanerError(f"select: the strategy did not give {k} different positions of {len(open_)} candidates.")
    picked: Array = open_[indices]
    return picked


def _require_batch(picked: Array, rest: Array, wanted: int) -> None:
    if len(picked) != wanted or len(np.unique(picked)) != wanted or not np.isin(picked, rest).all():
        raise GleanerError(f"select: a rule gave {len(picked)} items instead of {wanted} different eligible ones.")


def _group_count(candidates: Candidates) -> int:
    return int(candidates.groups.max()) + 1 if len(candidates.groups) else 0


def _first_by_hash(candidates: Candidates, count: int) -> Array:
    """Reserved items in the order of a hash of their id: any prefix is a random sample of the split."""
    free = candidates.unmeasured()
    return free[np.argsort(tie_order(candidates.item_ids[free], 0), kind="stable")[:count]]


def _holdout_share(candidates: Candidates, new: int) -> float:
    reserved = int(candidates.reserved.sum())
    return (int((candidates.reserved & candidates.asked).sum()) + new) / reserved if reserved else 0.0


def _interleave(arms: dict[str, Array], inclusion: dict[str, float], rng: np.random.Generator) -> Batch:
    names = np.concatenate([np.full(len(positions), arm, dtype="U8") for arm, positions in arms.items()])
    names = rng.permutation(names)
    positions = np.zeros(len(names), dtype=np.int64)
    chance = np.zeros(len(names))
    for arm, members in arms.items():
        positions[names == arm] = members
        chance[names == arm] = inclusion.get(arm, 0.0)
    return Batch(positions, names, chance)
