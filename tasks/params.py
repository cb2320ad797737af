"""params.yaml as frozen, typed sections; every error names the line, what is allowed and the nearest word.

    params = load(Path("params.yaml"))
    params.select.batch  ->  20

The file is YAML 1.2 (`NO` is text, `1e-3` a number); duplicate keys and tabs are refused. Loading has no
side effect and imports no plug-in.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tasks import plugins
from tasks.errors import BadInput, did_you_mean

Options = dict[str, Any]
Share = Field(ge=0.0, le=1.0)


class Section(BaseModel):
    """A section of params.yaml: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Campaign(Section):
    """Identity and seed."""

    name: str = Field(min_length=1, max_length=100)
    seed: int = Field(ge=0, lt=2**32)


class Source(Section):
    """Where images come from."""

    kind: str
    path: str = ""
    options: Options = {}


class Pool(Section):
    """How images are stored and grouped."""

    size: int = Field(ge=1, le=1024)
    mode: Literal["L", "RGB"]
    shard_items: int = Field(10_000, ge=1, le=1_000_000)
    max_pixels: int = Field(100_000_000, ge=1)
    near_duplicate_bits: int = Field(4, ge=-1, le=12)
    near_duplicate_difference: float = Share
    group_cap: int = Field(8, ge=1)


class Holdout(Section):
    """The reserved random sample that every accuracy is measured on."""

    share: float = Field(ge=0.0, lt=1.0)
    labels: int = Field(ge=0)


class Embed(Section):
    """The backbone whose features are cached."""

    backbone: str
    options: Options = {}
    batch: int = Field(64, ge=1)


class Train(Section):
    """The head that is retrained in each iteration."""

    network: str
    options: Options = {}
    folds: int = Field(5, ge=0, le=50)


class Select(Section):
    """What is asked about next."""

    strategy: str
    options: Options = {}
    cold_start: str = "kmeans"
    batch: int = Field(ge=1)
    first_batch: int = Field(ge=1)
    control: float = Share


class Labeling(Section):
    """Who answers."""

    tool: str
    classes: tuple[str, ...] = Field((), strict=False)
    quorum: float = Field(1.0, gt=0.0, le=1.0)
    deadline_hours: float = Field(0.0, ge=0.0)
    options: Options = {}


class Evaluate(Section):
    """How results are measured."""

    confidence: float = Field(0.95, gt=0.0, lt=1.0)
    resamples: int = Field(1000, ge=10, le=100_000)
    champion_p: float = Field(0.05, gt=0.0, lt=1.0)


class CheckSetting(Section):
    """One check's severity and limits (the limits are the check's keyword options)."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    severity: Literal["block", "warn", "off"]

    @property
    def limits(self) -> Options:
        """The limits that params.yaml sets; the rest keep the check's defaults."""
        return dict(self.__pydantic_extra__ or {})


class Stop(Section):
    """When the campaign ends."""

    labels: int = Field(0, ge=0)
    target: float = Share
    min_gain: float = Field(0.0, ge=0.0, le=1.0)
    patience: int = Field(5, ge=1)


class Track(Section):
    """Where results are shown."""

    tool: str


class Compute(Section):
    """How much of the machine is used."""

    engine: Literal["local"] = "local"
    workers: int = Field(2, ge=1, le=1024)
    threads: int = Field(1, ge=1, le=1024)


class Params(Section):
    """All of params.yaml."""

    campaign: Campaign
    source: Source
    pool: Pool
    holdout: Holdout
    embed: Embed
    train: Train
    select: Select
    labeling: Labeling
    evaluate: Evaluate
    monitor: dict[str, CheckSetting]
    stop: Stop
    track: Track
    compute: Compute


#: key in params.yaml -> (plug-in folder, key of its options)
PLUGIN_KEYS: dict[tuple[str, str], tuple[str, str | None]] = {
    ("source", "kind"): ("sources", "options"),
    ("embed", "backbone"): ("backbones", "options"),
    ("train", "network"): ("networks", "options"),
    ("select", "strategy"): ("strategies", "options"),
    ("select", "cold_start"): ("strategies", None),
    ("labeling", "tool"): ("labeling", "options"),
    ("track", "tool"): ("trackers", None),
}
COLD_START_EVIDENCE = {"features", "labeled_features", "count", "k", "rng"}


