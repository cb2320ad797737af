"""The Label Studio adapter against a fake server that fails in every way: nothing is lost, nothing is doubled.

What the real server does is in tests/test_label_studio_real.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tasks.errors import BadInput, Unreachable
from tasks.labeling import RawEvent, Task, Uninterpretable
from tasks.labeling import _label_studio_api as api_module
from tasks.labeling import _label_studio_tasks as tasks_module
from tasks.labeling import label_studio as adapter
from tasks.labeling.label_studio import LabelStudio
from tests.annotators import CLASSES, events_of, make_place, make_tasks
from tests.fake_label_studio import DROP, TOKEN, Answer, FakeLabelStudio, always, at, choice

IMPORT, PAGES, EXPORT, PROJECT = r"/import$", r"^/api/tasks/$", r"/export$", r"^/api/projects/\d+/$"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLabelStudio]:
    """A fake server; three tasks a request, so that a batch of eight takes three."""
    monkeypatch.setenv(api_module.TOKEN, TOKEN)
    monkeypatch.setattr(tasks_module, "CHUNK", 3)
    monkeypatch.setattr(adapter, "CHUNK", 3)
    with FakeLabelStudio() as running:
        yield running


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    return make_tasks(tmp_path)


def connected(server: FakeLabelStudio, root: Path, *, instance: str = "", **options: Any) -> LabelStudio:
    """The adapter; it does not sleep, it writes down how long it would have."""
    tool = adapter.connect(replace(make_place(root), instance=instance), url=server.url, **options)
    tool.api.sleep = SLEPT.append
    return tool


SLEPT: list[float] = []


@pytest.fixture
def tool(server: FakeLabelStudio, tmp_path: Path) -> LabelStudio:
    SLEPT.clear()
    return connected(server, tmp_path)


@pytest.fixture
def sent(tool: LabelStudio, tasks: list[Task], server: FakeLabelStudio, tmp_path: Path) -> LabelStudio:
    """A connection after the batch went out."""
    tool.push(tasks)
    server.requests.clear()
    return connected(server, tmp_path, instance=tool.instance)


def posts(server: FakeLabelStudio) -> list[int]:
    """How many tasks each import brought."""
    return [len(r.body) for r in server.requests if r.method == "POST" and r.path.endswith("/import")]


# out --------------------------------------------------------------------------------------------------------


def test_the_project_is_made_once_with_classes_mark_and_order(
    sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task]
) -> None:
    sent.push(tasks)
    (project,) = server.projects.values()
    assert all(f'value="{name}"' in project["label_config"] for name in CLASSES)
    assert project["sampling"] == "Sequential sampling"
    assert project["description"].endswith(f"gleaner:camp-1:{sent.instance.partition(':')[2]}")
    assert len(server.storages) == 1


def test_tasks_carry_what_is_known_and_come_in_rank_order(
    tool: LabelStudio, server: FakeLabelStudio, tasks: list[Task]
) -> None:
    tool.push(list(reversed(tasks)))
    stored = [server.tasks[number] for number in sorted(server.tasks)]
    assert [task["data"]["rank"] for task in stored] == list(range(8))
    first = stored[0]["data"]
    assert {name: first[name] for name in ("key", "item_id", "iteration", "arm", "utility", "batch")} == {
        "key": tasks[0].key, "item_id": tasks[0].item_id, "iteration": 0, "arm": "active", "utility": 0.5,
        "batch": "camp-1:0",
    }  # fmt: skip
    assert [p["model_version"] for task in stored for p in task["predictions"]] == ["iteration-0"] * 8
    assert server.projects[1]["model_version"] == "iteration-0"


def test_the_image_of_a_task_is_the_items_bytes_in_the_served_folder(
    tool: LabelStudio, server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    tool.push(tasks)
    name = server.tasks[1]["data"]["image"].removeprefix("/data/local-files/?d=")
    assert (tmp_path / ".gleaner/serving" / name).read_bytes() == tasks[0].image.read_bytes()
    assert server.storages[0]["path"] == str(tmp_path / ".gleaner/serving/images")


def test_images_can_be_put_into_another_folder_that_the_server_sees_under_another_name(
    server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    tool = connected(server, tmp_path, document_root="shared", seen_by_server_as="/data")
    tool.push(tasks)
    assert server.storages[0]["path"] == "/data/camp-1"
    name = server.tasks[1]["data"]["image"].removeprefix("/data/local-files/?d=")
    assert (tmp_path / "shared" / name).read_bytes() == tasks[0].image.read_bytes()


def test_a_document_root_that_is_not_there_is_refused(
    server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"document_root: .*nowhere is not a folder"):
        connected(server, tmp_path, document_root="nowhere").push(tasks)


def test_a_folder_that_the_server_does_not_see_is_refused_with_what_to_set(
    server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    server.sees = lambda path: False
    with pytest.raises(BadInput, match=r"cannot show the images of .*DOCUMENT_ROOT.*seen_by_server_as.*does not exist"):
        connected(server, tmp_path).push(tasks)


def test_an_image_that_no_browser_shows_is_shown_as_png(
    server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    levels = np.linspace(0, 65535, 12 * 9).reshape(9, 12).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "scan.tif")
    connected(server, tmp_path).push([replace(tasks[0], image=tmp_path / "scan.tif")])
    name = server.tasks[1]["data"]["image"].removeprefix("/data/local-files/?d=")
    shown = Image.open(tmp_path / ".gleaner/serving" / name)
    assert (shown.format, shown.size) == ("PNG", (12, 9))
    assert np.abs(np.asarray(shown.convert("L"), float) - levels / 257).max() <= 1


def test_images_can_be_behind_addresses(server: FakeLabelStudio, tasks: list[Task], tmp_path: Path) -> None:
    connected(server, tmp_path, image_url="https://images.example/deer/").push(tasks)
    item = tasks[0].item_id
    assert server.tasks[1]["data"]["image"] == f"https://images.example/deer/{item[:2]}/{item}.png"
    assert server.storages == []


@pytest.mark.parametrize("request_number", [1, 2, 3])
@pytest.mark.parametrize(
    "loss", [DROP, Answer(502), Answer(200, raw=b"<html>proxy</html>"), Answer(200, raw=b'{"task_i')]
)
def test_an_import_whose_answer_is_lost_is_adopted(
    tool: LabelStudio, server: FakeLabelStudio, tasks: list[Task], request_number: int, loss: Answer
) -> None:
    server.fault = at(request_number, IMPORT, loss)
    receipts = tool.push(tasks)
    assert Counter(server.keys()) == Counter(task.key for task in tasks)
    assert [server.tasks[int(r.task_id)]["data"]["key"] for r in receipts] == [task.key for task in tasks]
    assert sum(posts(server)) == 8


def test_a_server_that_commits_and_always_drops_gets_each_task_once(
    tool: LabelStudio, server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    server.fault = always(IMPORT, DROP)
    for _ in range(3):
        try:
            tool.push(tasks)
        except Unreachable:
            tool = connected(server, tmp_path)
    assert Counter(server.keys()) == Counter(task.key for task in tasks)


def test_a_project_whose_creation_was_not_confirmed_is_adopted(
    tool: LabelStudio, server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    server.fault = at(1, r"^/api/projects/$", DROP, method="POST")
    with pytest.raises(Unreachable):
        tool.push(tasks)
    connected(server, tmp_path).push(tasks)
    assert len(server.projects) == 1
    assert len(server.tasks) == 8


def test_a_task_that_somebody_doubled_is_there_once_afterwards_and_work_on_it_stays(
    sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task]
) -> None:
    twin = 1 + max(server.tasks)
    server.tasks[twin] = {**server.tasks[2], "id": twin, "annotations": []}
    server.annotate(twin, "fox")
    receipts = sent.push(tasks)
    assert Counter(server.keys()) == Counter(task.key for task in tasks)
    assert receipts[1].task_id == str(twin)
    assert len(server.annotations()) == 1


def test_a_doubled_task_that_somebody_began_to_work_on_is_left_alone(
    sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task]
) -> None:
    twin = 1 + max(server.tasks)
    server.tasks[twin] = {**server.tasks[2], "id": twin, "annotations": [], "drafts": [{"id": 1}]}
    sent.push(tasks)
    assert twin in server.tasks


def test_a_class_that_was_added_is_offered_and_what_people_changed_stays(
    sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    project = server.projects[1]
    project["label_config"] = project["label_config"].replace("<View>", '<View><Header value="Look twice"/>')
    tool = connected(server, tmp_path, instance=sent.instance)
    tool = replace(tool, place=replace(tool.place, classes=(*CLASSES, "lynx")))
    tool.push(make_tasks(tmp_path, iteration=1))
    assert 'value="lynx"' in project["label_config"]
    assert 'value="Look twice"' in project["label_config"]


def test_a_configuration_without_our_choices_is_refused_with_the_one_to_put_back(
    sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task]
) -> None:
    server.projects[1]["label_config"] = "<View><Image name='image' value='$image'/></View>"
    with pytest.raises(BadInput, match=r'(?s)has no <Choices name="label">.*<Choice value="deer"'):
        sent.push(tasks)


def test_overlap_is_what_the_project_asks_for(server: FakeLabelStudio, tasks: list[Task], tmp_path: Path) -> None:
    tool = connected(server, tmp_path)
    tool = replace(tool, place=replace(tool.place, overlap=3))
    tool.push(tasks)
    assert server.projects[1]["maximum_annotations"] == 3


# in ---------------------------------------------------------------------------------------------------------


def pulled(tool: LabelStudio, cursor: str = "") -> tuple[list[RawEvent], str]:
    """Events and the last page's cursor."""
    pages = list(tool.pull(cursor))
    return [event for page in pages for event in page.events], pages[-1].cursor


