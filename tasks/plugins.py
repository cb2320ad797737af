"""Plug-ins are found by file name: the value in params.yaml is the file in the folder.

`find("strategies", "margin")` imports `tasks/strategies/margin.py`. Nothing registers itself. What a
plug-in can be told (its options) is read from its entry point's signature without importing it, so a
wrong option is refused before anything heavy is loaded:

    def utility(probabilities: Array, *, power: Annotated[float, Interval(gt=0)] = 1.0) -> Array
                └── evidence: no default └── option: keyword with type, range and default
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from annotated_types import Interval

from tasks.errors import BadInput, did_you_mean

ROOT = Path(__file__).resolve().parent.parent

#: folder -> (directory, names its entry point may have)
FOLDERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "strategies": ("tasks/strategies", ("utility", "batch")),
    "networks": ("tasks/networks", ("fit",)),
    "backbones": ("tasks/backbones", ("load",)),
    "labeling": ("tasks/labeling", ("connect",)),
    "sources": ("tasks/sources", ("open_source",)),
    "trackers": ("tasks/trackers", ("connect",)),
    "checks": ("monitoring/checks", ("check",)),
    "alerts": ("monitoring/alerts", ("send",)),
}

#: types that an option may have, as they are written; a number may have a range, Literal["a", "b"] is one of
#: these, and list[Literal["a", "b"]] some of them
TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "list[str]": list[str]}


@dataclass(frozen=True)
class EntryPoint:
    """What a plug-in's entry point takes: evidence (required names), options (name -> default) and their types."""

    function: str
    evidence: tuple[str, ...]
    options: dict[str, Any]
    types: dict[str, Any]  # name -> Annotated[int, Interval(ge=1)]


def names(folder: str) -> tuple[str, ...]:
    """The plug-ins of a folder, sorted."""
    directory = ROOT / FOLDERS[folder][0]
    return tuple(sorted(p.stem for p in directory.glob("*.py") if not p.stem.startswith("_")))


def find(folder: str, name: str) -> ModuleType:
    """Import a plug-in. Raises BadInput with the allowed names when there is no such file."""
    require(folder, name)
    return importlib.import_module(f"{FOLDERS[folder][0].replace('/', '.')}.{name}")


def require(folder: str, name: str) -> None:
    """Raise BadInput unless the folder holds `<name>.py`."""
    allowed = names(folder)
    if name not in allowed:
        raise BadInput(
            f"{FOLDERS[folder][0]} has no {name!r}. Allowed: {', '.join(allowed)}."
            f"{did_you_mean(name, allowed)} To add one, write {FOLDERS[folder][0]}/{name}.py."
        )


@cache
def entry_point(folder: str, name: str) -> EntryPoint:
    """Read a plug-in's signature from its source, without importing it."""
    require(folder, name)
    directory, functions = FOLDERS[folder]
    for node in _tree(folder, name).body:
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            return _signature(node, f"{directory}/{name}.py")
    raise BadInput(f"{directory}/{name}.py defines none of: {', '.join(functions)}.")


def functions_of(folder: str, name: str) -> frozenset[str]:
    """Names of the module-level functions that a plug-in defines (its optional abilities)."""
    require(folder, name)
    return frozenset(node.name for node in _tree(folder, name).body if isinstance(node, ast.FunctionDef))


def constant(folder: str, name: str, constant_name: str) -> Any:
    """The literal that a plug-in gives to a module-level name, None when it does not."""
    require(folder, name)
    for node in _tree(folder, name).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [constant_name]:
            return _literal(node.value, f"{FOLDERS[folder][0]}/{name}.py:{node.lineno}: {constant_name}")
    return None


def _tree(folder: str, name: str) -> ast.Module:
    """A plug-in's source, parsed. Raises BadInput with its line when it is not Python."""
    file = f"{FOLDERS[folder][0]}/{name}.py"
    try:
        return ast.parse((ROOT / file).read_bytes(), file)
    except SyntaxError as error:
        raise BadInput(f"{file}:{error.lineno or 1}: not valid Python: {error.msg}.") from None


def _signature(node: ast.FunctionDef, file: str) -> EntryPoint:
    keywords = list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    evidence = [a.arg for a in (*node.args.posonlyargs, *node.args.args)] + [a.arg for a, d in keywords if d is None]
    options = {a.arg: _literal(d, f"{file}:{d.lineno}: option {a.arg}") for a, d in keywords if d is not None}
    types = {a.arg: _type(a.annotation, f"{file}:{a.lineno}: option {a.arg}") for a, _ in keywords if a.arg in options}
    return EntryPoint(node.name, tuple(evidence), options, types)


def _type(node: ast.expr | None, where: str) -> Any:
    """What an annotation says. Raises BadInput for one that cannot be understood without an import."""
    match node:
        case ast.Name() | ast.Subscript() if ast.unparse(node) in TYPES:
            return TYPES[ast.unparse(node)]
        case ast.Subscript(ast.Name("Literal"), words):
            return Literal[_literal(words, where)]
        case ast.Subscript(ast.Name("list"), ast.Subscript(ast.Name("Literal"), words)):
            return list[Literal[_literal(words, where)]]  # type: ignore[misc]
        case ast.Subscript(
            ast.Name("Annotated"),
            ast.Tuple([ast.Name("int" | "float" as number), ast.Call(ast.Name("Interval"), [], limits)]),
        ) if {limit.arg for limit in limits} <= {"gt", "ge", "lt", "le"}:
            return Annotated[TYPES[number], Interval(**{str(each.arg): _literal(each.value, where) for each in limits})]
    raise BadInput(
        f'{where}: its type must be one of {", ".join(TYPES)}, Literal["a", "b"], list[Literal["a", "b"]] or, with a range, '
        "Annotated[int, Interval(ge=1)] (gt, ge, lt, le), so that it can be checked without an import."
    )


def _literal(node: ast.expr, where: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise BadInput(f"{where}: must be a literal, so that it can be read without an import.") from None
