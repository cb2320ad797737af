"""DVC's remotes: where an iteration's bytes are pushed to, and where a clone brings them back from.

    push(root)                                     the iteration's data to the remote, when there is one
    clone(Path("demo"), Path("demo-3"), "iter-0003")

The default remote is the workspace's own cache, which serves clones on the same machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tasks.errors import GleanerError, Unreachable
from tasks.pointers import objects_of
from tasks.repository import git, tags
from tasks.store import Store
from tasks.versions import WORKSPACE, edit_settings, open_dvc, output_to

PUSHED_TO = ".gleaner/pushed_to"  # holds the URL of the remote that has every tag


def clone(root: Path, target: Path, name: str) -> None:
    """Clone a tag, code and data, into a new folder whose bytes are its own.

    Data comes from the workspace's cache, else from its remote. Raises GleanerError when neither holds all of it.
    """
    git(root, "clone", "--quiet", "--no-hardlinks", "--branch", name, str(root.resolve()), str(target.resolve()))
    bring_data(target, name, root)


def bring_data(target: Path, name: str, root: Path) -> None:
    """Bring the data of what is checked out in `target` (called `name`) from wherever it may be.

    `root` is the workspace it was cloned from, or `target` itself. Raises GleanerError when no place holds all of it.
    """
    sources = _sources(root, target)
    with open_dvc(target) as repo, edit_settings(repo.config, "local") as settings:
        settings["remote"] = sources
    problems = []
    for source, where in sources.items():
        try:
            with output_to(Path(os.devnull)), open_dvc(target) as repo:
                repo.fetch(remote=source)
                repo.checkout(force=True)
            return
        except GleanerError as error:
            why = str(error).partition(": ")[2].split("\nIs your cache")[0].replace("\n", " ")
            problems.append(f"From {where['url']}: {why}.")
    raise GleanerError(
        f"the data of {name} cannot be brought back, nothing was changed. {' '.join(problems)} "
        f"`gleaner verify` in the campaign's own workspace names what is missing."
    )


def _sources(root: Path, target: Path) -> dict[str, dict[str, Any]]:
    """Remotes that may hold a tag's data, first the nearest: DVC makes a folder that is not there, so those are left out."""
    found = {
        "source": {"url": str(root.resolve() / ".dvc" / "cache")},
        "now": _remote(root),  # the tag names the remote of its own time
        "origin": {"url": _origin_cache(root)},
        "then": _remote(target),
    }
    known: dict[str, dict[str, Any]] = {}
    for name, settings in found.items():
        url = str(settings.get("url") or "")
        if ("://" in url or Path(url).is_dir()) and url not in {s["url"] for s in known.values()}:
            known[name] = {**{k: v for k, v in settings.items() if k != "name"}, "url": url}
    return known


def _origin_cache(root: Path) -> str:
    """The cache of the workspace that `root` was cloned from (it may have moved since the tag), "" for no clone."""
    try:
        return str(Path(git(root, "config", "remote.origin.url").strip()) / ".dvc" / "cache")
    except GleanerError:
        return ""


def remote(root: Path) -> str | None:
    """The URL of the remote that iterations are pushed to, None when the workspace's own cache is all there is."""
    settings = _remote(root)
    return str(settings["url"]) if settings and settings["name"] != WORKSPACE else None


def _remote(root: Path) -> dict[str, Any]:
    """The settings of the default remote with its name, {} when there is none."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    name = config["core"].get("remote")
    settings = config["remote"].get(name, {}) if name else {}
    return {**settings, "url": str(settings["url"]), "name": name} if "url" in settings else {}


def push(root: Path) -> None:
    """Copy the iteration's data to the remote, when there is one beside the workspace itself.

    A remote that is new here gets the data of every tag: iterations closed earlier must restore from it too.
    Raises Unreachable when the remote is not there or takes nothing.
    """
    url = remote(root)
    if url is None:
        return
    fix = "Bring it back, or choose another (`dvc remote modify`, `git commit .dvc/config`), then run the tick again."
    if "://" not in url and not Path(url).is_dir():
        raise Unreachable(f"the DVC remote {url} is not there (a disk that is not mounted?). Nothing was tagged. {fix}")
    known = Store(root).path(PUSHED_TO)
    new = not known.exists() or known.read_text(encoding="utf-8") != url
    try:
        with open_dvc(root) as repo:
            if new:
                _push_every_tag(repo, root)
            repo.push()
    except GleanerError as error:
        raise Unreachable(f"the DVC remote {url} did not take the iteration's data: {error} {fix}") from error
    if new:
        Store(root).write_bytes(PUSHED_TO, url.encode())


def _push_every_tag(repo: Any, root: Path) -> None:
    """Push what all tags name. `repo.push(all_tags=True)` would push each to the remote that its own config names."""
    from dvc_data.hashfile.hash_info import HashInfo

    named = {md5 for tag in tags(root) for md5 in objects_of(root, tag)}
    failed = repo.cloud.push([HashInfo("md5", md5) for md5 in sorted(named)]).failed
    if failed:
        raise GleanerError(f"{len(failed)} of {len(named)} objects of earlier iterations were not taken.")
