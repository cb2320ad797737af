"""Reads, hashes and decodes a source's files in parallel, in the source's order, each once.

for chunk in in_parallel(source, one, workers=2): …     # lists of 32 results, at most a few in memory at a time
"""

from __future__ import annotations

import errno
import hashlib
import logging
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from tasks.errors import BadInput
from tasks.images import Decoded, Refused, decode
from tasks.params_sections import Pool
from tasks.sources import Found

CHUNK = 32
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Looked:
    """What one file turned out to be: bytes with a hash (decoded when they are new), or refused."""

    found: Found
    sha256: str = ""
    decoded: Decoded | None = None
    refused: str = ""
    size: int = -1  # bytes read


def look_at(read: Callable[[str], bytes], found: Found, pool: Pool, known: Callable[[str], bool]) -> Looked:
    """Read one file once: the bytes hashed are the bytes decoded. Those `known` by their hash are not decoded."""
    limit = 8 * pool.max_pixels + 2**20  # 16 bits, four channels, uncompressed
    if found.size > limit:
        return Looked(found, refused=f"too large: {found.size} bytes are more than pool.max_pixels can need")
    try:
        content = read(found.uri)
    except (Refused, BadInput) as error:
        return Looked(found, refused=str(error))
    except OSError as error:
        return Looked(found, refused=_why(error))
    sha256 = hashlib.sha256(content).hexdigest()
    if known(sha256):
        return Looked(found, sha256)
    try:
        decoded = decode(content, pool.size, pool.mode, pool.max_pixels)
        return Looked(found, sha256, decoded, size=len(content))
    except Refused as error:
        return Looked(found, sha256, refused=str(error))


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "missing: no such file"
    if error.errno == errno.ELOOP:
        return "symbolic link: not followed"
    return f"unreadable: {error.strerror or error}"


def in_parallel(items: Iterable[In], one: Callable[[In], Out], workers: int) -> Iterator[list[Out]]:
    """Results in the order of `items`, in chunks; no more than a few chunks are under way or waiting."""
    waiting: deque[Future[list[Out]]] = deque()
    rest = iter(items)
    executor = ThreadPoolExecutor(workers, thread_name_prefix="look")
    try:
        while chunk := list(islice(rest, CHUNK)):
            waiting.append(executor.submit(_all, chunk, one))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def _all(chunk: list[In], one: Callable[[In], Out]) -> list[Out]:
    return [one(item) for item in chunk]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's remarks on odd files off the screen: what matters is in the reasons."""
    log = logging.getLogger("PIL")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def progress_bar(total: int, shown: bool | None, title: str) -> Iterator[Callable[[int], Any]]:
    """A bar on standard error; `shown` None: only on a terminal."""
    if shown is False or (shown is None and not sys.stderr.isatty()):
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps: progress.advance(task, steps)
