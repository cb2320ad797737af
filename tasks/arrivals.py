"""Images that arrive while a campaign runs: what a tick ingests before it opens an iteration.

    new_images(campaign)   ->   True: the source holds something that was never looked at
    take_new(campaign)     ->   Taken(campaign with the larger pool, how many are new, lines to say)

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
from tasks.collector import INBOX
from tasks.counts import Counts
from tasks.errors import GleanerError
from tasks.ingest import commit_pool
from tasks.intake import take_in
from tasks.ledger import IterationRow
from tasks.originals import described, known_sources
from tasks.params_sections import Params
from tasks.params_sections import Source as Section
from tasks.sources import Found, Source, grows, open_source
from tasks.sources.folder import Folder

#: what the source listed when nothing in it was new: a folder that moved is read again once, not in each tick
SEEN = ".gleaner/seen"
#: there while a tick ingests: what differs from the newest commit is then our own, and is finished
UNDER_WAY = ".gleaner/ingesting"


#: the images that a collector kept, as a source
INBOX_SOURCE = Section(kind="folder", path=INBOX)


@dataclass(frozen=True)
class Taken:
    """What an ingest during a tick brought."""

    campaign: Campaign  # sees the pool as it is now
    accepted: int = 0  # images that were new
    lines: tuple[str, ...] = ()  # what people should know


@dataclass(frozen=True)
class _Look:
    """A source as it is now, None with the reason when it cannot be read."""

    source: Source | None
    problem: str = ""


def watched(params: Params) -> tuple[Section, ...]:
    """The sources that ticks look at: the campaign's own, and the inbox of its stream."""
    own = (params.source,) if grows(params.source) else ()
    return (*own, *((INBOX_SOURCE,) if params.stream.enabled else ()))


def new_images(campaign: Campaign) -> bool:
    """Whether a watched source holds what was never looked at. Reads only; a source that cannot be read holds nothing new."""
    looks = ((section, _look(campaign, section)) for section in watched(campaign.params))
    return any(look.source is not None and _unseen(campaign, section, look.source) for section, look in looks)


def take_new(campaign: Campaign) -> Taken:
    """Ingest what is new in the watched sources, between iterations. Raises GleanerError when the data are not as committed.

    A tick that was killed in here is finished by the next one.
    """
    latest, taken = campaign.ledger.latest(), Taken(campaign)
    if latest is not None and latest.state != "closed":
        return taken
    interrupted_first = sorted(watched(campaign.params), key=lambda s: not campaign.store.exists(_mark(UNDER_WAY, s)))
    for section in interrupted_first:
        one = _take_from(taken.campaign, section, latest)
        taken = Taken(one.campaign, taken.accepted + one.accepted, (*taken.lines, *one.lines))
    return taken


def _take_from(campaign: Campaign, section: Section, latest: IterationRow | None) -> Taken:
    look, under_way = _look(campaign, section), _mark(UNDER_WAY, section)
    lines = (_going_on(look.problem),) if look.problem else ()
    interrupted = campaign.store.exists(under_way)
    if look.source is None and interrupted:
        look = _Look(Folder(campaign.root, ()))  # finish what was taken so far
    if look.source is None:
        return Taken(campaign, lines=lines)
    if interrupted:
        committed.require_history(campaign.store, latest)
        committed.require_pool(campaign.store)
    elif _unseen(campaign, section, look.source):
        committed.require(campaign.store, latest)
    else:
        return Taken(campaign)
    counts = _take(campaign, section, look.source, under_way)
    if not {"unreadable", "missing"} & set(counts.reasons):  # those may be readable the next time
        campaign.store.write_bytes(_mark(SEEN, section), _listing(campaign, section, look.source))
    return Taken(replace(campaign), counts.accepted, (*lines, *_told(counts)))


def _take(campaign: Campaign, section: Section, source: Source, under_way: str) -> Counts:
    params = campaign.params
    checkpoint("ingest:begin:before")
    campaign.store.write_bytes(under_way, b"")
    counts = take_in(
        campaign.store, section, params.pool, params.holdout, params.campaign, params.compute,
        progress=False, opened=source,
    )  # fmt: skip
    commit_pool(campaign, section, counts, campaign.params_text)
    campaign.store.path(under_way).unlink()
    checkpoint("ingest:end:after")
    return counts


def _mark(name: str, section: Section) -> str:
    """A file beside the ledger for a source."""
    return f"{name}.{hashlib.sha256(json.dumps(described(section), sort_keys=True).encode()).hexdigest()[:16]}"


def _look(campaign: Campaign, section: Section) -> _Look:
    """List a source. A disk that is not mounted is a folder that is gone, empty or cannot be listed."""
    if section == INBOX_SOURCE and not campaign.store.exists(INBOX):
        return _Look(Folder(campaign.root, ()))  # nothing was kept so far
    try:
        source = open_source(campaign.root, section)
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


def _unseen(campaign: Campaign, section: Section, source: Source) -> bool:
    """Whether the source lists what no ingest of it has read. What has no clock is known by its name."""
    store, seen_before = campaign.store, _mark(SEEN, section)
    if store.exists(seen_before) and store.path(seen_before).read_bytes() == _listing(campaign, section, source):
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


def _listing(campaign: Campaign, section: Section, source: Source) -> bytes:
    """A hash of what the source lists, and of the pool that it was taken into."""
    info = pool.read_info(campaign.store)
    state = [described(section), info and (info.items, info.ingests)]
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for found in source:
        digest.update(f"{found.uri}\0{found.size}\0{found.mtime_ns}\0".encode())
    return digest.hexdigest().encode()
