"""tasks/resolution.py: what several people's answers come to, under every policy."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.resolution import RESOLUTIONS, Policy, Resolved, Vote, resolve

ANN, BOB, EVE = (
    Vote(seq=1, first=1, annotator="ann", label="deer"),
    Vote(seq=2, first=2, annotator="bob", label="fox"),
    Vote(seq=3, first=3, annotator="eve", label="fox"),
)
LATEST, FIRST = Policy("latest"), Policy("first")
TWO_OF_THREE = Policy("majority", overlap=3, minimum_votes=2)


def test_without_a_vote_an_item_waits() -> None:
    assert {resolve([], Policy(name)) for name in RESOLUTIONS} == {Resolved("pending")}


def test_the_latest_label_counts() -> None:
    assert resolve([ANN, BOB], LATEST) == Resolved("labeled", "fox", 2)


def test_the_label_of_whoever_was_first_counts_as_it_reads_now() -> None:
    changed = replace(ANN, seq=9, label="lynx")
    assert resolve([BOB, changed], FIRST) == Resolved("labeled", "lynx", 9)


def test_a_majority_decides_as_soon_as_it_is_there() -> None:
    assert resolve([ANN, BOB], TWO_OF_THREE) == Resolved("pending")
    assert resolve([ANN, BOB, EVE], TWO_OF_THREE) == Resolved("labeled", "fox", 3)
    assert resolve([BOB, EVE], TWO_OF_THREE) == Resolved("labeled", "fox", 3)


def test_votes_that_nobody_wins_need_adjudication_once_all_have_answered() -> None:
    tie = [ANN, BOB]
    assert resolve(tie, Policy("majority", overlap=2, minimum_votes=1)) == Resolved("disputed", "", 2)
    assert resolve(tie, Policy("majority", overlap=3, minimum_votes=1)) == Resolved("pending")


def test_a_vote_too_few_needs_adjudication() -> None:
    skip = replace(BOB, label="")
    assert resolve([ANN, skip], Policy("majority", overlap=2, minimum_votes=2)).state == "disputed"


@pytest.mark.parametrize("name", RESOLUTIONS)
def test_what_was_marked_as_ground_truth_wins(name: str) -> None:
    lead = Vote(seq=2, first=2, annotator="lead", label="lynx", truth=True)
    votes = [ANN, lead, replace(BOB, seq=5), EVE, replace(EVE, annotator="tom", seq=6)]
    assert resolve(votes, Policy(name, overlap=3, minimum_votes=2)) == Resolved("labeled", "lynx", 2)


def test_an_annotator_has_one_vote() -> None:
    again = replace(BOB, seq=7, annotator="ann")
    assert resolve([ANN, again], Policy("majority", overlap=2, minimum_votes=2)) == Resolved("pending")
    assert resolve([ANN, again, EVE], TWO_OF_THREE) == Resolved("labeled", "fox", 7)


@pytest.mark.parametrize("name", ["first", "latest"])
def test_any_label_outweighs_skips(name: str) -> None:
    skips = [replace(ANN, label="", seq=0, first=0, annotator="tom"), replace(EVE, label="")]
    assert resolve([*skips, BOB], Policy(name)) == Resolved("labeled", "fox", 2)
    assert resolve(skips, Policy(name)) == Resolved("skipped", "", 3)


def test_an_item_that_all_skip_is_skipped_by_majority_too() -> None:
    skip = replace(ANN, label="")
    assert resolve([skip], TWO_OF_THREE) == Resolved("pending")
    assert resolve([skip, replace(BOB, label=""), replace(EVE, label="")], TWO_OF_THREE) == Resolved("skipped", "", 3)


VOTES = st.lists(
    st.builds(
        Vote,
        seq=st.integers(1, 60),
        first=st.integers(1, 60),
        annotator=st.sampled_from(["ann", "bob", "eve", "tom", ""]),
        label=st.sampled_from(["deer", "fox", "lynx", ""]),
        truth=st.sampled_from([False, False, False, True]),
    ),
    max_size=8,
    unique_by=(lambda vote: vote.seq, lambda vote: vote.first),
)
POLICIES = st.builds(Policy, st.sampled_from(RESOLUTIONS), st.integers(1, 4), st.integers(1, 4))


@given(votes=VOTES, policy=POLICIES, seed=st.integers(0, 99))
def test_the_order_in_which_votes_are_read_changes_nothing(votes: list[Vote], policy: Policy, seed: int) -> None:
    shuffled = random.Random(seed).sample(votes, len(votes))
    assert resolve(shuffled, policy) == resolve(votes, policy)


@given(votes=VOTES, policy=POLICIES)
def test_a_label_is_one_that_somebody_gave_and_names_the_event(votes: list[Vote], policy: Policy) -> None:
    found = resolve(votes, policy)
    if found.state == "labeled":
        assert (found.event, found.label) in {(vote.seq, vote.label) for vote in votes if vote.label}
    else:
        assert found.label == ""
    assert (found.event == 0) == (found.state == "pending")


@given(votes=VOTES, policy=POLICIES)
def test_a_majority_has_the_votes_it_needs(votes: list[Vote], policy: Policy) -> None:
    found = resolve(votes, replace(policy, resolution="majority"))
    if found.state == "labeled" and not any(vote.truth and vote.label for vote in votes):
        people = {vote.annotator for vote in votes if vote.label == found.label}
        assert len(people) >= policy.minimum_votes
