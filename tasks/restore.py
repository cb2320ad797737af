"""Bring an iteration back, bit for bit, and prove it; make a copy a campaign of its own.

restore(Path("demo"), 3, Path("demo-3"))    every file of iteration 3, checked against its SHA-256
fork(Path("demo-3"))                        a new campaign id; from here it may tick
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tasks import artefacts, committed, leftovers, remotes, repository, snapshot, versions
from tasks.campaign import IDENTITY, LEDGER, mint, utc_now
from tasks.errors import BadInput, GleanerError
from tasks.ledger import Ledger, require_no_loss
from tasks.lock import campaign_lock
from tasks.store import Store, disk_errors, remove_folder


def restore(root: Path, number: int, target: Path) -> int:
    """Clone iteration `number` into `target`; returns how many files were proven.

    Raises BadInput for an unknown iteration or a folder in use, GleanerError when a byte differs (nothing is left).
    """
    name = repository.tag_name(number)
    known = repository.tags(root)
    if name not in known:
        raise BadInput(
            f"there is no iteration {number} in {root}. Closed iterations: {', '.join(known) or 'none yet'}."
        )
    if os.path.lexists(target):
        raise BadInput(f"{target} exists. Name a new folder: gleaner restore {number} --to DIR")
    building = target.with_name(f".{target.name}.restoring")
    remove_folder(building)
    try:
        with disk_errors(building):
            remotes.clone(root, building, name)
            proven = _prove(building)
            building.rename(target)
    finally:
        remove_folder(building)
    return proven


def _prove(root: Path) -> int:
    """Compare every file with the list of the tag. Raises GleanerError that names what differs."""
    path = root / artefacts.ARTEFACTS
    files = artefacts.read_artefacts(path.read_text(encoding="utf-8"), str(path))["files"]
    problems = artefacts.check_files(root, files)
    if problems:
        raise GleanerError(
            "the restored copy is not what was tagged, it was removed again:\n" + "\n".join(problems[:10])
        )
    return len(files)


def fork(root: Path) -> str:
    """Give a copy of a campaign its own id and ledger, so that it may tick. Returns the new id.

    What the old campaign asked and nobody had answered yet is forgotten: those tasks are not ours. The ledger
    appears last; a fork that died before is repeated.
    """
    store = Store(root)
    with disk_errors(root), campaign_lock(root, "fork"):
        listed = _copied(store)
        leftovers.clear(root)
        if not store.exists(f"{snapshot.FOLDER}/iteration.parquet"):
            remotes.bring_data(root, "this copy", root)
        _require_proven(store)
        identity = _new_identity(store, str(listed["campaign"]), int(listed["iteration"]))
        _commit_fork(root, identity)

        def own(ledger: Ledger) -> None:
            ledger.forget_unanswered()
            ledger.put("campaign", identity["id"])
            ledger.put("instance", "")  # the tasks in the labeling tool are the other campaign's

        snapshot.rebuild(store, store.path(LEDGER), utc_now, own)
    return str(identity["id"])


def _require_proven(store: Store) -> None:
    problems = committed.prove_copy(store)
    if problems:
        raise BadInput(
            f"{store.root} is not what was committed; `{committed.BACK}` brings it back:\n" + "\n".join(problems[:10])
        )


def _copied(store: Store) -> dict[str, Any]:
    """The list of artefacts of the copy. Raises BadInput for what is no copy of a closed iteration."""
    require_no_loss(store.path(LEDGER))
    if store.path(".git").is_file():
        raise BadInput(
            f"{store.root} is a worktree of another repository: they share tags, and a fork has tags of its own. "
            "`gleaner restore N --to DIR` makes a copy to fork."
        )
    if store.exists(LEDGER):
        raise BadInput(
            f"{store.root} is a campaign with a ledger of its own; `gleaner restore N --to DIR` makes a copy to fork."
        )
    if not store.exists(artefacts.ARTEFACTS):
        raise BadInput(f"{store.root} is no copy of a closed iteration; `gleaner restore N --to DIR` makes one.")
    return artefacts.read_artefacts(store.path(artefacts.ARTEFACTS).read_text("utf-8"), artefacts.ARTEFACTS)


def _new_identity(store: Store, old: str, number: int) -> dict[str, Any]:
    """Mint an id, once: a fork that is repeated keeps the one it had written down."""
    known: dict[str, Any] = store.read_json(IDENTITY)
    origin = {"id": old, "iteration": number}
    if known.get("forked_from") == origin and known["id"] != old:
        return known
    identity = {**known, **mint(old.rpartition("-")[0]), "forked_from": origin}
    store.write_json(IDENTITY, identity)
    return identity


def _commit_fork(root: Path, identity: dict[str, Any]) -> None:
    origin = identity["forked_from"]
    repository.start_branch(root, f"fork-{identity['id']}", origin["iteration"])
    versions.configure(root, root)
    repository.stage_own(root)
    repository.git(root, "add", "--", ".dvc/config")
    repository.commit(root, f"fork of {origin['id']} at iteration {origin['iteration']}")
