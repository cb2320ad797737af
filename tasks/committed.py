"""Whether the data in the working tree are what was committed. DVC takes whatever it finds; a tick must not build on it.

    differences(store, None)   ->   ["data/pool/manifest.parquet has other bytes"]

An old `dvc checkout` left behind, an ingest that was killed, a byte flipped on disk: each is named before an iteration
is opened, finished or forked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from tasks import artefacts, pool, repository
from tasks.digests import Digest, digest, digests
from tasks.errors import BadInput, GleanerError
from tasks.features import pool_shard
from tasks.ledger import IterationRow
from tasks.pointers import POINTERS, Missing, cached_files, data_hashes
from tasks.store import Store

POOL, INPUTS = "data/pool.dvc", "data/inputs.dvc"
CARRIED = "data/inputs/previous/"
BACK = "git checkout HEAD -- dvc.lock data && dvc checkout --force"  # HEAD: DVC stages what it writes
Read = Callable[[Store, Iterable[str]], dict[str, Digest]]


def read_again(store: Store, names: Iterable[str]) -> dict[str, Digest]:
    """Digests of every byte as it is now, nothing remembered."""
    return {name: digest(store.path(name)) for name in names}


def require(store: Store, row: IterationRow | None) -> None:
    """Raise GleanerError that names what differs. `row` is the newest iteration in the ledger."""
    require_history(store, row)
    try:
        found = differences(store, row)
    except Missing as error:
        raise GleanerError(
            f"{error} `dvc pull` brings it from a remote, `dvc commit --force` from the files that are here."
        ) from error
    _refuse(store, found)


def require_pool(store: Store) -> None:
    """Raise GleanerError when the pool lost what was committed: an ingest must not build on it."""
    _refuse(store, list(pool_losses(store)))


def require_history(store: Store, row: IterationRow | None) -> None:
    """Raise GleanerError where the ledger and the branch that is checked out end at different iterations."""
    if row is None:
        return
    where = f"HEAD:{artefacts.ARTEFACTS}"
    text = repository.show_all(store.root, [where]).get(where)
    here = artefacts.read_artefacts(text, where)["iteration"] if text else -1
    closed = row.number if row.state == "closed" else row.number - 1
    if here == closed or (here == row.number and row.state in ("selected", "exported")):
        return
    if here > closed:  # it would ask again what was asked
        raise GleanerError(
            f"{store.root}: the newest commit is of iteration {here}, the ledger ends at {closed}: the ledger is an older "
            f"copy. Put the newest one back, or go on from the tag: gleaner restore {here} --to DIR, then gleaner fork "
            "--workspace DIR."
        )
    branches = repository.branches_with(store.root, repository.tag_name(closed))
    back = (
        f"`git switch {branches[0]} && dvc checkout --force` returns to it, `git merge {branches[0]} && dvc checkout --force` brings it here"
        if branches
        else "its commit is gone"
    )
    raise BadInput(
        f"{store.root}: this branch ends at iteration {here}, the ledger's newest closed one is {closed}: {back}. To go on "
        f"from an older one: `gleaner restore {max(here, 0)} --to DIR`, then `gleaner fork --workspace DIR`."
    )


def _refuse(store: Store, found: list[str]) -> None:
    if found:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise GleanerError(
            f"the data in {store.root} are not those that were committed: {'; '.join(found[:5])}{more}. If an ingest was "
            f"interrupted, `gleaner ingest` finishes it; else `{BACK}` brings the committed data back. Then run the "
            "command again."
        )


def differences(store: Store, row: IterationRow | None, read: Read = digests) -> list[str]:
    """What in the working tree is not as it should be: nothing for a workspace that only Gleaner touched.

    Between iterations everything is as in the newest commit. While one (`row`) is open its stages' outputs come and go,
    later `export` checks them against the ledger: then the pool is as committed, the inputs as frozen.
    """
    if row is None or row.state == "closed":
        return [*_of_git(store), *_of_dvc(store, "HEAD", POINTERS, read)]
    frozen = _frozen(store, row.number)
    if row.state == "open" and not frozen:  # no stage has run
        return list(_of_dvc(store, "HEAD", [name for name in POINTERS if name != INPUTS], read))
    inputs = _of_dvc(store, None, (INPUTS,), read) if frozen else ()
    if row.state == "open":  # the tables are frozen again, what was carried over cannot be
        inputs = (problem for problem in inputs if problem.startswith(CARRIED))
    return [*_of_dvc(store, "HEAD", (POOL,), read), *inputs]


def _frozen(store: Store, number: int) -> bool:
    """Whether the iteration's inputs are under DVC: not after a crash while it was opened, or with an empty pointer."""
    before = data_hashes(store.root, repository.tag_name(number - 1), (INPUTS,)) if number else {}
    try:
        return data_hashes(store.root, None, (INPUTS,)) != before
    except GleanerError:
        return False


def pool_losses(store: Store) -> Iterator[str]:
    """What the committed pool holds and the working tree does not. More is fine: an ingest that was interrupted."""
    promised = {file.path: file for file in cached_files(store.root, "HEAD", (POOL,))}
    if pool.POOL not in promised or not promised[pool.POOL].object.is_file():
        return
    then, now = json.loads(promised[pool.POOL].object.read_text("utf-8")), pool.read_info(store)
    if now is None or (now.ingests, now.items) < (then["ingests"], then["items"]):
        yield f"{pool.FOLDER} is older than the newest commit"
        return
    for name in map(pool_shard, range(now.first_shard, now.shards)):
        if name in promised and not store.exists(name):
            yield f"{name} is missing"
        elif name in promised and digests(store, [name])[name].md5 != promised[name].md5:
            yield f"{name} has other bytes"


def _of_git(store: Store) -> Iterator[str]:
    for name in repository.own_changes(store.root):
        if name != "params.yaml" and not name.endswith(".dvc"):  # what those point to is looked at itself
            yield f"{name} differs from the newest commit"


def _of_dvc(store: Store, revision: str | None, pointers: Sequence[str], read: Read) -> Iterator[str]:
    """Files whose bytes are not what the pointers (at a revision, or now) name."""
    promised = {file.path: file.md5 for file in cached_files(store.root, revision, pointers)}
    here = set(artefacts.files_under(store, data_hashes(store.root, revision, pointers)))
    for name in sorted(promised.keys() - here):
        yield f"{name} is missing"
    for name in sorted(here - promised.keys()):
        yield f"{name} is not in the commit"
    for name, found in read(store, sorted(here & promised.keys())).items():
        if found.md5 != promised[name]:
            yield f"{name} has other bytes"


def prove_copy(store: Store) -> list[str]:
    """What in a clone or restored copy is not what was committed: MD5 for all, SHA-256 where the newest tag lists it."""
    where = f"HEAD:{artefacts.ARTEFACTS}"
    listed = artefacts.read_artefacts(repository.show_all(store.root, [where]).get(where, "{}"), where)
    now = data_hashes(store.root, "HEAD")
    then = data_hashes(store.root, repository.tag_name(listed["iteration"])) if listed["iteration"] >= 0 else {}
    same = tuple(path for path, md5 in now.items() if then.get(path) == md5)  # an ingest since changes the pool only
    proven = {n: e for n, e in listed["files"].items() if artefacts.under_dvc(n) and n.startswith(same)}
    return differences(store, None, read_again) or artefacts.check_files(store.root, proven)
