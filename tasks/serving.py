"""The serving folder: copies of the images that annotators see, checked against the item's hash.

Originals stay where they are and may change or vanish; an annotator must see exactly the bytes that the item id
names. `.gleaner/serving/images/1f/1f3a….png`
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks import pool
from tasks.campaign import Campaign
from tasks.errors import BadInput
from tasks.images import Refused, suffix
from tasks.originals import Originals
from tasks.store import Store, sha256

FOLDER = ".gleaner/serving/images"
_TODO = "Bring the original back, or name it in select.exclude of params.yaml; then run the tick again."


def serve(campaign: Campaign, item_ids: Sequence[str]) -> dict[str, Path]:
    """Copy the items' original bytes into the serving folder. Raises BadInput when an original changed or is gone."""
    wanted = set(item_ids)
    rows = pool.read_manifest(campaign.store).select(["item_id", "uri", "ingest"]).to_pylist() if wanted else []
    found = {row["item_id"]: row for row in rows if row["item_id"] in wanted}
    originals = Originals(campaign.store, campaign.params.source)
    return {item: _serve_one(campaign.store, originals, found[item]) for item in item_ids}


def _serve_one(store: Store, originals: Originals, row: dict[str, Any]) -> Path:
    item_id, uri = row["item_id"], row["uri"]
    folder = store.path(f"{FOLDER}/{item_id[:2]}")
    for copy in folder.glob(f"{item_id}.*"):
        if sha256(copy) == item_id:
            return copy
    try:
        content = originals.read(uri, row["ingest"])
    except (OSError, Refused, BadInput) as error:
        raise BadInput(f"{uri}: the original cannot be read any more ({error}). {_TODO}") from None
    if hashlib.sha256(content).hexdigest() != item_id:
        raise BadInput(f"{uri}: its bytes changed since it was ingested. {_TODO}")
    name = f"{FOLDER}/{item_id[:2]}/{item_id}{suffix(content)}"
    store.write_bytes(name, content)
    return store.path(name)
