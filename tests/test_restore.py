"""An iteration comes back bit for bit, anywhere; a copy is read-only until `fork` makes it a campaign of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks import artefacts, repository, versions
from tasks.campaign import LEDGER, open_campaign
from tasks.errors import BadInput, GleanerError
from tasks.pointers import cached_files
from tasks.restore import fork, restore
from tasks.status import status
from tasks.store import Store, sha256
from tasks.verify import verify
from tests.children import run_in_child
from tests.quick import TEMPLATE, broken, copy, edit, image_folder, make_workspace, tick

FILES_AT_LEAST = 25  # an iteration has more


@dataclass(frozen=True)
class Story:
    """A campaign with three closed iterations and what each of them was when it was closed."""

    root: Path
    then: dict[int, dict[str, str]]  # iteration -> path -> SHA-256
    pending: int  # tasks of iteration 2 that nobody answered


def contents(root: Path) -> dict[str, str]:
    """All files of the iteration in the working tree, list of artefacts and params included."""
    names = [*artefacts.list_artefacts(Store(root)), "params.yaml", artefacts.ARTEFACTS]
    return {name: sha256(root / name) for name in names}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Iterations that differ in params too; the annotator leaves a third of the tasks unanswered."""
    folder = tmp_path_factory.mktemp("restore")
    changes = {"labeling.options": {"unanswered_rate": 0.34}, "labeling.quorum": 0.3}
    root = make_workspace(folder / "campaign", image_folder(folder / "images"), **changes)
    then = {}
    for number, batch in enumerate((6, 5, 7)):
        edit(root, {"select.batch": batch})
        assert tick(root) == f"iteration {number}"
        then[number] = contents(root)
    with open_campaign(root, "look") as campaign:
        campaign.ledger.put("looked", "yes")
        pending = sum(row["iteration"] == 2 for row in campaign.ledger.batch(2))
    return Story(root, then, pending)


@pytest.fixture
def campaign(story: Story, tmp_path: Path) -> Path:
    """A copy of the campaign for the test's own."""
    return copy(story.root, tmp_path / "campaign")


# restore ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_iteration_comes_back_bit_for_bit(story: Story, number: int, tmp_path: Path) -> None:
    proven = restore(story.root, number, tmp_path / "copy")
    assert contents(tmp_path / "copy") == story.then[number]
    assert proven == len(story.then[number]) - 1 >= FILES_AT_LEAST
    assert len({tuple(files.items()) for files in story.then.values()}) == 3, "iterations differ"


def test_an_iteration_comes_back_from_another_clone_with_an_empty_cache(story: Story, tmp_path: Path) -> None:
    repository.git(tmp_path, "clone", "--quiet", str(story.root), str(tmp_path / "clone"))
    restore(tmp_path / "clone", 1, tmp_path / "copy")
    assert contents(tmp_path / "copy") == story.then[1]


def test_a_copy_of_a_copy_is_the_same(story: Story, tmp_path: Path) -> None:
    restore(story.root, 1, tmp_path / "copy")
    restore(tmp_path / "copy", 1, tmp_path / "second")
    assert contents(tmp_path / "second") == story.then[1]


def test_the_copys_bytes_are_its_own(story: Story, tmp_path: Path) -> None:
    restore(story.root, 2, tmp_path / "copy")
    for file in cached_files(tmp_path / "copy"):
        there = story.root / file.object.relative_to(tmp_path / "copy")
        assert not file.object.samefile(there), "a link: whoever changes the copy changes the campaign"


