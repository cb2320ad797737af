"""Bring an iteration back, bit for bit, and prove it; make a copy a campaign of its own.

restore(Path("demo"), 3, Path("demo-3"))    every file of iteration 3, checked against its SHA-256
fork(Path("demo-3"))                        a new campaign id; from here it may tick
"""

from __future__ import annotations

from pathlib import Path

from tasks import artefacts, repository, snapshot, versions
from tasks.campaign import IDENTITY, LEDGER, mint, utc_now
from tasks.errors import BadInput, GleanerError
from tasks.ledger import Ledger
from tasks.lock import campaign_lock
from tasks.store import Store, remove_folder


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
    if target.exists():
        raise BadInput(f"{target} exists. Name a new folder: gleaner restore {number} --to DIR")
    building = target.with_name(f".{target.name}.restoring")
    remove_folder(building)
    try:
        versions.clone(root, building, name)
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

    What the old campaign asked and nobody had answered yet is forgotten: those tasks are not ours.
    """
    store = Store(root)
    with campaign_lock(root, "fork"):
        if store.exists(LEDGER):
            raise BadInput(
                f"{root} is a campaign with a ledger of its own; `gleaner restore N --to DIR` makes a copy to fork."
            )
        if not store.exists(f"{snapshot.FOLDER}/iteration.parquet"):
            versions.checkout(root)
        old = store.read_json(IDENTITY)
        number = store.read_json(artefacts.ARTEFACTS)["iteration"]
        name = str(old["id"]).rpartition("-")[0]
        identity = {**mint(name), "forked_from": {"id": old["id"], "iteration": number}}
        store.write_json(IDENTITY, identity)
        repository.start_branch(root, f"fork-{identity['id']}", number)
        versions.configure(root, root)
        repository.stage_own(root)
        repository.git(root, "add", "--", ".dvc/config")
        repository.commit(root, f"fork of {old['id']} at iteration {number}")

        def own(ledger: Ledger) -> None:
            ledger.forget_unanswered()
            ledger.put("campaign", identity["id"])

        snapshot.rebuild(store, store.path(LEDGER), utc_now, own)
    return str(identity["id"])
