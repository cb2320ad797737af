"""DVC: the bytes of every iteration. Only this file and `tasks/remotes.py` talk to DVC.

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

from tasks.errors import GleanerError
from tasks.repository import commit, git, show_all, working_code
from tasks.store import Store, disk_error, disk_errors, remove_folder

SETTINGS = (
    ("core", "analytics", "false"),
    ("core", "autostage", "true"),
    ("core", "check_update", "false"),
    ("cache", "type", "reflink,hardlink,copy"),
)
LOCK = "dvc.lock"
WORKSPACE = "workspace"  # the remote that is the workspace's own cache


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
    with edit_settings(config, "repo") as settings:
        for section, key, value in SETTINGS:
            settings.setdefault(section, {})[key] = value
        settings.setdefault("remote", {})[WORKSPACE] = {"url": str(home.resolve() / ".dvc" / "cache")}
        settings["core"].setdefault("remote", WORKSPACE)


@contextmanager
def edit_settings(config: Any, level: str) -> Iterator[Any]:
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


def reproduce(root: Path, stage: str, log: Path) -> bool:
    """Run one stage if anything it depends on changed; returns whether it ran. What it prints goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    code, lock = working_code(root), _read_lock(root)

    def run() -> bool:
        with output_to(log), open_dvc(root, quiet=False) as repo:
            return bool(repo.reproduce(targets=[stage], single_item=True))

    try:  # in the main thread DVC ignores Ctrl-C until the stage ends; in another one our handler hears it at once
        with ThreadPoolExecutor(1) as executor:
            ran = executor.submit(run).result()
    except GleanerError as error:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith(("error:", "Traceback"))), -5)
        raise GleanerError(
            f"stage {stage} failed: " + ("\n".join(lines[first:]) or str(error)) + f"\nIts output: {log}"
        ) from error
    if ran:
        _require_same_code(root, stage, code, lock)
    return ran


def _require_same_code(root: Path, stage: str, before: dict[str, str], lock: bytes | None) -> None:
    """DVC hashes params and code after a stage has run: an edit in between would be recorded with the old one's result."""
    after = working_code(root)
    edited = sorted(name for name in before | after if before.get(name) != after.get(name))
    if not edited:
        return
    remove_folder(root / ".dvc" / "cache" / "runs")  # DVC would find the result there
    if lock is None:
        (root / LOCK).unlink()
    else:
        Store(root).write_bytes(LOCK, lock)
    raise GleanerError(
        f"{', '.join(edited[:5])} changed while stage {stage} ran; what it made is not recorded. Nothing was sent: run "
        "the tick again."
    )


def _read_lock(root: Path) -> bytes | None:
    path = root / LOCK
    return path.read_bytes() if path.exists() else None


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
    for folder in (site.parent, site):
        folder.mkdir(exist_ok=True, mode=0o700)
    os.environ["DVC_SITE_CACHE_DIR"] = str(site)


@contextmanager
def open_dvc(root: Path, quiet: bool = True) -> Iterator[Any]:
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


def heal_lock(root: Path) -> None:
    """Bring the committed dvc.lock back where a DVC that was killed left half of one: its stages run again."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    with open_dvc(root) as repo:
        try:
            Lockfile(repo, str(root.resolve() / LOCK)).load()
        except DvcException:
            Store(root).write_bytes(LOCK, show_all(root, [f"HEAD:{LOCK}"]).get(f"HEAD:{LOCK}", "").encode())


def add_data(root: Path, paths: Sequence[str]) -> None:
    """Put folders under DVC (cache + pointer)."""
    with open_dvc(root) as repo:
        repo.add([path for path in paths if Path(path).exists()])


def stage_order(root: Path) -> list[str]:
    """The pipeline's stages in the order that DVC's own graph gives."""
    import networkx  # type: ignore[import-untyped]

    with open_dvc(root) as repo:
        graph = repo.index.graph.reverse()
        names = {s: s.addressing for s in graph.nodes if getattr(s, "name", None)}
        ordered = networkx.lexicographical_topological_sort(graph, key=lambda s: names.get(s, ""))
        return [names[s] for s in ordered if s in names]


def record_outputs(root: Path) -> None:
    """Write dvc.lock and the cache for outputs that were computed in process."""
    with open_dvc(root) as repo:
        repo.commit(force=True)


def stale(root: Path) -> dict[str, Any]:
    """Stages whose outputs do not belong to what they depend on now, {} when all is up to date."""
    with open_dvc(root) as repo:
        return {name: why for name, why in repo.status().items() if not name.endswith(".dvc")}


def checkout(root: Path) -> None:
    """Bring the working tree's data to what the pointers say."""
    with open_dvc(root) as repo:
        repo.checkout(force=True)
