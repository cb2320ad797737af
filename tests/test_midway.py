"""What people change in the middle of a campaign: it goes on as they meant it, or says what it cannot do and the way out."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.run import look
from tasks import repository
from tasks.campaign import open_campaign
from tasks.errors import BadInput, GleanerError
from tasks.export import export
from tasks.import_labels import due, open_iteration
from tasks.ingest import ingest
from tasks.inputs import read_iteration
from tasks.polling import poll
from tasks.pool import read_manifest
from tasks.restore import fork, restore
from tasks.status import status
from tasks.store import Store
from tasks.tables import CURVE, SELECTION
from tasks.verify import verify
from tests.children import run_in_child
from tests.quick import broken, compute, copy, edit, image_folder, make_workspace, tick

GIT_AS = ("-c", "user.name=x", "-c", "user.email=x@localhost")


@pytest.fixture
def root(closed_iteration: Path, tmp_path: Path) -> Path:
    """A workspace whose iterations 0 and 1 are closed."""
    return copy(closed_iteration, tmp_path / "workspace")


def metrics(root: Path) -> dict[str, object]:
    """What the newest iteration measured."""
    found: dict[str, object] = Store(root).read_json("data/evaluation/metrics.json")
    return found


# classes ----------------------------------------------------------------------------------------------------


def test_the_order_of_classes_in_params_changes_nothing(root: Path) -> None:
    other = copy(root, root.with_name("reordered"))
    edit(root, {"labeling.classes": ["0", "1", "2"]})
    edit(other, {"labeling.classes": ["2", "0", "1"]})
    for place in (root, other):
        assert tick(place) == "iteration 2"
    assert read_iteration(Store(other)).classes == ("0", "1", "2")
    assert metrics(other) == metrics(root)
    assert Store(other).read_table(CURVE).equals(Store(root).read_table(CURVE))


def test_a_class_that_is_added_comes_last_wherever_it_is_written(root: Path) -> None:
    edit(root, {"labeling.classes": ["lynx", "0", "1", "2"]})
    assert tick(root) == "iteration 2"
    assert read_iteration(Store(root)).classes == ("0", "1", "2", "lynx")


def test_a_class_that_was_asked_with_is_not_removed(root: Path) -> None:
    edit(root, {"labeling.classes": ["0", "1"]})
    with pytest.raises(BadInput, match=r"labeling\.classes: '2' is missing, but annotators were asked with it"):
        tick(root)
    edit(root, {"labeling.classes": ["0", "1", "2"]})
    assert tick(root) == "iteration 2"


def test_a_slip_in_an_added_class_can_be_mended_before_anybody_is_asked(root: Path) -> None:
    edit(root, {"labeling.classes": ["0", "1", "2", "linx"]})
    with open_campaign(root, "look") as campaign:
        poll(campaign)
        open_iteration(campaign)
    edit(root, {"labeling.classes": ["0", "1", "2", "lynx"]})
    assert tick(root) == "iteration 2"
    assert read_iteration(Store(root)).classes[-1] == "lynx"


def test_annotators_see_the_suggestions_of_the_classes_that_were_frozen(root: Path) -> None:
    passed = run_in_child(tick, copy(root, root.with_name("calm"))).passed
    edit(root, {"labeling.tool": "oracle"})
    assert run_in_child(tick, root, kill_at=passed.index("export:select:after") + 1).killed
    edit(root, {"labeling.classes": ["2", "1", "0", "lynx"]})
    assert tick(root) == "recovered"
    assert broken(root) == []
    assert tick(root) == "iteration 3"


# budget, answers --------------------------------------------------------------------------------------------


def test_a_budget_lowered_after_the_batch_was_computed_is_not_exceeded(root: Path) -> None:
    with open_campaign(root, "tick") as campaign:
        poll(campaign)
        open_iteration(campaign)
        compute(campaign)
        spent = len(campaign.ledger.asked())
    edit(root, {"stop.labels": spent + 2})
    with (
        open_campaign(root, "export") as campaign,
        pytest.raises(GleanerError, match=rf"{spent} of stop\.labels {spent + 2} are spent"),
    ):
        export(campaign)
    assert tick(root) == "iteration 2"
    with open_campaign(root, "look") as campaign:
        assert len(campaign.ledger.asked()) == spent + 2


def answer(root: Path, iteration: int, label: str) -> None:
    """Fill in every row of a batch."""
    path = root / f"data/exchange/iteration-{iteration:04d}/batch.csv"
    with open(path, newline="") as handle:
        rows = list(csv.DictReader(handle))
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": label} for row in rows)


@pytest.fixture
def by_folder(tmp_path: Path) -> Path:
    """A campaign whose annotators work in a folder, before its first tick."""
    return make_workspace(
        tmp_path / "deer", image_folder(tmp_path / "images"), **{"labeling.tool": "folder", "stop.labels": 20}
    )


def test_a_budget_of_nothing_but_skips_ends_the_campaign(by_folder: Path) -> None:
    for number in range(5):
        told = tick(by_folder)
        if told != f"iteration {number}":
            break
        if Store(by_folder).read_table(SELECTION).num_rows:
            answer(by_folder, number, "skip")
    assert told.startswith("campaign finished: budget spent: 20 labels")
    assert broken(by_folder) == []


def test_a_batch_that_was_deleted_is_written_again_without_what_was_answered(by_folder: Path) -> None:
    tick(by_folder)
    batch = by_folder / "data/exchange/iteration-0000"
    lines = (batch / "batch.csv").read_text().splitlines()
    header, first = lines[0].split(","), lines[1].split(",")
    first[header.index("label")] = "1"
    (batch / "batch.csv").write_text("\n".join([lines[0], ",".join(first), *lines[2:]]) + "\n")
    idle = look(by_folder)
    assert idle is not None and idle.waiting and not idle.warnings
    shutil.rmtree(batch)
    idle = look(by_folder)
    assert idle is not None and re.search(
        r"^18 tasks of iteration 0 were not in the labeling tool .*iteration-0000/batch\.csv", idle.warnings[0]
    )
    with open(batch / "batch.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["key"] for row in rows] == [line.split(",")[-1] for line in lines[2:]]
    assert len(list((batch / "images").iterdir())) == 18
    assert broken(by_folder) == []
    answer(by_folder, 0, "1")
    assert tick(by_folder) == "iteration 1"


def test_a_batch_that_was_closed_early_goes_on_and_late_answers_count(by_folder: Path) -> None:
    tick(by_folder)
    lines = (by_folder / "data/exchange/iteration-0000/batch.csv").read_text().splitlines()
    cells = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    path = by_folder / "data/exchange/iteration-0000/answers.csv"
    path.write_text("key,label\n" + "".join(f"{c['key']},1\n" for c in cells[:3]))
    assert tick(by_folder).startswith("waiting for annotators: 3 of 19")
    with open_campaign(by_folder, "close") as campaign:
        campaign.ledger.decide("close", 0, "batch", "ann is ill")
        verdict = due(campaign)
    assert verdict.now and verdict.why == "the batch was closed early with 3 of 19 tasks answered: ann is ill"
    assert tick(by_folder) == "iteration 1"
    path.write_text("key,label\n" + "".join(f"{c['key']},1\n" for c in cells))
    tick(by_folder)
    with open_campaign(by_folder, "look") as campaign:
        assert sum(a.state == "labeled" for a in campaign.asked()) == 19
    assert broken(by_folder) == []


def test_tasks_that_wait_are_sent_to_another_tool_when_somebody_says_so(root: Path) -> None:
    edit(root, {"labeling.tool": "folder", "labeling.options": {}})
    with pytest.raises(BadInput, match=r"waits for answers at oracle:.* or send what waits to the new one"):
        tick(root)
    with open_campaign(root, "resend") as campaign:
        campaign.ledger.send_elsewhere(1, "no more oracle")
    idle = look(root)
    assert idle is not None and re.search(r"6 tasks of iteration 1 .* sent again: .*batch\.csv", idle.warnings[0])
    idle = look(root)
    assert idle is not None and idle.warnings == ()
    answer(root, 1, "1")
    assert tick(root) == "iteration 2"
    assert broken(root) == []


def test_a_slip_in_exclude_is_refused_before_anything_is_opened(root: Path) -> None:
    name = read_manifest(Store(root))["uri"][0].as_py()
    edit(root, {"select.exclude": ["1/00.png"]})
    with pytest.raises(BadInput, match=r"select\.exclude: '1/00\.png' is no image of the pool .*Did you mean '1/0"):
        tick(root)
    with open_campaign(root, "look") as campaign:
        latest = campaign.ledger.latest()
    assert latest is not None and latest.state == "closed"
    edit(root, {"select.exclude": [name]})
    assert tick(root) == "iteration 2"


# branches and worktrees -------------------------------------------------------------------------------------


def test_a_branch_without_the_newest_iteration_is_refused_and_the_way_back_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    repository.git(root, "switch", "--quiet", "-c", "experiment")
    assert tick(root) == "iteration 2"
    repository.git(root, "switch", "--quiet", "main")
    subprocess.run(["dvc", "checkout", "--force"], cwd=root, check=True, capture_output=True)
    for act in (tick, lambda root: ingest(root, image_folder(tmp_path / "more"))):
        with pytest.raises(
            BadInput, match="this branch ends at iteration 1, the ledger's newest closed one is 2"
        ) as no:
            act(root)
    assert any("this branch ends at iteration 1" in violation.what for violation in verify(root))
    back = re.findall(r"`(git switch[^`]+)`", str(no.value))[0]
    subprocess.run(["bash", "-ec", back], cwd=root, check=True, capture_output=True)
    assert tick(root) == "iteration 3"
    assert broken(root) == []


def test_the_wrong_branch_is_told_while_people_still_work(by_folder: Path) -> None:
    assert tick(by_folder) == "iteration 0"
    repository.git(by_folder, "switch", "--quiet", "-c", "other", "HEAD~1")
    with pytest.raises(BadInput, match="this branch ends at iteration -1"):
        look(by_folder)
    assert "`git switch main && dvc checkout --force` returns to it" in status(by_folder)["next"]


def test_a_budget_that_is_spent_is_told_while_people_still_work(by_folder: Path) -> None:
    assert tick(by_folder) == "iteration 0"
    edit(by_folder, {"stop.labels": 10})
    idle = look(by_folder)
    assert idle is not None and "the budget is spent (19 of 10), the campaign ends with them" in idle.why


def test_params_that_contradict_the_pool_are_told_while_people_still_work(by_folder: Path) -> None:
    assert tick(by_folder) == "iteration 0"
    edit(by_folder, {"pool.size": 24})
    with pytest.raises(BadInput, match=r"pool\.size 24"):
        look(by_folder)


def test_a_refused_answer_is_named_by_its_rank(by_folder: Path) -> None:
    assert tick(by_folder) == "iteration 0"
    answer(by_folder, 0, "zerro")
    look(by_folder)
    told = status(by_folder)["refused_answers"]
    assert len(told) == 19 and "iteration-0000/batch.csv, rank 3: unknown class 'zerro'" in told[3]


def test_a_worktree_is_not_forked(root: Path, tmp_path: Path) -> None:
    repository.git(root, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"), "iter-0000")
    with pytest.raises(BadInput, match="is a worktree of another repository"):
        fork(tmp_path / "tree")
    assert repository.tags(root) == ["iter-0000", "iter-0001"]


def test_git_that_changes_line_ends_changes_no_byte_of_a_copy(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text("[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    settings.rename(tmp_path / ".gitconfig")
    assert tick(root) == "iteration 2"
    assert restore(root, 2, tmp_path / "copy") > 20
    assert json.loads((tmp_path / "copy/data/artefacts.json").read_text())["iteration"] == 2
