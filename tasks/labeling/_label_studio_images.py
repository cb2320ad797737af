"""Where Label Studio's pages find the images: a folder that the server may serve, or a prefix of addresses.

Images(Path("/srv/labels"), "/data", "deer-1f3a", "").publish(task)
    ->  /data/local-files/?d=deer-1f3a/1f/1f3a….png
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from tasks.errors import BadInput
from tasks.images import viewable
from tasks.labeling import Task
from tasks.store import disk_error, replacing, sha256

SERVING, IMAGES = ".gleaner/serving", "images"  # where tasks/serving.py puts them


@dataclass(frozen=True)
class Images:
    """Where images are put, and how the server reaches them."""

    root: Path  # the server's document root, as it is seen here
    seen_as: str  # the same folder as the server sees it
    folder: str  # of the campaign, below the root: the server serves no file of the root itself
    prefix: str  # of addresses; "" for files

    @property
    def local(self) -> bool:
        """Whether the server reads files."""
        return not self.prefix

    @property
    def served(self) -> str:
        """The campaign's folder as the server sees it: strictly below its document root."""
        return f"{self.seen_as.rstrip('/')}/{self.folder}"

    def publish(self, task: Task) -> str:
        """Put the task's image where the server finds it, and give its address.

        A format that no browser shows (TIFF) is put there as PNG, converted as for the pool.
        """
        picture = viewable(task.image.read_bytes()) if task.image.suffix == ".tif" else None
        name = f"{task.item_id[:2]}/{task.item_id}{task.image.suffix}"
        name = name if picture is None else f"viewable/{task.item_id}.png"
        if self.prefix:
            return f"{self.prefix.rstrip('/')}/{name}"
        target = self.root / self.folder / name
        if picture is not None:
            self._write(target, io.BytesIO(picture))
        elif target.resolve() != task.image.resolve() and not (target.exists() and sha256(target) == task.item_id):
            with open(task.image, "rb") as content:
                self._write(target, content)
        return f"/data/local-files/?d={quote(f'{self.folder}/{name}')}"

    def _write(self, target: Path, content: IO[bytes]) -> None:
        if self.folder != IMAGES and not self.root.is_dir():
            raise BadInput(
                f"params.yaml: labeling.options.document_root: {self.root} is not a folder. It is the one that Label Studio "
                "was started with as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."
            )
        try:
            with replacing(target) as handle:
                shutil.copyfileobj(content, handle)
        except OSError as error:
            raise disk_error(error, target) from error
