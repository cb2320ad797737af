"""Images that come as arrays become BMP files: lossless, the same bytes each time, and any browser shows them.

bmp(np.zeros((28, 28), np.uint8))  ->  b"BM…", 1,862 bytes
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.images import Refused

DIGITS = 8


def bmp(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode (H, W) grey or (H, W, 3) RGB uint8."""
    from PIL import Image

    return bmp_of(Image.fromarray(np.ascontiguousarray(pixels)))


def bmp_of(image: Any) -> bytes:
    """Encode a Pillow image."""
    buffer = io.BytesIO()
    (image if image.mode in ("L", "RGB", "RGBA", "P", "1") else image.convert("RGB")).save(buffer, "BMP")
    return buffer.getvalue()


def uri(name: str, index: int) -> str:
    """`train-images.gz#00000042`: zero-padded, so that sorting by uri is the archive's order."""
    return f"{name}#{index:0{DIGITS}d}"


def index_of(uri: str, name: str, count: int) -> int:
    """The position that `uri` names. Raises Refused when it is of another archive or out of range."""
    prefix, _, digits = uri.rpartition("#")
    if prefix != name or not digits.isascii() or not digits.isdigit() or int(digits) >= count:
        raise Refused("missing", f"{name} holds {count} images and no {uri}")
    return int(digits)
