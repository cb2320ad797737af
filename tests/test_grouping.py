"""tasks.grouping: near-duplicates stay together, groups never change, and none is on both sides."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.grouping import Groups, Placement, Rule, draw_split, near_pairs, perceptual_hashes, place, thumbnails

Array = npt.NDArray[Any]
RULE = Rule(bits=4, difference=0.03, cap=8, salt="0", share=0.3)


def textures(count: int, seed: int = 0, size: int = 28) -> Array:
    """Different smooth pictures, (N, size, size, 1)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 7, 7), dtype=np.uint8)
    fine = [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse]
    return np.stack(fine)[..., None]


def names(count: int, start: int = 0) -> list[str]:
    return [f"{i:064x}" for i in range(start, start + count)]


def placed(
    images: Array, rule: Rule = RULE, sequences: list[str] | None = None, cuts: list[int] | None = None
) -> list[Placement]:
    """Place all images, in several calls when `cuts` says so."""
    groups, placements = Groups(), []
    ids = names(len(images))
    sequences = sequences or [""] * len(images)
    bounds = [0, *(cuts or []), len(images)]
    for start, end in pairwise(bounds):
        part = place(groups, ids[start:end], sequences[start:end], images[start:end], rule)[0]
        placements += part
    return placements


def noisy(image: Array, count: int, seed: int = 1, sigma: float = 2.0) -> Array:
    """Copies of one image as another exposure would give them."""
    noise = np.random.default_rng(seed).normal(0, sigma, (count, *image.shape))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def distance(first: Array, second: Array) -> int:
    a, b = perceptual_hashes(np.stack([first, second]))
    return int(np.bitwise_count(a ^ b))


def test_hashes_of_the_same_picture_are_near_and_of_others_far() -> None:
    images = textures(40)
    hashes = perceptual_hashes(images)
    apart = np.bitwise_count(hashes[:, None] ^ hashes)[~np.eye(40, dtype=bool)]
    assert apart.mean() > 24
    assert distance(images[0], noisy(images[0], 1)[0]) <= 4


def test_a_hash_hardly_depends_on_size_brightness_or_mode() -> None:
    large = textures(1, size=96)[0]
    brighter = (large * 0.8 + 30).astype(np.uint8)
    assert distance(large, brighter) <= 4
    small = np.asarray(Image.fromarray(large[..., 0]).resize((48, 48), Image.Resampling.BILINEAR))[None, ..., None]
    assert np.bitwise_count(perceptual_hashes(small) ^ perceptual_hashes(large[None]))[0] <= 4
    assert perceptual_hashes(np.repeat(large, 3, axis=-1)[None]) == perceptual_hashes(large[None])


def test_hashes_and_thumbnails_do_not_depend_on_how_many_are_computed_at_once() -> None:
    images = textures(30, size=300)
    alone = [perceptual_hashes(image[None])[0] for image in images]
    assert perceptual_hashes(images).tolist() == alone
    assert np.array_equal(thumbnails(images)[7], thumbnails(images[7:8])[0])


@pytest.mark.parametrize("size", [1, 2, 8, 16, 31, 224])
def test_a_thumbnail_keeps_the_mean_grey(size: int) -> None:
    images = textures(5, size=size)
    assert np.abs(thumbnails(images).mean(1) - images.mean((1, 2, 3))).max() < 8
    flat = np.full((1, size, size, 1), 77, np.uint8)
    assert (thumbnails(flat) == 77).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 2**32 - 1), st.booleans())
def test_the_search_finds_exactly_the_near_pairs(bits: int, seed: int, crowded: bool) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 1 if crowded else 20, dtype=np.uint64)
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (60, 6), dtype=np.uint64), axis=1)
    hashes = centres[rng.integers(0, len(centres), 60)] ^ (flips & rng.integers(0, 2**63, 60, dtype=np.uint64))
    query, position, apart = near_pairs(hashes[:25], hashes, bits)
    all_apart = np.bitwise_count(hashes[:25, None] ^ hashes)
    expected = sorted((q, int(all_apart[q, p]), p) for q, p in np.argwhere(all_apart <= bits).tolist())
    assert list(zip(query.tolist(), apart.tolist(), position.tolist(), strict=True)) == expected


def test_the_search_of_nothing_finds_nothing() -> None:
    none = np.empty(0, np.uint64)
    assert [len(a) for a in near_pairs(none, none, 4)] == [0, 0, 0]
    assert [len(a) for a in near_pairs(np.array([1], np.uint64), none, 4)] == [0, 0, 0]


def test_near_duplicates_share_a_group_named_by_the_first() -> None:
    images = np.concatenate([textures(3), noisy(textures(3)[1], 3)])
    placements = placed(images)
    assert [p.group for p in placements] == [names(6)[i] for i in (0, 1, 2, 1, 1, 1)]
    assert len({p.split for p in placements[3:]}) == 1


def test_equal_hashes_with_other_grey_levels_do_not_join() -> None:
    flat = np.stack([np.full((28, 28, 1), level, np.uint8) for level in (20, 60, 240)])
    assert len(set(perceptual_hashes(flat).tolist())) == 1
    assert len({p.group for p in placed(flat, Rule(4, 0.03, 8, "0", 0.0))}) == 3


