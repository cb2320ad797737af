"""Which images stay together in a split, and on which side a group falls. Pure: arrays in, arrays out.

    two frames of a burst, one re-compressed: hashes 3 bits apart, grey levels 0.01 apart  ->  one group
    draw_split("0", group, 0.2)  ->  "holdout" for one group in five, the same for ever

An image joins a group when it is a near-duplicate of the group's first member: comparing with the first
member only, groups do not chain (single linkage put half of the digits into one group each). Images are
placed in order of arrival and never moved, so what arrives later changes nothing.

The hash (after Zauner 2010, pHash): the 8x8 lowest frequencies of the DCT of the 32x32 grey image, each
above or below their median. All weights are integers held in float64, hence exact: the same bits with
any BLAS and any number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SIDE = 16  # of a thumbnail
CANDIDATES = 2_000_000  # pairs of hashes looked at in one go: 16 MB an array
_SCALE = 2.0**16  # of the integer weights; 255 * 32**2 * 2**32 < 2**53


def draw_split(salt: str, group: str, share: float) -> str:
    """Give "holdout" to about `share` of all groups, else "pool": a hash decides, not the order of arrival."""
    digest = hashlib.sha256(f"{salt}:{group}".encode()).digest()
    return "holdout" if int.from_bytes(digest[:8], "big") < share * 2.0**64 else "pool"


def perceptual_hashes(images: Array) -> Array:
    """(N,) uint64 of (N, H, W, channels) uint8."""
    frequencies = np.cos(np.pi / 32 * np.outer(np.arange(8), np.arange(32) + 0.5))
    low = _filtered(images, [frequencies @ _resample(32, side) for side in images.shape[1:3]])
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def thumbnails(images: Array) -> Array:
    """(N, 256) uint8 grey levels of (N, H, W, channels) uint8, each image seen at 16x16."""
    small = _filtered(images, [_resample(SIDE, side) for side in images.shape[1:3]]) / _SCALE**2
    return np.clip(np.floor(small + 0.5), 0, 255).astype(np.uint8)


def _filtered(images: Array, weights: list[Array]) -> Array:
    """(N, to * to) exact products rows x grey x columns, a few megabytes at a time."""
    rows, columns = (np.rint(_SCALE * w) for w in weights)
    step = max(1, 2**20 // (images.shape[1] * images.shape[2]))
    parts = [rows @ grey(images[i : i + step]).astype(np.float64) @ columns.T for i in range(0, len(images), step)]
    return np.concatenate(parts).reshape(len(images), -1) if parts else np.empty((0, len(rows) * len(columns)))


def grey(images: Array) -> Array:
    """(N, H, W) uint8 luma (ITU-R 601, Pillow's integers) of (N, H, W, 1 or 3) uint8."""
    if images.shape[3] == 1:
        return images[..., 0]
    red, green, blue = (images[..., c].astype(np.uint32) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


@lru_cache(maxsize=16)
def _resample(to: int, side: int) -> Array:
    """(to, side) weights of a linear filter, widened when it shrinks; rows sum to 1."""
    ratio = side / to
    centres = (np.arange(to) + 0.5) * ratio
    distance = np.abs(centres[:, None] - (np.arange(side) + 0.5)) / max(ratio, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def near_pairs(queries: Array, hashes: Array, bits: int) -> tuple[Array, Array, Array]:
    """All (query, position, distance) with at most `bits` differing bits, sorted by query, distance, position.

    Exact: of bits + 1 disjoint, interleaved parts of the hash, one must be equal (pigeonhole; Norouzi et al. 2012,
    multi-index hashing). Where most hashes are alike, all are compared.
    """
    masks = [np.uint64(sum(1 << i for i in range(part, 64, bits + 1))) for part in range(bits + 1)]
    parts = [_equal_part(queries, hashes, mask) for mask in masks]
    if 4 * sum(int(count.sum()) for _, _, count in parts) >= len(queries) * len(hashes):
        found = list(_all_pairs(queries, hashes, bits))
    else:
        found = [pair for i, part in enumerate(parts) for pair in _part_pairs(queries, hashes, bits, part, masks[:i])]
    query, position, distance = (np.concatenate(c) for c in zip(*found, strict=True)) if found else (_NONE,) * 3
    order = np.lexsort((position, distance, query))
    return query[order], position[order], distance[order]


_NONE: Array = np.empty(0, np.int64)
Pairs = tuple[Array, Array, Array]


def _equal_part(queries: Array, hashes: Array, mask: np.uint64) -> Pairs:
    """Positions sorted by one part of their hash, and for each query where its equals begin and how many they are."""
    order = np.argsort(hashes & mask, kind="stable")
    keys = (hashes & mask)[order]
    begin = np.searchsorted(keys, queries & mask, "left")
    return order, begin, np.searchsorted(keys, queries & mask, "right") - begin


def _part_pairs(queries: Array, hashes: Array, bits: int, part: Pairs, before: list[np.uint64]) -> Iterator[Pairs]:
    """Near pairs that are equal in one part and in none of the parts before it."""
    order, begin, count = part
    rows = np.flatnonzero(count)
    portion = np.cumsum(count[rows]) // CANDIDATES
    for some in np.split(rows, np.flatnonzero(np.diff(portion)) + 1):
        query = np.repeat(some, count[some])
        within = np.arange(len(query)) - np.repeat(np.cumsum(count[some]) - count[some], count[some])
        position = order[begin[query] + within]
        differing = queries[query] ^ hashes[position]
        keep = np.bitwise_count(differing) <= bits
        for mask in before:
            keep &= (differing & mask) != 0
        yield query[keep], position[keep], np.bitwise_count(differing[keep])


def _all_pairs(queries: Array, hashes: Array, bits: int) -> Iterator[Pairs]:
    step = max(1, CANDIDATES // max(1, len(hashes)))
    for start in range(0, len(queries), step):
        distance = np.bitwise_count(queries[start : start + step, None] ^ hashes)
        query, position = np.nonzero(distance <= bits)
        yield query + start, position, distance[query, position]


@dataclass(frozen=True)
class Rule:
    """When images belong together, and the draw; salt and share are frozen at a pool's first ingest."""

    bits: int  # hashes at most this far apart; -1: near-duplicates are not looked for
    difference: float  # and mean absolute difference of the thumbnails at most this, 0 to 1
    cap: int  # a group takes no near-duplicates beyond this size
    salt: str
    share: float  # of groups in the holdout


@dataclass
class Groups:
    """All groups so far, by their first members, in order of arrival; only ever appended to."""

    ids: list[str] = field(default_factory=list)  # (K,) item id of the first member = the group's name
    hashes: Array = field(default_factory=lambda: np.empty(0, np.uint64))  # (K or more,)
    holdout: Array = field(default_factory=lambda: np.empty(0, bool))  # (K or more,)
    sizes: Array = field(default_factory=lambda: np.empty(0, np.int64))  # (K or more,)
    sequences: dict[str, int] = field(default_factory=dict)  # sequence -> position
    seen_at: Callable[[Array], Array] | None = None  # positions -> their (n, 256) thumbnails, for those loaded
    loaded: int = 0  # how many `seen_at` knows; the rest are in `recent`
    recent: list[Array] = field(default_factory=list)

    def reserve(self, more: int) -> None:
        """Make room for `more` groups."""
        for name in ("hashes", "holdout", "sizes"):
            array = getattr(self, name)[: len(self.ids)]
            setattr(self, name, np.concatenate([array, np.zeros(more, array.dtype)]))

    def found(self, item: str, bits: np.uint64, thumbnail: Array, split: str) -> int:
        """Begin a group; returns its position."""
        at = len(self.ids)
        self.ids.append(item)
        self.hashes[at], self.holdout[at], self.sizes[at] = bits, split == "holdout", 0
        self.recent.append(thumbnail)
        return at

    def split(self, at: int) -> str:
        """The side of a group."""
        return "holdout" if self.holdout[at] else "pool"

    def thumbnails(self, positions: Array) -> Array:
        """(n, 256) thumbnails of first members."""
        result = np.empty((len(positions), SIDE * SIDE), np.uint8)
        old = positions < self.loaded
        if self.seen_at is not None and old.any():
            result[old] = self.seen_at(positions[old])
        if not old.all():
            result[~old] = np.stack([self.recent[p - self.loaded] for p in positions[~old]])
        return result


@dataclass(frozen=True)
class Placement:
    """Where an image goes. With a reason, it goes nowhere: it would join training and holdout."""

    group: str
    split: str
    reason: str = ""


def place(
    groups: Groups, ids: list[str], sequences: list[str], images: Array, rule: Rule
) -> tuple[list[Placement], Array]:
    """Place new images (N, H, W, channels) in order, appending to `groups`; also gives their (N,) hashes.

    How the arrivals are cut into calls does not matter.
    """
    hashes, small = perceptual_hashes(images), thumbnails(images)
    known = len(groups.ids)
    groups.reserve(len(ids))
    before = near_pairs(hashes, groups.hashes[:known], rule.bits) if rule.bits >= 0 else (_NONE,) * 3
    bounds = np.searchsorted(before[0], np.arange(len(ids) + 1))
    placements = []
    for i, (item, sequence) in enumerate(zip(ids, sequences, strict=True)):
        part = slice(bounds[i], bounds[i + 1])
        near = _with_recent(groups, known, hashes[i], before[1][part], before[2][part], rule.bits)
        placements.append(_place_one(groups, item, sequence, hashes[i], small[i], near, rule))
    return placements, hashes


def _with_recent(groups: Groups, known: int, bits: np.uint64, near: Array, distance: Array, limit: int) -> Array:
    """Near positions, nearest first and earliest among equals: those before this call and those founded in it."""
    apart = np.bitwise_count(groups.hashes[known : len(groups.ids)] ^ bits)
    new = np.flatnonzero(apart <= limit) if limit >= 0 else _NONE
    if not len(new):
        return near
    positions = np.concatenate([near, new + known])
    return positions[np.lexsort((positions, np.concatenate([distance, apart[new]])))]


def _place_one(
    groups: Groups, item: str, sequence: str, bits: np.uint64, small: Array, near: Array, rule: Rule
) -> Placement:
    if sequence:
        at = groups.sequences.get(sequence)
    else:
        at = _first_alike(groups, small, near[groups.sizes[near] < rule.cap], rule.difference)
    split = draw_split(rule.salt, item, rule.share) if at is None else groups.split(at)
    across = _first_alike(groups, small, near[groups.holdout[near] != (split == "holdout")], rule.difference)
    if across is not None:
        other = f"near-duplicate of {groups.split(across)} item {groups.ids[across][:12]}"
        return Placement("", "", f"would bridge training and holdout: {other}, its own group is in the {split}")
    if at is None:
        at = groups.found(item, bits, small, split)
    if sequence:
        groups.sequences[sequence] = at
    groups.sizes[at] += 1
    return Placement(groups.ids[at], split)


def _first_alike(groups: Groups, small: Array, near: Array, difference: float) -> int | None:
    """The first of `near` whose thumbnail differs by at most `difference`."""
    limit = difference * 255 * SIDE * SIDE
    for start in range(0, len(near), 64):
        part = near[start : start + 64]
        apart = np.abs(groups.thumbnails(part).astype(np.int16) - small).sum(axis=1)
        hits = np.flatnonzero(apart <= limit)
        if len(hits):
            return int(part[hits[0]])
    return None
