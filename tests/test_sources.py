"""tasks.sources: what each source finds and reads, and what it refuses."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import plugins
from tasks.errors import BadInput
from tasks.images import Refused, decode
from tasks.sources import Source, digits, folder, idx, table, torchvision
from tasks.sources._files import path_of, read_below, uri_of

FASHION = Path("/usr/share/datasets/fashion-mnist")
MISSOURI = Path(__file__).parent.parent.parent / "shared/data/wildlife_missouri"


def uris(source: Source) -> list[str]:
    return [found.uri for found in source]


def reason(source: Source, uri: str) -> str:
    with pytest.raises((Refused, OSError)) as caught:
        source.read(uri)
    return str(caught.value)


def write_idx(file: Path, array: npt.NDArray[Any]) -> Path:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def pair(path: Path, count: int = 5, suffix: str = ".gz") -> Path:
    path.mkdir(exist_ok=True)
    images = np.arange(count * 6, dtype=np.uint8).reshape(count, 3, 2)
    write_idx(path / f"train-images-idx3-ubyte{suffix}", images)
    write_idx(path / f"train-labels-idx1-ubyte{suffix}", np.arange(count) % 3)
    return path


def csv_file(path: Path, text: str) -> Path:
    file = path / "index.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_source_names_its_entry_point_and_literal_options() -> None:
    assert plugins.names("sources") == ("digits", "folder", "idx", "table", "torchvision")
    for name in plugins.names("sources"):
        entry = plugins.entry_point("sources", name)
        assert entry.function == "open_source"
        assert entry.evidence == ("path",)


def test_listing_a_source_imports_nothing_heavy() -> None:
    code = "import sys, tasks.sources.folder, tasks.sources.torchvision, tasks.sources.digits, tasks.sources.idx\n"
    code += "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL', 'pandas') if m in sys.modules])"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits_are_1797_labeled_images() -> None:
    source = digits.open_source(None)
    found = list(source)
    assert len(found) == len(source) == 1797
    assert [f.uri for f in found] == sorted(f.uri for f in found)
    assert {f.label for f in found} == set(source.classes) == set("0123456789")
    content = source.read(found[3].uri)
    assert len(content) == found[3].size
    assert max(decode(source.read(f.uri), 8, "L", 100).pixels.max() for f in found[:50]) == 255


def test_digits_refuse_what_they_do_not_hold() -> None:
    for uri in ("digits#00001797", "digits#-1", "other#00000001", "digits", "digits#١"):
        assert "missing" in reason(digits.open_source(None), uri)


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_reads_pairs_zipped_or_not(tmp_path: Path, suffix: str) -> None:
    source = idx.open_source(pair(tmp_path, suffix=suffix))
    found = list(source)
    assert [f.label for f in found] == ["0", "1", "2", "0", "1"]
    assert source.classes == ("0", "1", "2")
    assert all(f.size == len(source.read(f.uri)) for f in found)
    decoded = decode(source.read(found[1].uri), 4, "L", 100)
    assert (decoded.width, decoded.height) == (2, 3)


def test_idx_names_classes_when_told(tmp_path: Path) -> None:
    source = idx.open_source(pair(tmp_path), classes=["shirt", "coat", "bag"])
    assert [f.label for f in source] == ["shirt", "coat", "bag", "shirt", "coat"]
    with pytest.raises(BadInput, match="go up to 2"):
        idx.open_source(tmp_path, classes=["shirt", "coat"])


def test_idx_without_labels(tmp_path: Path) -> None:
    source = idx.open_source(pair(tmp_path), labels="")
    assert {f.label for f in source} == {None}
    assert source.classes == ()


def test_idx_refuses_a_wrong_magic_and_a_wrong_length(tmp_path: Path) -> None:
    file = pair(tmp_path, suffix="") / "train-images-idx3-ubyte"
    content = file.read_bytes()
    for broken, said in (
        (b"\0\0\x0d\3" + content[4:], "begins with 00 00 0d 03"),
        (content[:-1], "holds 29"),
        (content + b"x", "holds more"),
        (content[:10], "begins with"),
        (b"", "begins with"),
        (b"\0\0\x08\3" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + content[16:], "declares"),
    ):
        file.write_bytes(broken)
        with pytest.raises(BadInput, match=said):
            idx.open_source(tmp_path)


def test_idx_refuses_a_damaged_archive_and_unequal_pairs(tmp_path: Path) -> None:
    images = pair(tmp_path) / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:-12])
    with pytest.raises(BadInput, match="cannot be read"):
        idx.open_source(tmp_path)
    images.write_bytes(whole)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(4))
    with pytest.raises(BadInput, match="5 images.* 4 labels"):
        idx.open_source(tmp_path)


def test_idx_says_what_is_there_when_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadInput, match=r"It holds: notes\.txt"):
        idx.open_source(tmp_path)


def test_debians_fashion_mnist_opens_with_only_its_path() -> None:
    if not FASHION.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    source = idx.open_source(FASHION)
    assert len(source) == 60_000
    assert source.classes == tuple("0123456789")


def test_a_folder_is_listed_in_order_with_labels_and_sequences(tmp_path: Path) -> None:
    for name in ("dog/b_1.jpg", "cat/deep/a_2.jpg", "cat/a_1.jpg", "loose.jpg", ".DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    source = folder.open_source(tmp_path, labels="folders", sequence=r"([a-z])_[0-9]+\.jpg")
    found = {f.uri: (f.label, f.sequence, f.size) for f in source}
    assert found == {
        ".DS_Store": (None, "", 5),
        "cat/a_1.jpg": ("cat", "a", 5),
        "cat/deep/a_2.jpg": ("cat", "a", 5),
        "dog/b_1.jpg": ("dog", "b", 5),
        "loose.jpg": (None, "", 5),
    }
    assert source.classes == ("cat", "dog")
    assert uris(source) == sorted(uris(source))
    assert source.read("cat/a_1.jpg") == b"12345"
    assert folder.open_source(tmp_path).classes == ()


@pytest.mark.parametrize("pattern", ["(", "no group", "(a)(b)"])
def test_a_bad_sequence_pattern_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(BadInput, match=r"source\.options\.sequence"):
        folder.open_source(tmp_path, sequence=pattern)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", None):
        with pytest.raises(BadInput, match="not a folder"):
            folder.open_source(path)


def test_symbolic_links_are_seen_and_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for path in (inside, outside):
        path.mkdir()
        (path / "a.jpg").write_bytes(b"x")
    (inside / "out.jpg").symlink_to(outside / "a.jpg")
    (inside / "outdir").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "self").symlink_to("self")
    (inside / "same.jpg").symlink_to("a.jpg")
    source = folder.open_source(inside)
    assert uris(source) == ["a.jpg", "loop", "out.jpg", "outdir", "same.jpg", "self"]
    assert "it leaves the source" in reason(source, "out.jpg")
    assert "it leaves the source" in reason(source, "outdir")
    assert "under its own name" in reason(source, "same.jpg")
    assert "symbolic link" in reason(source, "loop")
    assert "symbolic link" in reason(source, "self")


def test_a_folder_swapped_for_a_link_after_the_listing_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "in/sub/a").write_bytes(b"mine")
    (tmp_path / "out/a").write_bytes(b"secret")
    source = folder.open_source(tmp_path / "in")
    (tmp_path / "in/sub").rename(tmp_path / "old")
    (tmp_path / "in/sub").symlink_to(tmp_path / "out")
    assert "it leaves the source" in reason(source, "sub/a")


def test_pipes_and_devices_are_refused_without_opening_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    source = folder.open_source(tmp_path)
    assert uris(source) == ["pipe.jpg"]
    assert reason(source, "pipe.jpg") == "not a regular file: a FIFO"
    with pytest.raises(Refused, match="a device"):
        read_below(Path("/dev"), "null")


def test_hidden_folders_are_one_entry_and_not_entered(tmp_path: Path) -> None:
    (tmp_path / ".git/objects").mkdir(parents=True)
    (tmp_path / ".git/objects/x").write_bytes(b"x")
    source = folder.open_source(tmp_path)
    assert uris(source) == [".git/"]
    assert "hidden folder" in reason(source, ".git/")


def test_strange_names_are_only_names(tmp_path: Path) -> None:
    strange = [
        b"-rf", b"a\nb.jpg", b"\xff\xfe.jpg", b"100%.jpg", b"..x", b" ", b"x" * 255, b"=cmd()", b"a\\b",
        "e\u0301.jpg".encode(), "\u00e9.jpg".encode(), "\u202egpj.exe".encode(),
    ]  # fmt: skip
    for i, name in enumerate(strange):
        (tmp_path / os.fsdecode(name)).write_bytes(bytes([i]))
    source = folder.open_source(tmp_path)
    assert len(source) == len(strange)
    assert all(uri.isprintable() for uri in uris(source))
    assert {path_of(uri): source.read(uri) for uri in uris(source)} == {n: bytes([i]) for i, n in enumerate(strange)}


@given(st.binary(min_size=1, max_size=80))
def test_any_name_becomes_text_and_back(name: bytes) -> None:
    uri = uri_of(name)
    assert path_of(uri) == name
    assert uri.isprintable()
    uri.encode()


@pytest.mark.parametrize("uri", ["/etc/passwd", "../x", "a/../../x", "a//b", "%2E%2E/x", "a%00b"])
def test_a_uri_cannot_leave_the_folder(tmp_path: Path, uri: str) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    with pytest.raises(Refused, match="outside the source"):
        read_below(tmp_path / "in", uri)


def test_a_table_keeps_text_as_text(tmp_path: Path) -> None:
    for name in ("001", "NA", "a,b.png"):
        (tmp_path / name).write_bytes(b"12")
    text = '\ufeffpath,label,sequence,taken\nNA,NA,001,2024-05-01T06:12:00\n001,1.0,,\n"a,b.png",,null,2024-05-01\n'
    source = table.open_source(csv_file(tmp_path, text))
    found = [(f.uri, f.label, f.sequence, f.taken, f.size) for f in source]
    assert found == [
        ("001", "1.0", "", "", 2),
        ("NA", "NA", "001", "2024-05-01T06:12:00", 2),
        ("a,b.png", None, "null", "2024-05-01", 2),
    ]
    assert source.classes == ("1.0", "NA")
    assert source.read("NA") == b"12"


def test_a_parquet_table_reads_the_same(tmp_path: Path) -> None:
    (tmp_path / "001").write_bytes(b"12")
    columns = {"path": ["001", "gone"], "label": [7, None], "extra": [1.5, 2.5]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = [(f.uri, f.label, f.sequence, f.size) for f in table.open_source(tmp_path / "t.parquet")]
    assert found == [("001", "7", "", 2), ("gone", None, "", -1)]


def test_a_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,sequence\na.png,s1\n")
    with pytest.raises(
        BadInput, match=r"no column 'seqence' \(source\.options\.sequence_column\).*Did you mean 'sequence'"
    ):
        table.open_source(tmp_path / "t.csv", sequence_column="seqence")
    assert next(iter(table.open_source(tmp_path / "t.csv"))).sequence == "s1"


def test_a_pattern_that_matches_no_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/b1_001.png").write_bytes(b"1")
    with pytest.raises(BadInput, match=r"'x\(\.\*\)' matches none of the 1 paths, e\.g\. 'cat/b1_001\.png'"):
        folder.open_source(tmp_path, sequence="x(.*)")
    assert next(iter(folder.open_source(tmp_path, sequence="([^/]*)_[0-9]+"))).sequence == "b1"


def test_digits_take_no_path(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the kind digits reads no files"):
        digits.open_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column 'path'"),
        ("paht,label\na,b\n", "Did you mean 'paht'"),
        ("path,label\na,b\nc\n", "row 3 has 1 values"),
        ("path,label\na,b,c\n", "row 2 has 3 values"),
        ("path\na\nb\na\n", "row 4: 'a' is already in row 2"),
        ("path,label\n,b\n", "row 2: the path is empty"),
        ("path,taken\na,yesterday\n", "row 2: taken 'yesterday' is not ISO 8601"),
        ("path,path\na,b\n", "more than once"),
        ('path\n"a\n', "row"),
    ],
)
def test_a_wrong_table_is_refused_with_the_row(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        table.open_source(csv_file(tmp_path, text))


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(BadInput, match="not UTF-8"):
        table.open_source(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(BadInput, match="Parquet"):
        table.open_source(tmp_path / "t.parquet")


def test_a_table_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    source = table.open_source(csv_file(tmp_path / "in", f"path\n../secret\n{tmp_path}/secret\ngone.png\n"))
    outside = [uri for uri in uris(source) if "secret" in uri]
    assert len(outside) == 2
    assert all("outside the source" in reason(source, uri) for uri in outside)
    assert "No such file" in reason(source, "gone.png")


def test_the_missouri_table_opens_with_its_own_column_names() -> None:
    if not MISSOURI.is_dir():
        pytest.skip("../shared/data/wildlife_missouri is not there")
    source = table.open_source(MISSOURI / "labels.csv", path_column="file")
    found = list(source)
    assert len(found) == 1028
    assert len(source.classes) == 21
    assert all(f.sequence and f.size > 0 for f in found)


def test_torchvision_by_name_and_a_wrong_name(tmp_path: Path) -> None:
    pair(tmp_path / "MNIST", suffix="")
    (tmp_path / "MNIST").rename(tmp_path / "raw")
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "raw").rename(tmp_path / "MNIST/raw")
    for name in ("images-idx3", "labels-idx1"):  # torchvision wants both halves to be there
        (tmp_path / f"MNIST/raw/t10k-{name}-ubyte").write_bytes(
            (tmp_path / f"MNIST/raw/train-{name}-ubyte").read_bytes()
        )
    source = torchvision.open_source(tmp_path, name="MNIST")
    assert [(f.uri, f.label) for f in source][1] == ("MNIST-train#00000001", "1 - one")
    assert source.classes[2] == "2 - two"
    decoded = decode(source.read("MNIST-train#00000001"), 2, "L", 10**6)
    assert (decoded.width, decoded.height) == (2, 3)
    with pytest.raises(BadInput, match="Did you mean 'CIFAR10'"):
        torchvision.open_source(tmp_path, name="CIFAR11")
    with pytest.raises(BadInput, match="download"):
        torchvision.open_source(tmp_path, name="CIFAR10")
    with pytest.raises(BadInput, match="no 'wrap_dataset_for_transforms_v2'"):
        torchvision.open_source(tmp_path, name="wrap_dataset_for_transforms_v2")