def test_every_annotation_comes_once_with_its_lead_time_and_annotator(
    sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task]
) -> None:
    for number in server.tasks:
        server.annotate(number, "fox", by=2, lead_time=4.0)
    events, _ = pulled(sent)
    answers = [sent.interpret(event.payload) for event in events]
    assert [(a.key, a.label, a.annotator, a.seconds) for a in answers] == [
        (task.key, "fox", "bob@example.com", 4.0) for task in tasks
    ]


def test_two_looks_at_the_same_annotation_give_the_same_event(sent: LabelStudio, server: FakeLabelStudio) -> None:
    server.annotate(1, "fox")
    assert pulled(sent)[0] == pulled(sent)[0]
    assert "created_ago" not in json.dumps(pulled(sent)[0][0].payload)


def test_the_next_pull_asks_for_what_changed_and_a_little_before(sent: LabelStudio, server: FakeLabelStudio) -> None:
    server.annotate(1, "fox")
    server.clock += 600
    server.annotate(2, "deer")
    _, cursor = pulled(sent)
    server.clock += 600
    server.annotate(3, "deer")
    events, _ = pulled(sent, cursor)
    assert [event.payload["task"] for event in events] == [2, 3]


def test_only_the_last_page_moves_the_cursor(sent: LabelStudio, server: FakeLabelStudio) -> None:
    for number in server.tasks:
        server.annotate(number, "fox")
    pages = list(sent.pull(""))
    assert [len(page.events) for page in pages] == [3, 3, 2, 0]
    assert [bool(page.cursor) for page in pages] == [False, False, False, True]


