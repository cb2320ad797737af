"""A folder of images, flat or with a folder per class.

    photos/cat/001.jpg        source: {kind: folder, path: photos, options: {labels: folders}}
    photos/dog/IMG_7.png      ->  labels "cat", "dog" (the first folder's name)

    burst_017_03.jpg          options: {sequence: "(.*)_[0-9]+\\.jpg"}  ->  sequence "burst_017"

Every file is seen and counted, also hidden ones (.DS_Store is then quarantined as no image). Folders whose
name begins with a dot are not entered, and counted as one entry each. Symbolic links are never followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tasks.errors import BadInput
from tasks.images import Refused
from tasks.sources import Found
from tasks.sources._files import path_of, read_below, uri_of


def open_source(path: Path | None, *, labels: Literal["none", "folders"] = "none", sequence: str = "") -> Folder:
    """List all that is below `path`.

    labels: "none" or "folders" (the name of the first folder on the way is the label).
    sequence: regular expression with one group, searched in the relative path; "" for no sequences.
    """
    if path is None or not path.is_dir():
        raise BadInput(f"source.path: {str(path or '')!r} is not a folder. Give the folder that holds the images.")
    pattern = _pattern(sequence)
    found = sorted(_walk(path, labels == "folders", pattern), key=lambda f: f.uri)
    if pattern and found and not any(file.sequence for file in found):
        raise BadInput(
            f"source.options.sequence: {sequence!r} matches none of the {len(found)} paths, e.g. {found[0].uri!r}. "
            "Images of one burst would land on both sides of the split."
        )
    return Folder(path, tuple(found))


class Folder:
    """What a folder held when it was opened."""

    def __init__(self, root: Path, found: tuple[Found, ...]) -> None:
        self._root = root
        self._found = found
        self.classes = tuple(sorted({f.label for f in found if f.label is not None}))

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Found]:
        return iter(self._found)

    def read(self, uri: str) -> bytes:
        """The file's bytes, as they are now."""
        if uri.endswith("/"):
            return _refuse_folder(self._root, uri)
        return read_below(self._root, uri)


def _pattern(text: str) -> re.Pattern[str] | None:
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise BadInput(f"source.options.sequence: {text!r} is no regular expression: {error}.") from None
    if pattern.groups != 1:
        raise BadInput(f"source.options.sequence: {text!r} has {pattern.groups} groups; give exactly one: (…).")
    return pattern


def _walk(root: Path, labels: bool, pattern: re.Pattern[str] | None) -> Iterator[Found]:
    base = os.fsencode(root)
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        try:
            entries = list(os.scandir(base + b"/" + below))
        except OSError:
            yield Found(uri_of(below), -1, -1)
            continue
        for entry in entries:
            relative = below + entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name.startswith(b"."):
                    yield Found(uri_of(relative) + "/", -1, -1)
                else:
                    waiting.append(relative + b"/")
            else:
                yield _found(entry, uri_of(relative), labels, pattern)


def _found(entry: os.DirEntry[bytes], uri: str, labels: bool, pattern: re.Pattern[str] | None) -> Found:
    regular = entry.is_file(follow_symlinks=False)
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:  # gone since it was listed: reading it says so
        regular = False
    size, mtime = (status.st_size, status.st_mtime_ns) if regular else (-1, -1)
    top, slash, _ = uri.partition("/")
    match = pattern.search(uri) if pattern else None
    label = top if labels and slash and regular else None
    return Found(uri, size, mtime, label, (match.group(1) or "") if match else "")


def _refuse_folder(root: Path, uri: str) -> bytes:
    path = path_of(uri)
    if path.split(b"/")[-2].startswith(b"."):
        raise Refused("hidden folder", "not entered; rename it if it holds images")
    os.scandir(os.fsencode(root) + b"/" + path).close()
    raise Refused("unreadable", "the folder could not be listed; it can now: ingest again")
