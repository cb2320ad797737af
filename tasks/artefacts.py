"""`data/artefacts.json`: path, size and SHA-256 of every file of an iteration, and the environment that made it.

DVC knows its files by MD5 and repairs silently; this list is our own proof. It is committed with the tag, checked
against the cache before the tag is set, and `gleaner restore` and `gleaner verify --deep` measure against it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.digests import digests
from tasks.errors import GleanerError
from tasks.pointers import Cached
from tasks.store import Store, sha256

ARTEFACTS = "data/artefacts.json"
FOLDERS = ("data/pool", "data/features", "data/inputs", "data/evaluation", "data/report", "data/ledger", "models/head")
FILES = (
    "data/scores.parquet",
    "data/selection.parquet",
    "data/findings.json",
    "dvc.lock",
    "dvc.yaml",
    "data/campaign.json",
)
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "torchvision", "pillow", "pyarrow")

IN_GIT = ("dvc.lock", "dvc.yaml", "data/campaign.json", "params.yaml")  # DVC holds the others

Entry = dict[str, Any]


def list_artefacts(store: Store) -> list[str]:
    """Relative paths of all files of the iteration that is in the working tree, sorted."""
    return files_under(store, (*FILES, *FOLDERS))


def files_under(store: Store, paths: Iterable[str]) -> list[str]:
    """Files at or below `paths`, sorted; all relative to the workspace."""
    found: list[str] = []
    for path in map(store.path, paths):
        files = [path] if path.is_file() else [below for below in path.rglob("*") if below.is_file()]
        found += [file.relative_to(store.root).as_posix() for file in files]
    return sorted(found)


def build(store: Store, iteration: int, campaign: str, params_text: str, threads: int) -> dict[str, Any]:
    """Hash everything; files that did not change since they were hashed are not read again."""
    files: dict[str, Entry] = {
        name: {"size": found.size, "sha256": found.sha256}
        for name, found in digests(store, list_artefacts(store)).items()
    }
    text = params_text.encode()
    files["params.yaml"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    return {"campaign": campaign, "iteration": iteration, "environment": environment(threads), "files": files}


def environment(threads: int) -> dict[str, Any]:
    """What recomputation needs for the same bytes: versions, threads, instruction set."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "threads": threads,
        "instruction_sets": _instruction_sets(),
    }


def _instruction_sets() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return sorted(flag for flag in flags if flag.startswith(("avx", "fma", "amx")))


def check_cache(files: dict[str, Entry], cached: list[Cached], unchanged: dict[str, Entry]) -> list[str]:
    """What is wrong with the cached bytes of `files`, [] when all are there; entries equal in `unchanged` are not re-read."""
    objects = {file.path: file.object for file in cached}
    found = (
        check_object(name, entry, objects.get(name), read=unchanged.get(name) != entry)
        for name, entry in files.items()
        if under_dvc(name)
    )
    return [problem for problem in found if problem is not None]


def check_object(name: str, entry: Entry, where: Path | None, *, read: bool) -> str | None:
    """What is wrong with the cache object of one file: absent, another size, or (when read) other bytes."""
    if where is None:
        return f"{name}: DVC does not know it"
    if not where.is_file():
        return f"{name}: cache object {where} is missing"
    if where.stat().st_size != entry["size"]:
        return f"{name}: cache object {where} has {where.stat().st_size} bytes, not {entry['size']}"
    if read and sha256(where) != entry["sha256"]:
        return f"{name}: cache object {where} has other bytes than the artefact"
    return None


def check_files(root: Path, files: dict[str, Entry]) -> list[str]:
    """What differs between the files under `root` and the list, [] when every byte is the same."""
    problems = []
    for name, entry in files.items():
        path = root / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
            problems.append(f"{name}: other bytes than at the tag")
    return problems


def under_dvc(name: str) -> bool:
    """Whether DVC holds the bytes of an artefact (git holds the others')."""
    return name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or name in FILES[:3]


def read_artefacts(text: str, where: str) -> dict[str, Any]:
    """Parse an artefacts.json. Raises GleanerError when it is damaged."""
    try:
        return {"files": {}, "iteration": -1, **json.loads(text)}
    except (ValueError, TypeError) as error:
        raise GleanerError(f"{where} is damaged: {error}") from None