def test_once_a_day_everything_is_read_so_that_a_change_without_a_time_stamp_is_seen(
    sent: LabelStudio, server: FakeLabelStudio
) -> None:
    annotation = server.annotate(1, "fox")
    _, cursor = pulled(sent)
    server.clock += 600
    server.annotate(2, "fox")
    _, cursor = pulled(sent, cursor)
    server.edit(annotation, "deer", stamp=False)
    yesterday = json.dumps({**json.loads(cursor), "all": "2026-01-01T00:00:00+00:00"})
    assert [e.payload["task"] for e in pulled(sent, cursor)[0]] == [2]
    assert {sent.interpret(e.payload).label for e in pulled(sent, yesterday)[0]} == {"deer", "fox"}


@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_page_that_is_short_is_read_again(sent: LabelStudio, server: FakeLabelStudio, page: int) -> None:
    for number in server.tasks:
        server.annotate(number, "fox")
    server.fault = at(page, PAGES, lambda real: replace(real, body={**real.body, "tasks": []}))
    assert len(pulled(sent)[0]) == 8


def test_a_page_that_repeats_the_one_before_is_read_again(sent: LabelStudio, server: FakeLabelStudio) -> None:
    for number in server.tasks:
        server.annotate(number, "fox")
    first = {"total": 8, "tasks": [{**server.tasks[n], "annotations_ids": ""} for n in (1, 2, 3)]}
    server.fault = at(2, PAGES, Answer(200, first))
    assert len({event.annotation_id for event in pulled(sent)[0]}) == 8


