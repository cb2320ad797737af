"""A campaign's workspace: a copy of the code with params, data and history of its own, in git and DVC.

init(Path("clone"), Path("deer"), "deer")   ->   deer/ with one commit and a new campaign id
"""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

from ruamel.yaml import YAML

from tasks import params as parameters
from tasks import repository, versions
from tasks.campaign import IDENTITY, mint
from tasks.errors import BadInput
from tasks.store import Store, remove_folder


def init(template: Path, target: Path, name: str | None = None) -> str:
    """Make a workspace from a checkout of Gleaner. Returns the campaign id. Raises BadInput when the folder is in use."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists and is not an empty folder. Name a new one: gleaner init DIR")
    building = target.with_name(f".{target.name}.new")
    remove_folder(building)
    _copy_code(template, building)
    store = Store(building)
    text = set_value(store.path("params.yaml").read_text(encoding="utf-8"), "campaign", "name", name or target.name)
    parameters.parse(text)
    store.write_bytes("params.yaml", text.encode())
    identity = mint(name or target.name)
    store.write_json(IDENTITY, identity)
    versions.initialise(building, target)
    if target.exists():
        target.rmdir()
    building.rename(target)
    return str(identity["id"])


def _copy_code(template: Path, target: Path) -> None:
    """Tracked and untracked-not-ignored files: what a commit would hold, edits included."""
    names = repository.git(template, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in sorted(set(filter(None, names))):
        source = template / name
        if source.is_file() and not source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def set_value(text: str, section: str, key: str, value: str | int | float | dict[str, object]) -> str:
    """Change one value of a params.yaml and nothing else: comments and layout stay."""
    tree = YAML(typ="rt").load(io.StringIO(text))
    number, column = tree[section].lc.value(key)
    lines = text.splitlines(keepends=True)
    rest = lines[number][column:]
    old = re.match(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|\{[^}]*\}|[^#\s][^#\n]*?(?=\s*(?:#|$))', rest)
    assert old is not None, rest
    quoted = (
        value
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*", value)
        else json.dumps(value, ensure_ascii=False)
    )
    after = rest[old.end() :]
    if after.startswith(" ") and len(quoted) < old.end():
        quoted = quoted.ljust(old.end())
    lines[number] = lines[number][:column] + quoted + after
    return "".join(lines)
