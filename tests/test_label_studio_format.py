"""Label Studio's shapes: what is written can be imported, what people export is read or refused with its shape."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.labeling import Task, Uninterpretable
from tasks.labeling._label_studio_format import details, labeling_config, read_result, task
from tests.annotators import JSON

NAMES = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Co", "Zl", "Zp"]), min_size=1), unique=True, max_size=6)  # fmt: skip
QUESTION = Task("camp-1:3:ab", "ab", 3, 7, "active", Path("image.png"), 0.5, "deer", 0.9)


def result(*names: Any, **changes: Any) -> dict[str, Any]:
    value = {"choices": list(names)}
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": value, **changes}


#: an annotation as Label Studio 1.23 exports it
EXPORTED: dict[str, Any] = {
    "id": 1, "completed_by": 1, "result": [result("deer")], "was_cancelled": False, "ground_truth": False,
    "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z", "lead_time": 3.2,
    "prediction": {"id": 1, "model_version": "iteration-3", "result": [result("deer")], "score": 0.9},
    "unique_id": "da17f27c", "last_action": None, "task": 1, "project": 1,
    "parent_prediction": None, "parent_annotation": None,
}  # fmt: skip


def test_the_configuration_offers_the_classes_as_one_choice_of_the_image() -> None:
    view = ElementTree.fromstring(labeling_config(("deer", "fox")))
    header, choices, image = view
    assert (view.tag, header.tag, choices.tag, image.tag) == ("View", "Header", "Choices", "Image")
    assert "Skip" in header.attrib["value"]
    assert image.attrib == {"name": "image", "value": "$image", "maxHeight": "60vh"}
    assert choices.attrib == {"name": "label", "toName": "image", "choice": "single", "showInline": "true"}
    assert [choice.attrib for choice in choices] == [{"value": "deer"}, {"value": "fox"}]


@given(NAMES)
def test_any_class_name_survives_the_configuration(names: list[str]) -> None:
    choices = ElementTree.fromstring(labeling_config(names))[1]
    assert [choice.get("alias") or choice.get("value") for choice in choices] == names


def test_a_dollar_is_not_read_as_a_field_of_the_task() -> None:
    (choice,) = ElementTree.fromstring(labeling_config(["$key"]))[1]
    assert not re.search(r"\$\w", choice.attrib["value"])
    assert choice.attrib["alias"] == "$key"


def test_a_task_carries_what_is_asked_and_what_the_model_suggests() -> None:
    asked = task(QUESTION, "images/a.png", ("deer", "fox"))
    assert asked["data"] == {
        "image": "images/a.png", "key": "camp-1:3:ab", "batch": "camp-1:3", "item_id": "ab", "iteration": 3, "rank": 7, "utility": 0.5,
        "arm": "active",
    }  # fmt: skip
    assert asked["predictions"] == [{"model_version": "iteration-3", "score": 0.9, "result": [result("deer")]}]
    assert read_result(asked["predictions"][0]) == ("label", "deer")


@pytest.mark.parametrize("classes", [("fox", "owl"), ()])
def test_a_class_that_is_not_offered_is_not_suggested(classes: tuple[str, ...]) -> None:
    assert "predictions" not in task(QUESTION, "a.png", classes)


def test_without_a_model_nothing_is_suggested() -> None:
    question = Task("k", "ab", 0, 0, "seed", Path("a.png"))
    assert task(question, "a.png", ("deer", "fox")).keys() == {"data"}
    assert json.dumps(task(question, "a.png", ()), allow_nan=False)


def test_a_choice_is_a_label() -> None:
    assert read_result(EXPORTED) == ("label", "deer")


@pytest.mark.parametrize("left", [[], [result("deer")]])
def test_a_cancelled_annotation_is_a_skip_whatever_was_chosen_before(left: list[Any]) -> None:
    assert read_result({**EXPORTED, "was_cancelled": True, "result": left}) == ("skip", "")


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": ([], "it is empty: neither a class nor a skip"),
    "no list": (None, "`result` must be a list of results, not None"),
    "a box": ([{**result("deer"), "type": "rectanglelabels"}], "of type rectanglelabels; only one choice"),
    "a text": ([{"from_name": "note", "type": "textarea", "value": {"text": ["a"]}}], "of type textarea"),
    "a choice and a text": ([result("deer"), {"type": "textarea"}], r"2 results \(choices, textarea\); exactly one"),
    "another control": ([result("deer", from_name="mood")], "a choice of 'mood'; the choice must be that of 'label'"),
    "two classes": ([result("deer", "fox")], r"2 classes are chosen \('deer', 'fox'\); exactly one is allowed"),
    "no class": ([result()], r"0 classes are chosen \(none\)"),
    "a number": ([result(5)], r"must be a list of class names, not \[5\]"),
    "a path of a taxonomy": ([result(["animal", "deer"])], "must be a list of class names"),
    "no value": ([result(value=None)], "must be a list of class names, not None"),
    "no object": (["deer"], "of type unknown"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_exactly_one_choice_is_refused_with_its_shape(name: str) -> None:
    given_result, expected = REFUSED[name]
    with pytest.raises(Uninterpretable, match=expected):
        read_result({**EXPORTED, "result": given_result})


def test_details_are_those_that_are_known() -> None:
    assert details(EXPORTED) == {"annotator": "1", "seconds": 3.2}
    assert details({}) == {"annotator": ""}
    assert details({"completed_by": {"id": 4, "email": "ann@example.org"}}) == {"annotator": "ann@example.org"}
    assert details({**EXPORTED, "ground_truth": True})["ground_truth"] is True


@pytest.mark.parametrize("chosen, accepted", [("deer", True), ("fox", False)])
def test_a_suggestion_is_accepted_when_the_answer_made_from_it_says_the_same(chosen: str, accepted: bool) -> None:
    made = {**EXPORTED, "parent_prediction": 1, "result": [result(chosen)]}
    assert details(made)["accepted"] is accepted
    elsewhere = [{"id": 2, "result": [result("owl")]}, made["prediction"]]
    assert details({**made, "prediction": {}}, elsewhere)["accepted"] is accepted
    assert "accepted" not in details({**made, "prediction": {}}, [1])


def test_a_skipped_suggestion_is_not_accepted() -> None:
    skipped = {**EXPORTED, "parent_prediction": 1, "was_cancelled": True, "result": []}
    assert details(skipped)["accepted"] is False


FIELDS = st.sampled_from([*EXPORTED, "type", "value", "from_name", "choices", "email"])


@given(st.dictionaries(FIELDS, JSON | st.just([result("deer")]) | st.just({"result": [result("deer")]})), JSON)
def test_any_annotation_is_read_or_refused_with_a_short_reason(annotation: dict[str, Any], predictions: Any) -> None:
    json.dumps(details(annotation, predictions))
    try:
        kind, label = read_result(annotation)
    except Uninterpretable as reason:
        assert 0 < len(str(reason)) < 1500
    else:
        assert (kind == "label") == bool(label) or label == ""
