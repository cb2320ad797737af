"""The text of params.yaml: its values as plain Python, the line of each, and what to say when one is wrong.

    document = read("select:\\n  batch: 20\\n", "params.yaml")
    document.value()                     ->  {"select": {"batch": 20}}
    document.where(("select", "batch"))  ->  "params.yaml:2: select.batch"

Values follow YAML 1.2's core schema: `NO` and `2026-01-01` are text, `1e-3` is a number. What a settings file has no
use for (repeated keys, aliases, tags) is refused with its line.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from tasks.errors import BadInput, did_you_mean

Location = Sequence[str | int]
TAG = "tag:yaml.org,2002:"
BOOLEANS = {"true": True, "false": False}
KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping such as {name: value}",
    "tuple_type": "must be a list such as [a, b]",
    "list_type": "must be a list such as [a, b]",
    "model_type": "must be a section with keys of its own",
    "string_too_short": "must not be empty",
}
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "max_length": "at most"}
#: what the parser says (context: problem), whether to point at the context's beginning, what to say instead
SYNTAX: tuple[tuple[str, bool, str], ...] = (
    (r"'\\t'", False, "a tab where YAML allows only spaces. Put spaces there, two for each level"),
    (r"mapping values .* second colon", False, 'a second colon. Put text that holds a colon into quotes: "a: b"'),
    (
        r"mapping values",
        False,
        "a colon that cannot be here. Indent this key like its neighbours, and write the line above as `key: value`",
    ),
    (
        r"found '<block mapping start>'|'<document start>'|block collection",
        False,
        "indented unlike the lines above. Give all keys of one section the same number of spaces",
    ),
    (r"found '-'", False, "a list item among keys. Write a list in brackets: [a, b]"),
    (r"found '<scalar>'", False, "text behind a closing quote. Put all of it into one pair of quotes, and close each"),
    (r"could not find expected ':'", True, "no colon and space behind the key. Write `key: value`"),
    (r"quoted scalar: found unexpected", True, "the quote that begins here is never closed. Close it on its line"),
    (
        r"flow (sequence|mapping)",
        True,
        "this bracket is not closed, or a comma is missing. Write [a, b] or {a: 1, b: 2}",
    ),
    (r"double-quoted", False, "a backslash within double quotes. Use single quotes, which leave it alone: '[0-9]\\.'"),
    (r"alias|anchor|a tag", False, "text that begins with *, & or ! means something else in YAML. Put it into quotes"),
    (r"block scalar", False, "text that begins with | or > means something else in YAML. Put it into quotes"),
    (r"directive", False, "a line that begins with % means something else in YAML. Remove it"),
    (r"cannot start|node content", False, "text cannot begin with this sign. Put it into quotes"),
    (r"another document", False, "a second document begins here. Remove the line of --- or ..., and what follows"),
)


@dataclass(frozen=True)
class Document:
    """A YAML mapping that knows the line of each of its parts; `name` is the file's, for errors."""

    name: str
    root: MappingNode

    def value(self) -> dict[str, Any]:
        """All of it as dicts, lists, text, numbers, booleans and None. Raises BadInput with the line."""
        value: dict[str, Any] = _convert(self, self.root, set())
        return value

    def find(self, location: Location) -> tuple[Node, Node] | None:
        """The key and the value at a location, None when it is not in the file."""
        pair: tuple[Node, Node] | None = self.root, self.root
        for key in location:
            pair = _child(pair[1], key) if pair else None
        return pair

    def line(self, location: Location) -> int:
        """1-based line of the deepest part of a location that is in the file."""
        node: Node | None = self.root
        line = 1
        for key in location:
            pair = _child(node, key)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        return line

    def where(self, location: Location) -> str:
        """`params.yaml:12: select.batch`, the beginning of every error."""
        return f"{self.name}:{self.line(location)}: {'.'.join(str(part) for part in location)}"


