"""What params.yaml says of plug-ins, checked against their source: names, options, ranges, and that they fit together.

    check(params, document)     raises BadInput: params.yaml:41: select.strategy: tasks/strategies has no 'margn'. …

Nothing is imported: a plug-in's options are read from its signature (`tasks/plugins.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tasks import plugins
from tasks.errors import BadInput, did_you_mean
from tasks.params_sections import Params, Section
from tasks.params_text import Document, wrong_value

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


def check(params: Params, document: Document) -> None:
    """Raise BadInput that names every plug-in or option that does not exist or fit."""
    problems = list(_each(params, document)) or list(_together(params, document))
    if problems:
        raise BadInput("\n".join(problems))


def _each(params: Params, document: Document) -> Iterator[str]:
    for (section, key), (folder, options_key) in PLUGIN_KEYS.items():
        settings = getattr(params, section)
        options = getattr(settings, options_key) if options_key else {}
        yield from _plugin(document, folder, getattr(settings, key), (section, key), options, (section, "options"))
    for name, setting in params.monitor.items():
        at = ("monitor", name)
        yield from _plugin(document, "checks", name, at, setting.limits, at)
    yield from _channels(params, document)


def _channels(params: Params, document: Document) -> Iterator[str]:
    """Each channel of `alerts`, and options that belong to none of them."""
    alerts = params.alerts
    for place, name in enumerate(alerts.channels):
        at: tuple[str | int, ...] = ("alerts", "channels", place)
        if name in alerts.channels[:place]:
            yield f"{document.where(at)}: {name!r} is there twice. Keep one."
            continue
        yield from _plugin(document, "alerts", name, at, alerts.options.get(name, {}), ("alerts", "options", name))
    for name in alerts.options:
        if name not in alerts.channels:
            yield (
                f"{document.where(('alerts', 'options', name))}: options of a channel that is not in alerts.channels "
                f"({', '.join(alerts.channels) or 'none'}).{did_you_mean(name, alerts.channels)}"
            )


def _plugin(
    document: Document,
    folder: str,
    name: str,
    at: tuple[str | int, ...],
    options: dict[str, Any],
    options_at: tuple[str | int, ...],
) -> Iterator[str]:
    try:
        entry = plugins.entry_point(folder, name)
    except BadInput as error:
        yield f"{document.where(at)}: {error}"
        return
    for option, value in options.items():
        if option in entry.options:
            yield from _value(document, (*options_at, option), entry.types[option], entry.options[option], value)
            continue
        allowed = [*entry.options, "severity"] if folder == "checks" else list(entry.options)
        yield (
            f"{document.where((*options_at, option))}: {name} has no such option. "
            f"Allowed: {', '.join(sorted(allowed)) or 'none'}.{did_you_mean(option, allowed)}"
        )


def _value(document: Document, at: tuple[str | int, ...], kind: Any, default: Any, value: Any) -> Iterator[str]:
    """What is wrong with an option's value, by the rules that hold for the sections' own keys."""
    try:
        TypeAdapter(kind, config=Section.model_config).validate_python(value)
    except ValidationError as error:
        for each in error.errors():
            limits = () if each["loc"] else getattr(kind, "__metadata__", ())
            told = wrong_value(document.where((*at, *each["loc"])), each, limits)
            yield f"{told} The default is {json.dumps(default)}."


def _together(params: Params, document: Document) -> Iterator[str]:
    yield from _strategy_fits_network(params, document)
    yield from _cold_start_needs_no_model(params, document)
    network, backbone = params.train.network, params.embed.backbone
    needed = plugins.constant("networks", network, "BACKBONE")
    if needed is not None and backbone != needed:
        yield (
            f"{document.where(('train', 'network'))}: {network!r} learns from {needed}, but embed.backbone is {backbone!r}. "
            f"Set embed.backbone: {needed}, or train.network: mlp."
        )


def _strategy_fits_network(params: Params, document: Document) -> Iterator[str]:
    select, network = params.select, params.train.network
    needs = plugins.entry_point("strategies", select.strategy).evidence
    where = document.where(("select", "strategy"))
    for evidence, ability in (("samples", "sample"), ("embeddings", "embed")):
        if evidence in needs and ability not in plugins.functions_of("networks", network):
            able = [n for n in plugins.names("networks") if ability in plugins.functions_of("networks", n)]
            yield (
                f"{where}: {select.strategy!r} needs {evidence}, which train.network {network!r} does not give. "
                f"Networks that do: {', '.join(able)}."
            )
    dropout = params.train.options.get("dropout")
    if "samples" in needs and dropout is not None and dropout <= 0:
        yield (
            f"{where}: {select.strategy!r} needs samples that differ, but train.options.dropout is {dropout}. "
            "Set it above 0."
        )


def _cold_start_needs_no_model(params: Params, document: Document) -> Iterator[str]:
    needs = set(plugins.entry_point("strategies", params.select.cold_start).evidence) - COLD_START_EVIDENCE
    if needs:
        able = [n for n in plugins.names("strategies") if _without_model(n)]
        yield (
            f"{document.where(('select', 'cold_start'))}: {params.select.cold_start!r} needs a trained model "
            f"({', '.join(sorted(needs))}). Allowed: {', '.join(able)}."
        )


def _without_model(strategy: str) -> bool:
    return set(plugins.entry_point("strategies", strategy).evidence) <= COLD_START_EVIDENCE
