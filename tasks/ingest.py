"""Ingest images into the campaign: `python -m tasks.ingest`. Under its lock, versioned, never during an iteration.

ingest(Path("."), Path("~/photos"))   ->   Counts(seen=1028, accepted=1019, ...)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks import committed, pool, repository, versions
from tasks.campaign import IDENTITY, Campaign, open_campaign
from tasks.checkpoint import checkpoint
from tasks.counts import Counts, summary
from tasks.errors import BadInput
from tasks.intake import take_in
from tasks.originals import remember_source
from tasks.params import parse
from tasks.params_sections import Params, Source
from tasks.sources import open_source
from tasks.stage import guarded
from tasks.workspace import set_value

TABLES = (".csv", ".parquet")
SMALL = 6  # images this many times larger than pool.size are worth a word


def ingest(root: Path, source: Path | None, *, rebuild: bool = False) -> Counts:
    """Ingest what params.yaml names, or `source` (then params.yaml is changed to name it), and commit the pool."""
    with open_campaign(root, "ingest") as campaign:
        latest = campaign.ledger.latest()
        if latest is not None and latest.state != "closed":
            raise BadInput(
                f"iteration {latest.number} is under way; its inputs are frozen. Finish it first: gleaner tick (with "
                "pool.size and pool.mode as they were)"
            )
        committed.require_history(campaign.store, latest)
        committed.require_pool(campaign.store)
        params = campaign.params if source is None else _point_at(campaign, source)
        counts = take_in(
            campaign.store, params.source, params.pool, params.holdout, params.campaign, params.compute, rebuild=rebuild
        )
        commit_pool(campaign, params.source, counts)
        return _note(campaign, counts)


def commit_pool(campaign: Campaign, source: Source, counts: Counts, params: str | None = None) -> None:
    """Put the pool under DVC and commit it; `params` is committed as params.yaml whatever the working tree holds.

    A pool that did not change makes no commit of its own.
    """
    checkpoint("ingest:sources:before")
    info = pool.read_info(campaign.store)
    remember_source(campaign.store, info.ingests if info else 0, source)
    versions.add_data(campaign.root, ("data/pool",))
    checkpoint("ingest:add:after")
    if params is None or {committed.POOL, IDENTITY} & set(repository.own_changes(campaign.root)):
        repository.stage_own(campaign.root, params)
        repository.commit(campaign.root, f"ingest: {counts.accepted} images accepted")
    checkpoint("ingest:commit:after")


def _point_at(campaign: Campaign, source: Path) -> Params:
    """Write another source into params.yaml: a folder, or a table of paths."""
    if not source.exists():
        raise BadInput(
            f"{source} does not exist. Name a folder of images, or a .csv or .parquet table with a column `path`."
        )
    kind = "table" if source.suffix.lower() in TABLES else "folder"
    text = set_value(campaign.params_text, "source", "path", str(source))
    if kind != campaign.params.source.kind:
        text = set_value(set_value(text, "source", "kind", kind), "source", "options", {})
    params = parse(text)
    open_source(campaign.root, params.source)  # refused here, params.yaml stays as it was
    campaign.store.write_bytes("params.yaml", text.encode())
    return params


def _note(campaign: Campaign, counts: Counts) -> Counts:
    """Say when images are kept much smaller than they are: easily overlooked, and costly to find out late."""
    manifest, info = pool.read_manifest(campaign.store), pool.read_info(campaign.store)
    if not counts.accepted or info is None:
        return counts
    width, height = (int(np.median(manifest[name].to_numpy())) for name in ("width", "height"))
    if min(width, height) < SMALL * info.size:
        return counts
    note = (
        f"images of about {width}x{height} are kept at {info.size}x{info.size} {info.mode}. If that is too little, set "
        "pool.size and pool.mode and run `gleaner ingest --rebuild`"
    )
    return replace(counts, warnings=(*counts.warnings, note))


def main() -> None:
    """Ingest what params.yaml names into the campaign of the current folder."""
    print(summary(ingest(Path.cwd(), None)))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
