"""What several people's answers to one question come to.

resolve([Vote(seq=4, first=2, annotator="ann", label="deer"), Vote(7, 7, "bob", "fox")], Policy("latest"))
    ->  Resolved("labeled", "fox", 7)

An annotator has one vote, the newest. A vote that somebody marked as ground truth decides, whatever the policy:

    first       the label of whoever answered first (as it reads now, if that person changed it)
    latest      the newest label
    majority    the class with at least `minimum_votes` votes and more than any other; until `overlap` people have
                answered the item waits, after that it needs adjudication and is not trained on

Skips count as answers, but any label outweighs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

RESOLUTIONS = ("first", "latest", "majority")


@dataclass(frozen=True)
class Policy:
    """How votes are resolved (params.yaml, `labeling`)."""

    resolution: str = "latest"
    overlap: int = 1  # people asked about each item
    minimum_votes: int = 1  # for the winning class; majority only


@dataclass(frozen=True)
class Vote:
    """One annotation as it stands."""

    seq: int  # event that says so
    first: int  # event with which the annotation began
    annotator: str
    label: str  # "" for a skip
    truth: bool = False  # marked as ground truth


@dataclass(frozen=True)
class Resolved:
    """What is known of an item."""

    state: str  # pending | labeled | skipped | disputed
    label: str = ""
    event: int = 0  # the event that settled it; 0 while pending


def resolve(votes: Sequence[Vote], policy: Policy) -> Resolved:
    """The label that votes come to, if they come to one."""
    truths = [vote for vote in votes if vote.truth and vote.label]
    if truths:
        return _labeled(max(truths, key=lambda vote: vote.seq))
    counted = _one_each(votes)
    labels = [vote for vote in counted if vote.label]
    if policy.resolution == "majority":
        return _majority(counted, labels, policy)
    if labels and policy.resolution == "first":
        return _labeled(min(labels, key=lambda vote: vote.first))
    if labels:
        return _labeled(max(labels, key=lambda vote: vote.seq))
    return Resolved("skipped", "", max(vote.seq for vote in counted)) if counted else Resolved("pending")


def _one_each(votes: Sequence[Vote]) -> list[Vote]:
    newest: dict[str, Vote] = {}
    for vote in sorted(votes, key=lambda vote: vote.seq):
        newest[vote.annotator] = vote
    return list(newest.values())


def _majority(counted: list[Vote], labels: list[Vote], policy: Policy) -> Resolved:
    ranked = Counter(vote.label for vote in labels).most_common(2)
    if ranked and ranked[0][1] >= policy.minimum_votes and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
        return _labeled(max((v for v in labels if v.label == ranked[0][0]), key=lambda vote: vote.seq))
    if len(counted) < policy.overlap:
        return Resolved("pending")
    return Resolved("disputed" if labels else "skipped", "", max(vote.seq for vote in counted))


def _labeled(vote: Vote) -> Resolved:
    return Resolved("labeled", vote.label, vote.seq)
