"""Git and DVC: the only file that talks to either.

Git holds code, params and pointers, and a tag `iter-0007` is an iteration's commit point. DVC holds the bytes.
Both write lock files that survive a kill; they are removed only while this process holds the campaign's lock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.errors import BadInput, GleanerError

#: what a tick commits; anything else that changed is somebody's work and is refused
OWN = (
    "params.yaml",
    "dvc.lock",
    "data/pool.dvc",
    "data/inputs.dvc",
    "data/ledger.dvc",
    "data/artefacts.json",
    "data/campaign.json",
)
CODE = ("tasks", "flows", "monitoring", "dvc.yaml")
DATA = ("data/pool", "data/inputs", "data/ledger")
SETTINGS = (
    ("core", "analytics", "false"),
    ("core", "autostage", "true"),
    ("core", "check_update", "false"),
    ("cache", "type", "reflink,hardlink,copy"),
)


def git(root: Path, *arguments: str, text: str | None = None) -> str:
    """Run git in the workspace; returns what it prints. Hooks, signing and the caller's GIT_* are left out."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "-c", "tag.gpgSign=false"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=root,
        env={**environment, "LC_ALL": "C"},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise GleanerError(
            f"git {' '.join(arguments[:2])} failed in {root}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


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


def head(root: Path) -> str:
    """The commit that HEAD points to."""
    return git(root, "rev-parse", "HEAD").strip()


def tag_name(number: int) -> str:
    """The tag of an iteration: 7 -> iter-0007."""
    return f"iter-{number:04d}"


def tags(root: Path) -> list[str]:
    """Tags of closed iterations, in order."""
    return git(root, "tag", "--list", "iter-*", "--sort", "refname").split()


def require_clean(root: Path) -> None:
    """Refuse to work over somebody's uncommitted work, a detached HEAD or an unfinished merge. Names the files."""
    folder = root / ".git"
    for name, what in (
        ("MERGE_HEAD", "merge"),
        ("rebase-merge", "rebase"),
        ("rebase-apply", "rebase"),
        ("CHERRY_PICK_HEAD", "cherry-pick"),
    ):
        if (folder / name).exists():
            raise BadInput(f"{root}: a {what} is in progress. Finish or abort it, then run the command again.")
    if git(root, "rev-parse", "--abbrev-ref", "HEAD").strip() == "HEAD":
        raise BadInput(
            f"{root}: HEAD is detached. `git checkout main && dvc checkout` returns to the campaign's newest iteration."
        )
    changed = [
        line[3:]
        for line in git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
        if line[3:] not in OWN
    ]
    stray = git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE).split("\n")
    others = changed + [name for name in stray if name]
    if others:
        raise BadInput(
            f"{root}: uncommitted changes that are not the campaign's own: {', '.join(others[:10])}. "
            "Commit or stash them (code is part of an iteration's version), then run the command again."
        )


def clone(root: Path, target: Path, name: str) -> None:
    """Clone a tag, code and data, into a new folder whose bytes are its own."""
    git(root, "clone", "--quiet", "--no-hardlinks", "--branch", name, str(root.resolve()), str(target.resolve()))
    with _dvc(target) as repo:
        with repo.config.edit("local") as settings:
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


def start_branch(root: Path, name: str, number: int) -> None:
    """Leave the tag for a branch of its own; tags of later iterations belong to the other campaign."""
    git(root, "switch", "--quiet", "--create", name)
    later = [tag for tag in tags(root) if tag > tag_name(number)]
    if later:
        git(root, "tag", "--delete", *later)


def code_changed(root: Path, since: str) -> list[str]:
    """Code files that differ between a commit and HEAD."""
    return git(root, "diff", "--name-only", since, "HEAD", "--", *CODE).split()


def clear_stale_locks(root: Path) -> None:
    """Remove what a killed git or DVC left behind. Call only while holding the campaign's lock."""
    for name in (
        ".git/index.lock",
        ".git/HEAD.lock",
        ".git/refs/heads/main.lock",
        ".dvc/tmp/rwlock",
        ".dvc/tmp/rwlock.lock",
        ".dvc/tmp/lock",
    ):
        (root / name).unlink(missing_ok=True)


def commit(root: Path, message: str) -> str:
    """Commit what is staged; returns the new HEAD, or the old one when nothing is staged."""
    if git(root, "status", "--porcelain", "--untracked-files=no").strip() and _staged(root):
        git(root, *_identity(root), "commit", "--quiet", "--no-verify", "--message", message)
    return head(root)


def _staged(root: Path) -> bool:
    return bool(git(root, "diff", "--cached", "--name-only").strip())


def _identity(root: Path) -> list[str]:
    try:
        git(root, "config", "user.email")
    except GleanerError:
        return ["-c", "user.name=Gleaner", "-c", "user.email=gleaner@localhost"]
    return []


def stage_own(root: Path, params: str | None = None) -> None:
    """Stage the campaign's own files; `params` is committed as params.yaml whatever the working tree holds."""
    git(root, "add", "--force", "--", *[name for name in OWN if (root / name).exists()])
    if params is not None:
        blob = git(root, "hash-object", "-w", "--stdin", text=params).strip()
        git(root, "update-index", "--cacheinfo", f"100644,{blob},params.yaml")


def tag(root: Path, number: int, message: str) -> None:
    """Set an iteration's annotated tag on HEAD."""
    git(root, *_identity(root), "tag", "--annotate", tag_name(number), "--message", message)


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

    with _dvc_environment(root):
        try:
            with Repo(str(root)) as repo:
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
        repo.add([str(root / path) for path in paths if (root / path).exists()])


def stage_order(root: Path) -> list[str]:
    """The pipeline's stages in the order that DVC's own graph gives."""
    import networkx

    with _dvc(root) as repo:
        graph = repo.index.graph.reverse()
        names = {s: s.addressing for s in graph.nodes if getattr(s, "name", None)}
        ordered = networkx.lexicographical_topological_sort(graph, key=lambda s: names.get(s, ""))
        return [names[s] for s in ordered if s in names]


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


def show(root: Path, revision: str, path: str) -> str:
    """A file's text at a revision."""
    return git(root, "show", f"{revision}:{path}")


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
