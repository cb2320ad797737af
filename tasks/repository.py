"""Git: code, params and pointers; a tag `iter-0007` is an iteration's commit point. The only file that runs git.

commit(root, "iteration 7 of deer-3f2a")
tag(root, 7, "iteration 7 of deer-3f2a")
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

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
ITERATION = re.compile(r"iter-\d{4,}")
FAITHFUL = "surrogateescape"  # bytes that are not UTF-8 survive a round trip through str
SETTINGS = ("core.hooksPath=/dev/null", "commit.gpgSign=false", "tag.gpgSign=false", "core.autocrlf=false")
UNFINISHED = (
    ("MERGE_HEAD", "merge"),
    ("rebase-merge", "rebase"),
    ("rebase-apply", "rebase"),
    ("CHERRY_PICK_HEAD", "cherry-pick"),
    ("REVERT_HEAD", "revert"),
)


def git(root: Path, *arguments: str, text: str | None = None) -> str:
    """Run git in the workspace; returns what it prints. Hooks, signing and the caller's GIT_* are left out."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", *(part for setting in SETTINGS for part in ("-c", setting))]
    if shutil.which("git") is None:
        raise GleanerError("git is not installed, or not on PATH. A campaign's history lives in git: install it.")
    done = subprocess.run(
        [*command, *arguments],
        cwd=root,
        env={**environment, "LC_ALL": "C"},
        input=None if text is None else text.encode("utf-8", FAITHFUL),
        capture_output=True,
        check=False,
    )
    printed, complaint = (stream.decode("utf-8", FAITHFUL) for stream in (done.stdout, done.stderr))
    if done.returncode != 0:
        why = complaint.strip() or printed.strip() or f"exit code {done.returncode}"
        raise GleanerError(f"git {' '.join(arguments[:2])} failed in {root}: {why}")
    return printed


def head(root: Path) -> str:
    """The commit that HEAD points to."""
    return git(root, "rev-parse", "HEAD").strip()


def tag_name(number: int) -> str:
    """The tag of an iteration: 7 -> iter-0007."""
    return f"iter-{number:04d}"


def tags(root: Path) -> list[str]:
    """Tags of closed iterations, in order."""
    named = git(root, "tag", "--list", "iter-*").split()
    return sorted((name for name in named if ITERATION.fullmatch(name)), key=lambda name: int(name[5:]))


def require_clean(root: Path) -> None:
    """Refuse to work over somebody's uncommitted work, a detached HEAD or an unfinished merge. Names the files."""
    folder = root / ".git"
    for name, what in UNFINISHED:
        if (folder / name).exists():
            raise BadInput(f"{root}: a {what} is in progress. Finish or abort it, then run the command again.")
    require_branch(root)
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


def own_changes(root: Path) -> list[str]:
    """The campaign's own files that differ from the newest commit."""
    return git(root, "diff", "--name-only", "HEAD", "--", *OWN).splitlines()


def working_code(root: Path) -> dict[str, str]:
    """SHA-256 of params.yaml and every code file as they are in the working tree, by name."""
    names = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "params.yaml", *CODE)
    files = {name: root / name for name in names.split("\0") if name}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.is_file()}


def require_branch(root: Path) -> None:
    """Raise BadInput when HEAD is detached: an older iteration is checked out. Names the branch to go back to."""
    if git(root, "rev-parse", "--abbrev-ref", "HEAD").strip() != "HEAD":
        return
    branches = _branches(root)
    raise BadInput(
        f"{root}: HEAD is detached. `git checkout {branches[0] if branches else 'main'} && dvc checkout` returns to the "
        "campaign's newest iteration."
    )


def branches_with(root: Path, revision: str) -> list[str]:
    """Branches whose history holds a revision, the one that was worked on last first; none when it does not exist."""
    try:
        return _branches(root, "--contains", revision)
    except GleanerError:
        return []


def _branches(root: Path, *which: str) -> list[str]:
    return git(root, "for-each-ref", "--sort=-committerdate", "--format=%(refname:short)", *which, "refs/heads").split()


def start_branch(root: Path, name: str, number: int) -> None:
    """Leave the tag for a branch of its own; tags of later iterations belong to the other campaign."""
    git(root, "switch", "--quiet", "--force-create", name)
    later = [tag for tag in tags(root) if int(tag.rpartition("-")[2]) > number]
    if later:
        git(root, "tag", "--delete", *later)


def code_changed(root: Path, since: str) -> list[str]:
    """Code files that differ between a commit and HEAD."""
    return git(root, "diff", "--name-only", since, "HEAD", "--", *CODE).splitlines()


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
        git(root, "config", "user.name")
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


def show(root: Path, revision: str, path: str) -> str:
    """A file's text at a revision."""
    return git(root, "show", f"{revision}:{path}")


def show_all(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The text of many `revision:path` with one process; what does not exist is left out."""
    found: dict[str, str] = {}
    rest = git(root, "cat-file", "--batch", text="".join(f"{name}\n" for name in names)).encode("utf-8", FAITHFUL)
    for name in names:
        header, _, rest = rest.partition(b"\n")
        if header.endswith(b" missing"):
            continue
        size = int(header.rpartition(b" ")[2])
        found[name], rest = rest[:size].decode("utf-8", FAITHFUL), rest[size + 1 :]
    return found


def tracked(root: Path) -> list[str]:
    """Files that git knows, relative to the workspace."""
    return [name for name in git(root, "ls-files", "-z").split("\0") if name]


def search_history(root: Path, revisions: Sequence[str], text: str) -> list[str]:
    """`revision:path` of every file that holds `text` (which travels by standard input: arguments are public)."""
    if not revisions:
        return []
    try:
        found = git(root, "grep", "--fixed-strings", "--files-with-matches", "-f", "-", *revisions, text=f"{text}\n")
    except GleanerError as error:
        if str(error).endswith(": exit code 1"):  # nothing found
            return []
        raise
    return found.split("\n")[:-1]
