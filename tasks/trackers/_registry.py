"""A campaign's registered model: a version an iteration, the alias `champion` on one of them.

    registered model "digits"    1 (iteration 0)    2 (iteration 1)  <-- champion    3 (iteration 2)

The registry points to the run's artifact `model/`, which every backend can serve back. Works on an MLflow client
that the adapter hands in.
"""

from __future__ import annotations

import re
from typing import Any

from tasks.store import sha256
from tasks.trackers import IterationRecord

CAMPAIGN, ITERATION, TAG = "gleaner.campaign", "gleaner.iteration", "git.tag"
ALIAS = "champion"


def model_name(campaign: str) -> str:
    """The registered model of a campaign: MLflow allows neither / nor : in it, and no quotes in a search for it."""
    return re.sub(r"[/:'\"`\\%]", "-", campaign)


def register(client: Any, run: Any, record: IterationRecord) -> None:
    """Register the run's model folder as a version; champion moves forward only (a late replay must not take it)."""
    assert record.model is not None
    name = model_name(record.name)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, tags={CAMPAIGN: record.campaign})
    mine = {CAMPAIGN: record.campaign, ITERATION: str(record.iteration)}
    _drop_leftovers(client, name, mine)
    # no more than the registry's page has room for; all other tags are on the run, a click away
    tags = {**mine, TAG: record.tags[TAG], "gleaner.sha256": sha256(record.model / "head.safetensors")}
    version = client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id, tags=tags)
    if record.champion and _champion_iteration(client, name, record.campaign) <= record.iteration:
        client.set_registered_model_alias(name, ALIAS, version.version)


def _drop_leftovers(client: Any, name: str, mine: dict[str, str]) -> None:
    for version in client.search_model_versions(f"name = '{name}'"):
        if mine.items() <= version.tags.items():
            client.delete_model_version(name, version.version)


def _champion_iteration(client: Any, name: str, campaign: str) -> int:
    """Iteration of this campaign's present champion, -1 when there is none."""
    number = client.get_registered_model(name).aliases.get(ALIAS)
    if number is None:
        return -1
    tags = client.get_model_version(name, number).tags
    return int(tags[ITERATION]) if tags.get(CAMPAIGN) == campaign else -1
