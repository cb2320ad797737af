"""README and docs are executed, generated or compared: nothing in them is merely typed.

    python -m tests.test_readme        # rewrites README's tree and its tables of commands

Shell blocks run in order in one temporary folder, with three stand-ins that keep it to a minute: a tick runs in
process instead of through Prefect, photos are small and their features are pixels, and an annotator fills batch.csv.
`test_the_walk_through_works_word_for_word` (slow) does without the first two.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tasks import plugins
from tasks.errors import GleanerError
from tasks.params import parse
from tasks.params_sections import Params
from tasks.workspace import init, set_value
from tests.children import run_in_child
from tests.quick import tick

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]
BIN = Path(sys.executable).parent
FIRST_LINES = {  # of files that cannot say it themselves
    ".dvcignore": "What DVC does not look at.",
    ".gitignore": "What git does not keep: artefacts, workspaces, caches.",
    "LICENSE": "Apache-2.0.",
    "README.md": "This page.",
    "data/README.md": "Why this folder is empty in a clone.",
    "dvc.yaml": "One iteration as DVC computes it: the stages, and all that each of them reads.",
    "models/README.md": "Why this folder is empty in a clone.",
    "pyproject.toml": "The package, its dependencies, and the settings of ruff, mypy and pytest.",
    "requirements.lock": "Exact versions and hashes of everything, without registry hosts.",
}
NOT_RUN = {  # command -> why
    "make run": "minutes",
    "make test": "it runs this test",
    "gleaner ui": "it serves until Ctrl-C",
    "gleaner deploy --every 15m": "tests/test_deploy.py does, with a server",
    "gleaner worker": "it works until Ctrl-C",
    "gleaner watchdog": "nothing is deployed",
    'export PATH="$PWD/.venv/bin:$PATH"': "the test's PATH begins with this environment",
    "gleaner alert --test": "it would send a mail; tests/test_alert_delivery.py runs it with receivers",
}
FASTER: dict[str, Any] = {
    "embed.backbone": "pixels",
    "train.network": "linear",
    "pool.size": 12,
    "evaluate.resamples": 50,
}
CHANGED_PARAMS: dict[str, Any] = {
    "holdout.labels": 12,
    "select.batch": 6,
    "select.first_batch": 8,
}  # a batch of the small folder

# what is generated ----------------------------------------------------------------------------------------


def files() -> list[str]:
    """What a commit would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted(name for name in set(listed.stdout.split("\n")) if name and (ROOT / name).is_file())


def first_line(name: str) -> str:
    """What a file says of itself: docstring, heading or first comment."""
    if name in FIRST_LINES:
        return FIRST_LINES[name]
    if name.endswith(".png"):
        return "A picture of the demo."
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".py"):
        return opening(ast.get_docstring(ast.parse(text)) or "")
    if text.startswith("#!"):
        text = text.partition("\n")[2]
    return text.strip().split("\n")[0].lstrip("# ")


def opening(docstring: str) -> str:
    """The first line, or the first paragraph where that line ends within a sentence."""
    paragraph = docstring.split("\n\n")[0].split("\n")
    return paragraph[0] if paragraph[0].endswith((".", "?", ":")) else " ".join(paragraph)


def tree() -> str:
    """Every file with its first line, folder by folder: a folder's own files before its subfolders."""
    lines, folder = [], ""
    for name in sorted(files(), key=lambda n: (n.split("/")[:-1], n)):
        here = name.rpartition("/")[0]
        if here != folder:
            folder = here
            lines.append(f"{folder}/")
        lines.append(f"{'  ' if folder else ''}{name.rpartition('/')[2]:<26} {first_line(name)}".rstrip())
    return "```text\n" + "\n".join(lines) + "\n```"


def commands() -> dict[str, str]:
    """Command -> the first line of its help."""
    modules = [
        ast.parse((ROOT / f"flows/{name}.py").read_text(encoding="utf-8"))
        for name in ("cli", "cli_labeling", "cli_schedule")
    ]
    functions = [node for module in modules for node in module.body if isinstance(node, ast.FunctionDef)]
    return {
        node.name.replace("_", "-"): (ast.get_docstring(node) or "").split("\n")[0]
        for node in functions
        if any(ast.unparse(decorator) == "app.command()" for decorator in node.decorator_list)
    }


