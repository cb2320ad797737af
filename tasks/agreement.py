"""How far annotators agree: with each other, with what they were shown, and what their time cost.

    votes: a deer, a fox, b deer ...  ->  disagreement 0.5 of a vote that one of two others contradicts

A vote is compared with every other person's vote on the same item; its disagreement is the share of those that differ.
The mean over all votes is the observed disagreement of Krippendorff's alpha (nominal; Content Analysis, 2004, ch. 11),
so the same number is read by annotator, by class and in total.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SUGGESTED, HIDDEN = (
    ("seed", "active"),
    ("control", "holdout"),
)  # arms in which annotators see the model's class, or don't


@dataclass(frozen=True)
class Votes:
    """Everybody's newest answer to each item, as columns of length V."""

    items: Sequence[str]
    annotators: Sequence[str]
    labels: Sequence[str]  # "" for a skip
    seconds: Array  # (V,) float64, NaN where unknown
    accepted: Array  # (V,) int8: 1 a suggestion unchanged, 0 changed, -1 none was taken up
    arms: Sequence[str]
    predicted: Sequence[str]  # class that the model gave the item when it was selected, "" without a model


def disagreement(votes: Votes) -> Array:
    """(V,) share of the other people's labels on the same item that differ; NaN for skips and where there is no other."""
    by_item: dict[str, list[int]] = {}
    for place, (item, label) in enumerate(zip(votes.items, votes.labels, strict=True)):
        if label:
            by_item.setdefault(item, []).append(place)
    found = np.full(len(votes.items), np.nan)
    for places in by_item.values():
        counts = Counter(votes.labels[place] for place in places)
        for place in places if len(places) > 1 else ():
            found[place] = (len(places) - counts[votes.labels[place]]) / (len(places) - 1)
    return found


def alpha(votes: Votes) -> float:
    """Krippendorff's alpha: 1 is full agreement, 0 what chance would give; NaN when nothing can be compared."""
    observed = disagreement(votes)
    compared = np.isfinite(observed)
    counts = np.array(list(Counter(np.asarray(votes.labels, dtype=object)[compared]).values()), dtype=np.float64)
    total = counts.sum()
    expected = (total**2 - (counts**2).sum()) / (total * (total - 1)) if total > 1 else 0.0
    return float(1 - observed[compared].mean() / expected) if expected else float("nan")


def measures(votes: Votes) -> dict[str, float]:
    """Agreement, minutes and suggestions of all annotators together; NaN where nothing was measured."""
    differ, labels = disagreement(votes), np.array([bool(label) for label in votes.labels], dtype=bool)
    minutes = float(np.nansum(votes.seconds) / 60) if np.isfinite(votes.seconds).any() else float("nan")
    timed = int((labels & np.isfinite(votes.seconds)).sum())
    return {
        "annotators": float(len(set(votes.annotators))),
        "agreement_alpha": alpha(votes),
        "disagreement": _mean(differ),
        "minutes_spent": minutes,
        "minutes_per_label": minutes / timed if timed else float("nan"),
        **suggestions(votes, np.ones(len(labels), dtype=bool)),
    }


def suggestions(votes: Votes, keep: Array) -> dict[str, float]:
    """How far people follow the model where they see its suggestion, beside where it is hidden from them.

    A share that is much higher where it is shown than where it is hidden is anchoring (as far as the arms' images are
    equally hard: the active arm's are harder, so less agreement would be expected there).
    """
    told = keep & np.array(
        [bool(label and guess) for label, guess in zip(votes.labels, votes.predicted, strict=True)], bool
    )
    match = np.array(
        [label == guess for label, guess in zip(votes.labels, votes.predicted, strict=True)], dtype=np.float64
    )
    taken = keep & (votes.accepted >= 0)
    arms = np.asarray(votes.arms, dtype=object)
    return {
        "suggestions_used": float(taken.sum()),
        "suggestions_accepted": _mean(votes.accepted[taken].astype(np.float64)),
        "match_suggested": _mean(match[told & np.isin(arms, SUGGESTED)]),
        "match_hidden": _mean(match[told & np.isin(arms, HIDDEN)]),
    }


def by_annotator(votes: Votes) -> dict[str, list[Any]]:
    """One row an annotator, by name: what they did, how often others contradict them, what it took."""
    differ, names = disagreement(votes), np.asarray(votes.annotators, dtype=object)
    labeled = np.array([bool(label) for label in votes.labels], dtype=bool)
    rows: dict[str, list[Any]] = {}
    for name in sorted(set(votes.annotators)):
        mine = names == name
        values = {
            "annotator": name, "labels": int((mine & labeled).sum()), "skips": int((mine & ~labeled).sum()),
            "compared": int(np.isfinite(differ[mine]).sum()), "disagreement": _mean(differ[mine]),
            "minutes": float(np.nansum(votes.seconds[mine]) / 60),
            "median_seconds": float(np.nanmedian(s)) if np.isfinite(s := votes.seconds[mine]).any() else float("nan"),
            **suggestions(votes, mine),
        }  # fmt: skip
        for key, value in values.items():
            rows.setdefault(key, []).append(value)
    return rows


def by_class(votes: Votes, classes: Sequence[str]) -> dict[str, list[Any]]:
    """For each class how many of its votes could be compared, and how often another person said something else."""
    differ, labels = disagreement(votes), np.asarray(votes.labels, dtype=object)
    of = {name: differ[labels == name] for name in classes}
    return {
        "compared": [int(np.isfinite(of[name]).sum()) for name in classes],
        "disagreement": [_mean(of[name]) for name in classes],
    }


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
