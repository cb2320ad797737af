"""What `gleaner verify` asks of tags: every file of their lists is in the cache, and git holds what they say.

`deep` reads every object; each is looked at once, however many tags share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks import artefacts, committed, repository
from tasks.campaign import LEDGER
from tasks.errors import GleanerError
from tasks.pointers import POINTERS, Missing, cached_files, data_hashes, listed_files
from tasks.store import Store
from tasks.verify_ledger import forked_at


@dataclass(frozen=True)
class _Wanted:
    """Bytes that tags promise: what they are called, and which tags those are."""

    name: str
    entry: artefacts.Entry
    where: Path | None
    tags: list[str]


def restorable(store: Store, deep: bool) -> Iterator[str]:
    """Every tag's files are in the cache. Each object is looked at once, however many tags share it."""
    data_hashes(store.root)  # pointers of the working tree: an empty one is refused
    known = repository.tags(store.root)
    if not store.exists(LEDGER):
        yield from _copy(store, deep)
        return
    first = forked_at(store)
    texts = repository.show_all(
        store.root, [f"{tag}:{name}" for tag in known for name in (artefacts.ARTEFACTS, *POINTERS)]
    )
    problems: dict[str, list[str]] = {}
    wanted: dict[tuple[str, str, int], _Wanted] = {}
    for tag in known:
        own = first is None or tag >= repository.tag_name(first)  # earlier data stays with the other campaign
        for problem in _gather(store.root, tag, texts, wanted, own):
            problems.setdefault(problem, []).append(tag)
    for promise in wanted.values():
        found = artefacts.check_object(promise.name, promise.entry, promise.where, read=deep)
        if found is not None:
            problems.setdefault(found, []).extend(promise.tags)
    for problem, names in problems.items():
        yield f"{_span(names)}: {problem}"


def _gather(
    root: Path, tag: str, texts: dict[str, str], wanted: dict[tuple[str, str, int], _Wanted], own: bool
) -> Iterator[str]:
    """Note what a tag promises; yields what is wrong with its lists."""
    where = f"{tag}:{artefacts.ARTEFACTS}"
    listed = artefacts.read_artefacts(texts.get(where, ""), where)
    if repository.tag_name(listed["iteration"]) != tag:
        yield f"its list of artefacts is of iteration {listed['iteration']}"
    pointers = {name: texts[f"{tag}:{name}"] for name in POINTERS if f"{tag}:{name}" in texts}
    try:
        objects = {file.path: file.object for file in listed_files(root, pointers)}
    except Missing as error:
        if own:
            yield str(error)
        return
    except GleanerError as error:
        yield str(error)
        return
    for name, entry in listed["files"].items():
        place = objects.get(name)
        if artefacts.under_dvc(name) and (own or (place is not None and place.exists())):
            key = str(place or name), entry["sha256"], entry["size"]
            wanted.setdefault(key, _Wanted(name, entry, place, [])).tags.append(tag)


def _span(tags: list[str]) -> str:
    """Tags as one reads them: iter-0003, or iter-0000 … iter-0007 (8 tags)."""
    return tags[0] if len(tags) == 1 else f"{tags[0]} … {tags[-1]} ({len(tags)} tags)"


def _copy(store: Store, deep: bool) -> Iterator[str]:
    """A clone or restored copy promises what is checked out, no other iteration."""
    try:
        absent = [file.path for file in cached_files(store.root, "HEAD") if not store.exists(file.path)]
    except Missing as error:
        absent = [str(error)]
    if absent:
        yield f"the data of this copy are not fetched ({absent[0]}; {len(absent)} in all): `dvc pull` brings them"
    elif deep:
        yield from committed.prove_copy(store)


def held_by_git(store: Store) -> Iterator[str]:
    """Params, locks and pointers of each tag have the bytes of its list of artefacts."""
    tags = repository.tags(store.root)
    texts = repository.show_all(
        store.root, [f"{t}:{n}" for t in tags for n in (artefacts.ARTEFACTS, *artefacts.IN_GIT)]
    )
    for tag in tags:
        listed = artefacts.read_artefacts(texts.get(f"{tag}:{artefacts.ARTEFACTS}", ""), tag)["files"]
        for name in artefacts.IN_GIT:
            text = texts.get(f"{tag}:{name}")
            found = None if text is None else hashlib.sha256(text.encode("utf-8", repository.FAITHFUL)).hexdigest()
            if name in listed and found != listed[name]["sha256"]:
                yield f"{tag}: {name} has other bytes than its list of artefacts says (a tag that was moved?)"