def targets() -> dict[str, str]:
    """Make target -> its comment."""
    found = re.findall(r"^([a-z-]+):[^#\n]*##\s*(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    return dict(found)


def table(kind: str, rows: dict[str, str], prefix: str) -> str:
    return f"| {kind} | what it does |\n|---|---|\n" + "\n".join(f"| `{prefix}{a}` | {b} |" for a, b in rows.items())


GENERATED: dict[str, Callable[[], str]] = {
    "tree": tree,
    "commands": lambda: table("command", commands(), "gleaner "),
    "make": lambda: table("target", targets(), "make "),
}


def generated(text: str) -> str:
    """The README as it must be."""
    for name, make in GENERATED.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}{make()}\n{end}{rest.partition(end)[2]}"
    return text


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_generated_is_up_to_date(name: str) -> None:
    assert f"<!-- {name} -->\n{GENERATED[name]()}\n<!-- /{name} -->" in README.read_text(encoding="utf-8"), (
        "run `python -m tests.test_readme`"
    )


def test_every_file_says_what_it_is() -> None:
    assert not [name for name in files() if not first_line(name)]


def test_every_exit_code_is_told() -> None:
    def below(kind: type[GleanerError]) -> set[int]:
        return {kind.exit_code}.union(*(below(child) for child in kind.__subclasses__()))

    told = {int(code) for code in re.findall(r"^\| (\d+) \|", README.read_text(encoding="utf-8"), re.M)}
    assert told == below(GleanerError) | {0}


# names and links ------------------------------------------------------------------------------------------


def spans(page: Path) -> Iterator[str]:
    """Inline code of a page, without its blocks."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    yield from re.findall(r"`([^`\n]+)`", prose)


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M) if anchor else []
        assert not anchor or anchor in {slug(heading) for heading in headings}, f"{page.name}: {target}"


TOP = {"tasks", "flows", "monitoring", "tests", "docs", "benchmarks", ".ci", "data", "models", ".gleaner", ".dvc"}
PLACEHOLDER = re.compile(r"<[a-z]+>|…|\*|NNNN|\{|\$")
BY_OTHERS = (  # made by the demo, a labeling tool, the full tick or a push, none of which the fixture runs
    ".gleaner/demo", ".gleaner/tables.html", ".gleaner/mailbox", ".gleaner/mlflow.db", ".gleaner/prefect",
    ".gleaner/serving", ".gleaner/label-studio", ".gleaner/alerts", ".gleaner/heartbeat.json", ".gleaner/schedule.json", ".gleaner/cron.log", ".gleaner/logs", ".gleaner/mlartifacts", "data/exchange", "data/inbox", "data/refused.csv", "data/inputs/previous", ".dvc/tmp/rwlock",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path, closed_iteration: Path) -> None:
    absent = []
    for span in spans(page):
        name = span.rstrip("/")
        if not re.fullmatch(r"\.?[\w.-]+(/[\w.-]+)+", name) or name.split("/")[0] not in TOP:
            continue
        places = (ROOT / name, closed_iteration / name)
        if not any(place.exists() for place in places) and not name.startswith(BY_OTHERS):
            absent.append(span)
    assert not absent


def keys_of(page: Path) -> Iterator[str]:
    for span in spans(page):
        match = re.fullmatch(r"([a-z_]+)((?:\.[a-z_]+)+)(?:[:=].*)?", span)
        if match and match[1] in Params.model_fields:
            yield match[1] + match[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_params_key_that_is_named_exists(page: Path) -> None:
    document = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name in keys_of(page):
        if name.endswith((".py", ".yaml")):
            continue
        section, key, *rest = name.split(".")
        if rest:
            folder = {"monitor": "checks", "source": "sources", "labeling": "labeling", "embed": "backbones"}[section]
            allowed = {o for n in plugins.names(folder) for o in plugins.entry_point(folder, n).options} | {"severity"}
            assert rest[0] in allowed, f"{page.name}: {name}"
        assert key in document[section], f"{page.name}: {name}"


# the shell blocks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of README: its language and text."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M)]


def lines(block: Block) -> list[str]:
    """Commands of a shell block, without comments."""
    found = (line.split("  #")[0].strip() for line in block.text.split("\n"))
    return [line for line in found if line and not line.startswith("#")]


def photos(folder: Path, flat: bool) -> None:
    """Small pictures of two classes, each with its own noise; the class is in the bytes' file name or folder."""
    rng = np.random.default_rng(0)
    for number in range(60):
        name = ("flower", "temple")[number % 2]
        pixels = np.clip(rng.normal(90 + 80 * (number % 2), 60, (24, 24, 3)), 0, 255).astype(np.uint8)
        path = folder / f"IMG_{number:04d}.png" if flat else folder / name / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def answers(folder: Path) -> dict[str, str]:
    """Item id -> class of a folder per class."""
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path.parent.name for path in folder.rglob("*.png")}