def test_pages_that_never_agree_are_an_error_and_no_deletion(sent: LabelStudio, server: FakeLabelStudio) -> None:
    server.annotate(1, "fox")
    live, _ = pulled(sent)
    server.fault = always(PAGES, lambda real: replace(real, body={**real.body, "tasks": []}))
    with pytest.raises(Unreachable, match="contradict each other"):
        pulled(sent)
    assert list(sent.deleted(live)) == []


def test_tasks_that_arrive_while_pages_are_read_shift_nothing(sent: LabelStudio, server: FakeLabelStudio) -> None:
    for number in server.tasks:
        server.annotate(number, "fox")

    def grow(real: Answer) -> Answer:
        server.tasks[99] = {**server.tasks[1], "id": 99, "annotations": [], "data": {"image": "x"}}
        return real

    server.fault = at(1, PAGES, grow)
    assert Counter(event.payload["task"] for event in pulled(sent)[0]) == Counter(range(1, 9))


@pytest.mark.parametrize("path", [PAGES, EXPORT, r"/users/$", PROJECT, r"whoami$"])
@pytest.mark.parametrize(
    "garbage",
    [
        Answer(200, raw=b"<!doctype html><title>Log in</title>"),
        Answer(200, raw=b'[{"id": 1, "annot'),
        Answer(200, raw=b'{"total": NaN, "tasks": []}'),
        Answer(200, {"unexpected": []}),
        Answer(200, ["text"]),
        Answer(503),
        DROP,
    ],
    ids=["html", "truncated", "NaN", "other shape", "list of text", "503", "dropped"],
)
def test_garbage_is_a_failure_and_nothing_of_it_is_told(
    sent: LabelStudio, server: FakeLabelStudio, path: str, garbage: Answer
) -> None:
    server.annotate(1, "fox")
    server.fault = always(path, garbage)
    if path == r"whoami$" and garbage.body is not None:
        return  # whoami only proves the token: any JSON will do
    told: list[RawEvent] = []

    def tick() -> None:
        sent.require()
        told.extend(events_of(sent))

    with pytest.raises((Unreachable, BadInput)):
        tick()
    assert told == []
    server.fault = None
    assert len(events_of(sent)) == 1, "the next tick gets it"


# deletions --------------------------------------------------------------------------------------------------


def test_a_deleted_annotation_is_told_once_it_was_looked_for(sent: LabelStudio, server: FakeLabelStudio) -> None:
    kept, gone = server.annotate(1, "fox"), server.annotate(2, "fox")
    live, _ = pulled(sent)
    assert list(sent.deleted(live)) == []
    server.delete_annotation(gone)
    (told,) = sent.deleted(live)
    assert (told.annotation_id, told.deleted) == (gone["unique_id"], True)
    assert told.payload["deleted"] == "annotation 2 is not in task 2 any more"
    assert kept["unique_id"] in {event.annotation_id for event in pulled(sent)[0]}


