"""Label Studio's own shapes: labeling configuration, tasks and annotations. Pure: no file and no server here.

    labeling_config(("deer", "fox"))                    ->  <View><Header …/><Choices …><Choice value="deer"/>…
    task(question, "images/0000_1f3a.png", classes)     ->  {"data": {…}, "predictions": [{…}]}
    read_result({"result": [{"type": "choices", …}]})   ->  ("label", "deer")
    details({"completed_by": 1, "lead_time": 3.2, …})   ->  {"annotator": "1", "seconds": 3.2}

The shapes are those of Label Studio 1.23, for one image and one choice: what people add to the configuration (boxes,
text fields, a second choice) is not guessed at but refused with its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from tasks.labeling import Task, Uninterpretable

IMAGE = "image"  # name of the image tag and of its field in a task's data
CONTROL = "label"  # name of the choices tag
INSTRUCTION = "Choose one class (its key is in brackets), then Submit. None fits: Skip."
SHORT = 200  # characters of somebody's value that are shown


def labeling_config(classes: Sequence[str]) -> str:
    """The labeling configuration (XML) that offers `classes` as one choice above the image.

    Label Studio magnifies small images: what is below them would be out of sight, hence the order and the height.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Header", value=INSTRUCTION, size="5")
    shape = {"name": CONTROL, "toName": IMAGE, "choice": "single", "showInline": "true"}
    choices = ElementTree.SubElement(view, "Choices", shape)
    for name in classes:
        ElementTree.SubElement(choices, "Choice", choice(name))
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", maxHeight="60vh")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def choice(name: str) -> dict[str, str]:
    """Label Studio reads `$word` in a value as a field of the task; only an alias reaches the results as it stands."""
    return {"value": name.replace("$", "$\N{WORD JOINER}"), "alias": name} if "$" in name else {"value": name}


def task(task: Task, image_url: str, classes: Sequence[str]) -> dict[str, Any]:
    """One task as Label Studio imports it; a prediction only for a class that the configuration offers."""
    data = {
        IMAGE: image_url,
        "key": task.key,
        "batch": task.key.rpartition(":")[0],
        "item_id": task.item_id,
        "iteration": task.iteration,
        "rank": task.rank,
        "utility": task.utility,
        "arm": task.arm,
    }
    if task.predicted is None or task.predicted not in classes:
        return {"data": data}
    return {"data": data, "predictions": [_prediction(task, task.predicted)]}


def _prediction(task: Task, predicted: str) -> dict[str, Any]:
    result = {"from_name": CONTROL, "to_name": IMAGE, "type": "choices", "value": {"choices": [predicted]}}
    score = {} if task.confidence is None else {"score": task.confidence}
    return {"model_version": f"iteration-{task.iteration}", **score, "result": [result]}


def read_result(annotation: Mapping[str, Any]) -> tuple[str, str]:
    """What one annotation says: ("label", class) or ("skip", "").

    Raises Uninterpretable when it says neither: nothing chosen, several choices, or other shapes than one choice.
    """
    if annotation.get("was_cancelled") is True:
        return "skip", ""
    return "label", _choice_of(annotation.get("result"))


def _choice_of(result: Any) -> str:
    if not isinstance(result, list):
        raise Uninterpretable(f"`result` must be a list of results, not {_shown(result)}")
    if not result:
        raise Uninterpretable("it is empty: neither a class nor a skip. Choose a class, or skip the task")
    if len(result) > 1:
        shapes = ", ".join(_type(each) for each in result[:5])
        raise Uninterpretable(
            f"it has {len(result)} results ({shapes}); exactly one choice is allowed: delete the others"
        )
    (only,) = result
    if _type(only) != "choices":
        raise Uninterpretable(f"it is of type {_type(only)}; only one choice of {CONTROL!r} is allowed: choose a class")
    if only.get("from_name") != CONTROL:
        raise Uninterpretable(
            f'it is a choice of {_shown(only.get("from_name"))}; the choice must be that of {CONTROL!r}: set name="{CONTROL}" '
            "in the labeling configuration"
        )
    value = only.get("value")
    return one_choice(value.get("choices") if isinstance(value, Mapping) else None)


def one_choice(chosen: Any) -> str:
    """The only class of a list of choices. Raises Uninterpretable for none, several or what is no text."""
    if not isinstance(chosen, list) or not all(isinstance(name, str) for name in chosen):
        raise Uninterpretable(f"`choices` must be a list of class names, not {_shown(chosen)}")
    if len(chosen) != 1:
        names = ", ".join(repr(name) for name in chosen[:5])[:SHORT] or "none"
        raise Uninterpretable(
            f"{len(chosen)} classes are chosen ({names}); exactly one is allowed: choose one, or skip"
        )
    return str(chosen[0])


def details(annotation: Mapping[str, Any], predictions: Any = ()) -> dict[str, Any]:
    """Who answered, in how many seconds, whether it is ground truth, and whether a suggestion was accepted.

    Only what is known: `accepted` is there when the annotation was made from a prediction whose class can be read, in
    the annotation's own copy of it or among the task's `predictions`.
    """
    found: dict[str, Any] = {"annotator": _annotator(annotation.get("completed_by"))}
    if annotation.get("lead_time") is not None:
        found["seconds"] = annotation["lead_time"]
    if annotation.get("ground_truth") is True:
        found["ground_truth"] = True
    suggested = _suggested(annotation, predictions)
    if suggested is not None:
        found["accepted"] = _class_of(annotation) == suggested
    return found


def _annotator(by: Any) -> str:
    """`completed_by` is a number in exports and may be a person's record elsewhere."""
    if isinstance(by, Mapping):
        by = by.get("email") or by.get("id")
    return str(by)[:SHORT] if isinstance(by, str | int) and not isinstance(by, bool) else ""


def _suggested(annotation: Mapping[str, Any], predictions: Any) -> str | None:
    number = annotation.get("parent_prediction")
    if number is None:
        return None
    held = [annotation.get("prediction"), *(predictions if isinstance(predictions, list | tuple) else ())]
    for prediction in held:
        if isinstance(prediction, Mapping) and prediction.get("id", number) == number:
            name = _class_of(prediction)
            if name is not None:
                return name
    return None


def _class_of(annotation: Mapping[str, Any]) -> str | None:
    try:
        return read_result(annotation)[1] or None
    except Uninterpretable:
        return None


def _type(result: Any) -> str:
    kind = result.get("type") if isinstance(result, Mapping) else None
    return kind[:SHORT] if isinstance(kind, str) and kind else "unknown"


def _shown(value: Any) -> str:
    return repr(value)[:SHORT]