def fill_in(batch: Path, known: dict[str, str]) -> None:
    """What a person does with batch.csv."""
    rows = list(csv.DictReader(io.StringIO(batch.read_text(encoding="utf-8"))))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({**row, "label": known[row["key"].rpartition(":")[2]]} for row in rows)
    batch.write_text(text.getvalue(), encoding="utf-8")


class Reader:
    """Somebody who follows README in a folder with `photos` and `unlabeled`, side by side with the workspaces."""

    def __init__(self, home: Path, quick: bool) -> None:
        self.home = self.here = home
        self.quick = quick
        self.printed: list[str] = []
        (home / "clone").mkdir()
        self.here = home / "clone"
        photos(home / "photos", flat=False)
        photos(home / "unlabeled", flat=True)
        self.known = answers(home / "photos")

    def follow(self, block: Block) -> None:
        if block.language == "yaml":
            self.edit(YAML(typ="safe").load(block.text))
        elif block.language == "sh":
            for command in lines(block):
                self.type(command)

    def edit(self, sections: dict[str, dict[str, Any]]) -> None:
        path = self.here / "params.yaml"
        changes = {f"{section}.{key}": v for section, values in sections.items() for key, v in values.items()}
        text = path.read_text(encoding="utf-8")
        for name, value in {**changes, **CHANGED_PARAMS, **(FASTER if self.quick else {})}.items():
            section, key = name.split(".")
            text = set_value(text, section, key, value)
        parse(text)
        path.write_text(text, encoding="utf-8")

    def type(self, command: str) -> None:
        ticks = re.fullmatch(r"gleaner (?:tick|run --iterations (\d+))", command)
        if command in NOT_RUN:
            return
        if command.startswith("cd "):
            self.here = (self.here / command[3:]).resolve()
        elif command.startswith("$EDITOR "):
            fill_in(self.here / command.removeprefix("$EDITOR "), self.known)
        elif ticks and self.quick:
            for _ in range(int(ticks[1] or 1)):
                ended = run_in_child(tick, self.here)
                assert not ended.error, ended.text
        else:
            self.printed.append(shell(command, self.here))


def shell(command: str, here: Path) -> str:
    """Run a line of shell; returns what it prints. Fails with its output when it fails."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    }
    identity = {f"GIT_{who}_{what}": "reader" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**inherited, **identity, "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]), "COLUMNS": "120"}
    done = subprocess.run(["bash", "-ec", command], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def walk(home: Path, quick: bool) -> Reader:
    """Follow README from its first block to its last, without Debian's package."""
    text = README.read_text(encoding="utf-8")
    debian = re.compile(r"^### Fashion-MNIST.*?(?=^## )", re.S | re.M)
    assert debian.search(text)
    reader = Reader(home, quick)
    for block in blocks(debian.sub("", text)):
        reader.follow(block)
    return reader


def check(reader: Reader) -> None:
    said = "\n".join(reader.printed)
    assert "60 files seen: 60 accepted, 0 duplicates, 0 quarantined" in said
    assert "on the holdout (interval" in said
    assert re.search(r"iteration 1 is in .*deer-1: \d+ files, each with the SHA-256", said)
    assert "all invariants hold (every byte was read)." in said
    assert "this copy is now campaign deer-" in said
    assert "iteration 3 is closed" in said
    executed = shell("dvc repro", reader.home / "deer")
    assert "Running stage" not in executed
    assert any((reader.home / "backup").rglob("*"))


def test_the_walk_through_works(tmp_path: Path) -> None:
    check(walk(tmp_path, quick=True))


@pytest.mark.slow
def test_the_walk_through_works_word_for_word(tmp_path: Path) -> None:
    check(walk(tmp_path, quick=False))


def test_what_is_not_run_is_in_readme() -> None:
    written = {command for block in blocks(README.read_text(encoding="utf-8")) for command in lines(block)}
    assert set(NOT_RUN) <= written