def test_a_deleted_task_takes_its_annotations_away(sent: LabelStudio, server: FakeLabelStudio) -> None:
    server.annotate(1, "fox")
    live, _ = pulled(sent)
    server.delete_task(1)
    assert [event.payload["deleted"] for event in sent.deleted(live)] == ["task 1 is gone"]


def test_a_number_that_is_given_again_is_another_annotation(sent: LabelStudio, server: FakeLabelStudio) -> None:
    old = server.annotate(8, "fox")
    live, _ = pulled(sent)
    server.delete_annotation(old)
    new = server.annotate(8, "deer")
    assert new["id"] == old["id"]
    events, _ = pulled(sent)
    both = {e.annotation_id: e for e in [*live, *events]}.values()
    assert [event.annotation_id for event in sent.deleted(both)] == [old["unique_id"]]


def test_a_task_number_that_is_given_again_is_another_task(
    sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task]
) -> None:
    server.annotate(8, "fox")
    live, _ = pulled(sent)
    receipts = sent.push(tasks)
    server.delete_task(8)
    server.tasks[8] = {**server.tasks[7], "id": 8, "data": {"key": "foreign", "batch": ""}, "annotations": []}
    assert [event.deleted for event in sent.deleted(live)] == [True]
    assert sent.lost(receipts) == [tasks[7].key]


@pytest.mark.parametrize("path", [PAGES, EXPORT, r"^/api/tasks/\d+/$"])
def test_a_look_that_fails_takes_nothing_away(sent: LabelStudio, server: FakeLabelStudio, path: str) -> None:
    server.annotate(1, "fox")
    server.annotate(2, "fox")
    live, _ = pulled(sent)
    server.delete_task(1)
    server.fault = always(path, Answer(503))
    with pytest.raises(Unreachable):
        list(sent.deleted(live))


def test_an_export_that_leaves_tasks_out_takes_nothing_away(sent: LabelStudio, server: FakeLabelStudio) -> None:
    gone = server.annotate(1, "fox")
    server.annotate(2, "fox")
    live, _ = pulled(sent)
    server.delete_annotation(gone)
    server.fault = always(EXPORT, Answer(200, []))
    assert list(sent.deleted(live)) == []


def test_counts_that_fell_with_empty_pages_take_nothing_away(sent: LabelStudio, server: FakeLabelStudio) -> None:
    for number in server.tasks:
        server.annotate(number, "fox")
    live, _ = pulled(sent)

    def shrink(request: Any, real: Answer) -> Answer:
        if request.path.endswith("/projects/1/"):
            return replace(real, body={**real.body, "total_annotations_number": 0})
        return Answer(200, {"total": 0, "tasks": []}) if request.path == "/api/tasks/" else real

    server.fault = shrink
    assert list(sent.deleted(live)) == []


def test_tasks_in_doubt_are_not_lost(sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task]) -> None:
    receipts = sent.push(tasks)
    server.fault = always(PAGES, Answer(200, {"total": 0, "tasks": []}))
    assert sent.lost(receipts) == []
    server.fault = None
    server.delete_task(3)
    assert sent.lost(receipts) == [tasks[2].key]


# which server -----------------------------------------------------------------------------------------------


def test_a_server_that_was_wiped_is_refused_and_gets_no_task(
    sent: LabelStudio, server: FakeLabelStudio, tasks: list[Task], tmp_path: Path
) -> None:
    server.wipe()
    again = connected(server, tmp_path, instance=sent.instance)
    for act in (again.require, lambda: again.push(tasks)):
        with pytest.raises(BadInput, match=r"no project with the line gleaner:camp-1:.*gleaner resend"):
            act()
    assert server.projects == {}