def load(path: Path) -> Params:
    """Read and validate params.yaml. Raises BadInput with file and line before any effect."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path} not found: this is not a campaign workspace. `gleaner init DIR` makes one.") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    return parse(text, str(path))


def parse(text: str, name: str = "params.yaml") -> Params:
    """Validate the text of a params.yaml; `name` is shown in errors."""
    tree = _read_yaml(text, name)
    try:
        params = Params.model_validate(_plain(tree))
    except ValidationError as error:
        raise BadInput("\n".join(_explain(tree, name, e) for e in error.errors())) from None
    _check_plugins(params, tree, name)
    return params


def _read_yaml(text: str, name: str) -> CommentedMap:
    try:
        tree = YAML(typ="rt").load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = (error.problem or "not valid YAML").split("\n")[0]
        if "'\\t'" in problem:
            problem = "a tab where YAML allows only spaces: indent with two spaces"
        raise BadInput(f"{where}: {problem}.") from None
    except YAMLError as error:
        raise BadInput(f"{name}: not valid YAML: {error}") from None
    if not isinstance(tree, CommentedMap):
        raise BadInput(f"{name}: empty or not a mapping. Sections needed: {', '.join(Params.model_fields)}.")
    return tree


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key if isinstance(key, str) else repr(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _line(tree: CommentedMap, location: tuple[Any, ...]) -> int:
    """1-based line of the deepest part of `location` that is in the file."""
    node: Any = tree
    line = 1
    for key in location:
        if not isinstance(node, CommentedMap) or key not in node:
            break
        line = node.lc.key(key)[0] + 1
        node = node[key]
    return line


def _explain(tree: CommentedMap, name: str, error: Any) -> str:
    location = error["loc"]
    where = f"{name}:{_line(tree, location)}: {'.'.join(str(part) for part in location)}"
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(location[:-1])
        return f"{where}: unknown key. Allowed: {', '.join(allowed)}.{did_you_mean(str(location[-1]), allowed)}"
    if error["type"] == "missing":
        return f"{where}: missing. Add it; docs/params.md and the template's params.yaml explain each key."
    message = error["msg"][0].lower() + error["msg"][1:]
    hint = ""
    if error["type"] == "string_type":
        hint = " Write it in quotes."
    if error["type"] == "literal_error":
        hint = did_you_mean(
            str(error["input"]), str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        )
    return f"{where}: {message}, not {error['input']!r}.{hint}"


def _allowed_keys(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Params
    for key in location:
        model = model.model_fields[str(key)].annotation  # type: ignore[assignment]
    return list(model.model_fields)


def _check_plugins(params: Params, tree: CommentedMap, name: str) -> None:
    for (section, key), (folder, options_key) in PLUGIN_KEYS.items():
        settings = getattr(params, section)
        options = getattr(settings, options_key) if options_key else {}
        _check_plugin(folder, getattr(settings, key), options, (section, key), (section, options_key), tree, name)
    for check, setting in params.monitor.items():
        at = ("monitor", check)
        _check_plugin("checks", check, setting.limits, at, at, tree, name)
    _check_evidence(params, tree, name)


def _check_plugin(
    folder: str,
    plugin: str,
    options: Options,
    at: tuple[str, str],
    options_at: tuple[Any, ...],
    tree: CommentedMap,
    name: str,
) -> None:
    try:
        entry = plugins.entry_point(folder, plugin)
    except BadInput as error:
        raise BadInput(f"{name}:{_line(tree, at)}: {'.'.join(at)}: {error}") from None
    for option, value in options.items():
        where = f"{name}:{_line(tree, (*options_at, option))}: {'.'.join(options_at)}.{option}"
        if option not in entry.options:
            allowed = ", ".join(sorted(entry.options)) or "none"
            raise BadInput(
                f"{where}: {plugin} has no such option. Allowed: {allowed}.{did_you_mean(option, entry.options)}"
            )
        default = entry.options[option]
        if default is not None and not _same_type(value, default):
            raise BadInput(f"{where}: must be {type(default).__name__} (default {default!r}), not {value!r}.")


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _check_evidence(params: Params, tree: CommentedMap, name: str) -> None:
    select, network = params.select, params.train.network
    needs = set(plugins.entry_point("strategies", select.strategy).evidence)
    offers = plugins.functions_of("networks", network)
    for evidence, ability in (("samples", "sample"), ("embeddings", "embed")):
        if evidence in needs and ability not in offers:
            able = [n for n in plugins.names("networks") if ability in plugins.functions_of("networks", n)]
            raise BadInput(
                f"{name}:{_line(tree, ('select', 'strategy'))}: select.strategy {select.strategy!r} needs {evidence}, "
                f"which train.network {network!r} does not give. Networks that do: {', '.join(able)}."
            )
    cold = set(plugins.entry_point("strategies", select.cold_start).evidence)
    if not cold <= COLD_START_EVIDENCE:
        able = [
            n
            for n in plugins.names("strategies")
            if set(plugins.entry_point("strategies", n).evidence) <= COLD_START_EVIDENCE
        ]
        raise BadInput(
            f"{name}:{_line(tree, ('select', 'cold_start'))}: select.cold_start {select.cold_start!r} needs a trained model "
            f"({', '.join(sorted(cold - COLD_START_EVIDENCE))}). Allowed: {', '.join(able)}."
        )
