"""A workspace is made whole or not at all, params.yaml keeps its comments, and `gleaner` runs the workspace's own code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import repository
from tasks.campaign import IDENTITY, open_campaign
from tasks.errors import BadInput
from tasks.lock import campaign_lock
from tasks.params import parse
from tasks.params_sections import Params
from tasks.params_text import read
from tasks.workspace import init, set_value
from tests.quick import copy, edit, image_folder, make_workspace, tick

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
KEYS = [
    (section, key)
    for section, keys in read(TEXT, "params.yaml").value().items()
    for key in keys
    if section != "monitor"
]
GLEANER = Path(sys.executable).with_name("gleaner")
COMMANDS = (
    "init",
    "ingest",
    "tick",
    "run",
    "simulate",
    "status",
    "verify",
    "restore",
    "fork",
    "stop",
    "resume",
    "ui",
    "deploy",
    "worker",
    "listen",
    "watchdog",
    "demo",
)


def gleaner(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `gleaner` as a shell would."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GLEANER")} | {"COLUMNS": "200"}
    return subprocess.run(
        [str(GLEANER), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new workspace. Copy it before changing it."""
    root = tmp_path_factory.mktemp("made") / "deer"
    done = gleaner("init", "deer", cwd=root.parent)
    assert done.returncode == 0, done.stderr
    return root


# init -----------------------------------------------------------------------------------------------------


def test_a_workspace_is_a_repository_of_its_own_with_one_commit(made: Path) -> None:
    assert repository.git(made, "rev-list", "--count", "HEAD").strip() == "1"
    assert repository.git(made, "status", "--porcelain") == ""
    assert (made / ".dvc/config").exists()
    tracked = set(repository.git(made, "ls-files").splitlines())
    assert {"params.yaml", "dvc.yaml", "tasks/select.py", "flows/cli.py", IDENTITY} <= tracked
    assert not any(name.startswith((".venv", "workspaces", ".git/")) or "__pycache__" in name for name in tracked)
    assert parse((made / "params.yaml").read_text()).campaign.name == "deer"
    assert re.fullmatch(r"deer-[0-9a-f]{8}", json.loads((made / IDENTITY).read_text())["id"])


def test_making_one_leaves_the_template_as_it_was(made: Path) -> None:
    assert not list(made.parent.glob(".*"))
    code = set(repository.git(made, "ls-files", "tasks", "flows", "monitoring").splitlines())
    assert all((ROOT / name).exists() for name in code)


@pytest.mark.parametrize("kind", ["a file", "a folder with a file", "a folder with a hidden file"])
def test_a_folder_in_use_is_refused_and_not_touched(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "deer"
    inside = target if kind == "a file" else target / (".hidden" if "hidden" in kind else "mine")
    inside.parent.mkdir(exist_ok=True)
    inside.write_text("mine")
    with pytest.raises(BadInput, match="exists and is not an empty folder"):
        init(ROOT, target)
    assert inside.read_text() == "mine"
    assert [p for p in tmp_path.rglob("*") if p not in (inside, target)] == []


def test_an_empty_folder_is_fine_and_any_name_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "in" / 'my "deer" #1: ünï'
    target.mkdir(parents=True)
    identity = init(ROOT, target)
    assert parse((target / "params.yaml").read_text(encoding="utf-8")).campaign.name == target.name
    assert repository.git(target, "status", "--porcelain") == ""
    assert re.fullmatch(r"my--deer---1--uni-[0-9a-f]{8}", identity), "Prefect's keys hold nothing else"


@pytest.mark.parametrize("name", ["x" * 101, "", "\x00"])
def test_a_name_that_cannot_be_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"params\.yaml"):
        init(ROOT, tmp_path / "deer", name)
    assert list(tmp_path.iterdir()) == []


# set_value ------------------------------------------------------------------------------------------------

VALUES: list[Any] = ["plain", "with space # and: all", 'quo"te\\', "", "true", "NO", "null", "5", "ünï", 3, 0.25, 1e-07, {}, {"a": "b: c", "n": 1}, ["x", "y # z"]]  # fmt: skip


