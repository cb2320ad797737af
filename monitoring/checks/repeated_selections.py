"""No item of the batch was asked about, labeled or reserved before, none is in it twice, all are in the manifest.

It compares the batch with the frozen inputs only, so a mistake in `select` cannot hide here too:

    20 items, 0 of them asked about before, labeled, reserved, unknown or repeated  ->  pass
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import numpy as np
from annotated_types import Interval

from monitoring.evidence import About, Array, Evidence, Finding

ABOUT = About(
    "repeated_selections",
    why="Asking twice pays twice for one label; asking about a reserved item, or training on one, makes every "
    "measured accuracy too good.",
    causes=(
        "the mask in tasks/select.py leaves out labeled, pending or reserved items",
        "the inputs were frozen before the last answers or the last batch were recorded",
        "data/selection.parquet is of another iteration or another pool",
    ),
    todo="Do not export. Run `dvc repro --force select` on the frozen inputs; if the finding stays, look at the item "
    "ids that data/findings.json names in data/inputs/asked.parquet and data/inputs/labels.parquet.",
)


def check(evidence: Evidence, *, allowed: Annotated[int, Interval(ge=0)] = 0) -> Finding:
    """Fails when more than `allowed` items (default none) of the batch must not be in it."""
    if evidence.groups.size == 0:
        return ABOUT.fails("The manifest is empty, so no item of the batch can be checked.", None, allowed)
    size = len(evidence.batch.item_ids)
    if size == 0:
        return _empty_batch(evidence, allowed)
    faults = _faults(evidence)
    bad = sorted(set().union(*faults.values()))
    counts = {name: len(found) for name, found in faults.items()}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    what = f"Of {size} items in the batch, {len(bad)} must not be asked about ({told})."
    say = ABOUT.passes if len(bad) <= allowed else ABOUT.fails
    return say(what, len(bad), allowed, size=size, counts=counts, items=_first(evidence, bad))


def _empty_batch(evidence: Evidence, allowed: int) -> Finding:
    left = int(evidence.candidates().sum())
    if left == 0 or (evidence.remaining is not None and evidence.remaining <= 0):
        return ABOUT.not_applicable("The batch is empty: no candidate or no budget is left, nothing would be asked.")
    return ABOUT.fails(f"The batch is empty although {left} candidates are left.", None, allowed, candidates=left)


def _faults(evidence: Evidence) -> dict[str, set[int]]:
    """Kind of fault -> ranks in the batch that have it."""
    batch = evidence.batch
    positions = np.asarray(batch.positions, dtype=np.int64)
    known = (positions >= 0) & (positions < len(evidence.groups))
    at = np.where(known, positions, 0)
    reserved_arm = np.array([arm == "holdout" for arm in batch.arms])
    leak = np.isin(evidence.groups[at], evidence.groups[evidence.holdout]) & ~evidence.holdout[at]
    return {
        "not in the manifest": _where(~known),
        "labeled before": _where(known & evidence.labeled[at]),
        "asked about before": _where(known & (evidence.asked_in[at] >= 0)),
        "reserved for measuring": _where(known & evidence.holdout[at] & ~reserved_arm),
        "in the holdout arm without being reserved": _where(known & ~evidence.holdout[at] & reserved_arm),
        "in one group with a reserved item": _where(known & leak),
        "repeated in the batch": _repeated(batch.item_ids),
    }


def _where(mask: Array) -> set[int]:
    return {int(rank) for rank in np.flatnonzero(mask)}


def _repeated(item_ids: tuple[str, ...]) -> set[int]:
    counts = Counter(item_ids)
    return {rank for rank, item in enumerate(item_ids) if counts[item] > 1}


def _first(evidence: Evidence, ranks: list[int]) -> list[str]:
    return [evidence.batch.item_ids[rank] for rank in ranks[:5]]
