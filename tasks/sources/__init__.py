"""Image sources, one file each; the file name is the value of source.kind.

source = plugins.find("sources", "folder").open_source(Path("photos"), labels="folders")
next(iter(source))           ->  Found(uri="cat/001.jpg", size=48213, mtime_ns=…, label="cat", …)
source.read("cat/001.jpg")   ->  the file's bytes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks import plugins
from tasks.params_sections import Source as Section


@dataclass(frozen=True)
class Found:
    """One file (or one image of an archive) that a source holds, told without reading its content."""

    uri: str  # printable and reversible: the source's `read` takes it back
    size: int  # bytes; -1 when unknown
    mtime_ns: int  # -1 when the source has no clock: its content is then looked at in each ingest
    label: str | None = None
    sequence: str = ""  # burst or location: items of one sequence stay together
    taken: str = ""  # ISO 8601


class Source(Protocol):
    """An opened source. Iteration is cheap, sorted by uri, and the same each time."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes it knows, in their order; empty when it knows none."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Found]: ...

    def read(self, uri: str) -> bytes:
        """The encoded bytes. Raises OSError or tasks.images.Refused with the reason when they cannot be had."""
        ...


def grows(section: Section) -> bool:
    """Whether new images may arrive and are looked for: a data set that never changes says `FIXED = True` in its file."""
    return section.watch and not getattr(plugins.find("sources", section.kind), "FIXED", False)


def open_source(root: Path, section: Section) -> Source:
    """Open the source that params.yaml names; its path is relative to the workspace. Raises BadInput."""
    path = (root / Path(section.path).expanduser()).resolve() if section.path else None
    source: Source = plugins.find("sources", section.kind).open_source(path, **section.options)
    return source
