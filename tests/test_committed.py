"""A tick builds only on what was committed: whatever else stands in the working tree is named, and stays as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import repository, versions
from tasks.campaign import open_campaign
from tasks.digests import KNOWN, digest, digests
from tasks.errors import BadInput, GleanerError
from tasks.export import export
from tasks.import_labels import open_iteration
from tasks.ingest import ingest
from tasks.polling import poll
from tasks.restore import fork
from tasks.store import Store
from tasks.verify import verify
from tests.children import run_in_child
from tests.quick import broken, compute, copy, edit, image_folder, tick

GIT_AS = ("-c", "user.name=x", "-c", "user.email=x@localhost")


@pytest.fixture(autouse=True)
def _commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc` and `python` are this environment's, as for a person who uses it."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.fixture
def root(closed_iteration: Path, tmp_path: Path) -> Path:
    """A workspace whose iterations 0 and 1 are closed."""
    return copy(closed_iteration, tmp_path / "workspace")


def overwrite(path: Path, content: bytes) -> None:
    """Other bytes in a file of DVC's (which may be a link to the cache: the cache keeps its own)."""
    path.unlink()
    path.write_bytes(content)


def flip(path: Path) -> None:
    """One bit of the last byte."""
    content = path.read_bytes()
    overwrite(path, content[:-1] + bytes([content[-1] ^ 1]))


def _older_checkout(root: Path) -> None:
    repository.git(root, "checkout", "--quiet", "iter-0000")
    versions.checkout(root)
    repository.git(root, "checkout", "--quiet", "main")


def _edited_lock(root: Path) -> None:
    (root / "dvc.lock").write_text((root / "dvc.lock").read_text() + "# a person was here\n")


