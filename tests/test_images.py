"""tasks.images: hostile and odd bytes become one kind of array, or are refused with the reason."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tasks.images import Refused, decode, sniff

MAX = 10_000_000
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # ingest keeps Pillow's remarks off the screen
MISSOURI = Path(__file__).parent.parent.parent / "shared/data/wildlife_missouri/images"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A smooth picture with some texture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def mean(content: bytes, mode: str = "RGB") -> float:
    return float(decode(content, 32, mode, MAX).pixels.mean())


def refused(content: bytes, max_pixels: int = MAX) -> str:
    with pytest.raises(Refused) as caught:
        decode(content, 16, "RGB", max_pixels)
    return caught.value.kind


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = png_chunk(b"IDAT", data or zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + idat + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_each_allowed_format_gives_the_same_picture(kind: str) -> None:
    expected = decode(encoded(photo(), "PNG"), 32, "RGB", MAX).pixels.astype(int)
    got = decode(encoded(photo(), kind), 32, "RGB", MAX)
    assert (got.width, got.height) == (96, 64)
    assert got.pixels.shape == (32, 32, 3)
    assert got.pixels.dtype == np.uint8
    assert np.abs(got.pixels - expected).mean() < 8


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
@pytest.mark.parametrize("source", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_the_pool_mode(source: str, mode: str, channels: int) -> None:
    pixels = decode(encoded(photo().convert(source), "PNG"), 8, mode, MAX).pixels
    assert pixels.shape == (8, 8, channels)


def test_an_image_of_the_pool_size_keeps_its_pixels() -> None:
    array = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    pixels = decode(encoded(Image.fromarray(array), "BMP"), 28, "L", MAX).pixels
    assert np.array_equal(pixels[..., 0], array)


def test_nothing_is_cropped_at_the_edge() -> None:
    array = np.zeros((60, 240, 3), np.uint8)
    array[:, :12] = array[:, -12:] = 255  # animals at both ends of a wide frame
    pixels = decode(encoded(Image.fromarray(array), "PNG"), 20, "L", MAX).pixels[..., 0]
    assert pixels[:, 0].min() > 200
    assert pixels[:, -1].min() > 200


@pytest.mark.parametrize("percent", range(0, 100, 3))
def test_a_truncated_jpeg_is_refused(percent: int) -> None:
    content = encoded(photo(200, 150), "JPEG", quality=85)
    assert refused(content[: len(content) * percent // 100]) in {"truncated", "damaged", "empty", "not an image"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("percent", [5, 25, 50, 75, 90, 97])
def test_a_truncated_file_of_any_format_is_refused(kind: str, percent: int) -> None:
    content = encoded(photo(120, 90), kind)
    assert refused(content[: len(content) * percent // 100]) in {"truncated", "damaged", "not an image"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_a_file_that_lacks_only_its_last_bytes_is_refused(kind: str) -> None:
    content = encoded(photo(40, 30), kind)
    for missing in range(1, 25):
        assert refused(content[:-missing]) in {"truncated", "damaged"}


def test_a_progressive_jpeg_cut_in_its_last_scan_is_refused() -> None:
    content = encoded(photo(200, 150), "JPEG", progressive=True)
    assert refused(content[: len(content) * 9 // 10]) == "truncated"


def test_a_jpeg_that_is_decoded_at_a_reduced_size_is_still_read_to_its_end() -> None:
    content = encoded(photo(1600, 1200), "JPEG")
    assert decode(content, 16, "RGB", MAX).width == 1600
    assert refused(content[: len(content) * 95 // 100]) == "truncated"


def test_any_flipped_bit_of_a_png_pixel_is_noticed() -> None:
    content = encoded(photo(40, 30), "PNG")
    at = content.index(b"IDAT") + 4
    end = content.index(b"IEND") - 8
    for position in range(at, end):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        assert refused(bytes(flipped)) == "damaged"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bits_give_an_image_or_a_reason_and_nothing_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"]))
    content = bytearray(encoded(photo(48, 32), kind))
    for position in data.draw(st.lists(st.integers(0, len(content) * 8 - 1), min_size=1, max_size=8)):
        content[position // 8] ^= 1 << (position % 8)
    try:
        assert decode(bytes(content), 8, "RGB", 100_000).pixels.shape == (8, 8, 3)
    except Refused as error:
        assert str(error)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF0000WEBP", b""]),
    st.binary(max_size=200),
)
def test_garbage_after_any_magic_is_refused(magic: bytes, rest: bytes) -> None:
    try:
        decode(magic + rest, 8, "L", 100_000)
    except Refused as error:
        assert error.kind in {"truncated", "damaged", "empty", "not an image", "too large"}


def test_zero_bytes_are_refused() -> None:
    assert refused(b"") == "empty"


@pytest.mark.parametrize(
    "content",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7\n" + encoded(photo(), "JPEG"),
        b"PK\x03\x04" + b"\0" * 60,
        b"just text",
        b"\0\0\0\1Bud1" + b"\0" * 100,
    ],
    ids=["svg", "eps", "pdf with a jpeg", "zip", "text", "DS_Store"],
)
def test_what_is_not_an_allowed_image_is_refused(content: bytes) -> None:
    assert refused(content) == "not an image"


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "JPEG2000"])
def test_formats_that_pillow_reads_but_we_do_not_allow_are_refused(kind: str) -> None:
    assert refused(encoded(photo(), kind)) == "not an image"


def test_a_script_behind_an_image_stays_an_image_of_its_own_format() -> None:
    content = encoded(photo(), "GIF") + b"<script>alert(1)</script>%PDF-1.4"
    assert sniff(content) == "GIF"
    assert decode(content, 8, "RGB", MAX).width == 96


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**30)])
def test_a_bomb_is_refused_from_its_header_within_little_memory(width: int, height: int) -> None:
    content = png_header(width, height)
    decode(encoded(photo(), "PNG"), 8, "L", MAX)  # plug-ins are loaded
    tracemalloc.start()
    assert refused(content) == "too large"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_webp_canvas_of_gigabytes_is_refused_from_its_header() -> None:
    canvas = (16_777_215).to_bytes(3, "little") + (255).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas
    assert refused(b"RIFF" + struct.pack("<I", len(body)) + body) == "too large"


def test_a_jpeg_header_that_declares_65500_pixels_a_side_is_refused() -> None:
    content = bytearray(encoded(photo(), "JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 65500, 65500)
    assert refused(bytes(content)) == "too large"


def test_a_gif_frame_far_larger_than_its_screen_is_refused() -> None:
    content = bytearray(encoded(Image.new("L", (9, 9)), "GIF"))
    at = content.index(b",", 13) + 5
    content[at : at + 4] = struct.pack("<HH", 65535, 65535)
    assert refused(bytes(content)) == "too large"


def test_one_pixel_more_than_allowed_is_refused() -> None:
    content = encoded(photo(20, 10), "PNG")
    assert decode(content, 4, "L", 200).pixels.shape == (4, 4, 1)
    assert refused(content, 199) == "too large"


def test_more_than_pillows_own_limit_passes_without_a_warning_when_we_allow_it() -> None:
    content = encoded(Image.new("1", (12_000, 9_000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(content, 8, "L", 200_000_000).width == 12_000


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
@pytest.mark.parametrize("level", [0, 257, 12_345, 32_768, 65_535])
def test_16_bit_grey_is_scaled_to_its_full_range(level: int, kind: str, dtype: str) -> None:
    content = encoded(Image.fromarray(np.full((10, 10), level, np.dtype(dtype))), kind)
    assert abs(mean(content, "L") - level / 257) <= 1


def test_16_bit_colour_is_scaled_to_its_full_range() -> None:
    raw = b"".join(b"\0" + struct.pack(">HHH", 65_535, 32_768, 1_000) * 6 for _ in range(5))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 5, 16, 2, 0, 0, 0))
    idat = png_chunk(b"IDAT", zlib.compress(raw))
    content = b"\x89PNG\r\n\x1a\n" + header + idat + png_chunk(b"IEND", b"")
    colour = decode(content, 4, "RGB", MAX).pixels.reshape(-1, 3).mean(0)
    assert np.abs(colour - np.array([255, 127.5, 3.9])).max() <= 1


def test_floats_in_0_to_1_are_scaled() -> None:
    content = encoded(Image.fromarray(np.full((9, 9), 0.25, np.float32)), "TIFF")
    assert abs(mean(content, "L") - 63.75) <= 1


def test_pixels_that_are_not_numbers_are_refused() -> None:
    assert refused(encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")) == "damaged"


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    content = encoded(Image.new("RGB", (40, 40), (200, 40, 90)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(content, 4, "RGB", MAX).pixels.reshape(-1, 3).mean(0) - [200, 40, 90]).max() < 6


@pytest.mark.parametrize("level", [0, 255])
def test_what_is_transparent_is_white(level: int) -> None:
    image = Image.new("RGBA", (20, 20), (level, 0, 0, 0))
    assert mean(encoded(image, "PNG")) == 255


def test_half_transparent_is_halfway_to_white() -> None:
    assert abs(mean(encoded(Image.new("LA", (20, 20), (0, 128)), "PNG"), "L") - 127) <= 1


def test_a_transparent_palette_entry_is_white_and_the_others_keep_their_colour() -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([10, 20, 30, 0, 200, 0])
    image.paste(0, (0, 0, 20, 10))
    pixels = decode(encoded(image, "PNG", transparency=0), 20, "RGB", MAX).pixels
    assert pixels[2, 5].tolist() == [255, 255, 255]
    assert pixels[17, 5].tolist() == [0, 200, 0]


def test_colours_hidden_below_transparency_do_not_bleed() -> None:
    array = np.zeros((64, 64, 4), np.uint8)
    array[:, :32] = (0, 0, 0, 0)  # black, invisible
    array[:, 32:] = (255, 255, 255, 255)
    assert decode(encoded(Image.fromarray(array), "PNG"), 7, "L", MAX).pixels.min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_a_viewer_does(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    array = np.full((40, 60, 3), 255, np.uint8)
    array[:20, :30] = (255, 0, 0)
    array[20:, :30] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(array), kind, exif=exif, **options)
    with Image.open(io.BytesIO(content)) as opened:
        seen = ImageOps.exif_transpose(opened).convert("RGB")
    expected = np.asarray(seen.resize((20, 20), Image.Resampling.BILINEAR)).astype(int)
    got = decode(content, 20, "RGB", MAX)
    assert (got.width, got.height) == seen.size
    assert np.abs(got.pixels - expected).mean() < 3


def test_broken_exif_is_ignored() -> None:
    content = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1")
    assert decode(content, 8, "RGB", MAX).width == 96


def test_a_profile_is_applied_and_a_broken_one_ignored() -> None:
    image = Image.new("RGB", (30, 30), (180, 60, 60))
    plain = decode(encoded(image, "PNG"), 4, "RGB", MAX).pixels
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode(encoded(image, "PNG", icc_profile=srgb), 4, "RGB", MAX).pixels
    broken = decode(encoded(image, "PNG", icc_profile=b"not a profile"), 4, "RGB", MAX).pixels
    assert np.abs(same.astype(int) - plain).max() <= 1
    assert np.array_equal(broken, plain)


def swapped_profile() -> bytes:
    """sRGB with red and blue exchanged: a profile that visibly does something."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(struct.unpack_from(">I", content, 128)[0]):
        at = 132 + 12 * i
        name = bytes(content[at : at + 4])
        content[at : at + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(name, name)
    return bytes(content)


def test_a_wide_profile_changes_the_colours() -> None:
    image = Image.new("RGB", (30, 30), (220, 30, 30))
    colour = decode(encoded(image, "PNG", icc_profile=swapped_profile()), 4, "RGB", MAX).pixels[0, 0].tolist()
    assert colour[2] > 180
    assert colour[0] < 80


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_of_several_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (30, 30), (255, 0, 0)), Image.new("RGB", (30, 30), (0, 0, 255))
    content = encoded(first, kind, save_all=True, append_images=[second, second])
    assert decode(content, 4, "RGB", MAX).pixels[1, 1, 0] > 240


def test_decoding_twice_gives_the_same_bytes() -> None:
    content = encoded(photo(300, 200), "JPEG")
    assert decode(content, 64, "RGB", MAX).pixels.tobytes() == decode(content, 64, "RGB", MAX).pixels.tobytes()


def test_real_camera_trap_frames_survive_and_their_truncations_do_not() -> None:
    if not MISSOURI.is_dir():
        pytest.skip("shared-data: ../shared/data/wildlife_missouri is not there")
    for path in sorted(MISSOURI.iterdir())[::200]:
        content = path.read_bytes()
        assert decode(content, 96, "RGB", MAX).pixels.std() > 5
        for percent in range(1, 100, 7):
            assert refused(content[: len(content) * percent // 100]) in {"truncated", "damaged"}
