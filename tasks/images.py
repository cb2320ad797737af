"""Encoded bytes of an image -> the uint8 array that the pool keeps. Pure: no file is opened here.

    decode(Path("deer.jpg").read_bytes(), size=96, mode="RGB", max_pixels=100_000_000)
    ->  Decoded(pixels=(96, 96, 3) uint8, width=640, height=480)

The format is found from the bytes, never from a name, and only six are allowed. One conversion for all,
chosen to look as a browser shows the original to an annotator:

  size          the whole image is resized (antialiased) to size x size; nothing is cropped, since the
                animal at the edge is what a label is about; the aspect ratio is lost
  frames        the first one of an animation or a multi-page file
  orientation   EXIF 1-8 applied
  16 bit        65535 becomes 255; floats: [0, 1] becomes 0-255; other ranges are stretched
  alpha         on white, palette transparency too
  colour        an embedded ICC profile is applied (-> sRGB); a broken one is ignored
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Array = npt.NDArray[Any]
FORMATS = "JPEG, PNG, BMP, GIF, TIFF, WEBP"
ORIENTATION = 0x0112
#: what Pillow raises on hostile bytes, as met by its own fuzzers and ours
BROKEN = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, AssertionError,
    RuntimeError, EOFError, MemoryError, BufferError, struct.error, zlib.error,
)  # fmt: skip


class Refused(ValueError):
    """Bytes that do not go into the pool: `kind` is one of a few words to count by, `detail` says more."""

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        super().__init__(f"{kind}: {detail}" if detail else kind)


@dataclass(frozen=True)
class Decoded:
    """An image as the pool keeps it; width and height are the original's, as seen (after orientation)."""

    pixels: Array  # (size, size, channels) uint8; channels 1 for L, 3 for RGB
    width: int
    height: int


def sniff(content: bytes) -> str:
    """Pillow's name of the format that the first bytes tell, "" when it is none of those allowed."""
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if content.startswith(b"BM") else ""


def decode(content: bytes, size: int, mode: str, max_pixels: int) -> Decoded:
    """Decode all of an image (a truncated one fails) and convert it. Raises Refused with the reason."""
    if not content:
        raise Refused("empty", "0 bytes")
    kind = sniff(content)
    if not kind:
        raise Refused("not an image", f"starts with {content[:8]!r}; allowed: {FORMATS}")
    from PIL import Image

    try:
        return _decode(content, kind, size, mode, max_pixels)
    except Refused:
        raise
    except Image.DecompressionBombError as error:  # a GIF's frame that is larger than its screen
        raise Refused("too large", str(error)) from None
    except BROKEN as error:
        raise Refused(*_explain(kind, error)) from None


def viewable(content: bytes) -> bytes | None:
    """The image as a PNG of its own size, as the pool sees it, where no browser shows its format (TIFF); else None."""
    if sniff(content) != "TIFF":
        return None
    image, stream = _open(content, "TIFF"), io.BytesIO()
    image.load()
    _on_white(_to_srgb(_eight_bit(image))).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def header_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as the header says, before any decoding and orientation; None when it cannot be read."""
    kind = sniff(content)
    if not kind:
        return None
    try:
        width, height = _open(content, kind).size
    except BROKEN:
        return None
    return int(width), int(height)


def _decode(content: bytes, kind: str, size: int, mode: str, max_pixels: int) -> Decoded:
    if kind == "PNG":
        _check_png(content)
    if kind == "WEBP":
        _check_size(*_webp_size(content), max_pixels)
    image = _open(content, kind)
    width, height = image.size
    _check_size(width, height, max_pixels)
    image.draft(None, (2 * size, 2 * size))  # JPEG only: decodes at 1/2, 1/4 or 1/8, still all of the bytes
    image.load()
    orientation = _orientation(image)
    pixels = _pixels(image, size, mode, orientation)
    return Decoded(pixels, *((height, width) if orientation >= 5 else (width, height)))


def _open(content: bytes, kind: str) -> Image:
    """Read the header. Not `Image.open`: its own limit on pixels is global and only warns."""
    from PIL import Image

    Image.init()
    factory, _ = Image.OPEN[kind]
    return factory(io.BytesIO(content), "")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Refused("too large", f"the header declares {width} x {height} pixels; pool.max_pixels is {max_pixels}")
    if width < 1 or height < 1:
        raise Refused("damaged", f"the header declares {width} x {height} pixels")


def _explain(kind: str, error: BaseException) -> tuple[str, str]:
    text = " ".join(str(error).split()) or type(error).__name__
    cut = "truncated" in text.lower() or isinstance(error, EOFError)
    return ("truncated" if cut else "damaged", f"{kind}: {text[:200]}")


def _check_png(content: bytes) -> None:
    """Verify the critical chunks' checksums up to IEND: Pillow stops reading when it has enough pixels."""
    at = 8
    while at + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            break
        stored = struct.unpack_from(">I", content, end - 4)[0]
        if not name[0] & 0x20 and zlib.crc32(memoryview(content)[at + 4 : end - 4]) != stored:
            raise Refused("damaged", f"PNG: checksum of chunk {name!r} at byte {at} is wrong")
        if name == b"IEND":
            return
        at = end
    raise Refused("truncated", "PNG: the file ends before its IEND chunk")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Declared width and height: libwebp allocates the canvas while Pillow reads the header."""
    chunk = content[12:16]
    if chunk == b"VP8X" and len(content) >= 30:
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if chunk == b"VP8L" and len(content) >= 25:
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and len(content) >= 30:
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise Refused("damaged", "WEBP: no size in its header")


def _orientation(image: Image) -> int:
    """EXIF orientation 1-8; 1 when there is none or it cannot be read (Pillow applies a TIFF's itself)."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _pixels(image: Image, size: int, mode: str, orientation: int) -> Array:
    from PIL import Image

    image = _eight_bit(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    image = _on_white(_to_srgb(image))
    if image.mode != mode:
        image = image.convert(mode)
    return _turned(np.asarray(image).reshape(size, size, -1), orientation)


def _turned(pixels: Array, orientation: int) -> Array:
    """Apply an EXIF orientation to (H, W, channels)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _eight_bit(image: Image) -> Image:
    """To a mode with 8 bits a channel that can be resized smoothly: L, RGB, CMYK or RGBA."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray(_scaled(np.asarray(image).astype(np.float64), 65535.0))
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretched(np.asarray(image).astype(np.float64), image.mode))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled(values: Array, top: float) -> Array:
    return np.rint(values * (255.0 / top)).astype(np.uint8)


def _stretched(values: Array, mode: str) -> Array:
    """32-bit values have no declared range: take the usual one that holds them all, else stretch what is there."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Refused("damaged", "pixels that are NaN or infinite")
    tops = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)
    for top in tops:
        if low >= 0.0 and high <= top:
            return _scaled(values, top)
    return _scaled(values - low, high - low) if high > low else np.zeros(values.shape, np.uint8)


def _to_srgb(image: Image) -> Image:
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    from PIL import ImageCms

    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return converted if converted is not None else image


def _on_white(image: Image) -> Image:
    from PIL import Image

    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


#: how the formats that browsers show begin
SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"BM", ".bmp"),
    (b"GIF8", ".gif"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
    (b"RIFF", ".webp"),
)


def suffix(content: bytes) -> str:
    """The file name's ending for encoded bytes: ".jpg", ".png", …; ".img" for what no browser shows."""
    return next((end for signature, end in SIGNATURES if content.startswith(signature)), ".img")