def _edited_list(root: Path) -> None:
    path = root / "data/artefacts.json"
    path.write_text(path.read_text().replace('"iteration": 1', '"iteration": 0'))


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "an older checkout left behind": (_older_checkout, "data/inputs/previous/scores.parquet is missing"),
    "a byte of a shard": (lambda r: flip(r / "data/pool/shard-00000.npy"), "data/pool/shard-00000.npy has other bytes"),
    "forged scores": (lambda r: flip(r / "data/scores.parquet"), "data/scores.parquet has other bytes"),
    "a forged metric": (
        lambda r: flip(r / "data/evaluation/metrics.json"),
        "data/evaluation/metrics.json has other bytes",
    ),
    "deleted predictions": (
        lambda r: (r / "data/evaluation/predictions.parquet").unlink(),
        "data/evaluation/predictions.parquet is missing",
    ),
    "a shard more": (
        lambda r: Store(r).write_bytes("data/pool/shard-00001.npy", b"half of an ingest"),
        "data/pool/shard-00001.npy is not in the commit",
    ),
    "an edited lock": (_edited_lock, "dvc.lock differs from the newest commit"),
    "an edited list": (_edited_list, "data/artefacts.json differs from the newest commit"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_is_not_as_committed_is_named_and_the_advice_brings_it_back(root: Path, how: str) -> None:
    tamper, named = TAMPERED[how]
    tamper(root)
    with pytest.raises(GleanerError, match=re.escape(named)) as refused:
        tick(root)
    assert any(named in violation.what for violation in verify(root))
    assert repository.tags(root) == ["iter-0000", "iter-0001"]
    (advice,) = re.findall(r"`(git [^`]+)`", str(refused.value))
    subprocess.run(["bash", "-ec", advice], cwd=root, check=True, capture_output=True)
    assert broken(root) == []
    assert tick(root) == "iteration 2"


def test_a_workspace_that_only_gleaner_touched_is_as_committed(root: Path) -> None:
    assert broken(root) == []
    with open_campaign(root, "look") as campaign:
        poll(campaign)
        open_iteration(campaign)
    assert broken(root) == [], "while an iteration is open, too"


def test_a_lost_cache_is_filled_again_from_the_files_that_are_there(root: Path) -> None:
    shutil.rmtree(root / ".dvc/cache")
    with pytest.raises(GleanerError, match=r"missing in the cache. .*`dvc commit --force` from the files") as refused:
        tick(root)
    assert "data/pool" in str(refused.value)
    subprocess.run(["dvc", "commit", "--force"], cwd=root, check=True, capture_output=True)
    assert tick(root) == "iteration 2"
    assert all("iter-0002" not in violation.what for violation in verify(root))


# an ingest that was interrupted -----------------------------------------------------------------------------


def take(root: Path) -> object:
    """Ingest what params.yaml names."""
    return ingest(root, None)


def test_a_tick_leaves_an_interrupted_ingest_to_the_next_ingest(root: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(image_folder(tmp_path / "images") / "1", more / "1")
    for path in (more / "1").iterdir():
        path.write_bytes(path.read_bytes() + b"another image")
    edit(root, {"source.path": str(more)})
    assert run_in_child(take, root, kill_at=4).killed
    with pytest.raises(GleanerError, match="`gleaner ingest` finishes it"):
        tick(root)
    ingest(root, more)
    assert broken(root) == []
    assert tick(root) == "iteration 2"


def test_an_ingest_does_not_build_on_an_older_pool(closed_iteration: Path, root: Path, tmp_path: Path) -> None:
    kept = copy(root / "data/pool", tmp_path / "pool")
    more = tmp_path / "more"
    image_folder(more)
    for path in more.glob("*/*"):
        path.write_bytes(path.read_bytes() + b"another image")
    ingest(root, more)
    shutil.rmtree(root / "data/pool")
    copy(kept, root / "data/pool")
    with pytest.raises(GleanerError, match="data/pool is older than the newest commit"):
        ingest(root, more)


def test_an_ingest_does_not_build_on_a_damaged_shard(root: Path, tmp_path: Path) -> None:
    flip(root / "data/pool/shard-00000.npy")
    with pytest.raises(GleanerError, match="shard-00000.npy has other bytes"):
        ingest(root, image_folder(tmp_path / "again"))


# while an iteration is open ---------------------------------------------------------------------------------


@pytest.fixture
def opened(root: Path) -> Path:
    """Iteration 2 is open, nothing of it computed."""
    with open_campaign(root, "look") as campaign:
        poll(campaign)
        assert open_iteration(campaign) == 2
    return root


@pytest.mark.parametrize("name", ["data/pool/shard-00000.npy", "data/inputs/previous/scores.parquet"])
def test_an_open_iteration_does_not_go_on_with_other_data(opened: Path, name: str) -> None:
    flip(opened / name)
    with pytest.raises(GleanerError, match=f"{name} has other bytes"):
        tick(opened)


def test_inputs_of_an_open_iteration_are_frozen_again(opened: Path) -> None:
    labels = (opened / "data/inputs/labels.parquet").read_bytes()
    flip(opened / "data/inputs/labels.parquet")
    assert tick(opened) == "iteration 2"
    assert (opened / "data/inputs/labels.parquet").read_bytes() == labels


def test_a_person_may_commit_while_an_iteration_is_open(opened: Path) -> None:
    (opened / "Makefile").write_text("# mine\n")
    repository.git(opened, *GIT_AS, "commit", "--quiet", "-am", "a Makefile of my own, and what was staged")
    assert tick(opened) == "iteration 2"
    assert broken(opened) == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_half_of_a_lock_file_costs_nothing_but_time(opened: Path, share: float) -> None:
    text = (opened / "dvc.lock").read_bytes()
    (opened / "dvc.lock").write_bytes(text[: int(share * len(text))])
    assert tick(opened) == "iteration 2"
    assert broken(opened) == []


def test_a_selected_batch_is_not_finished_with_other_inputs(root: Path) -> None:
    passed = run_in_child(tick, copy(root, root.with_name("calm"))).passed
    assert run_in_child(tick, root, kill_at=passed.index("export:select:after") + 1).killed
    flip(root / "data/inputs/labels.parquet")
    with pytest.raises(GleanerError, match=r"data/inputs/labels\.parquet has other bytes"):
        tick(root)
    versions.checkout(root)
    assert tick(root) == "recovered"
    assert broken(root) == []


# edits while a tick computes --------------------------------------------------------------------------------


def test_params_edited_while_an_iteration_is_computed_count_from_the_next_try(
    root: Path,
) -> None:
    with open_campaign(root, "tick") as campaign:
        poll(campaign)
        open_iteration(campaign)
        compute(campaign)
        edit(root, {"select.batch": 4})
        with pytest.raises(GleanerError, match=r"params\.yaml was edited while iteration 2 was computed"):
            export(campaign)
    assert tick(root) == "iteration 2"
    assert "batch: 4 " in repository.show(root, "iter-0002", "params.yaml")
    assert broken(root) == []


MEDDLING = '''"""Edits the code while its stage runs."""

from pathlib import Path

import numpy as np


def batch(count: int, k: int, rng: np.random.Generator) -> np.ndarray:
    path = Path("tasks/strategies/margin.py")
    path.write_text(path.read_text() + "# edited meanwhile\\n")
    return rng.permutation(count)[:k]
'''


def test_what_a_stage_made_while_code_was_edited_is_not_recorded(root: Path, tmp_path: Path) -> None:
    (root / "tasks/strategies/meddling.py").write_text(MEDDLING)
    repository.git(root, "add", "tasks")
    repository.git(root, *GIT_AS, "commit", "--quiet", "-m", "a strategy")
    edit(root, {"select.strategy": "meddling"})
    lock = (root / "dvc.lock").read_bytes()
    for _ in range(2):  # nothing is remembered of the first try
        with pytest.raises(
            GleanerError, match=r"tasks/strategies/margin\.py changed while stage select ran; what it made is not"
        ):
            versions.reproduce(root, "select", tmp_path / "log")
        assert (root / "dvc.lock").read_bytes() == lock
    assert "select" in versions.stale(root)


# a tag that was moved ---------------------------------------------------------------------------------------


def test_a_tag_that_was_moved_to_other_params_is_found(root: Path) -> None:
    edit(root, {"select.batch": 5})
    repository.git(root, *GIT_AS, "commit", "--quiet", "-m", "forged", "--", "params.yaml")
    repository.git(root, *GIT_AS, "tag", "--force", "--annotate", "iter-0001", "-m", "moved")
    found = [violation.what for violation in verify(root)]
    assert any("iter-0001: params.yaml has other bytes than its list" in what for what in found)
    assert "iter-0001:params.yaml is not what the ledger recorded" in found


# copies -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """A clone, with its data, of a workspace whose newest commit is an ingest."""
    more = tmp_path / "more"
    image_folder(more)
    for path in more.glob("*/*"):
        path.write_bytes(path.read_bytes() + b"another image")
    ingest(root, more)
    repository.git(tmp_path, "clone", "--quiet", str(root), str(tmp_path / "clone"))
    shutil.copytree(root / ".dvc/cache", tmp_path / "clone/.dvc/cache")
    versions.checkout(tmp_path / "clone")
    return tmp_path / "clone"


def test_a_clone_whose_newest_commit_is_an_ingest_is_sound_and_can_be_forked(clone: Path) -> None:
    assert broken(clone) == [] == verify(clone)
    fork(clone)
    assert tick(clone) == "iteration 2"
    assert broken(clone) == []


def test_other_bytes_in_a_clone_are_found_and_not_forked(clone: Path) -> None:
    flip(clone / "data/pool/manifest.parquet")
    assert any("data/pool/manifest.parquet has other bytes" in what for what in broken(clone))
    with pytest.raises(BadInput, match=r"data/pool/manifest\.parquet has other bytes"):
        fork(clone)


# digests ----------------------------------------------------------------------------------------------------


def test_a_file_is_read_again_when_it_changed_and_only_then(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("a", b"one")
    first = digests(store, ["a"])
    assert first["a"] == digest(tmp_path / "a")
    remembered = json.loads((tmp_path / KNOWN).read_text())
    remembered["a"][2] = "believed"
    (tmp_path / KNOWN).write_text(json.dumps(remembered))
    assert digests(store, ["a"])["a"].sha256 == "believed"
    store.write_bytes("a", b"two")
    assert digests(store, ["a"])["a"] == digest(tmp_path / "a") != first["a"]


def test_looking_at_digests_need_not_write(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("a", b"one")
    assert digests(store, ["a"], remember=False)["a"].size == 3
    assert not (tmp_path / KNOWN).exists()
