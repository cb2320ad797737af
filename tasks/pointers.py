"""DVC's pointers, read without DVC: which cache object holds the bytes of which file, now or at a tag.

cached_files(root, "iter-0003")   ->   [Cached("data/pool/manifest.parquet", "9f2c…", .dvc/cache/files/md5/9f/2c…), …]

DVC calls an empty pointer up to date and repairs a tampered file without a word; nothing here forgives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.errors import GleanerError
from tasks.repository import show_all

DATA = ("data/pool", "data/inputs", "data/ledger")
POINTERS = (*(f"{folder}.dvc" for folder in DATA), "dvc.lock")


class Missing(GleanerError):
    """The cache does not hold something that a pointer names."""


@dataclass(frozen=True)
class Cached:
    """A file under DVC: where its bytes are in the cache."""

    path: str  # relative to the workspace
    md5: str
    object: Path


def cached_files(root: Path, revision: str | None = None, pointers: Sequence[str] = POINTERS) -> list[Cached]:
    """Every file that the pointers and dvc.lock name (at a revision, or now), with its cache object.

    Raises GleanerError for a pointer that is empty or damaged.
    """
    return [file for out in _outs(_texts(root, revision, pointers)) for file in _expand(root, out)]


def data_hashes(root: Path, revision: str | None = None, pointers: Sequence[str] = POINTERS) -> dict[str, str]:
    """DVC's hash of each pointer and stage output (at a revision, or now): path -> MD5."""
    return {out["path"]: str(out.get("md5", "")) for out in _outs(_texts(root, revision, pointers))}


def objects_of(root: Path, revision: str) -> set[str]:
    """MD5 of every cache object that a revision names and the cache holds, listings of folders too."""
    found: set[str] = set()
    for out in _outs(_texts(root, revision, POINTERS)):
        with suppress(Missing):  # a fork holds nothing of the iterations before it
            found |= {str(out.get("md5", "")), *(file.md5 for file in _expand(root, out))}
    return {md5 for md5 in found if md5 and _object(root, md5).is_file()}


def listed_files(root: Path, texts: dict[str, str]) -> list[Cached]:
    """As `cached_files`, of pointer texts that were read already: file name -> text."""
    return [file for out in _outs(texts) for file in _expand(root, out)]


def _texts(root: Path, revision: str | None, pointers: Sequence[str]) -> dict[str, str]:
    if revision is None:
        return {name: (root / name).read_text(encoding="utf-8") for name in pointers if (root / name).exists()}
    found = show_all(root, [f"{revision}:{name}" for name in pointers])
    return {name.partition(":")[2]: text for name, text in found.items()}


def _outs(texts: dict[str, str]) -> list[dict[str, Any]]:
    outs: list[dict[str, Any]] = []
    for name, text in texts.items():
        if name == "dvc.lock":
            stages = (_parse_yaml(text, name).get("stages") or {}).values()
            outs += [out for stage in stages for out in stage.get("outs") or ()]  # none: DVC was killed as it wrote
            continue
        found = _parse_yaml(text, name).get("outs")
        if not found:
            raise GleanerError(f"{name} is empty: DVC left it so (a full disk?). `git checkout -- {name}` restores it.")
        outs += [{**out, "path": f"{Path(name).parent.as_posix()}/{out['path']}"} for out in found]
    return outs


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise GleanerError(f"{name} cannot be read: {error}") from None
    if value is not None and not isinstance(value, dict):
        raise GleanerError(f"{name} cannot be read: it is not a mapping. `git checkout -- {name}` restores it.")
    return value or {}


def _expand(root: Path, out: dict[str, Any]) -> list[Cached]:
    md5 = str(out.get("md5", ""))
    obj = _object(root, md5)
    if not md5.endswith(".dir"):
        return [Cached(out["path"], md5, obj)]
    try:
        listing = json.loads(obj.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Missing(f"{out['path']}: its listing {obj} is missing in the cache.") from None
    except (OSError, ValueError) as error:
        raise GleanerError(f"{out['path']}: its listing {obj} is damaged in the cache ({error}).") from None
    return [Cached(f"{out['path']}/{entry['relpath']}", entry["md5"], _object(root, entry["md5"])) for entry in listing]


def _object(root: Path, md5: str) -> Path:
    return root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
