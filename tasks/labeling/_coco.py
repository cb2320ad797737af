"""COCO files: one category an image is its answer. Boxes and outlines are not looked at, only their category.

    {"images": [{"id": 1, "file_name": "0000_1f3a.png"}], "categories": [{"id": 1, "name": "deer"}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "attributes": {"annotator": "ann", "seconds": 3.5}}]}

What the model suggests goes out as a field of the image: an annotation is always somebody's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tasks.labeling import Task
from tasks.labeling._rows import SHOWN, Row

PARTS = ("images", "annotations", "categories")
Index = dict[Any, list[Mapping[str, Any]]]


def is_coco(value: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a COCO file, whole or damaged, and no mapping from image to label."""
    return any(isinstance(value.get(part), list) for part in PARTS)


def coco(
    tasks: Sequence[Task], names: Mapping[str, str], classes: Sequence[str], sizes: Mapping[str, tuple[int, int] | None]
) -> dict[str, Any]:
    """A batch without answers; `names` and `sizes` (width, height) are by task key."""
    return {
        "info": {"description": "A batch of Gleaner: add one annotation an image, its category is the answer"},
        "images": [_image(number, task, names[task.key], sizes.get(task.key)) for number, task in enumerate(tasks, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
        "annotations": [],
    }


def _image(number: int, task: Task, name: str, size: tuple[int, int] | None) -> dict[str, Any]:
    measured = {} if size is None else {"width": size[0], "height": size[1]}
    suggested = {} if task.predicted is None else {"suggestion": task.predicted, "confidence": task.confidence}
    ours = {"key": task.key, "rank": task.rank, "arm": task.arm}
    return {"id": number, "file_name": f"images/{name}", **measured, **ours, **suggested}


def read_coco(value: Mapping[str, Any]) -> Iterator[Row]:
    """One row an image that has annotations, and one each annotation that belongs to none."""
    images, categories = _by_id(value.get("images")), _by_id(value.get("categories"))
    found: dict[Any, list[tuple[int, Mapping[str, Any]]]] = {}
    annotations = value.get("annotations")
    for number, annotation in enumerate(annotations if isinstance(annotations, list) else (), start=1):
        wrong = _wrong(annotation, images)
        if wrong:
            yield Row(number, error=wrong, value=str(annotation)[:SHOWN])
        else:
            found.setdefault(annotation["image_id"], []).append((number, annotation))
    for name, group in found.items():
        yield _answer(images[name][0], group, categories)


def _by_id(entries: Any) -> Index:
    found: Index = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int | str):
            found.setdefault(entry["id"], []).append(entry)
    return found


def _wrong(annotation: Any, images: Index) -> str:
    """Why an annotation belongs to no image; "" when it does."""
    if not isinstance(annotation, Mapping):
        return 'an annotation must be an object such as {"id": 1, "image_id": 1, "category_id": 1}'
    name = annotation.get("image_id")
    count = len(images.get(name, ())) if isinstance(name, int | str) else 0
    if count == 1:
        return ""
    return f"image_id {str(name)[:SHOWN]!r} is the id of {count or 'none'} of `images`; it must be that of one"


def _answer(image: Mapping[str, Any], group: list[tuple[int, Mapping[str, Any]]], categories: Index) -> Row:
    named = {_category(annotation.get("category_id"), categories) for _, annotation in group}
    names = sorted(name for name in named if name)
    given = {name: _first(group, name) for name in ("annotator", "seconds", "ground_truth")}
    whole = Row(group[0][0], key=image.get("key"), image=image.get("file_name"), **given)
    if None in named:
        wrong = next(a.get("category_id") for _, a in group if _category(a.get("category_id"), categories) is None)
        reason = f"category_id {str(wrong)[:SHOWN]!r} is the id of no category, or of several; it must be that of one"
        return replace(whole, error=reason, value=wrong)
    if len(names) != 1:
        listed = ", ".join(repr(name) for name in names)[:SHOWN]
        reason = f"the image has annotations of {len(names)} classes: {listed}; one class an image is allowed: keep one"
        return replace(whole, error=reason, value=listed)
    return replace(whole, label=names[0])


def _category(number: Any, categories: Index) -> str | None:
    held = categories.get(number, []) if isinstance(number, int | str) else []
    name = held[0].get("name") if len(held) == 1 else None
    return name if isinstance(name, str) and name.strip() else None


def _first(group: list[tuple[int, Mapping[str, Any]]], name: str) -> Any:
    """A value of the first annotation that has it, among its own fields or its attributes."""
    for _, annotation in group:
        attributes = annotation.get("attributes")
        for place in (annotation, attributes if isinstance(attributes, Mapping) else {}):
            if place.get(name) not in (None, ""):
                return place[name]
    return None
