"""Files below one folder, read so that nothing outside it can be reached, and their names as printable text.

    uri_of(b"cat\\n/caf\\xe9.jpg")  ->  "cat%0A/caf%E9.jpg"      path_of(…) gives the bytes back

A name is metadata only: it is never taken as a format, an option or a way out of the folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tasks.images import Refused

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def uri_of(path: bytes) -> str:
    """A relative path as printable text: bytes that are no printable UTF-8, and '%', are percent-encoded."""
    text = path.decode("utf-8", "surrogateescape")
    if text.isprintable() and "%" not in text:
        return text
    return "".join(c if c.isprintable() and c != "%" else _quoted(c) for c in text)


def _quoted(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def path_of(uri: str) -> bytes:
    """The bytes of the path that `uri_of` made a URI of."""
    return unquote_to_bytes(uri)


def read_below(root: Path, uri: str) -> bytes:
    """Read a regular file below `root`, following no symbolic link on the way. Raises Refused or OSError."""
    parts = path_of(uri).split(b"/")
    if b"\0" in path_of(uri) or b".." in parts or b"" in parts:
        raise Refused("outside the source", "the path is absolute or climbs out of the folder")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            _refuse_link(part, folder, root)
            below = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = below
        return _read_regular(parts[-1], folder, root)
    finally:
        os.close(folder)


def _read_regular(name: bytes, folder: int, root: Path) -> bytes:
    """FIFOs and devices are known from their entry: opening one can block or act."""
    _refuse_link(name, folder, root)
    _refuse_special(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    with open(os.open(name, _FILE_FLAGS, dir_fd=folder), "rb") as handle:
        _refuse_special(os.fstat(handle.fileno()).st_mode)
        return handle.read()


def _refuse_special(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise Refused("not a regular file", _KINDS.get(stat.S_IFMT(mode), "unknown kind"))


def _refuse_link(name: bytes, folder: int, root: Path) -> None:
    if not stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return
    target = os.path.realpath(os.fsencode(f"/proc/self/fd/{folder}/") + name)
    base = os.fsencode(os.path.realpath(root))
    inside = target == base or target.startswith(base + b"/")
    where = "its target is taken under its own name" if inside else "it leaves the source"
    raise Refused("symbolic link", f"not followed; {where}")
