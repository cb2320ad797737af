"""Takes a source's images into the pool: each file is accepted, a duplicate, or quarantined with the reason.

    take_in(store, params.source, params.pool, params.holdout, params.campaign, params.compute)
    1028 files seen: 1019 accepted, 6 duplicates, 3 quarantined
      2  truncated
      1  not an image

Running it again reads only what is new or changed. Items, groups and splits never change once written;
accepted + duplicate + quarantined = seen, always.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import looking
from tasks import pool as files
from tasks.counts import Counts, count, settle_labels
from tasks.errors import GleanerError
from tasks.grouping import Groups, Placement, Rule, place
from tasks.looking import Looked
from tasks.originals import Originals, described, known_sources
from tasks.params_sections import Campaign, Compute, Holdout, Pool
from tasks.params_sections import Source as SourceParams
from tasks.pool import PoolInfo, ShardWriter
from tasks.rebuilding import rebuild as rebuild_pool
from tasks.sightings import Sighting, Sightings
from tasks.sources import Found, Source, open_source
from tasks.store import Store
from tasks.tables import MANIFEST

BLOCK = 1024  # images grouped at once; any number gives the same groups
NAMES = ["item_id", "uri", "sequence"]
LIMITS = ("max_pixels", "near_duplicate_bits", "near_duplicate_difference", "group_cap")


@dataclass
class _Ingest:
    """One ingest under way."""

    store: Store
    pool: Pool
    info: PoolInfo  # as before it
    manifest: pa.Table  # as before it
    rule: Rule
    groups: Groups
    sightings: Sightings
    shards: ShardWriter
    items: dict[str, str]  # all accepted: item id -> uri
    sequences: dict[tuple[str, str], str]  # as before it: (item id, uri) -> sequence
    retry: bool  # quarantined files are worth another look
    elsewhere: set[int]  # ingests that read another source: an equal name there is another file
    left_out: dict[str, str] = field(default_factory=dict)  # hash -> why its group could not be
    rows: list[dict[str, Any]] = field(default_factory=list)  # new rows of the manifest
    labels: dict[str, set[str]] = field(default_factory=dict)  # item id -> labels the source gives it now
    tally: Counter[str] = field(default_factory=Counter)
    quarantine: list[tuple[str, str]] = field(default_factory=list)

    @property
    def number(self) -> int:
        return self.info.ingests + 1

    def unread(self, found: Found) -> Sighting | None:
        """The sighting that spares reading a file."""
        sighting = self.sightings.unchanged(found)
        if sighting is None or sighting.ingest in self.elsewhere:
            return None
        return None if self.retry and sighting.outcome == "quarantined" else sighting


def take_in(
    store: Store, source: SourceParams, pool: Pool, holdout: Holdout, campaign: Campaign, compute: Compute, *,
    progress: bool | None = None, rebuild: bool = False, opened: Source | None = None,
) -> Counts:  # fmt: skip
    """Take what is new in the source into data/pool.

    progress: True or False; None shows a bar on a terminal only. rebuild: decode all items anew first, for
    another pool.size or pool.mode. opened: the source, when it was listed already. Raises BadInput when params
    contradict the pool or the source is unusable.
    A crash at any point is undone by running it again.
    """
    info = _agreed(store, pool, holdout, campaign, rebuild)
    opened = open_source(store.root, source) if opened is None else opened
    with looking.quiet():
        if rebuild and info.items:
            with looking.progress_bar(info.items, progress, "rebuild") as advance:
                info = rebuild_pool(store, Originals(store, source), info, pool, compute.workers, advance)
        run = _begin(store, pool, info, source)
        with looking.progress_bar(len(opened), progress, "ingest") as advance:
            for block in _blocks(_looked(run, opened, compute.workers)):
                _take(run, block)
                advance(len(block))
    return _finish(run, opened.classes)


def _agreed(store: Store, pool: Pool, holdout: Holdout, campaign: Campaign, rebuild: bool) -> PoolInfo:
    info = files.read_info(store)
    if info is None:
        return PoolInfo(pool.size, pool.mode, str(campaign.seed), holdout.share)
    if not rebuild:
        files.require_same(info, pool.size, pool.mode)
    return info


def _begin(store: Store, pool: Pool, info: PoolInfo, source: SourceParams) -> _Ingest:
    manifest = files.read_manifest(store)
    if len(manifest) and int(np.max(manifest["shard"].to_numpy())) >= info.shards:
        raise GleanerError("a rebuild of the pool was interrupted: run it again (`gleaner ingest --rebuild`).")
    rule = Rule(pool.near_duplicate_bits, pool.near_duplicate_difference, pool.group_cap, info.salt, info.share)
    return _Ingest(
        store, pool, info, manifest, rule, files.read_groups(store, manifest), Sightings(files.read_sightings(store)),
        ShardWriter(store, info.shards, pool.shard_items, info.shape),
        dict(zip(manifest["item_id"].to_pylist(), manifest["uri"].to_pylist(), strict=True)),
        {(row["item_id"], row["uri"]): row["sequence"] for row in manifest.select(NAMES).to_pylist()},
        retry=info.limits != _limits(pool),
        elsewhere={int(number) for number, read in known_sources(store).items() if read != described(source)},
    )  # fmt: skip


def _limits(pool: Pool) -> dict[str, float]:
    return {name: getattr(pool, name) for name in LIMITS}


def _looked(run: _Ingest, source: Source, workers: int) -> Iterator[list[Looked]]:
    def one(found: Found) -> Looked:
        sighting = run.unread(found)
        if sighting is not None:
            return Looked(found, sighting.sha256, refused=sighting.reason if sighting.outcome == "quarantined" else "")
        return looking.look_at(source.read, found, run.pool, run.items.__contains__)

    return looking.in_parallel(source, one, workers)


def _blocks(chunks: Iterable[list[Looked]]) -> Iterator[list[Looked]]:
    block: list[Looked] = []
    for chunk in chunks:
        block.extend(chunk)
        if len(block) >= BLOCK:
            yield block
            block = []
    if block:
        yield block


def _take(run: _Ingest, block: list[Looked]) -> None:
    """Group what is new in a block, then settle each of its files in order."""
    new: dict[str, Looked] = {}
    for looked in block:
        if looked.decoded is not None and looked.sha256 not in run.items:
            new.setdefault(looked.sha256, looked)
    if new:
        images = np.stack([looked.decoded.pixels for looked in new.values() if looked.decoded is not None])
        sequences = [looked.found.sequence for looked in new.values()]
        placements, hashes = place(run.groups, list(new), sequences, images, run.rule)
        for looked, placement, phash in zip(new.values(), placements, hashes.tolist(), strict=True):
            _add(run, looked, placement, phash)
    for looked in block:
        _settle(run, looked, new.get(looked.sha256) is looked)


def _add(run: _Ingest, looked: Looked, placement: Placement, phash: int) -> None:
    if placement.reason or looked.decoded is None:
        run.left_out[looked.sha256] = placement.reason
        return
    shard, row = run.shards.add(looked.decoded.pixels)
    found = looked.found
    run.items[looked.sha256] = found.uri
    run.rows.append({
        "item_id": looked.sha256, "uri": found.uri, "shard": shard, "row": row,
        "width": looked.decoded.width, "height": looked.decoded.height, "bytes": looked.size,
        "group": placement.group, "sequence": found.sequence, "taken": found.taken,
        "split": placement.split, "phash": phash, "ingest": run.number,
    })  # fmt: skip


def _settle(run: _Ingest, looked: Looked, first: bool) -> None:
    """Count a file as exactly one of accepted, duplicate, quarantined, and write down why."""
    found, sha256 = looked.found, looked.sha256
    reason = looked.refused or ("" if sha256 in run.items else run.left_out[sha256])
    if reason:
        outcome = "quarantined"
        run.quarantine.append((found.uri, reason))
    elif first:
        outcome = "accepted"
    else:
        outcome, reason = "duplicate", f"same bytes as {run.items[sha256]}"
    if run.sequences.get((sha256, found.uri), found.sequence) != found.sequence:
        run.tally["other sequence"] += 1
    if not looked.refused and found.label is not None:
        run.labels.setdefault(sha256, set()).add(found.label)
    run.tally[outcome] += 1
    sighting = Sighting(found.uri, sha256, found.size, found.mtime_ns, outcome, reason, run.number)
    run.tally["known"] += run.sightings.record(sighting)


def _finish(run: _Ingest, classes: tuple[str, ...]) -> Counts:
    """Write in an order that lets a crash anywhere be repaired by the next ingest: pool.json comes last."""
    run.shards.flush()
    before = files.read_known_labels(run.store)
    labels, warnings = settle_labels(before, run.labels, run.items)
    new = replace(
        run.info,
        classes=run.info.classes + tuple(c for c in classes if c not in run.info.classes),
        items=len(run.items),
        ingests=run.number if run.sightings.counts(run.number) else run.info.ingests,
        shards=run.shards.next,
        limits=_limits(run.pool),
    )
    if run.tally or run.info.ingests:
        _write(run, new, labels, changed=labels != before)
    return count(run.tally, run.quarantine, (*warnings, *_fixed(run.tally["other sequence"])))


def _fixed(changed: int) -> Iterator[str]:
    if changed:
        yield (
            f"{changed} images now have another sequence than when they were ingested. Groups and splits stay as they "
            "were first written (measures must not change sides): a new workspace takes the new sequences"
        )


def _write(run: _Ingest, new: PoolInfo, labels: dict[str, str], changed: bool) -> None:
    if changed or not run.info.ingests:
        files.write_known_labels(run.store, labels)
    if run.sightings.changed:
        files.write_sightings(run.store, run.sightings.table())
    if run.rows or not run.info.ingests:
        added = pa.Table.from_pylist(run.rows, schema=MANIFEST.schema)
        files.commit(run.store, pa.concat_tables([run.manifest.cast(MANIFEST.schema), added]), new)
    elif new != run.info:
        files.write_info(run.store, new)
    files.sweep(run.store, new)
