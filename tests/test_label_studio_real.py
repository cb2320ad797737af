"""The adapter against the real Label Studio: the contract of labeling tools, and what people do in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.errors import BadInput
from tasks.labeling import Answer, RawEvent, Task, Uninterpretable
from tasks.labeling import _label_studio_api as api_module
from tasks.labeling.label_studio import LabelStudio
from tests import test_labeling as contract
from tests.annotators import events_of, make_place, make_tasks
from tests.real_label_studio import Person, RealLabelStudio, choice, connected

pytestmark = pytest.mark.slow

#: what class names may hold: XML's and Label Studio's own characters, other alphabets, formulas
ODD = (
    "deer", '"quoted" \'both\'', "<b>bold</b>", "fish & chips", "&amp;", "$key", "price in $", "a,b;c", "back\\slash",
    "=cmd|' /C calc'!A0", "猫 🐱", "שלום", "\u202egnp.exe", "e\u0301", "{{mustache}}", "100 %", "[x]", "-", "None", "nul\ttab",
)  # fmt: skip


# the contract -----------------------------------------------------------------------------------------------


@pytest.fixture
def contracted(real: RealLabelStudio, monkeypatch: pytest.MonkeyPatch) -> RealLabelStudio:
    """tests/test_labeling.py talks to the real server."""

    def connect(name: str, root: Path, campaign: str = "camp-1", **options: Any) -> LabelStudio:
        return connected(real, replace(make_place(root), campaign=campaign), **options)

    def submit(root: Path) -> None:
        for task in tasks_of(real):
            if not task["annotations"]:
                real.person("ann@example.com").label(task["id"], "fox")

    def lose(root: Path) -> None:
        for task in tasks_of(real):
            real.admin.delete_task(task["id"])

    monkeypatch.setattr(contract, "connect", connect)
    monkeypatch.setitem(contract.ANNOTATORS, "label_studio", submit)
    monkeypatch.setitem(contract.LOSSES, "label_studio", lose)
    return real


def tasks_of(server: RealLabelStudio) -> list[dict[str, Any]]:
    """Every task of every project, as the server tells it."""
    projects = server.admin.get("/api/projects/?page_size=1000")["results"]
    pages = [server.admin.get(f"/api/tasks/?project={each['id']}&fields=all&page_size=1000") for each in projects]
    return [task for page in pages for task in page["tasks"]]


@pytest.mark.parametrize(
    "test",
    [
        contract.test_there_is_one_receipt_a_task_in_order,
        contract.test_a_batch_that_is_sent_twice_is_there_once,
        contract.test_pulling_twice_gives_the_same_events,
        contract.test_events_are_json_and_mean_the_tasks_that_were_sent,
        contract.test_the_instance_stays_the_same_and_differs_elsewhere,
        contract.test_nothing_to_send_and_nothing_to_pull_is_fine,
        contract.test_lost_tasks_are_told_and_can_be_sent_again,
        partial(contract.test_half_a_batch_that_is_there_is_adopted_and_the_rest_added, half=4),
    ],
    ids=lambda test: getattr(test, "__name__", "half_a_batch_is_adopted").removeprefix("test_"),
)
def test_the_contract_of_labeling_tools(contracted: RealLabelStudio, tmp_path: Path, test: Callable[..., None]) -> None:
    test(name="label_studio", tmp_path=tmp_path)


# out and in -------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """Eight tasks: the second is of the control arm, the third of the holdout, which get no suggestion."""
    asked = make_tasks(tmp_path)
    hidden = {1: "control", 2: "holdout"}
    return [replace(t, arm=hidden[t.rank], predicted=None, confidence=None) if t.rank in hidden else t for t in asked]


@pytest.fixture
def tool(real: RealLabelStudio, tmp_path: Path) -> LabelStudio:
    return connected(real, make_place(tmp_path))


@pytest.fixture
def sent(real: RealLabelStudio, tool: LabelStudio, tasks: list[Task], tmp_path: Path) -> LabelStudio:
    """A connection after the batch went out."""
    tool.push(tasks)
    return connected(real, replace(make_place(tmp_path), instance=tool.instance))


@pytest.fixture
def ann(real: RealLabelStudio) -> Person:
    return real.person("ann@example.com")


@pytest.fixture
def bob(real: RealLabelStudio) -> Person:
    return real.person("bob@example.com")


def number(tool: LabelStudio) -> int:
    """The project's."""
    return int(tool.address.split("/projects/")[1].split("/")[0])


