"""DVC: the bytes of every iteration. The only file that talks to DVC.

Stages run one at a time through DVC's own API; what they print goes to a log. DVC repairs and forgives silently, so
`tasks/pointers.py` reads its files itself and names the cache objects, for `tasks/artefacts.py` to measure.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tasks.errors import GleanerError, Unreachable
from tasks.repository import commit, git
from tasks.store import Store, disk_error, disk_errors

SETTINGS = (
    ("core", "analytics", "false"),
    ("core", "autostage", "true"),
    ("core", "check_update", "false"),
    ("cache", "type", "reflink,hardlink,copy"),
)
WORKSPACE = "workspace"  # the remote that is the workspace's own cache
PUSHED_TO = ".gleaner/pushed_to"  # holds the URL of the remote that has every tag


def initialise(root: Path, home: Path) -> None:
    """Make a folder a git and DVC repository of its own, with one commit. `home` is where it will stand."""
    git(root, "init", "--quiet", "--initial-branch", "main")
    _set_environment(root)
    from dvc.repo import Repo

    with output_to(Path(os.devnull)):
        Repo.init(str(root)).close()
    configure(root, home)
    git(root, "add", "--all")
    commit(root, "gleaner init")


def configure(root: Path, home: Path) -> None:
    """DVC's settings for a workspace. The default remote is the workspace's own cache, for clones on this machine."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"), validate=False)
    with _edit(config, "repo") as settings:
        for section, key, value in SETTINGS:
            settings.setdefault(section, {})[key] = value
        settings.setdefault("remote", {})[WORKSPACE] = {"url": str(home.resolve() / ".dvc" / "cache")}
        settings["core"].setdefault("remote", WORKSPACE)


@contextmanager
def _edit(config: Any, level: str) -> Iterator[Any]:
    """Edit DVC's settings. It reads them as UTF-8 and writes them as ASCII: a folder `/home/jürgen` would stop it."""
    import configobj  # type: ignore[import-untyped]

    class InUtf8(configobj.ConfigObj):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{"default_encoding": "utf-8", **options})

    ascii_only, configobj.ConfigObj = configobj.ConfigObj, InUtf8
    try:
        with config.edit(level) as settings:
            yield settings
    finally:
        configobj.ConfigObj = ascii_only


def clone(root: Path, target: Path, name: str) -> None:
    """Clone a tag, code and data, into a new folder whose bytes are its own.

    Data comes from the workspace's cache, else from its remote. Raises GleanerError when neither holds all of it.
    """
    git(root, "clone", "--quiet", "--no-hardlinks", "--branch", name, str(root.resolve()), str(target.resolve()))
    now = _remote(root)  # the tag names the remote of its own time
    origin = _origin_cache(root)
    with _dvc(target) as repo, _edit(repo.config, "local") as settings:
        settings["remote"] = {"source": {"url": str(root.resolve() / ".dvc" / "cache")}}
        if now:
            settings["remote"]["now"] = {key: value for key, value in now.items() if key != "name"}
        if origin:
            settings["remote"]["origin"] = {"url": str(origin)}
    problems = []
    for source in ("source", *(["now"] if now else []), *(["origin"] if origin else []), None):
        try:
            with output_to(Path(os.devnull)), _dvc(target) as repo:
                repo.fetch(remote=source)
                repo.checkout(force=True)
            return
        except GleanerError as error:
            problems.append(str(error).partition(": ")[2].split("\nIs your cache")[0].replace("\n", " "))
    raise GleanerError(
        f"the data of {name} cannot be brought back, nothing was made. From {root}/.dvc/cache: {problems[0]}. "
        f"From the remote {now.get('url', 'of its time')}: {problems[1]}. `gleaner verify` names what is missing."
    )


def _origin_cache(root: Path) -> Path | None:
    """The cache of the workspace that `root` was cloned from, when that is on this machine (it may have moved)."""
    try:
        cache = Path(git(root, "config", "remote.origin.url").strip()) / ".dvc" / "cache"
    except GleanerError:  # not a clone
        return None
    return cache if cache.is_dir() else None


