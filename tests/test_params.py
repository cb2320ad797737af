"""params.yaml: whatever is wrong in it is named with file, line, what is allowed and the nearest word; nothing happens."""

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
from pydantic import ValidationError

from tasks import plugins
from tasks.errors import BadInput
from tasks.params import load, parse
from tasks.params_plugins import PLUGIN_KEYS
from tasks.params_sections import Params
from tasks.params_text import read
from tasks.workspace import set_value

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
LINES = TEXT.splitlines()
SECTIONS = tuple(Params.model_fields)
KEYS = [
    (section, key) for section in SECTIONS if section != "monitor" for key in Params.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
]  # fmt: skip


def line_of(section: str, key: str | None = None) -> int:
    """1-based line of a section or of one of its keys in params.yaml."""
    start = next(i for i, line in enumerate(LINES) if line.startswith(f"{section}:"))
    if key is None:
        return start + 1
    return next(i for i in range(start + 1, len(LINES)) if LINES[i].startswith(f"  {key}:")) + 1


def with_raw(section: str, key: str, raw: str) -> str:
    """params.yaml with a value written as it stands."""
    number = line_of(section, key)
    return "\n".join([*LINES[: number - 1], f"  {key}: {raw}", *LINES[number:]]) + "\n"


def error(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse(text)
    return str(caught.value)


def test_the_template_is_valid_and_every_key_has_a_comment_or_explains_itself() -> None:
    params = parse(TEXT)
    assert params.select.strategy == "margin"
    bare = [line for line in LINES if re.match(r"  \w+:", line) and "#" not in line]
    assert {line.split(":")[0].strip() for line in bare} <= {
        "patience", "seed", "options", "repeated_selections", "stagnant_rankings", "score_gap", "no_improvement",
    }  # fmt: skip


def test_every_key_of_every_section_is_written_in_the_template() -> None:
    for section, key in KEYS:
        assert line_of(section, key)


def test_params_are_frozen() -> None:
    with pytest.raises(ValidationError):
        parse(TEXT).select.batch = 3


# typos ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_a_misspelt_section_is_named_with_its_line_and_the_right_word(section: str) -> None:
    wrong = section[:-2] + section[-1]
    message = error(TEXT.replace(f"\n{section}:", f"\n{wrong}:"))
    assert f"params.yaml:{line_of(section)}: {wrong}: unknown key" in message
    assert f"Did you mean {section!r}?" in message
    assert len(message.splitlines()) == 1, "it is not missing as well"
    assert all(name in message for name in SECTIONS), "allowed names are listed"


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_misspelt_key_is_named_with_its_line_and_the_right_word(section: str, key: str) -> None:
    wrong = key[:-2] + key[-1] if len(key) > 4 else key + "s"
    number = line_of(section, key)
    lines = [*LINES]
    lines[number - 1] = lines[number - 1].replace(f"{key}:", f"{wrong}:")
    message = error("\n".join(lines))
    assert f"params.yaml:{number}: {section}.{wrong}: unknown key. Allowed: " in message
    assert f"Did you mean {key!r}?" in message
    assert len(message.splitlines()) == 1, "it is not missing as well"


def test_a_key_that_is_like_none_and_one_that_is_missing_are_two_errors() -> None:
    message = error(TEXT.replace("  folds: 5", "  colour: 5").replace("  network: mlp", "  head: mlp"))
    assert [line.split(" Add")[0].split(" Allowed")[0].split(": ", 1)[1] for line in message.splitlines()] == [
        "train.network: missing.", "train.head: unknown key.", "train.colour: unknown key.",
    ]  # fmt: skip


@pytest.mark.parametrize(("section", "key"), sorted(PLUGIN_KEYS))
def test_a_misspelt_plug_in_is_named_with_the_allowed_files(section: str, key: str) -> None:
    right = getattr(getattr(parse(TEXT), section), key)
    message = error(with_raw(section, key, right[:-2] + right[-1]))
    assert message.startswith(f"params.yaml:{line_of(section, key)}: {section}.{key}: tasks/")
    assert f"Did you mean {right!r}?" in message
    assert ", ".join(plugins.names(PLUGIN_KEYS[section, key][0])) in message


@pytest.mark.parametrize(("section", "key"), sorted(PLUGIN_KEYS))
@pytest.mark.parametrize("name", ['""', "../params", "__init__", "_answers", "margin.py", "a/b"])
def test_a_plug_in_is_a_plain_file_name(section: str, key: str, name: str) -> None:
    assert "Allowed:" in error(with_raw(section, key, name))


def plugins_with_options() -> list[tuple[str, str, str, str]]:
    return [
        (section, key, name, option)
        for (section, key), (folder, options) in PLUGIN_KEYS.items()
        if options
        for name in plugins.names(folder)
        for option in plugins.entry_point(folder, name).options
    ]


def choose(section: str, key: str, name: str, options: dict[str, object]) -> str:
    return set_value(set_value(TEXT, section, key, name), section, "options", options)


@pytest.mark.parametrize(("section", "key", "name", "option"), plugins_with_options())
def test_a_misspelt_option_is_named_with_the_allowed_ones(section: str, key: str, name: str, option: str) -> None:
    wrong = option + "x"
    message = error(choose(section, key, name, {wrong: 1}))
    assert f"params.yaml:{line_of(section, 'options')}: {section}.options.{wrong}: {name} has no such option" in message
    assert f"Did you mean {option!r}?" in message
    assert "Allowed: " in message


WRONG_VALUES: list[Any] = [None, {"a": 1}, [1], float("inf"), float("nan"), True, "text", 10**400]


@pytest.mark.parametrize(("section", "key", "name", "option"), plugins_with_options())
def test_an_option_of_the_wrong_type_is_refused(section: str, key: str, name: str, option: str) -> None:
    default = plugins.entry_point(PLUGIN_KEYS[section, key][0], name).options[option]
    for wrong in WRONG_VALUES:
        if type(wrong) is type(default) and not isinstance(wrong, float | list):
            continue  # this one fits
        raw = {"inf": ".inf", "nan": ".nan"}.get(str(wrong))
        text = choose(section, key, name, {option: "VALUE" if raw else wrong})
        message = error(text.replace('"VALUE"', raw) if raw else text)
        assert re.search(rf"{section}\.options\.{option}(\.0)?: must be ", message)
        assert f"The default is {json.dumps(default)}." in message


RANGES = [
    ("train", "network", "mlp", "hidden", "0", "must be at least 1, not 0. The default is 256."),
    ("train", "network", "mlp", "hidden", "many", "must be a whole number, at least 1, not 'many'. The default is 256."),
    ("train", "network", "mlp", "dropout", "1.0", "must be at least 0 and less than 1, not 1.0. The default is 0.5."),
    ("train", "network", "mlp", "dropout", ".nan", "must be a finite number, at least 0 and less than 1"),
    ("train", "network", "cnn", "rate", "0", "must be more than 0, not 0"),
    ("train", "network", "cnn", "width", "0", "must be at least 1, not 0"),
    ("train", "network", "linear", "l2", "-0.1", "must be at least 0, not -0.1"),
    ("select", "strategy", "kmeans", "iterations", "-1", "must be at least 0, not -1"),
    ("labeling", "tool", "oracle", "error_rate", "1.5", "must be at least 0 and at most 1, not 1.5"),
    ("labeling", "tool", "oracle", "delay_seconds", "-1.5", "must be at least 0, not -1.5"),
    ("labeling", "tool", "oracle", "delay_seconds", ".inf", "must be a finite number, at least 0, not inf"),
    ("embed", "backbone", "torchvision", "precision", "float16", "must be one of float32, bfloat16, not 'float16'"),
    ("source", "kind", "folder", "labels", "folder", "must be one of none, folders, not 'folder'. Did you mean 'folders'?"),
    ("source", "kind", "idx", "classes", "[a, 2]", 'must be text, not 2. Write it in quotes: "2". The default is [].'),
]  # fmt: skip


@pytest.mark.parametrize(("section", "key", "name", "option", "raw", "expected"), RANGES)
def test_an_option_out_of_its_range_is_refused_with_its_line(
    section: str, key: str, name: str, option: str, raw: str, expected: str
) -> None:
    message = error(choose(section, key, name, {option: "VALUE"}).replace('"VALUE"', raw))
    assert message.startswith(f"params.yaml:{line_of(section, 'options')}: {section}.options.{option}")
    assert expected in message


def test_a_limit_of_a_check_out_of_its_range_is_refused_with_its_line() -> None:
    message = error(TEXT.replace("  score_gap:\n", "  score_gap:\n    limit: 60\n"))
    at = line_of("monitor", "score_gap") + 1
    said = "must be at least 0 and at most 1, not 60. The default is 0.6."
    assert message == f"params.yaml:{at}: monitor.score_gap.limit: {said}"


@pytest.mark.parametrize(("section", "key", "name"), sorted({row[:3] for row in plugins_with_options()}))
def test_the_defaults_of_a_plug_in_are_allowed(section: str, key: str, name: str) -> None:
    options = plugins.entry_point(PLUGIN_KEYS[section, key][0], name).options
    assert getattr(parse(choose(section, key, name, options)), section).options == options


@pytest.mark.parametrize("name", plugins.names("checks"))
def test_the_default_limits_of_a_check_are_allowed(name: str) -> None:
    limits = plugins.entry_point("checks", name).options
    assert parse(set_value(TEXT, "monitor", name, {"severity": "warn", **limits})).monitor[name].limits == limits


def test_the_right_option_is_kept() -> None:
    params = parse(choose("train", "network", "mlp", {"hidden": 64, "dropout": 0.1, "decay": 0}))
    assert params.train.options == {"hidden": 64, "dropout": 0.1, "decay": 0}


def test_a_check_that_does_not_exist_and_a_limit_that_it_has_not() -> None:
    message = error(TEXT.replace("  score_gap:", "  score_gpa:"))
    assert f"params.yaml:{line_of('monitor', 'score_gap')}: monitor.score_gpa: monitoring/checks has no" in message
    assert "Did you mean 'score_gap'?" in message
    wrong = TEXT.replace("  score_gap:\n", "  score_gap:\n    limits: 0.5\n")
    message = error(wrong)
    assert (
        f"params.yaml:{line_of('monitor', 'score_gap') + 1}: monitor.score_gap.limits: score_gap has no such" in message
    )
    assert "Did you mean 'limit'?" in message
    assert "sigmas" in message
    assert "severity" in message
    assert parse(wrong.replace("limits: 0.5", "limit: 0.5")).monitor["score_gap"].limits == {"limit": 0.5}


def test_a_severity_is_one_of_three() -> None:
    message = error(TEXT.replace("    severity: block", "    severity: blok"))
    assert "monitor.repeated_selections.severity: must be one of block, warn, off, not 'blok'" in message
    assert "Did you mean 'block'?" in message


def test_all_mistakes_are_told_at_once() -> None:
    text = set_value(set_value(TEXT, "select", "strategy", "margn"), "labeling", "tool", "oracel")
    assert len(error(text).splitlines()) == 2
    text = set_value(set_value(TEXT, "select", "batch", 0), "stop", "patience", 0)
    assert len(error(text).splitlines()) == 2


# types and ranges -----------------------------------------------------------------------------------------

WRONG = [
    ("select", "batch", "twenty", "must be a whole number, at least 1, not 'twenty'"),
    ("select", "batch", '"20"', "must be a whole number"),
    ("select", "batch", "true", "must be a whole number"),
    ("select", "batch", "NO", "must be a whole number, at least 1, not 'NO'"),
    ("select", "batch", "20.5", "must be a whole number"),
    ("select", "batch", "20.0", "must be a whole number"),
    ("select", "batch", "1e-3", "must be a whole number"),
    ("select", "batch", "", "Write a value after the colon"),
    ("select", "batch", "~", "Write a value after the colon"),
    ("select", "batch", "[20]", "must be a whole number"),
    ("select", "batch", "{a: 1}", "must be a whole number"),
    ("select", "batch", "0", "must be at least 1, not 0"),
    ("select", "batch", "-1", "must be at least 1, not -1"),
    ("select", "batch", "9" * 5000, "is not a number that can be used"),
    ("select", "batch", "!!python/object:os.system ls", "the tag"),
    ("train", "folds", "1", "at least 2 are needed"),
    ("campaign", "seed", "4294967296", "less than 4294967296"),
    ("campaign", "name", "5", 'Write it in quotes: "5"'),
    ("campaign", "name", "true", 'Write it in quotes: "true"'),
    ("campaign", "name", '""', "must not be empty"),
    ("campaign", "name", "x" * 101, "at most 100 characters"),
    ("campaign", "name", "[a]", "must be text"),
    ("campaign", "name", '"a\\u0000"', "cannot be shown"),
    ("campaign", "name", '" "', "cannot be shown"),
    ("pool", "mode", "RGBA", "must be one of L, RGB, not 'RGBA'. Did you mean 'RGB'?"),
    ("pool", "size", "1025", "at least 1 and at most 1024, not 1025"),
    ("holdout", "share", "1.0", "at least 0.0 and less than 1.0"),
    ("holdout", "share", ".nan", "finite number"),
    ("holdout", "share", "-.inf", "finite number"),
    ("holdout", "share", "half", "must be a number"),
    ("holdout", "share", "20%", "must be a number"),
    ("holdout", "share", "true", "must be a number"),
    ("labeling", "deadline_hours", ".inf", "finite number"),
    ("labeling", "deadline_hours", "1e400", "finite number"),
    ("labeling", "quorum", "0", "more than 0.0 and at most 1.0"),
    ("labeling", "classes", "deer", "must be a list such as [a, b]"),
    ("labeling", "classes", "{a: 1}", "must be a list"),
    ("labeling", "classes", "[1, 2]", 'labeling.classes.0: must be text, not 1. Write it in quotes: "1"'),
    ("labeling", "classes", "[a, ~]", "labeling.classes.1: must be text"),
    ("labeling", "classes", "[a]", "two or more"),
    ("labeling", "classes", "[a, b, a]", "a: there more than once"),
    ("labeling", "classes", '["", b]', "cannot be typed"),
    ("labeling", "classes", '[" a", b]', "cannot be typed"),
    ("labeling", "classes", '["a\\nb", b]', "cannot be typed"),
    ("source", "options", "[]", "must be a mapping such as {name: value}"),
    ("source", "options", "none", "must be a mapping"),
    ("stop", "target", ".nan", "finite number"),
    ("evaluate", "confidence", "95", "less than 1.0"),
    ("compute", "workers", "0", "at least 1"),
]


@pytest.mark.parametrize(("section", "key", "raw", "expected"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_value_is_refused_with_its_line(section: str, key: str, raw: str, expected: str) -> None:
    message = error(with_raw(section, key, raw))
    assert message.startswith(f"params.yaml:{line_of(section, key)}: ")
    assert expected in message
    assert len(message) < 600


def test_yaml_1_2_values_mean_what_people_mean() -> None:
    params = parse(with_raw("holdout", "share", "1e-3"))
    assert params.holdout.share == 0.001
    assert parse(with_raw("labeling", "classes", "[NO, yes, 2026-01-01]")).labeling.classes == (
        "NO",
        "yes",
        "2026-01-01",
    )
    assert parse(with_raw("campaign", "name", "2026-01-01")).campaign.name == "2026-01-01"
    assert parse(with_raw("campaign", "name", "off")).campaign.name == "off"
    assert parse(with_raw("pool", "shard_items", "10_000")).pool.shard_items == 10_000
    assert parse(with_raw("campaign", "seed", "012")).campaign.seed == 12
    assert parse(with_raw("labeling", "quorum", "1")).labeling.quorum == 1
    assert parse("%YAML 1.1\n---\n" + with_raw("campaign", "name", "NO")).campaign.name == "NO"


@pytest.mark.parametrize("raw", ["0", "[]", "text", "~", ""])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_no_mapping_is_refused(section: str, raw: str) -> None:
    at = line_of(section)
    end = next((i for i in range(at, len(LINES)) if re.match(r"\w", LINES[i])), len(LINES))
    message = error("\n".join([*LINES[: at - 1], f"{section}: {raw}", *LINES[end:]]))
    assert message.startswith(f"params.yaml:{at}: {section}: must be a ")


# broken files ---------------------------------------------------------------------------------------------


def test_a_missing_section_and_a_missing_key_are_named() -> None:
    at, end = line_of("stop"), line_of("track")
    assert "stop: missing. Add it" in error("\n".join([*LINES[: at - 1], *LINES[end - 1 :]]))
    number = line_of("select", "batch")
    message = error("\n".join([*LINES[: number - 1], *LINES[number:]]))
    assert message.startswith(f"params.yaml:{line_of('select')}: select.batch: missing. Add it")


def test_a_key_that_is_there_twice_is_refused_with_both_lines() -> None:
    number = line_of("select", "batch")
    message = error("\n".join([*LINES[:number], "  batch: 3", *LINES[number:]]))
    assert message == f"params.yaml:{number + 1}: 'batch' is there twice (first in line {number}). Keep one."
    assert "'select' is there twice" in error(TEXT + "\nselect:\n  batch: 3\n")


BROKEN = {
    "empty": ("", "params.yaml: empty"),
    "comments only": ("# nothing\n", "params.yaml: empty"),
    "a list": ("- a\n", "params.yaml: empty, or not a mapping"),
    "text": ("hello", "params.yaml: empty, or not a mapping"),
    "an alias": (
        with_raw("select", "batch", "&x 5").replace("first_batch: 20", "first_batch: *x"),
        r"params\.yaml:\d+: &x is used again",
    ),
    "a loop": ("a: &a [*a]\n", "params.yaml:1: &a is used again"),
    "a bomb": ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "params.yaml:1: &a is used again"),
    "a key that is a list": ("? [a]\n: 1\n", "params.yaml:1: a key must be a word"),
    "deep": ("a: " + "[" * 20_000, "params.yaml: brackets are nested too deeply"),
    "a number as key": (TEXT + "\n5: 1\n", "5: unknown key"),
    "an unknown section": (TEXT + "\nalarms:\n  a: 1\n", r"params\.yaml:\d+: alarms: unknown key"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_file_is_refused(name: str) -> None:
    text, expected = BROKEN[name]
    assert re.search(expected, error(text))


#: name -> text that is no YAML, and what is said of it
NO_YAML = {
    "a tab": (TEXT.replace("  seed: 0", "\tseed: 0"), "8:1: a tab where YAML allows only spaces. Put spaces"),
    "a tab behind a colon": ("a:\t1\n", "1:3: a tab where YAML allows only spaces. Put spaces"),
    "an indent too deep": (
        "a:\n  b: 1\n   c: 2\n",
        "3:5: a colon that cannot be here. Indent this key like its neighb",
    ),
    "an indent too small": ("a:\n    b: 1\n  c: 2\n", "3:3: indented unlike the lines above. Give all keys"),
    "a first key indented": (" a: 1\nb: 2\n", "2:1: indented unlike the lines above. Give all keys"),
    "no space behind a colon": ("a:\n  b: 1\n  c:2\n", "3:3: no colon and space behind the key. Write `key: value`"),
    "a conflict of git": ("a: 1\n<<<<<<< HEAD\nb: 1\n", "2:1: no colon and space behind the key"),
    "two colons": ("a: b: c\n", '1:5: a second colon. Put text that holds a colon into quotes: "a: b".'),
    "an open quote": ('a: 1\nb: "x\nc: 1\n', "2:4: the quote that begins here is never closed. Close it on its line."),
    "text behind a quote": ('a: "x" y\n', "1:8: text behind a closing quote. Put all of it into one pair of quotes"),
    "an open bracket": ("a: [1, 2\nb: 1\n", "1:4: this bracket is not closed, or a comma is missing. Write [a, b]"),
    "a missing comma": ("a: {x: 1 y: 2}\n", "1:4: this bracket is not closed, or a comma is missing. Write [a, b]"),
    "a bracket too many": ("a: ]\n", "1:4: text cannot begin with this sign. Put it into quotes."),
    "a list among keys": ("a:\n  b: 1\n  - 2\n", "3:3: a list item among keys. Write a list in brackets: [a, b]."),
    "a backslash": (
        'a: "(.*)_\\d"\n',
        "1:11: a backslash within double quotes. Use single quotes, which leave it alone",
    ),
    "an at sign": ("a: @x\n", "1:4: text cannot begin with this sign. Put it into quotes."),
    "a star": ("a: *.jpg\n", "1:4: text that begins with *, & or ! means something else in YAML. Put it into quotes."),
    "a bar": ("a: |x\n", "1:5: text that begins with | or > means something else in YAML. Put it into quotes."),
    "two documents": ("a: 1\n---\na: 1\n", "2:1: a second document begins here. Remove the line of ---"),
    "a directive": ("%YAML x\n---\na: 1\n", "1:7: a line that begins with % means something else in YAML. Remove it."),
    "nul": ("a: 1\nb: \x00\n", "2:4: a control sign (number 0), which no text has. Remove it."),
}


@pytest.mark.parametrize("name", sorted(NO_YAML))
def test_what_is_no_yaml_is_told_in_plain_words_with_line_column_and_the_fix(name: str) -> None:
    text, expected = NO_YAML[name]
    message = error(text)
    assert message.startswith(f"params.yaml:{expected}")
    assert len(message.splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(BadInput, match="not a campaign workspace"):
        load(path)
    path.write_bytes(b"campaign:\n  name: Reh\xe9\n")
    with pytest.raises(BadInput, match=r"params\.yaml:2: not UTF-8 .* at byte 21\)"):
        load(path)
    path.write_bytes(TEXT.encode("utf-16"))
    with pytest.raises(BadInput, match="Save it as UTF-8"):
        load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(BadInput, match="cannot be read"):
        load(path)


@pytest.mark.parametrize("change", ["\ufeff{}", "{}\n\n\n", "crlf"])
def test_a_byte_order_mark_and_windows_line_ends_are_harmless(change: str, tmp_path: Path) -> None:
    text = TEXT.replace("\n", "\r\n") if change == "crlf" else change.format(TEXT)
    (tmp_path / "params.yaml").write_bytes(text.encode())
    assert load(tmp_path / "params.yaml") == parse(TEXT)


# what fits together ---------------------------------------------------------------------------------------


def test_a_strategy_that_needs_samples_refuses_a_network_without_dropout() -> None:
    text = set_value(set_value(TEXT, "select", "strategy", "bald"), "train", "network", "linear")
    message = error(text)
    assert message.startswith(f"params.yaml:{line_of('select', 'strategy')}: select.strategy: 'bald' needs samples")
    assert "Networks that do: cnn, mlp." in message
    parse(set_value(TEXT, "select", "strategy", "bald"))
    still = set_value(set_value(TEXT, "select", "strategy", "bald"), "train", "options", {"dropout": 0.0})
    assert "train.options.dropout is 0.0" in error(still)


def test_a_cold_start_that_needs_a_model_is_refused() -> None:
    message = error(set_value(TEXT, "select", "cold_start", "margin"))
    assert message.startswith(
        f"params.yaml:{line_of('select', 'cold_start')}: select.cold_start: 'margin' needs a trained"
    )
    assert "Allowed: k_center, kmeans, uniform." in message


def test_a_network_of_pixels_refuses_features_of_a_backbone() -> None:
    text = set_value(set_value(TEXT, "train", "network", "cnn"), "embed", "backbone", "torchvision")
    message = error(text)
    assert message.startswith(f"params.yaml:{line_of('train', 'network')}: train.network: 'cnn' learns from pixels")
    assert "Set embed.backbone: pixels" in message
    parse(set_value(TEXT, "train", "network", "cnn"))


# plug-ins are read, not imported ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def utility(x, *, a=1)\n", r"margin\.py:1: not valid Python"),
        ("\n\ndef utility(x, *, a=int('3')): ...\n", r"margin\.py:3: option a: must be a literal"),
        ("def utility(x, *,\n a=3): ...\n", r"margin\.py:2: option a: its type must be one of int, float, bool, str"),
        ("def utility(x, *, a: int | None = None): ...\n", r"margin\.py:1: option a: its type must be one of int"),
        ("def utility(x, *, a: Annotated[int, Interval(least=1)] = 3): ...\n", r"Annotated\[int, Interval\(ge=1\)\]"),
        ("def other(): ...\n", "defines none of: utility, batch"),
        ("x = '\udc80'\n", "not valid Python"),
    ],
)
def test_a_plug_in_that_cannot_be_read_is_named(
    source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tasks/strategies"
    folder.mkdir(parents=True)
    (folder / "margin.py").write_bytes(source.encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(plugins, "ROOT", tmp_path)
    with pytest.raises(BadInput, match=expected):
        plugins.entry_point.__wrapped__("strategies", "margin")


def test_loading_imports_no_plug_in_and_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.params import load; load(Path('params.yaml'));"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch','sklearn','mlflow','prefect','dvc','PIL','matplotlib')"
        " or m.startswith(('tasks.strategies.', 'tasks.networks.', 'monitoring'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mistake_has_no_effect_and_leaves_by_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(set_value(TEXT, "select", "batch", 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for task in ("ingest", "import_labels", "export", "train", "select"):
        done = subprocess.run(
            [sys.executable, "-m", f"tasks.{task}"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert re.fullmatch(
            rf"error: .*params\.yaml:{line_of('select', 'batch')}: select\.batch: must be .*\n", done.stderr
        )
    assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]


# anything at all -------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["{", "}", "[", "]", ":", ": ", "- ", "\n", "\n  ", "\t", "&a", "*a", "!!int", "!x", "|", ">", "%YAML 1.1", "---", "...",
     "'", '"', "\\x", "#", "?", "<<", "~", "0x", ".inf", "1:30", "a", "select", "batch", "\ud800", "\x85", "\u2028", "`", "@"]
)  # fmt: skip
TOKENS = st.lists(WORDS, max_size=25).map("".join)


def returns_or_refuses(text: str) -> None:
    try:
        assert isinstance(parse(text), Params)
    except BadInput as refused:
        assert str(refused)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(st.characters(codec=None, exclude_categories=[]), max_size=60), TOKENS))
def test_arbitrary_text_is_refused_and_nothing_else_is_raised(text: str) -> None:
    returns_or_refuses(text)


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(KEYS), raw=st.one_of(TOKENS, st.text(max_size=20), st.floats().map(str), st.integers().map(str))
)
def test_an_arbitrary_value_anywhere_is_read_or_refused(key: tuple[str, str], raw: str) -> None:
    returns_or_refuses(with_raw(*key, raw))


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, len(TEXT)), junk=TOKENS, cut=st.integers(0, 40))
def test_a_damaged_file_is_read_or_refused(at: int, junk: str, cut: int) -> None:
    returns_or_refuses(TEXT[:at] + junk + TEXT[at + cut :])


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(codec="ascii", exclude_categories=["Cc"]))
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1), st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3)), min_size=1
    )
)
def test_what_is_written_as_json_is_read_back_the_same(value: dict[str, Any]) -> None:
    assert read(json.dumps(value), "x.yaml").value() == value