def comments(text: str) -> list[str]:
    return [match[1] for line in text.splitlines() if (match := re.search(r"(?:^|\s)(#.*)$", line))]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_value_changes_and_every_comment_and_other_line_stays(section: str, key: str) -> None:
    for value in VALUES:
        text = set_value(TEXT, section, key, value)
        expected = read(TEXT, "params.yaml").value()
        expected[section][key] = value
        assert read(text, "params.yaml").value() == expected
        before, after = TEXT.splitlines(), text.splitlines()
        (changed,) = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] or [0]
        if changed:
            comment = before[changed].partition(" #")
            assert after[changed].endswith(comment[1] + comment[2])


def test_a_comment_keeps_its_column_where_there_is_room() -> None:
    for line in set_value(set_value(TEXT, "source", "path", "/data/deer"), "select", "batch", 200).splitlines():
        if line.lstrip().startswith(("path:", "batch: 200")):
            assert line.index("#") == 29


LAYOUTS = {
    "block mapping": ("a:\n  b:  # why\n    x: 1\n    y: [2]  # d\n  # own\n  c: 3  # e\n", ["# why", "# own", "# e"]),
    "block list": ("a:\n  b:\n  - x\n  - y\n  c: 3  # e\n", ["# e"]),
    "nested flow": ("a:\n  b: {x: {y: '}'}}  # why\n  c: 3\n", ["# why"]),
    "flow over lines": ("a:\n  b: [1,\n    2]  # why\n  c: 3\n", ["# why"]),
    "nothing": ("a:\n  b:\n  c: 3\n", []),
    "nothing with a comment": ("a:\n  b:   # why\n  c: 3\n", ["# why"]),
    "folded": ("a:\n  b: >\n    text\n    # more\n\n  c: 3  # e\n", ["# e"]),
    "single quotes": ("a:\n  b: 'it''s # not'  # why\n  c: 3\n", ["# why"]),
    "last line": ("a:\n  c: 3\n  b: 1", []),
    "quoted key": ('a:\n  "b": 1  # why\n  c: 3\n', ["# why"]),
    "windows": ("a:\r\n  b: 1  # why\r\n  c: 3\r\n", ["# why"]),
    "flow section": ("a: {b: 1, c: 3}  # why\n", ["# why"]),
    "not there": ("a:\n  c: 3  # why\n", ["# why"]),
}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("value", ["new", {}, ["p", "q"], 7, "x: # y"])
def test_any_layout_can_be_changed(name: str, value: Any) -> None:
    text, kept = LAYOUTS[name]
    changed = set_value(text, "a", "b", value)
    assert read(changed, "x").value() == {"a": {"b": value, "c": 3}}
    assert [c for c in comments(changed.replace("# y", "")) if c.strip('" ')] == kept


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        st.characters(
            codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufeff\ufffe\uffff\x85"
        ),
        max_size=40,
    )
)
def test_any_text_can_be_a_value(value: str) -> None:
    try:
        text = set_value(TEXT, "source", "path", value)
        found = read(text, "params.yaml").value()["source"]["path"]
    except BadInput:
        assert not value.isprintable(), "only what YAML cannot hold is refused"
        return
    assert found == value


def test_a_section_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadInput, match="nothing"):
        set_value(TEXT, "nothing", "key", 1)


# the launcher ---------------------------------------------------------------------------------------------