def reproduce(root: Path, stage: str, log: Path) -> bool:
    """Run one stage if anything it depends on changed; returns whether it ran. What it prints goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)

    def run() -> bool:
        with output_to(log), _dvc(root, quiet=False) as repo:
            return bool(repo.reproduce(targets=[stage], single_item=True))

    try:  # in the main thread DVC ignores Ctrl-C until the stage ends; in another one our handler hears it at once
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(run).result()
    except GleanerError as error:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith(("error:", "Traceback"))), -5)
        raise GleanerError(
            f"stage {stage} failed: " + ("\n".join(lines[first:]) or str(error)) + f"\nIts output: {log}"
        ) from error


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send this process's and its children's standard output and error to a file for a while."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(log, "wb") as handle:
        try:
            os.dup2(handle.fileno(), 1)
            os.dup2(handle.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in enumerate(kept, start=1):
                os.dup2(original, descriptor)
                os.close(original)


def _set_environment(root: Path) -> None:
    """A private site cache: DVC makes its own world-writable."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    site = root / ".gleaner" / "dvc-site"
    site.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["DVC_SITE_CACHE_DIR"] = str(site)


@contextmanager
def _dvc(root: Path, quiet: bool = True) -> Iterator[Any]:
    """DVC's repository; what DVC says is left out (`quiet`), what it raises becomes a GleanerError."""
    from diskcache import Timeout  # type: ignore[import-untyped]
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    root = root.resolve()
    _set_environment(root)
    try:
        with (
            disk_errors(root),
            output_to(Path(os.devnull)) if quiet else nullcontext(),
            chdir(root),
            Repo(str(root)) as repo,
        ):  # DVC takes paths relative to where the process stands
            _give_up_on_full_disks(repo.state)
            yield repo
    except DvcException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise GleanerError(f"DVC in {root}: {error}{cause}") from error
    except (sqlite3.Error, Timeout) as error:  # of DVC's own database of file states
        raise disk_error(OSError(errno.ENOSPC, f"DVC's database takes no more ({error})"), root) from error


def _give_up_on_full_disks(state: Any) -> None:
    """DVC's database of file states tries for ever to write to a full disk (seen with diskcache 5.6): once is enough."""
    for name in ("hashes", "links"):
        cache = getattr(state, name, None)
        if cache is not None:
            cache._transact = partial(_once, cache._transact)


def _once(transact: Callable[..., Any], retry: bool = False, filename: str | None = None) -> Any:
    return transact(False, filename)


def add_data(root: Path, paths: Sequence[str]) -> None:
    """Put folders under DVC (cache + pointer)."""
    with _dvc(root) as repo:
        repo.add([path for path in paths if Path(path).exists()])


def stage_order(root: Path) -> list[str]:
    """The pipeline's stages in the order that DVC's own graph gives."""
    import networkx  # type: ignore[import-untyped]

    with _dvc(root) as repo:
        graph = repo.index.graph.reverse()
        names = {s: s.addressing for s in graph.nodes if getattr(s, "name", None)}
        ordered = networkx.lexicographical_topological_sort(graph, key=lambda s: names.get(s, ""))
        return [names[s] for s in ordered if s in names]


def record_outputs(root: Path) -> None:
    """Write dvc.lock and the cache for outputs that were computed in process."""
    with _dvc(root) as repo:
        repo.commit(force=True)


def stale(root: Path) -> dict[str, Any]:
    """Stages whose outputs do not belong to what they depend on now, {} when all is up to date."""
    with _dvc(root) as repo:
        return {name: why for name, why in repo.status().items() if not name.endswith(".dvc")}


def checkout(root: Path) -> None:
    """Bring the working tree's data to what the pointers say."""
    with _dvc(root) as repo:
        repo.checkout(force=True)


def fetch(root: Path) -> None:
    """Bring the data of the checked-out commit from the remote into the cache."""
    with _dvc(root) as repo:
        repo.fetch()


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
        with _dvc(root) as repo:
            repo.push(all_tags=new)
    except GleanerError as error:
        raise Unreachable(f"the DVC remote {url} did not take the iteration's data: {error} {fix}") from error
    if new:
        Store(root).write_bytes(PUSHED_TO, url.encode())
