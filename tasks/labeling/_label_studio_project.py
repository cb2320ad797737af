"""The campaign's project in Label Studio: found by the mark in its description, made when there is none, kept right.

    gleaner:deer-1f3a5b7c:9e107d9d372bb682     campaign, and an identity that is minted when the project is made

A server that was wiped and set up again gives the same numbers to other things; it cannot give this identity.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from tasks.checkpoint import checkpoint
from tasks.errors import BadInput, Unreachable
from tasks.labeling._label_studio_api import Api, NotFound, Refused
from tasks.labeling._label_studio_format import CONTROL, choice, labeling_config

PAGE = 100
MOST_PAGES = 1000


@dataclass(frozen=True)
class Project:
    """A project of ours."""

    id: int
    identity: str
    record: dict[str, Any]  # as the server tells it


def find(api: Api, campaign: str, identity: str, guess: int | None) -> Project | None:
    """The campaign's project with this identity ("": any); `guess` is looked at first. Raises BadInput for two of them."""
    if guess is not None:
        try:
            found = _ours(_record(api.get(f"/api/projects/{guess}/")), campaign, identity)
        except NotFound:
            found = None
        if found is not None:
            return found
    all_found = [p for record in _all(api) if (p := _ours(record, campaign, identity)) is not None]
    if len(all_found) > 1:
        numbers = ", ".join(str(project.id) for project in all_found)
        raise BadInput(
            f"{api.url} has several projects of campaign {campaign} ({numbers}): one was copied. Remove the line gleaner:… "
            "from the description of those that are not the campaign's."
        )
    return Project(all_found[0].id, all_found[0].identity, reread(api, all_found[0].id)) if all_found else None


def reread(api: Api, number: int) -> dict[str, Any]:
    """The project as it is now, counts included."""
    return _record(api.get(f"/api/projects/{number}/"))


def make(api: Api, campaign: str, title: str, classes: Sequence[str], overlap: int) -> Project:
    """Create the project. When the connection breaks, the next try finds it by its mark."""
    identity = secrets.token_hex(8)
    checkpoint("label_studio:project:before")
    record = _record(
        api.post(
            "/api/projects/",
            {
                "title": title[:50],  # Label Studio's limit
                "description": f"Which images are asked about is chosen by Gleaner. Keep this line: gleaner:{campaign}:{identity}",
                "label_config": labeling_config(classes),
                "maximum_annotations": overlap,
                "show_skip_button": True,
                "enable_empty_annotation": False,
                "show_collab_predictions": True,
                "sampling": "Sequential sampling",
            },
        )
    )
    checkpoint("label_studio:project:after")
    return Project(int(record["id"]), identity, record)


def settle(api: Api, project: Project, classes: Sequence[str], overlap: int) -> None:
    """Bring classes and overlap up to date; what people changed otherwise stays."""
    config = with_classes(str(project.record.get("label_config") or ""), classes, api.url)
    _change(api, project, {"maximum_annotations": overlap, "show_collab_predictions": True, "label_config": config})


def suggest(api: Api, project: Project, model_version: str) -> None:
    """Show the predictions of this model as suggestions; the server knows it once a task has one."""
    _change(api, project, {"model_version": model_version})


def _change(api: Api, project: Project, wanted: dict[str, Any]) -> None:
    change = {name: value for name, value in wanted.items() if project.record.get(name) != value}
    if change:
        api.patch(f"/api/projects/{project.id}/", change)
        checkpoint("label_studio:settings:after")


def with_classes(config: str, classes: Sequence[str], where: str) -> str:
    """The project's labeling configuration with every class; unchanged when none is missing. Raises BadInput."""
    try:
        root = ElementTree.fromstring(config)  # noqa: S314 - of our own server, and expat does not fetch entities
    except ElementTree.ParseError:
        root = ElementTree.Element("View")
    control = next((tag for tag in root.iter("Choices") if tag.get("name") == CONTROL), None)
    if control is None:
        raise BadInput(
            f'{where}: the labeling configuration has no <Choices name="{CONTROL}">: somebody changed it. Put it back '
            f"(Settings, Labeling Interface, Code):\n{labeling_config(classes)}"
        )
    offered = {tag.get("alias") or tag.get("value") for tag in control.iter("Choice")}
    missing = [name for name in classes if name not in offered]
    if not missing:
        return config
    for name in missing:
        ElementTree.SubElement(control, "Choice", choice(name))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def serve_folder(api: Api, project: Project, path: str) -> None:
    """Let the server show the files below `path` (as it sees the folder) in this project. Raises BadInput."""
    storages = api.get("/api/storages/localfiles/", {"project": project.id})
    if any(isinstance(each, dict) and each.get("path") == path for each in storages or ()):
        return
    body = {"project": project.id, "path": path, "use_blob_urls": True, "title": "Gleaner: images of the batches"}
    checkpoint("label_studio:storage:before")
    try:
        api.post("/api/storages/localfiles/", body)
    except Refused as error:
        raise BadInput(
            f"{api.url} cannot show the images of {path}. Start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true "
            "and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to the folder above it, which params.yaml names as "
            "labeling.options.document_root (and seen_by_server_as, where the server sees it under another name). "
            f"It says: {error}"
        ) from None
    checkpoint("label_studio:storage:after")


def _all(api: Api) -> Iterator[dict[str, Any]]:
    """Every project of the account."""
    for number in range(1, MOST_PAGES):
        page = api.get("/api/projects/", {"page": number, "page_size": PAGE})
        if not isinstance(page, dict) or not isinstance(page.get("results"), list):
            raise Unreachable(f"{api.url} answers GET /api/projects/ with something else than a list of projects.")
        yield from (_record(each) for each in page["results"])
        if not page.get("next"):
            return


def _ours(record: dict[str, Any], campaign: str, identity: str) -> Project | None:
    mark = re.search(rf"gleaner:{re.escape(campaign)}:([0-9a-f]{{16}})\b", str(record.get("description") or ""))
    if mark is None or identity not in ("", mark[1]):
        return None
    return Project(int(record["id"]), mark[1], record)


def _record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("id"), int):
        raise Unreachable(f"Label Studio answers with something else than a project: {str(value)[:200]}")
    return value


def annotation_count(record: dict[str, Any]) -> int:
    """Annotations of a project, skips included."""
    return int(record.get("total_annotations_number") or 0) + int(record.get("skipped_annotations_number") or 0)