def test_help_teaches(tmp_path: Path) -> None:
    done = gleaner("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: gleaner" in done.stdout
    assert all(re.search(rf"^│ {command} ", done.stdout, re.MULTILINE) for command in COMMANDS)
    assert "A first campaign: gleaner init" in done.stdout
    assert "75 busy" in done.stdout
    assert gleaner("-h", cwd=tmp_path).stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_anywhere(command: str, tmp_path: Path) -> None:
    done = gleaner(command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Usage: gleaner {command}" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.strip()]) >= 4


def test_the_version_is_told(tmp_path: Path) -> None:
    done = gleaner("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"gleaner \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--workspace", "DIR", "status", "--json"),
        ("status", "--workspace", "DIR", "--json"),
        ("status", "--json", "--workspace", "DIR"),
        ("status", "--json", "--workspace=DIR"),
        ("-w", "DIR", "status", "--json"),
    ],
)
def test_the_workspace_may_stand_anywhere_in_the_arguments(
    arguments: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    done = gleaner(*[a.replace("DIR", str(made)) for a in arguments], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "new"


def test_inside_a_workspace_any_folder_will_do(made: Path) -> None:
    for folder in (made, made / "tasks/strategies"):
        done = gleaner("status", "--json", cwd=folder)
        assert json.loads(done.stdout)["campaign"].startswith("deer-")


def test_a_mistyped_workspace_does_not_find_the_one_around_it(made: Path) -> None:
    done = gleaner("status", "--workspace", "nowhere", cwd=made)
    assert done.returncode == 2
    assert f"error: {made / 'nowhere'} does not exist" in done.stderr


def test_a_workspace_runs_its_own_code(made: Path, tmp_path: Path) -> None:
    mine = copy(made, tmp_path / "mine")
    path = mine / "tasks/status.py"
    path.write_text(path.read_text().replace('"state": "new"', '"state": "changed here"'))
    assert (
        json.loads(gleaner("status", "--json", "--workspace", "mine", cwd=tmp_path).stdout)["state"] == "changed here"
    )
    assert json.loads(gleaner("status", "--json", "--workspace", str(made), cwd=tmp_path).stdout)["state"] == "new"


EXITS: list[tuple[tuple[str, ...], int, str]] = [
    (("status",), 2, r"error: .* is not a campaign workspace\. `gleaner init DIR` makes one"),
    (("tick",), 2, "is not a campaign workspace"),
    (("status", "--workspace"), 2, "error: --workspace needs a folder"),
    (("status", "--workspace="), 2, "error: --workspace needs a folder"),
    (("status", "--workspace", "DEER", "--bogus"), 2, "No such option"),
    (("nonsense", "--workspace", "DEER"), 2, "No such command"),
    (("init",), 2, "Missing argument"),
    (("init", "DEER"), 2, "is not an empty folder"),
    (("restore", "--workspace", "DEER", "3", "--to", "x"), 2, r"there is no iteration 3 in .* none yet"),
    (("tick", "--workspace", "DEER"), 2, "the pool is empty"),
    (("status", "--workspace", str(ROOT)), 2, "Gleaner's own code, not a campaign"),
    (("status", "--workspace", "DEER"), 0, ""),
    (("verify", "--workspace", "DEER"), 0, ""),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    EXITS,
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_exit_codes_fit_a_shell(
    arguments: tuple[str, ...], code: int, message: str, made: Path, tmp_path: Path
) -> None:
    done = gleaner(*[a.replace("DEER", str(made)) for a in arguments], cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_busy_campaign_is_exit_code_75_and_says_who(made: Path, tmp_path: Path) -> None:
    mine = copy(made, tmp_path / "mine")
    with campaign_lock(mine, "tick"):
        done = gleaner("stop", "--because", "lunch", "--workspace", str(mine), cwd=tmp_path)
        assert done.returncode == 75
        assert f"`tick`, process {os.getpid()}, since" in done.stderr
        assert gleaner("status", "--workspace", str(mine), cwd=tmp_path).returncode == 0, "looking needs no lock"
    assert gleaner("stop", "--because", "lunch", "--workspace", str(mine), cwd=tmp_path).returncode == 0


def test_a_mistake_in_params_is_told_before_any_effect(made: Path, tmp_path: Path) -> None:
    mine = copy(made, tmp_path / "mine")
    params = mine / "params.yaml"
    params.write_text(set_value(params.read_text(), "select", "strategy", "margn"))
    telling = re.compile(r"__pycache__|\.gleaner/(alerts|heartbeat)\.")  # that a tick failed is told

    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in mine.rglob("*") if p.is_file() and not telling.search(str(p))}

    before = files()
    for command in ("ingest", "tick", "status"):
        done = gleaner(command, "--workspace", str(mine), cwd=tmp_path)
        assert done.returncode == 2
        assert re.search(r"error: .*params\.yaml:\d+: select\.strategy: .*Did you mean 'margin'\?", done.stderr)
    assert files() == before


def test_a_budget_without_room_for_a_first_batch_opens_nothing(
    tmp_path: Path,
) -> None:
    root = make_workspace(tmp_path / "deer", image_folder(tmp_path / "images"))
    edit(root, {"stop.labels": 1})
    with pytest.raises(BadInput, match="stop.labels leaves 1 labels, but the first batch needs at least one"):
        tick(root)
    with open_campaign(root, "look") as campaign:
        assert campaign.ledger.latest() is None
    edit(root, {"stop.labels": 40})
    assert tick(root) == "iteration 0"


def test_params_has_a_class_for_every_section() -> None:
    assert set(Params.model_fields) == set(read(TEXT, "params.yaml").value())