CHANNELS: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt channel": ({"channels": ["log", "aprise"]}, "alerts.channels.1: monitoring/alerts has no 'aprise'. Allowed: apprise, log. Did you mean 'apprise'?"),
    "a channel twice": ({"channels": ["log", "log"]}, "alerts.channels.1: 'log' is there twice"),
    "a misspelt option": ({"options": {"apprise": {"timeout": 3.0}}}, "alerts.options.apprise.timeout: apprise has no such option. Allowed: timeout_seconds. Did you mean 'timeout_seconds'?"),
    "a wrong option": ({"options": {"apprise": {"timeout_seconds": 0.0}}}, "alerts.options.apprise.timeout_seconds: must be more than 0"),
    "options of no channel": ({"options": {"lgo": {"logger": "x"}}}, "alerts.options.lgo: options of a channel that is not in alerts.channels (log, apprise). Did you mean 'log'?"),
    "a misspelt event": ({"events": ["tick_fails"]}, "alerts.events.0: must be one of finding_blocks"),
    "a negative limit": ({"waiting_hours": -1.0}, "alerts.waiting_hours: must be at least 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANNELS)
def test_what_is_wrong_with_alerts_is_named_with_its_line(name: str) -> None:
    changes, told = CHANNELS[name]
    text = TEXT
    for key, value in changes.items():
        text = set_value(text, "alerts", key, value)
    with pytest.raises(BadInput) as error:
        parse(text)
    line = str(error.value).split(":")[1]
    assert told in str(error.value) and line.isdigit() and text.splitlines()[int(line) - 1].strip()


def test_params_of_before_there_were_alerts_are_read_with_the_defaults() -> None:
    before = re.sub(r"^alerts:.*?(?=^compute:)", "", TEXT, flags=re.S | re.M)
    assert "alerts" not in before.replace("alerts:", "") and parse(before).alerts == parse(TEXT).alerts