def test_the_settings_for_debians_package_are_valid() -> None:
    (found,) = [
        block
        for block in blocks(README.read_text(encoding="utf-8"))
        if (block.language, "fashion-mnist" in block.text) == ("yaml", True)
    ]
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for section, values in YAML(typ="safe").load(found.text).items():
        for key, value in values.items():
            text = set_value(text, section, key, value)
    assert parse(text).source.kind == "idx"


# the examples ---------------------------------------------------------------------------------------------

CHOSEN: dict[str, Any] = {
    "source.kind": "array", "source.path": "photos.npy", "pool.size": 12, "pool.mode": "RGB", "holdout.labels": 12,
    "embed.backbone": "histogram", "train.network": "cosines", "select.strategy": "ratio", "select.batch": 6,
    "select.first_batch": 8, "labeling.tool": "mailbox", "evaluate.resamples": 50, "alerts.channels": ["lines"],
}  # fmt: skip
CAMPAIGN = """
import json
from pathlib import Path

from monitoring.alarm import flush
from monitoring.standing import notice
from tasks.campaign import open_campaign
from tasks.ingest import ingest
from tasks.pool import read_known_labels
from tasks.store import Store
from tests.quick import tick

root, mailbox = Path.cwd(), Path(".gleaner/mailbox")
ingest(root, None)
print(tick(root))
known = read_known_labels(Store(root))
keys = [json.loads(line)["key"] for line in (mailbox / "tasks.jsonl").read_text().splitlines()]
rows = [{"id": key, "key": key, "label": known[key.rpartition(":")[2]]} for key in keys]
(mailbox / "answers.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
print(tick(root))
with open_campaign(root, "tick") as campaign:
    campaign.ledger.decide("stop", 1, "campaign", "holidays")
    notice(campaign)
print(flush(root))
"""


def examples() -> dict[str, str]:
    """File -> content of each complete example of docs/plugins.md."""
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", text, re.S | re.M))


def test_the_examples_of_every_part_work_together(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    init(ROOT, root)
    text = (root / "params.yaml").read_text(encoding="utf-8")
    for name, value in CHOSEN.items():
        section, key = name.split(".")
        text = set_value(text, section, key, value)
    text = text.replace("monitor: ", "monitor:\n  one_class: {severity: block, max_share: 0.999}\n#", 1)
    (root / "params.yaml").write_text(text, encoding="utf-8")
    for name, content in examples().items():
        assert not (root / name).exists(), f"{name} is there already: give the example another name"
        (root / name).write_text(content, encoding="utf-8")
    _images(root)
    (root / "campaign.py").write_text(CAMPAIGN, encoding="utf-8")
    said = shell(
        "git add tasks monitoring && git commit --quiet -m 'Parts of our own' && PYTHONPATH=. python campaign.py", root
    )
    assert ("iteration 0" in said) and ("iteration 1" in said)
    assert '"title": "the campaign was stopped"' in (root / ".gleaner/alerts.jsonl").read_text(encoding="utf-8")
    assert '"check": "one_class"' in (root / "data/findings.json").read_text(encoding="utf-8")
    assert '"network": "cosines"' in (root / "models/head/head.json").read_text(encoding="utf-8")
    assert "histogram-12-RGB-16" in (root / "data/features/backbone.json").read_text(encoding="utf-8")
    assert '"strategy": "ratio"' in (root / "data/evaluation/metrics.json").read_text(encoding="utf-8")
    assert "all invariants hold" in shell("gleaner verify --deep", root)


def _images(root: Path) -> None:
    rng = np.random.default_rng(1)
    kinds = np.arange(60) % 2
    levels = 90 + 80 * kinds[:, None, None, None]
    np.save(root / "photos.npy", np.clip(rng.normal(levels, 60, (60, 24, 24, 3)), 0, 255).astype(np.uint8))
    (root / "photos.txt").write_text("\n".join(("flower", "temple")[kind] for kind in kinds), encoding="utf-8")


def test_there_is_an_example_of_every_part() -> None:
    folders = {name.rpartition("/")[0] for name in examples()}
    assert folders == {plugins.FOLDERS[f][0] for f in plugins.FOLDERS} - {"tasks/trackers"}


def main() -> None:
    """Rewrite what is generated."""
    README.write_text(generated(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