def test_another_server_with_the_same_numbers_is_refused(sent: LabelStudio, tmp_path: Path) -> None:
    with FakeLabelStudio() as other:
        connected(other, tmp_path / "elsewhere").push(make_tasks(tmp_path))
        with pytest.raises(BadInput, match="this is another server, it was wiped"):
            connected(other, tmp_path, instance=sent.instance).require()


def test_a_project_that_was_copied_is_refused(sent: LabelStudio, server: FakeLabelStudio, tmp_path: Path) -> None:
    server.projects[7] = {**server.projects[1], "id": 7}
    (tmp_path / adapter.NOTE).unlink()
    with pytest.raises(BadInput, match=r"several projects of campaign camp-1 \(1, 7\)"):
        connected(server, tmp_path, instance=sent.instance).require()


def test_a_server_that_moved_with_its_data_is_the_same(
    sent: LabelStudio, server: FakeLabelStudio, tmp_path: Path
) -> None:
    with FakeLabelStudio() as moved:
        moved.projects, moved.tasks = {5: {**server.projects[1], "id": 5}}, {}
        again = connected(moved, tmp_path, instance=sent.instance)
        again.require()
        assert again.instance == sent.instance
        assert again.address.startswith(f"{moved.url}/projects/5/")


def test_the_address_is_known_without_the_server(sent: LabelStudio, server: FakeLabelStudio, tmp_path: Path) -> None:
    server.requests.clear()
    assert connected(server, tmp_path).address == f"{server.url}/projects/1/data (Label All Tasks)"
    assert server.requests == []


# tokens, time-outs, retries ---------------------------------------------------------------------------------


def test_a_missing_token_names_the_variable(
    server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(api_module.TOKEN)
    with pytest.raises(BadInput, match=f"the environment variable {api_module.TOKEN} is not set"):
        connected(server, tmp_path).require()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_names_kind_and_variable_and_never_the_value(
    tool: LabelStudio, server: FakeLabelStudio, status: int
) -> None:
    server.fault = always(".", Answer(status, {"detail": f"token {TOKEN} is wrong"}))
    with pytest.raises(BadInput) as refused:
        tool.require()
    assert f"answers {status}: the environment variable {api_module.TOKEN} holds a legacy token" in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert TOKEN not in repr(tool)


def test_a_personal_access_token_is_exchanged_and_renewed(
    server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(api_module.TOKEN, "header.payload.signature")
    valid = ["short-1"]

    def bearer(request: Any) -> Answer | None:
        if request.path == "/api/token/refresh/":
            assert request.body == {"refresh": "header.payload.signature"}
            return Answer(200, {"access": valid[-1]})
        return None

    server.before = bearer
    server.authorized = lambda given: given == f"Bearer {valid[-1]}"
    tool = connected(server, tmp_path)
    tool.require()
    valid.append("short-2")
    tool.require()


def test_a_server_that_asks_for_patience_gets_it(tool: LabelStudio, server: FakeLabelStudio) -> None:
    server.fault = at(1, r"whoami$", Answer(429, headers={"retry-after": "7"}))
    tool.require()
    assert SLEPT == [7.0]


def test_patience_has_a_limit(tool: LabelStudio, server: FakeLabelStudio) -> None:
    server.fault = always(r"whoami$", Answer(429, headers={"retry-after": "86400"}))
    with pytest.raises(Unreachable, match="answers 429"):
        tool.require()
    assert SLEPT == [api_module.LONGEST_WAIT] * (api_module.ATTEMPTS - 1)


def test_retries_are_bounded_and_back_off(tool: LabelStudio, server: FakeLabelStudio) -> None:
    server.fault = always(r"whoami$", Answer(500))
    with pytest.raises(Unreachable, match=r"answers 500 to GET /api/current-user/whoami"):
        tool.require()
    assert len(server.requests) == api_module.ATTEMPTS
    assert sorted(SLEPT) == SLEPT and len(SLEPT) == api_module.ATTEMPTS - 1


def test_a_server_that_hangs_is_given_up(
    tool: LabelStudio, server: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "TIMEOUT", httpx.Timeout(0.2))
    server.fault = always(r"whoami$", Answer(200, {}, hang=1.0))
    with pytest.raises(Unreachable, match="does not answer .ReadTimeout"):
        tool.require()


def test_an_import_that_hangs_after_it_was_done_is_adopted(
    tool: LabelStudio, server: FakeLabelStudio, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "TIMEOUT", httpx.Timeout(0.5))
    server.fault = at(2, IMPORT, lambda real: replace(real, hang=2.0))
    tool.push(tasks)
    assert Counter(server.keys()) == Counter(task.key for task in tasks)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "file:///etc/passwd", ""])
