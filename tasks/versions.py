"""DVC: the bytes of every iteration. The only file that talks to DVC.

Stages run one at a time through DVC's own API; what they print goes to a log. DVC repairs and forgives silently, so
every pointer is parsed here and its cache objects are named, for `tasks/artefacts.py` to measure.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.errors import GleanerError
from tasks.repository import commit, git, show

DATA = ("data/pool", "data/inputs", "data/ledger")
SETTINGS = (
    ("core", "analytics", "false"),
    ("core", "autostage", "true"),
    ("core", "check_update", "false"),
    ("cache", "type", "reflink,hardlink,copy"),
)
#: left behind by a killed git or DVC
STALE = (
    ".git/index.lock",
    ".git/HEAD.lock",
    ".git/refs/heads/main.lock",
    ".dvc/tmp/rwlock",
    ".dvc/tmp/rwlock.lock",
    ".dvc/tmp/lock",
)


def initialise(root: Path, home: Path) -> None:
    """Make a folder a git and DVC repository of its own, with one commit. `home` is where it will stand."""
    git(root, "init", "--quiet", "--initial-branch", "main")
    with _dvc_environment(root):
        from dvc.repo import Repo

        with _output_to(Path(os.devnull)):
            Repo.init(str(root)).close()
    configure(root, home)
    git(root, "add", "--all")
    commit(root, "gleaner init")


def configure(root: Path, home: Path) -> None:
    """DVC's settings for a workspace. The default remote is the workspace's own cache, for clones on this machine."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"), validate=False)
    with config.edit("repo") as settings:
        for section, key, value in SETTINGS:
            settings.setdefault(section, {})[key] = value
        settings.setdefault("remote", {})["workspace"] = {"url": str(home.resolve() / ".dvc" / "cache")}
        settings["core"].setdefault("remote", "workspace")


def clone(root: Path, target: Path, name: str) -> None:
    """Clone a tag, code and data, into a new folder whose bytes are its own."""
    git(root, "clone", "--quiet", "--no-hardlinks", "--branch", name, str(root.resolve()), str(target.resolve()))
    with _dvc(target) as repo, repo.config.edit("local") as settings:
        settings["remote"] = {"source": {"url": str(root.resolve() / ".dvc" / "cache")}}
    for source in ("source", None):
        try:
            with _dvc(target) as repo:
                repo.fetch(remote=source)
                repo.checkout(force=True)
            return
        except GleanerError:
            if source is None:
                raise


def clear_stale_locks(root: Path) -> None:
    """Remove what a killed git or DVC left behind. Call only while holding the campaign's lock."""
    for name in STALE:
        (root / name).unlink(missing_ok=True)


def reproduce(root: Path, stage: str, log: Path) -> bool:
    """Run one stage if anything it depends on changed; returns whether it ran. What it prints goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _output_to(log), _dvc(root) as repo:
            return bool(repo.reproduce(targets=[stage], single_item=True))
    except GleanerError as error:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith(("error:", "Traceback"))), -5)
        raise GleanerError(
            f"stage {stage} failed: " + ("\n".join(lines[first:]) or str(error)) + f"\nIts output: {log}"
        ) from error


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
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


@contextmanager
def _dvc_environment(root: Path) -> Iterator[None]:
    """A private site cache (DVC makes its own world-writable) and the environment's `python` first on PATH."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    site = root / ".gleaner" / "dvc-site"
    site.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["DVC_SITE_CACHE_DIR"] = str(site)
    yield


@contextmanager
def _dvc(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    root = root.resolve()
    with _dvc_environment(root):
        try:
            with chdir(root), Repo(str(root)) as repo:  # DVC takes paths relative to where the process stands
                yield repo
        except DvcException as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise GleanerError(f"DVC in {root}: {error}{cause}") from error
        except OSError as error:
            raise GleanerError(
                f"DVC in {root}: {error.strerror or error}: {error.filename}. Nothing was tagged."
            ) from error


def add_data(root: Path, paths: Sequence[str]) -> None:
    """Put folders under DVC (cache + pointer)."""
    with _dvc(root) as repo:
        repo.add([path for path in paths if Path(path).exists()])


def stage_order(root: Path) -> list[str]:
    """The pipeline's stages in the order that DVC's own graph gives."""
    import networkx

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
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    name = config["core"].get("remote")
    url = config["remote"].get(name, {}).get("url") if name else None
    return None if url is None or Path(url) == root.resolve() / ".dvc" / "cache" else str(url)


def push(root: Path) -> None:
    """Copy the iteration's data to the remote, when there is one beside the workspace itself."""
    if remote(root) is None:
        return
    with _dvc(root) as repo:
        repo.push()


@dataclass(frozen=True)
class Cached:
    """A file under DVC: where its bytes are in the cache."""

    path: str  # relative to the workspace
    md5: str
    object: Path


def cached_files(root: Path, revision: str | None = None) -> list[Cached]:
    """Every file that the pointers and dvc.lock name (at a revision, or now), with its cache object.

    Raises GleanerError for a pointer that is empty or damaged.
    """
    return [file for out in _outs(root, revision) for file in _expand(root, out)]


def data_hashes(root: Path) -> dict[str, str]:
    """DVC's hash of each pointer and stage output: path -> MD5."""
    return {out["path"]: str(out.get("md5", "")) for out in _outs(root, None)}


def _outs(root: Path, revision: str | None) -> list[dict[str, Any]]:
    outs: list[dict[str, Any]] = []
    for folder in DATA:
        text = _text(root, f"{folder}.dvc", revision)
        if text is not None:
            parent = Path(folder).parent.as_posix()
            found = _parse_yaml(text, f"{folder}.dvc").get("outs")
            if not found:
                raise GleanerError(
                    f"{folder}.dvc is empty: DVC left it so (a full disk?). `git checkout -- {folder}.dvc` restores it."
                )
            outs += [{**out, "path": f"{parent}/{out['path']}"} for out in found]
    lock = _text(root, "dvc.lock", revision)
    for stage in (_parse_yaml(lock, "dvc.lock").get("stages") or {}).values() if lock else ():
        outs += stage.get("outs", [])
    return outs


def _text(root: Path, name: str, revision: str | None) -> str | None:
    if revision is None:
        path = root / name
        return path.read_text(encoding="utf-8") if path.exists() else None
    return show(root, revision, name) if git(root, "ls-tree", "--name-only", revision, "--", name).strip() else None


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise GleanerError(f"{name} cannot be read: {error}") from None
    return value or {}


def _expand(root: Path, out: dict[str, Any]) -> list[Cached]:
    md5 = str(out.get("md5", ""))
    obj = _object(root, md5)
    if not md5.endswith(".dir"):
        return [Cached(out["path"], md5, obj)]
    try:
        listing = json.loads(obj.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GleanerError(f"{out['path']}: its listing {obj} is missing or damaged in the cache ({error}).") from None
    return [Cached(f"{out['path']}/{entry['relpath']}", entry["md5"], _object(root, entry["md5"])) for entry in listing]


def _object(root: Path, md5: str) -> Path:
    return root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