def in_order(server: RealLabelStudio) -> list[dict[str, Any]]:
    return sorted(tasks_of(server), key=lambda task: int(task["data"]["rank"]))


def answers(tool: LabelStudio) -> list[Answer]:
    return [tool.interpret(event.payload) for event in events_of(tool)]


def after(tool: LabelStudio, live: list[RawEvent]) -> list[Answer | str]:
    """What stands once deletions are told as well; reasons for what means nothing."""
    newest = {event.annotation_id: event for event in [*live, *events_of(tool)]}
    gone = {event.annotation_id for event in tool.deleted(newest.values())}
    return [_meaning(tool, event) for key, event in newest.items() if key not in gone]


def _meaning(tool: LabelStudio, event: RawEvent) -> Answer | str:
    try:
        return tool.interpret(event.payload)
    except Uninterpretable as reason:
        return str(reason)


def test_class_names_of_any_characters_come_back_as_they_went_out(
    real: RealLabelStudio, ann: Person, tmp_path: Path
) -> None:
    tool = connected(real, replace(make_place(tmp_path), classes=ODD))
    asked = [replace(task, predicted=name) for task, name in zip(make_tasks(tmp_path, len(ODD)), ODD, strict=True)]
    tool.push(asked)
    labels = real.admin.get(f"/api/projects/{number(tool)}/")["parsed_label_config"]["label"]["labels"]
    assert labels == list(ODD)
    for task in in_order(real):
        (suggestion,) = task["predictions"]
        assert suggestion["result"][0]["value"]["choices"] == [ODD[task["data"]["rank"]]]
        ann.submit(task["id"], suggestion["result"], parent_prediction=suggestion["id"])
    assert [(answer.label, answer.accepted) for answer in answers(tool)] == [(name, True) for name in ODD]


def test_a_class_that_is_added_later_is_offered_beside_the_old_ones(
    real: RealLabelStudio, ann: Person, sent: LabelStudio, tmp_path: Path
) -> None:
    classes = (*sent.place.classes, *ODD[1:])
    grown = replace(sent, place=replace(sent.place, classes=classes))
    grown.push(make_tasks(tmp_path, iteration=1))
    labels = real.admin.get(f"/api/projects/{number(sent)}/")["parsed_label_config"]["label"]["labels"]
    assert labels == list(dict.fromkeys(classes))


def test_the_next_task_follows_our_rank_for_everybody(sent: LabelStudio, ann: Person, bob: Person) -> None:
    seen = []
    for person in (ann, bob, ann, bob):
        task = person.next(number(sent))
        assert task is not None
        seen.append(task["data"]["rank"])
        person.label(task["id"], "fox")
    assert seen == [0, 1, 2, 3]


def test_a_second_batch_comes_after_the_first(sent: LabelStudio, ann: Person, tmp_path: Path) -> None:
    sent.push([replace(task, rank=7 - task.rank) for task in make_tasks(tmp_path, iteration=1)])
    seen = []
    while (task := ann.next(number(sent))) is not None:
        seen.append((task["data"]["iteration"], task["data"]["rank"]))
        ann.label(task["id"], "fox")
    assert seen == [(iteration, rank) for iteration in (0, 1) for rank in range(8)]


def test_people_who_measure_the_model_see_no_suggestion(real: RealLabelStudio, sent: LabelStudio) -> None:
    shown = {task["data"]["arm"]: len(task["predictions"]) for task in in_order(real)}
    assert shown == {"active": 1, "control": 0, "holdout": 0}


