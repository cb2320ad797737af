"""A campaign at work: its lock, params, ledger and labeling tool, opened together for one command.

with open_campaign(Path("."), "tick") as campaign:
    poll(campaign)
"""

from __future__ import annotations

import json
import secrets
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks import leftovers, plugins, repository
from tasks import params as parameters
from tasks.errors import BadInput, GleanerError
from tasks.labeling import LabelingTool, Place
from tasks.ledger import Asked, Ledger, open_ledger, require_ledger
from tasks.lock import campaign_lock
from tasks.params_sections import Params
from tasks.pool import PoolInfo, read_info, read_manifest, require_same
from tasks.resolution import Policy
from tasks.store import Store, disk_errors
from tasks.tables import KNOWN_LABELS

IDENTITY = "data/campaign.json"
LEDGER = ".gleaner/ledger.sqlite"
CLOSED = "data/artefacts.json"  # written when an iteration is closed (tasks/artefacts.py)


def utc_now() -> str:
    """Now, in UTC, ISO 8601. Order is always by sequence number, never by this."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Campaign:
    """One campaign, locked by this process."""

    id: str
    store: Store
    params: Params
    params_text: str
    ledger: Ledger

    @property
    def root(self) -> Path:
        """The workspace."""
        return self.store.root

    @cached_property
    def pool(self) -> PoolInfo:
        """What the pool is. Raises BadInput before the first ingest."""
        info = read_info(self.store)
        if info is None or not info.items:
            raise BadInput(f"{self.root}: the pool is empty. `gleaner ingest` reads the images that params.yaml names.")
        require_same(info, self.params.pool.size, self.params.pool.mode)
        return info

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """What annotators may answer: params.yaml's list, else what the source knows."""
        classes = self.params.labeling.classes or self.pool.classes
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise BadInput(
                f"params.yaml: labeling.classes: needs at least two different class names, has {list(classes)}. "
                'The source knows none; write them down, e.g. ["deer", "fox", "empty"].'
            )
        known = tuple(json.loads(self.ledger.get("classes") or "[]"))
        missing = [name for name in known if name not in classes]
        if missing:
            raise BadInput(
                f"params.yaml: labeling.classes: {missing[0]!r} is missing, but annotators were asked with it. Classes can "
                f"be added, not removed. Known: {', '.join(known)}."
            )
        # predictions hold positions: what was asked with keeps its own
        return (*known, *(name for name in classes if name not in known))

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels of the pool's images."""
        return self.pool.shape

    @cached_property
    def tool(self) -> LabelingTool:
        """The labeling tool that params.yaml names."""
        labeling, known = self.params.labeling, self.store.path(KNOWN_LABELS.path)
        place = Place(self.root.resolve(), self.id, self.classes, known, self.ledger.instance(), labeling.overlap)
        tool: LabelingTool = plugins.find("labeling", labeling.tool).connect(place, **labeling.options)
        return tool

    def asked(self, event_seq: int | None = None) -> list[Asked]:
        """Every selected item with what its answers come to under params.yaml's policy, as of an event (default: now)."""
        return self.ledger.asked(self._policy, event_seq)

    def corrected(self, event_seq: int | None = None) -> list[Asked]:
        """Images of the pool that users corrected and nobody was asked about, with their labels: arm `correction`.

        One that is reserved for measuring is left out: who corrects chooses what is measured.
        """
        found = self.ledger.unasked(self._policy, event_seq)
        manifest = read_manifest(self.store).select(["item_id", "split"]).to_pydict() if found else {}
        split = dict(zip(*manifest.values(), strict=True)) if found else {}
        return [item for item in found if split.get(item.item_id) == "pool"]

    @property
    def _policy(self) -> Policy:
        labeling = self.params.labeling
        return Policy(labeling.resolution, labeling.overlap, labeling.minimum_votes)


def runs_here(root: Path) -> bool:
    """Whether a campaign ticks in this folder; a copy of one has closed iterations and no ledger, and is only read."""
    held = any((root / f"{LEDGER}{suffix}").exists() for suffix in ("", ".backup"))
    return (root / ".gleaner").is_dir() and (held or not (root / CLOSED).exists())


def mint(name: str) -> dict[str, Any]:
    """A new identity: campaign ids are unique, because a labeling tool's tasks are found by them."""
    plain = (
        unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    )  # ü -> u; Prefect allows no more
    slug = "".join(c if c.isalnum() else "-" for c in plain).strip("-")[:40] or "campaign"
    return {"id": f"{slug}-{secrets.token_hex(4)}", "forked_from": None}


@contextmanager
def open_campaign(root: Path, purpose: str, now: Callable[[], str] = utc_now) -> Iterator[Campaign]:
    """Lock a workspace and open its ledger. Raises BadInput, Busy or GleanerError before any effect."""
    store = Store(root)
    path = store.path("params.yaml")
    params = parameters.load(path)
    if not store.exists(IDENTITY):
        raise BadInput(f"{root.resolve()} is Gleaner's own code, not a campaign. `gleaner init DIR` makes a workspace.")
    fresh = not repository.tags(root)
    require_ledger(store.path(LEDGER), fresh)
    with disk_errors(root), campaign_lock(root, purpose):
        leftovers.clear(root)
        repository.require_clean(root)
        with open_ledger(store.path(LEDGER), now, create=fresh) as ledger:
            identity = store.read_json(IDENTITY)["id"]
            _same_campaign(ledger, identity)
            yield Campaign(identity, store, params, path.read_text(encoding="utf-8"), ledger)


@contextmanager
def read_campaign(root: Path, now: Callable[[], str] = utc_now) -> Iterator[Campaign]:
    """Open a campaign for reading: no lock, so that it can be looked at while it works. The ledger must exist."""
    store = Store(root)
    path = store.path("params.yaml")
    params = parameters.load(path)
    with open_ledger(store.path(LEDGER), now, write=False) as ledger:
        identity = store.read_json(IDENTITY)["id"]
        yield Campaign(identity, store, params, path.read_text(encoding="utf-8"), ledger)


def _same_campaign(ledger: Ledger, identity: str) -> None:
    known = ledger.get("campaign")
    if known is None:
        ledger.put("campaign", identity)
    elif known != identity:
        raise GleanerError(f"the ledger is of campaign {known}, {IDENTITY} says {identity}. Restore the file from git.")
