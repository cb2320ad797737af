"""All files of a workspace: where they are, and how they are written so that a crash leaves old or new.

Every write goes to a temporary name beside the target, is flushed to disk, and is renamed over it; then
the folder is flushed. Only Parquet, JSON, NPY and safetensors are read or written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import GleanerError
from tasks.tables import TableKind

Array = npt.NDArray[Any]
TEMPORARY = ".writing"


@dataclass(frozen=True)
class Store:
    """A workspace's files. `root` is the folder that holds params.yaml."""

    root: Path

    def path(self, relative: str) -> Path:
        """The absolute path of a file named relative to the workspace."""
        return self.root / relative

    def exists(self, what: str | TableKind) -> bool:
        """Whether a file or table is there."""
        return self.path(what.path if isinstance(what, TableKind) else what).exists()

    def read_table(self, kind: TableKind, columns: list[str] | None = None) -> pa.Table:
        """Read a table. Raises GleanerError that names the file when it is missing or damaged."""
        path = self.path(kind.path)
        try:
            return pq.read_table(path, columns=columns, partitioning=None)
        except FileNotFoundError:
            raise GleanerError(f"{path} not found. `gleaner status` says what to run first.") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise GleanerError(f"{path} cannot be read: {error}. `gleaner verify` tells what is damaged.") from None

    def write_table(self, kind: TableKind, table: pa.Table) -> None:
        """Write a table atomically. Raises GleanerError for a null, a repeated key or another schema."""
        checked = check_table(kind, table)
        with replacing(self.path(kind.path)) as handle:
            pq.write_table(checked, handle, compression="zstd", compression_level=1)

    def read_json(self, relative: str) -> Any:
        """Read a JSON file. Raises GleanerError that names the file when it is missing or damaged."""
        path = self.path(relative)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise GleanerError(f"{path} not found. `gleaner status` says what to run first.") from None
        except ValueError as error:
            raise GleanerError(f"{path} is not valid JSON: {error}.") from None

    def write_json(self, relative: str, value: Any) -> None:
        """Write JSON atomically: sorted keys, the same bytes for the same value. Raises GleanerError for a NaN."""
        try:
            text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise GleanerError(f"{relative} is not written: {error} (NaN and infinity are not numbers).") from None
        self.write_bytes(relative, text.encode() + b"\n")

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Write a file atomically."""
        with replacing(self.path(relative)) as handle:
            handle.write(content)

    def read_array(self, relative: str) -> Array:
        """Map an NPY file into memory, read-only."""
        try:
            array: Array = np.load(self.path(relative), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise GleanerError(f"{self.path(relative)} cannot be read: {error}.") from None
        return array

    def write_array(self, relative: str, array: Array) -> None:
        """Write an NPY file atomically."""
        with replacing(self.path(relative)) as handle:
            np.save(handle, np.ascontiguousarray(array), allow_pickle=False)

    def read_tensors(self, relative: str) -> dict[str, Array]:
        """Read a safetensors file as NumPy arrays."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors: dict[str, Array] = load_file(self.path(relative))
        except (FileNotFoundError, SafetensorError) as error:
            raise GleanerError(f"{self.path(relative)} is not a readable safetensors file: {error}.") from None
        return tensors

    def write_tensors(self, relative: str, tensors: dict[str, Array]) -> None:
        """Write arrays as a safetensors file, atomically."""
        from safetensors.numpy import save

        self.write_bytes(relative, save({k: np.ascontiguousarray(v) for k, v in sorted(tensors.items())}))


def check_table(kind: TableKind, table: pa.Table) -> pa.Table:
    """Cast to the declared schema and refuse nulls and repeated keys."""
    missing = set(kind.schema.names) - set(table.column_names)
    if missing:
        raise GleanerError(f"{kind.path}: columns missing: {', '.join(sorted(missing))}.")
    table = table.select(kind.schema.names)
    for name in kind.schema.names:
        if table[name].null_count:
            raise GleanerError(f"{kind.path}: {table[name].null_count} nulls in column {name!r}.")
    table = table.cast(kind.schema)
    groups = table.group_by(list(kind.key)).aggregate([([], "count_all")])
    if groups.num_rows != table.num_rows:
        twice = groups.filter(pc.greater(groups["count_all"], 1)).select(list(kind.key)).slice(0, 1).to_pylist()[0]
        raise GleanerError(f"{kind.path}: key {tuple(twice.values())} is there more than once.")
    return table


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(new: Path, target: Path) -> None:
    """Put folder `new` in the place of `target`.

    A crash between the two renames leaves the old one as `.target.old`; building `new` and calling again repairs it.
    """
    old = target.with_name(f".{target.name}.old")
    for path in sorted(new.rglob("*")):
        if path.is_file():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
    remove_folder(old)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    flush_folder(target.parent)
    remove_folder(old)


def remove_folder(path: Path) -> None:
    """Remove a folder if it is there (DVC's links are read-only: their folder is not)."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: what the system says when a disk is full, gone, read-only or not ours
DISK = FULL | {errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn what a disk refuses anywhere in the block into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise disk_error(error, Path(error.filename or root)) from error


def disk_error(error: OSError, path: Path) -> GleanerError:
    """One clear error for what a disk refused: which file, why, what to do, how much room is left on a full one."""
    reason = error.strerror or str(error)
    if error.errno in DISK - FULL:
        return GleanerError(
            f"cannot use {path}: {reason}. It must be readable and writable for this user (another owner? a disk that is "
            "mounted read-only?). Then run the same command again; nothing was lost."
        )
    try:
        free = shutil.disk_usage(path.parent).free // 2**20
        room = f" {free} MB are free there."
    except OSError:
        room = ""
    return GleanerError(
        f"cannot write {path}: {reason}.{room} Free some space and run the same command again; nothing was lost."
    )
