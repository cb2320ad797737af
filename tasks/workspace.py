"""A campaign's workspace: a copy of the code with params, data and history of its own, in git and DVC.

init(Path("clone"), Path("deer"), "deer")   ->   deer/ with one commit and a new campaign id
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from tasks import params as parameters
from tasks import repository, versions
from tasks.campaign import IDENTITY, mint
from tasks.errors import BadInput
from tasks.params_text import Document, read
from tasks.store import Store, remove_folder

WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")  # YAML, or an older one, reads more into them


def init(template: Path, target: Path, name: str | None = None) -> str:
    """Make a workspace from a checkout of Gleaner. Returns the campaign id. Raises BadInput when the folder is in use."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists and is not an empty folder. Name a new one: gleaner init DIR")
    name = target.name if name is None else name
    text = set_value((template / "params.yaml").read_text(encoding="utf-8"), "campaign", "name", name)
    parameters.parse(text)
    building = target.with_name(f".{target.name}.new")
    remove_folder(building)
    try:
        _copy_code(template, building)
        store = Store(building)
        store.write_bytes("params.yaml", text.encode())
        identity = mint(name)
        store.write_json(IDENTITY, identity)
        versions.initialise(building, target)
        if target.exists():
            target.rmdir()
        building.rename(target)
    finally:
        remove_folder(building)
    return str(identity["id"])


def _copy_code(template: Path, target: Path) -> None:
    """Tracked and untracked-not-ignored files: what a commit would hold, edits included."""
    names = repository.git(template, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in sorted(set(filter(None, names))):
        source = template / name
        if source.is_file() and not source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def set_value(text: str, section: str, key: str, value: str | float | list[str] | dict[str, object]) -> str:
    """Change one value of a params.yaml and nothing else: comments and layout stay. Raises BadInput for broken YAML."""
    document = read(text, "params.yaml")
    found = document.find((section, key))
    if found is None:
        return _insert(text, document, section, f"{key}: {_quoted(value)}")
    start, end = _span(text, found[1])
    colon = text.index(":", found[0].end_mark.index) + 1
    if isinstance(found[1], CollectionNode) and not found[1].flow_style:
        return _instead_of_block(text, colon, end, _quoted(value))
    if start == end:  # no value: what follows the colon may be the next line
        start = end = colon
    old, rest = text[start:end], text[end:]
    gap = len(rest) - len(rest.lstrip(" "))
    new = _quoted(value)
    if gap and rest[gap:].startswith("#"):  # the comment stays in its column where there is room
        rest = " " * max(1, gap + len(old) - len(new)) + rest[gap:]
    return text[:start] + (" " if text[start - 1] == ":" else "") + new + rest


def _instead_of_block(text: str, colon: int, end: int, new: str) -> str:
    """Put a value behind the colon and leave the lines of the old one out."""
    key_line, last_line = text.index("\n", colon) + 1, text.find("\n", end) + 1
    return f"{text[:colon]} {new}{text[colon:key_line]}{text[last_line:] if last_line else ''}"


def _insert(text: str, document: Document, section: str, line: str) -> str:
    """Put a line at the beginning of a section."""
    found = document.find((section,))
    if found is None or not isinstance(found[1], MappingNode) or found[1].flow_style or not found[1].value:
        raise BadInput(f"{document.where((section,))}: write this section with one setting a line, then try again.")
    first = found[1].start_mark
    return f"{text[: first.index]}{line}\n{' ' * first.column}{text[first.index :]}"


def _span(text: str, node: Node) -> tuple[int, int]:
    """Where a value begins and ends in the text (YAML says that a block ends where the next key begins)."""
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        end = _span(text, last[1] if isinstance(last, tuple) else last)[1]
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        end = start + len(text[start:end].rstrip())
    return start, end


def _quoted(value: str | float | list[str] | dict[str, object]) -> str:
    """A value as YAML; JSON is YAML, but a plain word needs no quotes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*", value) and value.lower() not in WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