def read(text: str, name: str) -> Document:
    """Parse YAML. Raises BadInput with file and line for anything that is not one mapping."""
    try:
        root = YAML(typ="rt", pure=True).compose(io.StringIO(text))
    except MarkedYAMLError as error:
        raise BadInput(_syntax(error, text, name)) from None
    except ReaderError as error:
        before = text[: text.find(chr(error.character))].split("\n")
        where = f"{name}:{len(before)}:{len(before[-1]) + 1}"
        raise BadInput(f"{where}: a control sign (number {error.character}), which no text has. Remove it.") from None
    except YAMLError as error:
        raise BadInput(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadInput(f"{name}: brackets are nested too deeply.") from None
    except (ValueError, IndexError, AttributeError, AssertionError, KeyError, TypeError) as error:
        # the parser stumbles over some malformed directives and escapes
        raise BadInput(f"{name}: not valid YAML ({type(error).__name__}: {error}).") from None
    if not isinstance(root, MappingNode):
        raise BadInput(f"{name}: empty, or not a mapping from section to settings. `gleaner init` writes a whole one.")
    return Document(name, root)


def _syntax(error: MarkedYAMLError, text: str, name: str) -> str:
    """`params.yaml:8:3: ` with line and column, what is wrong in plain words, and the fix."""
    said, mark = f"{error.context}: {error.problem}", error.problem_mark or error.context_mark
    if mark and ": " in "".join(text.splitlines()[mark.line : mark.line + 1])[: mark.column]:
        said += " second colon"
    at_beginning, words = next((rest for pattern, *rest in SYNTAX if re.search(pattern, said)), (False, ""))
    mark = (error.context_mark if at_beginning else None) or mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    return f"{where}: {words or f'not valid YAML: {error.problem}'}."


def _child(node: Node | None, key: str | int) -> tuple[Node, Node] | None:
    """A mapping's key node and value node, or a list's item twice."""
    if isinstance(node, MappingNode):
        return next(((k, v) for k, v in node.value if isinstance(k, ScalarNode) and k.value == key), None)
    if isinstance(node, SequenceNode) and isinstance(key, int) and 0 <= key < len(node.value):
        return node.value[key], node.value[key]
    return None


def _convert(document: Document, node: Node, seen: set[int]) -> Any:
    at = f"{document.name}:{node.start_mark.line + 1}"
    if id(node) in seen:
        raise BadInput(f"{at}: &{node.anchor} is used again by *{node.anchor}: write the value out where it is needed.")
    seen.add(id(node))
    if isinstance(node, MappingNode):
        return _mapping(document, node, seen)
    if isinstance(node, SequenceNode):
        return [_convert(document, item, seen) for item in node.value]
    return _scalar(str(node.tag), str(node.value), at)


def _mapping(document: Document, node: MappingNode, seen: set[int]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            raise BadInput(f"{document.name}:{line}: a key must be a word.")
        if key.value in mapping:
            raise BadInput(
                f"{document.name}:{line}: {key.value!r} is there twice (first in line {lines[key.value]}). Keep one."
            )
        lines[key.value] = line
        mapping[key.value] = _convert(document, value, seen)
    return mapping


def _scalar(tag: str, text: str, at: str) -> Any:
    kind = tag.removeprefix(TAG)
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return BOOLEANS.get(text.lower(), text)
        if kind == "int":
            return _whole(text.replace("_", ""))
        if kind == "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise BadInput(f"{at}: {clip(text)} is not a number that can be used.") from None
    if kind not in ("str", "timestamp", "merge", "value"):
        raise BadInput(f"{at}: the tag !{kind} is not used in params.yaml. Remove it.")
    return text


def _whole(text: str) -> int:
    digits = text.lstrip("+-").lower()
    return int(text, 0 if digits.startswith(("0x", "0o", "0b")) else 10)


def clip(value: Any) -> str:
    """A value as it is shown in an error, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def explain(document: Document, model: type[BaseModel], errors: Sequence[ErrorDetails]) -> list[str]:
    """Each validation error as file, line, key, what is wrong and what is allowed; a misspelt key is not missing too."""
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    misspelt = {(*at[:-1], word) for at in unknown for word in _keys(model, at) if repr(word) in _meant(model, at)}
    return [_explain(document, model, e) for e in errors if e["type"] != "missing" or e["loc"] not in misspelt]


def _explain(document: Document, model: type[BaseModel], error: ErrorDetails) -> str:
    location = error["loc"]
    where = document.where(location)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key. Allowed: {', '.join(_keys(model, location))}.{_meant(model, location)}"
    if error["type"] == "missing":
        return f"{where}: missing. Add it; the params.yaml of a new workspace (`gleaner init`) explains each key."
    return wrong_value(where, error, _limits(model, location))


def _keys(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that are allowed where a location's last one stands."""
    return list(_model_at(model, location[:-1]).model_fields)


def _meant(model: type[BaseModel], location: Location) -> str:
    return did_you_mean(str(location[-1]), _keys(model, location))


def wrong_value(where: str, error: ErrorDetails, limits: Sequence[Any]) -> str:
    """What is wrong with a value: not of its type, not one of its words, or outside its limits."""
    kind, given = error["type"], error["input"]
    if kind == "literal_error":
        names = str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{where}: must be one of {', '.join(names)}, not {clip(given)}.{did_you_mean(str(given), names)}"
    if kind == "value_error":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    hint = _hint(kind, given)
    bounds = _bounds(limits)
    if kind in KINDS:
        what = KINDS[kind] + (f", {bounds}" if bounds and kind in ("int_type", "float_type", "finite_number") else "")
    elif bounds:
        what = f"must be {bounds}" + (" characters" if kind == "string_too_long" else "")
    else:
        what = error["msg"][0].lower() + error["msg"][1:]
    return f"{where}: {what}, not {clip(given)}.{hint}"


def _hint(kind: str, given: Any) -> str:
    if given is None:
        return " Write a value after the colon."
    if kind == "string_type" and isinstance(given, bool | int | float):
        text = str(given).lower() if isinstance(given, bool) else str(given)
        return f' Write it in quotes: "{text}".'
    return ""


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    for key in location:
        annotation: Any = model.model_fields[str(key)].annotation
        model = annotation
    return model


def _limits(model: type[BaseModel], location: Location) -> Sequence[Any]:
    try:
        return _model_at(model, location[:-1]).model_fields[str(location[-1])].metadata
    except (KeyError, AttributeError):
        return ()


def _bounds(limits: Sequence[Any]) -> str:
    """'at least 0.0 and at most 1.0' for limits, '' for none."""
    found = ((words, getattr(limit, name, None)) for limit in limits for name, words in BOUNDS.items())
    return " and ".join(f"{words} {value}" for words, value in found if value is not None)