def test_an_unknown_iteration_is_refused_with_those_there_are(story: Story, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no iteration 7 .*iter-0000, iter-0001, iter-0002"):
        restore(story.root, 7, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_a_target_in_use_is_refused_and_kept(story: Story, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="exists"):
        restore(story.root, 1, target)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def _tamper(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "one byte flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif how == "cut":
        path.write_bytes(content[:-1])


@pytest.mark.parametrize("how", ["one byte flipped", "cut", "missing"])
def test_a_tampered_source_is_refused_and_nothing_is_left(
    story: Story, campaign: Path, how: str, tmp_path: Path
) -> None:
    scores = next(f for f in cached_files(campaign, "iter-0001") if f.path == "data/scores.parquet")
    _tamper(scores.object, how)
    with (
        _out_of_reach(story.root / ".dvc/cache"),
        pytest.raises(GleanerError, match="removed again|cannot be brought back") as refused,
    ):
        restore(campaign, 1, tmp_path / "copy")
    assert "data/scores.parquet" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["campaign"]


@contextmanager
def _out_of_reach(folder: Path) -> Iterator[None]:
    """The cache that the campaign's remote names is on another machine for a while."""
    away = folder.with_name("away")
    folder.rename(away)
    try:
        yield
    finally:
        away.rename(folder)


def test_a_restore_that_died_is_repeated(story: Story, tmp_path: Path) -> None:
    (tmp_path / ".copy.restoring/data").mkdir(parents=True)
    restore(story.root, 0, tmp_path / "copy")
    assert contents(tmp_path / "copy") == story.then[0]
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


# a copy -----------------------------------------------------------------------------------------------------


@pytest.fixture
def restored(story: Story, tmp_path: Path) -> Path:
    """A restored copy of iteration 1."""
    restore(story.root, 1, tmp_path / "restored")
    return tmp_path / "restored"


def test_a_copy_does_not_tick_and_says_what_it_is(restored: Path) -> None:
    before = contents(restored)
    with pytest.raises(GleanerError, match="copy of a campaign, and read-only. `gleaner fork`"):
        tick(restored)
    assert contents(restored) == before and not (restored / LEDGER).exists()


def test_the_command_line_refuses_to_tick_a_copy_with_one_message(restored: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "tick"]
    done = subprocess.run(command, cwd=restored, capture_output=True, text=True, check=False)
    assert done.returncode == GleanerError.exit_code
    assert done.stderr.startswith("error: ") and "read-only" in done.stderr and "Traceback" not in done.stderr


def test_status_and_verify_work_in_a_copy(restored: Path) -> None:
    told = status(restored)
    assert (told["iteration"], told["state"]) == (1, "copy")
    assert verify(restored) == verify(restored, deep=True) == []
    (restored / "data/scores.parquet").unlink()
    (found,) = verify(restored)
    assert "not fetched (data/scores.parquet; 1 in all)" in found.what


def test_dvc_repro_executes_nothing_in_a_copy(restored: Path) -> None:
    before = contents(restored)
    assert versions.stale(restored) == {}
    with versions.open_dvc(restored) as repo:
        assert repo.reproduce() == []
    assert contents(restored) == before


# fork -------------------------------------------------------------------------------------------------------


def _asked(root: Path) -> dict[str, tuple[int, str]]:
    with open_campaign(root, "look") as campaign:
        return {a.item_id: (a.iteration, a.state) for a in campaign.ledger.asked()}


def test_a_fork_is_a_campaign_of_its_own(story: Story, restored: Path) -> None:
    old = Store(story.root).read_json("data/campaign.json")
    tasks = (story.root / ".gleaner/oracle.sqlite").read_bytes()
    asked = _asked(story.root)
    identity = fork(restored)
    written = Store(restored).read_json("data/campaign.json")
    assert identity == written["id"] != old["id"]
    assert written["forked_from"] == {"id": old["id"], "iteration": 1}
    assert written["sources"] == old["sources"], "originals are still found"
    assert repository.tags(restored) == ["iter-0000", "iter-0001"]
    assert broken(restored) == []
    _assert_only_answers_crossed(restored, asked)
    assert tick(restored) == "iteration 2"
    with open_campaign(restored, "look") as campaign:
        keys = {row["key"] for row in campaign.ledger.batch(2)}
    assert keys and all(key.startswith(f"{identity}:2:") for key in keys)
    assert broken(restored) == []
    assert (story.root / ".gleaner/oracle.sqlite").read_bytes() == tasks, "the old campaign's tasks are not touched"


def _assert_only_answers_crossed(forked: Path, asked: dict[str, tuple[int, str]]) -> None:
    """What was unanswered when iteration 1 was closed may be asked again; what was answered may not."""
    kept = _asked(forked)
    assert kept and all(state != "pending" and number < 1 for number, state in kept.values())
    assert set(kept) < {item for item, (number, _) in asked.items() if number <= 1}


def test_tasks_nobody_answered_are_candidates_again_in_a_fork(story: Story, restored: Path) -> None:
    theirs = {item for item, (number, _) in _asked(story.root).items() if number == 1}
    fork(restored)
    edit(restored, {"select.batch": 60})
    tick(restored)
    assert theirs & {item for item, (number, _) in _asked(restored).items() if number == 2}


def test_a_fork_of_a_fork_and_its_iterations_come_back(restored: Path, tmp_path: Path) -> None:
    fork(restored)
    tick(restored)
    then = contents(restored)
    restore(restored, 2, tmp_path / "again")
    assert contents(tmp_path / "again") == then
    fork(tmp_path / "again")
    assert tick(tmp_path / "again") == "iteration 3"
    assert broken(tmp_path / "again") == []


def test_a_campaign_that_lost_its_ledger_is_no_copy_to_fork(story: Story, tmp_path: Path) -> None:
    lost = copy(story.root, tmp_path / "lost")
    store = Store(lost)
    store.path(LEDGER).rename(store.path(f"{LEDGER}.backup"))
    for look in (status, fork):
        with pytest.raises(GleanerError, match=r"is gone or empty. Put ledger\.sqlite\.backup in its place"):
            look(lost)
    assert "is gone or empty" in " ".join(v.what for v in verify(lost))
    store.path(f"{LEDGER}.backup").rename(store.path(LEDGER))
    assert status(lost)["state"] == "closed"


def test_an_older_ledger_asks_nothing_again(story: Story, tmp_path: Path) -> None:
    old = copy(story.root, tmp_path / "old")
    store = Store(old)
    kept = store.path(LEDGER).read_bytes()
    assert tick(old) == "iteration 3"
    for name in (f"{LEDGER}-wal", f"{LEDGER}-shm"):
        store.path(name).unlink(missing_ok=True)
    store.path(LEDGER).write_bytes(kept)
    for _ in range(2):
        with pytest.raises(GleanerError, match="the ledger is an older copy"):
            tick(old)
    assert repository.tags(old)[-1] == "iter-0003"


def test_tags_that_only_look_like_iterations_are_left_alone(story: Story, restored: Path) -> None:
    repository.git(restored, "tag", "iter-test")
    known = repository.tags(restored)
    assert "iter-test" not in known and len(known) == len(story.then)
    fork(restored)
    assert "iter-test" in repository.git(restored, "tag")


def test_the_way_back_to_a_fork_is_named(restored: Path) -> None:
    identity = fork(restored)
    repository.git(restored, "checkout", "--quiet", "iter-0001")
    for look in (tick, verify):
        with pytest.raises(BadInput, match=rf"`git checkout fork-{identity} && dvc checkout` returns"):
            look(restored)


def test_a_campaign_is_not_forked_twice(restored: Path) -> None:
    identity = fork(restored)
    with pytest.raises(BadInput, match="a ledger of its own"):
        fork(restored)
    assert Store(restored).read_json("data/campaign.json")["id"] == identity


def test_a_fork_that_died_half_way_is_repeated_under_the_same_id(restored: Path) -> None:
    assert run_in_child(fork, restored, kill_at=1).killed
    identity = Store(restored).read_json("data/campaign.json")["id"]
    assert not (restored / LEDGER).exists()
    assert fork(restored) == identity
    assert tick(restored) == "iteration 2"
    assert broken(restored) == []


def test_a_damaged_copy_is_not_forked(restored: Path) -> None:
    (restored / "data/ledger/selection.parquet").unlink()
    with pytest.raises(BadInput, match="selection.parquet"):
        fork(restored)
    assert not (restored / LEDGER).exists()


def test_a_campaign_without_closed_iterations_is_not_forked(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no copy of a closed iteration"):
        fork(TEMPLATE if not (TEMPLATE / "data/campaign.json").exists() else tmp_path)


def test_the_original_goes_on_as_if_nothing_happened(campaign: Path, tmp_path: Path) -> None:
    restore(campaign, 1, tmp_path / "copy")
    fork(tmp_path / "copy")
    tick(tmp_path / "copy")
    assert broken(campaign) == []
    assert tick(campaign) == "iteration 3"
    assert broken(campaign) == []