def test_an_address_that_is_none_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api_module.TOKEN, TOKEN)
    with pytest.raises(BadInput, match=r"labeling\.options\.url"):
        adapter.connect(make_place(tmp_path), url=url).require()


def test_a_redirect_is_not_followed_but_named(tool: LabelStudio, server: FakeLabelStudio) -> None:
    server.fault = always(".", Answer(302, headers={"location": "https://labels.example/login?next=secret"}))
    with pytest.raises(BadInput, match=r"sends on to https://labels\.example/login: set labeling\.options\.url"):
        tool.require()


def test_nobody_listening_is_unreachable(server: FakeLabelStudio, tmp_path: Path) -> None:
    tool = connected(server, tmp_path)
    tool.api.url = "http://127.0.0.1:9"
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9 does not answer \(ConnectError"):
        tool.require()


# what annotations mean --------------------------------------------------------------------------------------


def meaning(tool: LabelStudio, annotation: dict[str, Any], **data: Any) -> Any:
    payload = {"task": 1, "key": "camp-1:0:abc", "item_id": "abc", "annotation": annotation, **data}
    return tool.interpret(payload)


def test_a_skip_is_no_label(tool: LabelStudio) -> None:
    assert meaning(tool, {"result": [], "was_cancelled": True}).kind == "skip"


@pytest.mark.parametrize(
    "result, reason",
    [
        ([], "it is empty"),
        (choice("fox") * 2, "it has 2 results"),
        ([{**choice("fox")[0], "value": {"choices": ["fox", "deer"]}}], "2 classes are chosen"),
        ([{"type": "rectanglelabels", "from_name": "label", "value": {}}], "it is of type rectanglelabels"),
        ([{**choice("fox")[0], "from_name": "mood"}], "it is a choice of 'mood'"),
        ("text", "`result` must be a list"),
    ],
)
def test_what_is_neither_a_class_nor_a_skip_is_refused_with_the_task_and_the_shape(
    tool: LabelStudio, result: Any, reason: str
) -> None:
    with pytest.raises(Uninterpretable, match=f"task 1 in Label Studio: .*{reason}"):
        meaning(tool, {"result": result})


def test_a_foreign_task_is_refused(tool: LabelStudio) -> None:
    with pytest.raises(Uninterpretable, match="has no key of this campaign"):
        meaning(tool, {"result": choice("fox")}, key=None)


def test_a_task_whose_data_somebody_changed_is_refused(tool: LabelStudio) -> None:
    with pytest.raises(Uninterpretable, match="item_id is not that of its key"):
        meaning(tool, {"result": choice("fox")}, item_id="other")


def test_a_suggestion_submitted_unchanged_is_marked_and_one_that_was_changed_too(
    sent: LabelStudio, server: FakeLabelStudio
) -> None:
    server.accept(1)
    server.annotate(2, "deer", parent_prediction=server.tasks[2]["predictions"][0]["id"])
    server.annotate(3, "deer")
    assert [sent.interpret(e.payload).accepted for e in pulled(sent)[0]] == [True, False, None]


def test_ground_truth_is_told(sent: LabelStudio, server: FakeLabelStudio) -> None:
    server.annotate(1, "fox", ground_truth=True)
    assert sent.interpret(pulled(sent)[0][0].payload).truth
