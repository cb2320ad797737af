"""Images that arrive while a campaign runs: what a tick ingests before it opens an iteration.

    new_images(campaign)   ->   True: the source holds something that was never looked at
    take_new(campaign)     ->   Taken(campaign with the larger pool, counts, lines to say)

A source that cannot be read neither ends the campaign nor shrinks the pool: that is a line, and the loop goes on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from tasks import committed, pool
from tasks.campaign import Campaign
from tasks.checkpoint import checkpoint
from tasks.counts import Counts
from tasks.errors import GleanerError
from tasks.ingest import commit_pool
from tasks.intake import take_in
from tasks.originals import described, known_sources
from tasks.sources import Found, Source, grows, open_source
from tasks.sources.folder import Folder

#: what the source listed when nothing in it was new: a folder that moved is read again once, not in each tick
SEEN = ".gleaner/source.seen"
#: there while a tick ingests: what differs from the newest commit is then our own, and is finished
UNDER_WAY = ".gleaner/ingesting"


@dataclass(frozen=True)
class Taken:
    """What an ingest during a tick brought."""

    campaign: Campaign  # sees the pool as it is now
    counts: Counts | None = None  # None: nothing was new
    lines: tuple[str, ...] = ()  # what people should know


@dataclass(frozen=True)
class _Look:
    """A source as it is now, None with the reason when it cannot be read."""

    source: Source | None
    problem: str = ""


def new_images(campaign: Campaign) -> bool:
    """Whether a watched source holds what was never looked at. Reads only; a source that cannot be read holds nothing new."""
    if not grows(campaign.params.source):
        return False
    look = _look(campaign)
    return look.source is not None and _unseen(campaign, look.source)


def take_new(campaign: Campaign) -> Taken:
    """Ingest what is new in a watched source, between iterations. Raises GleanerError when the data are not as committed.

    A tick that was killed in here is finished by the next one.
    """
    latest = campaign.ledger.latest()
    if not grows(campaign.params.source) or (latest is not None and latest.state != "closed"):
        return Taken(campaign)
    look, interrupted = _look(campaign), campaign.store.exists(UNDER_WAY)
    lines = (_going_on(look.problem),) if look.problem else ()
    if look.source is None and interrupted:
        look = _Look(Folder(campaign.root, ()))  # finish what was taken so far
    if look.source is None:
        return Taken(campaign, lines=lines)
    if interrupted:
        committed.require_history(campaign.store, latest)
        committed.require_pool(campaign.store)
    elif _unseen(campaign, look.source):
        committed.require(campaign.store, latest)
    else:
        return Taken(campaign)
    counts = _take(campaign, look.source)
    if not {"unreadable", "missing"} & set(counts.reasons):  # those may be readable the next time
        campaign.store.write_bytes(SEEN, _listing(campaign, look.source))
    return Taken(replace(campaign), counts, (*lines, *_told(counts)))


def _take(campaign: Campaign, source: Source) -> Counts:
    params = campaign.params
    checkpoint("ingest:begin:before")
    campaign.store.write_bytes(UNDER_WAY, b"")
    counts = take_in(
        campaign.store, params.source, params.pool, params.holdout, params.campaign, params.compute,
        progress=False, opened=source,
    )  # fmt: skip
    commit_pool(campaign, params.source, counts, campaign.params_text)
    campaign.store.path(UNDER_WAY).unlink()
    checkpoint("ingest:end:after")
    return counts


def _look(campaign: Campaign) -> _Look:
    """List the source. A disk that is not mounted is a folder that is gone, empty or cannot be listed."""
    try:
        source = open_source(campaign.root, campaign.params.source)
        found = next(iter(source), None)
    except (GleanerError, OSError) as error:
        return _Look(None, str(error))
    if found is None or not found.uri:
        return _Look(None, "it holds no images now")
    return _Look(source)


def _going_on(problem: str) -> str:
    return f"the source cannot be read, the iteration goes on with the pool as it is: {problem}"


def _told(counts: Counts) -> tuple[str, ...]:
    new = [f"{counts.accepted} new images were ingested"] if counts.accepted else []
    if counts.quarantined:
        new.append(
            f"{counts.quarantined} files of the source are quarantined: {pool.FOLDER}/sightings.parquet says why"
        )
    return (*new, *counts.warnings)


def _unseen(campaign: Campaign, source: Source) -> bool:
    """Whether the source lists what no ingest of it has read. What has no clock is known by its name."""
    store, section = campaign.store, campaign.params.source
    if store.exists(SEEN) and store.path(SEEN).read_bytes() == _listing(campaign, source):
        return False
    elsewhere = [int(n) for n, read in known_sources(store).items() if read != described(section)]
    table = pool.read_sightings(store)
    seen = table.filter(pc.invert(pc.is_in(table["ingest"], pa.array(elsewhere, pa.int32()))))
    names = set(seen["uri"].to_pylist())
    read = seen.filter(pc.not_equal(seen["sha256"], ""))
    stamps = set(zip(*(read[name].to_pylist() for name in ("uri", "size", "mtime_ns")), strict=True))

    def known(found: Found) -> bool:
        return found.uri in names if found.mtime_ns < 0 else (found.uri, found.size, found.mtime_ns) in stamps

    return not all(map(known, source))


def _listing(campaign: Campaign, source: Source) -> bytes:
    """A hash of what the source lists, and of the pool that it was taken into."""
    info = pool.read_info(campaign.store)
    state = [described(campaign.params.source), info and (info.items, info.ingests)]
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for found in source:
        digest.update(f"{found.uri}\0{found.size}\0{found.mtime_ns}\0".encode())
    return digest.hexdigest().encode()