def test_suggestions_are_those_of_the_newest_model_only(
    real: RealLabelStudio, sent: LabelStudio, ann: Person, tmp_path: Path
) -> None:
    def shown() -> Any:
        return real.admin.get(f"/api/projects/{number(sent)}/")["model_version"]

    first = ann.next(number(sent))
    assert first is not None
    assert (shown(), [p["model_version"] for p in first["predictions"]]) == ("iteration-0", ["iteration-0"])
    connected(real, sent.place).push(make_tasks(tmp_path, iteration=1))
    assert shown() == "iteration-1"
    while (task := ann.next(number(sent))) is not None and task["data"]["iteration"] == 0:
        assert task["predictions"] == [], "what is left of an older batch is answered without"
        ann.label(task["id"], "fox")
    assert task is not None
    assert [p["model_version"] for p in task["predictions"]] == ["iteration-1"]


def test_the_image_is_the_items_bytes_and_only_for_people_with_an_account(
    real: RealLabelStudio, ann: Person, tmp_path: Path
) -> None:
    content = (Path(__file__).parent.parent / "docs/images/learning_curve.png").read_bytes()
    (tmp_path / "photo.png").write_bytes(content)
    item = hashlib.sha256(content).hexdigest()
    tool = connected(real, make_place(tmp_path))
    tool.push([Task(f"camp-1:0:{item}", item, 0, 0, "active", tmp_path / "photo.png")])
    (task,) = tasks_of(real)
    answer = ann.session.get(task["data"]["image"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert hashlib.sha256(answer.content).hexdigest() == item
    stranger = httpx.get(real.url + task["data"]["image"])
    assert stranger.status_code in (302, 401, 403)
    assert content not in stranger.content


def test_a_task_that_somebody_imported_twice_is_there_once_afterwards(
    real: RealLabelStudio, sent: LabelStudio, tasks: list[Task]
) -> None:
    twins = [{"data": task["data"]} for task in tasks_of(real)[:3]]
    real.admin.call("POST", f"/api/projects/{number(sent)}/import", twins)
    assert len(tasks_of(real)) == len(tasks) + 3
    sent.push(tasks)
    assert sorted(task["data"]["key"] for task in tasks_of(real)) == sorted(task.key for task in tasks)


# what people do ---------------------------------------------------------------------------------------------


def test_every_kind_of_annotation_is_read_for_what_it_is(real: RealLabelStudio, sent: LabelStudio, ann: Person) -> None:
    task = {each["data"]["rank"]: each for each in in_order(real)}
    suggestion = task[0]["predictions"][0]
    ann.submit(task[0]["id"], suggestion["result"], parent_prediction=suggestion["id"])
    ann.label(task[1]["id"], "fox")
    ann.skip(task[2]["id"])
    ann.label(task[3]["id"], "fox", parent_prediction=task[3]["predictions"][0]["id"])
    ann.submit(task[4]["id"], [])
    ann.label(task[5]["id"], "deer", ground_truth=True)
    ann.call("POST", f"/api/tasks/{task[6]['id']}/drafts", {"result": choice("fox"), "lead_time": 1.0})
    ann.submit(task[7]["id"], choice("fox") + choice("deer"))
    told = [_meaning(sent, event) for event in events_of(sent)]
    found = [(a.kind, a.label, a.truth, a.accepted) for a in told if isinstance(a, Answer)]
    assert found == [
        ("label", "deer", False, True),
        ("label", "fox", False, None),
        ("skip", "", False, None),
        ("label", "fox", False, False),
        ("label", "deer", True, None),
    ]
    assert [text.partition(": ")[2][:16] for text in told if isinstance(text, str)] == [
        "it is empty: nei",
        "it has 2 results",
    ]
    assert {(a.annotator, a.seconds) for a in told if isinstance(a, Answer)} == {("ann@example.com", 2.5)}


def test_an_edit_is_a_new_revision_of_the_same_annotation(
    real: RealLabelStudio, sent: LabelStudio, ann: Person, bob: Person
) -> None:
    made = ann.label(in_order(real)[0]["id"], "fox")
    pages = list(sent.pull(""))
    before = pages[0].events[0]
    bob.edit(made["id"], "deer")
    (now,) = events_of(sent, pages[-1].cursor)
    assert now.annotation_id == before.annotation_id
    assert now.payload != before.payload
    assert (sent.interpret(now.payload).label, sent.interpret(now.payload).annotator) == ("deer", "ann@example.com")
    assert events_of(sent) == [now], "looking again changes nothing"


@pytest.mark.parametrize("what", ["annotation", "task"])
def test_what_is_deleted_is_told(real: RealLabelStudio, sent: LabelStudio, ann: Person, what: str) -> None:
    first, second = (ann.label(task["id"], "fox") for task in in_order(real)[:2])
    live = events_of(sent)
    assert len(after(sent, live)) == 2
    if what == "task":
        ann.delete_task(first["task"])
    else:
        ann.delete_annotation(first["id"])
    (kept,) = after(sent, live)
    assert isinstance(kept, Answer) and kept.key.endswith(
        str(in_order(real)[0 if what == "task" else 1]["data"]["item_id"])
    )
    assert second["task"] != first["task"]


def test_an_annotation_made_from_all_predictions_at_once_is_seen_by_the_next_pull(
    real: RealLabelStudio, sent: LabelStudio
) -> None:
    cursor = list(sent.pull(""))[-1].cursor
    action = f"/api/dm/actions/?id=predictions_to_annotations&project={number(sent)}"
    real.admin.call("POST", action, {"selectedItems": {"all": True, "excluded": []}, "ordering": []})
    told = [sent.interpret(event.payload) for event in events_of(sent, cursor)]
    assert len(told) == 6
    assert {(answer.kind, answer.accepted, answer.seconds) for answer in told} == {("label", None, None)}


def test_two_people_are_asked_about_each_item_where_params_say_so(
    real: RealLabelStudio, tasks: list[Task], ann: Person, bob: Person, tmp_path: Path
) -> None:
    tool = connected(real, replace(make_place(tmp_path), overlap=2))
    tool.push(tasks[:2])
    for person, label in ((ann, "fox"), (bob, "deer")):
        while (task := person.next(number(tool))) is not None:
            person.label(task["id"], label)
    assert real.admin.next(number(tool)) is None, "two have answered: nobody else is asked"
    assert sorted((a.annotator, a.label) for a in answers(tool)) == sorted(
        [("ann@example.com", "fox"), ("bob@example.com", "deer")] * 2
    )


# tokens and servers -----------------------------------------------------------------------------------------


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda value: monkeypatch.setenv(api_module.TOKEN, value)


def test_a_personal_access_token_will_do(
    real: RealLabelStudio, tasks: list[Task], ann: Person, token: Callable[[str], None], tmp_path: Path
) -> None:
    token(ann.personal_access_token())
    tool = connected(real, make_place(tmp_path))
    tool.require()
    tool.push(tasks)
    ann.label(in_order(real)[0]["id"], "fox")
    assert [answer.label for answer in answers(tool)] == ["fox"]


@pytest.mark.parametrize("wrong", ["0" * 40, "header.payload.signature"])
def test_a_wrong_token_is_refused_and_not_repeated(
    real: RealLabelStudio, wrong: str, token: Callable[[str], None], tmp_path: Path
) -> None:
    token(wrong)
    with pytest.raises(BadInput, match=rf"answers 401: the environment variable {api_module.TOKEN} holds a") as refused:
        connected(real, make_place(tmp_path)).require()
    assert wrong not in str(refused.value)


def test_a_project_that_was_deleted_is_refused_and_not_made_anew(
    real: RealLabelStudio, sent: LabelStudio, tasks: list[Task]
) -> None:
    real.wipe()
    with pytest.raises(BadInput, match="no project with the line gleaner:camp-1:"):
        connected(real, sent.place).require()
    assert tasks_of(real) == []