def test_groups_do_not_chain() -> None:
    ends = textures(2).astype(float)
    steps = np.stack([(ends[0] * (1 - t) + ends[1] * t) for t in np.linspace(0, 1, 60)]).astype(np.uint8)
    rule = Rule(4, 0.03, 100, "0", 0.0)
    groups = [p.group for p in placed(steps, rule)]
    first = {group: names(60).index(group) for group in groups}
    assert 3 < len(first) < 60
    for i, group in enumerate(groups):
        assert distance(steps[i], steps[first[group]]) <= 4
        apart = np.abs(thumbnails(steps[i][None]).astype(int) - thumbnails(steps[first[group]][None])).mean() / 255
        assert apart <= 0.03


def test_a_group_of_near_duplicates_stops_at_the_cap_and_a_sequence_does_not() -> None:
    image = textures(1)[0]
    rule = Rule(4, 0.03, 8, "0", 0.0)
    sizes = np.unique([p.group for p in placed(noisy(image, 20), rule)], return_counts=True)[1]
    assert sizes.max() == 8
    assert {p.group for p in placed(textures(20), rule, ["burst"] * 20)} == {names(1)[0]}


def test_minus_one_switches_near_duplicates_off() -> None:
    placements = placed(noisy(textures(1)[0], 5, sigma=0.0), Rule(-1, 0.03, 8, "0", 0.5))
    assert len({p.group for p in placements}) == 5
    assert not any(p.reason for p in placements)


def salt_that_splits(first: str, second: str) -> str:
    return next(s for s in map(str, range(1000)) if draw_split(s, first, 0.5) != draw_split(s, second, 0.5))


def test_an_image_between_training_and_holdout_is_left_out_with_the_reason() -> None:
    ids = names(4)
    image = textures(1)[0]
    images = np.concatenate([textures(1, seed=5), image[None], noisy(image, 2)])
    rule = Rule(4, 0.03, 8, salt_that_splits(ids[0], ids[1]), 0.5)
    placements = placed(images, rule, ["a", "b", "a", ""])
    assert "bridge training and holdout" in placements[2].reason
    assert (placements[2].group, placements[2].split) == ("", "")
    assert placements[3].group == ids[1]  # what was left out is no bridge for those after it


def test_beyond_the_cap_a_near_duplicate_is_never_on_the_other_side() -> None:
    images = noisy(textures(1)[0], 200)
    for salt in "0123":
        placements = placed(images, Rule(4, 0.03, 4, salt, 0.5))
        assert len({p.split for p in placements if not p.reason}) == 1
        assert any(p.reason for p in placements)


def test_the_draw_is_frozen_and_has_the_share() -> None:
    groups = names(4000)
    drawn = [draw_split("7", g, 0.2) for g in groups]
    assert drawn == [draw_split("7", g, 0.2) for g in groups]
    assert abs(drawn.count("holdout") / 4000 - 0.2) < 0.03
    assert drawn != [draw_split("8", g, 0.2) for g in groups]
    assert {draw_split("7", g, 0.0) for g in groups} == {"pool"}


def test_a_larger_share_only_adds_to_the_holdout() -> None:
    for group in names(500):
        assert draw_split("0", group, 0.4) == "holdout" or draw_split("0", group, 0.2) == "pool"


worlds = st.tuples(
    st.integers(0, 2**16),  # seed
    st.integers(2, 40),  # images
    st.integers(1, 8),  # different pictures
    st.integers(0, 4),  # sequences
    st.integers(1, 6),  # cap
)


def world(seed: int, count: int, pictures: int, sequences: int, cap: int) -> tuple[Array, list[str], Rule]:
    rng = np.random.default_rng(seed)
    base = textures(pictures, seed)[rng.integers(0, pictures, count)]
    images = np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
    named = [f"s{i}" if i < sequences else "" for i in rng.integers(0, sequences + 3, count)]
    return images, named, Rule(4, 0.03, cap, str(seed), 0.4)


@settings(max_examples=60, deadline=None)
@given(worlds)
def test_no_group_and_no_sequence_straddles(settings_: tuple[int, int, int, int, int]) -> None:
    images, sequences, rule = world(*settings_)
    sides: dict[str, set[str]] = {}
    for placement, sequence in zip(placed(images, rule, sequences), sequences, strict=True):
        if not placement.reason:
            sides.setdefault(f"group {placement.group}", set()).add(placement.split)
            sides.setdefault(f"sequence {sequence or placement.group}", set()).add(placement.split)
    assert all(len(side) == 1 for side in sides.values())


@settings(max_examples=60, deadline=None)
@given(worlds, st.data())
def test_what_arrives_later_and_how_arrivals_are_cut_changes_nothing(
    settings_: tuple[int, int, int, int, int], data: st.DataObject
) -> None:
    images, sequences, rule = world(*settings_)
    whole = placed(images, rule, sequences)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(images)), max_size=4)))
    assert placed(images, rule, sequences, cuts) == whole
    some = data.draw(st.integers(0, len(images)))
    assert placed(images[:some], rule, sequences[:some]) == whole[:some]


def test_twenty_thousand_frames_of_one_static_camera_take_seconds() -> None:
    import time

    images = np.concatenate([noisy(textures(1)[0], 2000, seed) for seed in range(10)])
    start = time.perf_counter()
    placed(images, cuts=list(range(1024, 20_000, 1024)))
    assert time.perf_counter() - start < 20
