"""Alerts that arrive: real mail and webhooks on 127.0.0.1, receivers that are down or hostile, kills, clocks, twins."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import alarm, news
from monitoring.alarm import flush, raise_alert
from monitoring.alerts import Alert, apprise
from monitoring.evidence import About
from monitoring.outbox import DAY, LONGEST_PAUSE, OUTBOX, TOGETHER, only_one, open_outbox
from monitoring.reached import reached
from monitoring.tick_ends import UNATTENDED, tick_failed, tick_worked
from tasks import plugins
from tasks.alert_urls import VARIABLE
from tasks.errors import BadInput, Blocked, Busy, GleanerError
from tests.children import run_in_child, start
from tests.quick import copy, edit
from tests.receivers import SECRET, Receiver, mail_server, text_of, webhook

ABOUT = About("stagnant_rankings", why="Old scores.", causes=("a stale file",), todo="Run it again.")
BLOCKS = "stagnant_rankings blocks iteration 3"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of a workspace as alerts need; short time-outs."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(UNATTENDED, "1")
    place = tmp_path / "deer"
    (place / "data").mkdir(parents=True)
    (place / ".gleaner").mkdir()
    (place / "data/campaign.json").write_text('{"id": "deer-3f2a", "forked_from": null}')
    shutil.copy(plugins.ROOT / "params.yaml", place)
    edit(place, {"alerts.options": {"apprise": {"timeout_seconds": 1.0}}})
    return place


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A webhook that the environment names."""
    with webhook() as receiver:
        monkeypatch.setenv(VARIABLE, receiver.url)
        yield receiver


def finding(severity: str = "block", what: str = "They moved by 0.001.") -> Alert:
    failed = ABOUT.fails(what, 0.001, 0.1)
    (alert,) = news.of_findings("deer-3f2a", 3, [type(failed)(**{**vars(failed), "severity": severity})])
    return alert


def waiting(number: int) -> Alert:
    return Alert("warning", "batch_waiting", f"number {number}", "It waits.", "deer-3f2a", 3, f"waiting:{number}")


def titles(receiver: Receiver) -> list[str]:
    return [str(body["title"]).removeprefix("deer-3f2a: ") for body in receiver.got]


def closed_port() -> int:
    with webhook() as gone:
        return gone.port


# they arrive ----------------------------------------------------------------------------------------------


def test_a_finding_arrives_as_a_mail_with_its_text(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server() as box:
        monkeypatch.setenv(VARIABLE, box.url)
        assert raise_alert(root, finding())
        assert flush(root) == []
        (mail,) = box.got
    assert mail["Subject"] == f"deer-3f2a: {BLOCKS}" and mail["To"] == "team@example.org"
    assert "They moved by 0.001." in text_of(mail) and "To do: Run it again." in text_of(mail)


def test_a_finding_arrives_as_json(root: Path, hook: Receiver) -> None:
    raise_alert(root, finding("warn"))
    flush(root)
    (body,) = hook.got
    assert (body["type"], body["title"]) == ("warning", "deer-3f2a: stagnant_rankings warns of iteration 3")
    assert "They moved by 0.001." in body["message"] and body["attachments"] == []
    assert hook.paths == [f"/{SECRET}/in?key={SECRET}"], "the address is used as it stands"


def test_hostile_text_arrives_harmless(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server() as box:
        monkeypatch.setenv(VARIABLE, box.url)
        evil = "x\r\nBcc: eve@example.org\r\n\r\n\x1b[2J<script>\x00 @everyone \u202e" + "a" * 9000
        raise_alert(root, Alert("error", "tick_failed", evil, evil, "deer-3f2a", None, "evil"))
        flush(root)
        (mail,) = box.got
    assert mail["Bcc"] is None and len(text_of(mail)) < 2100 and "@everyone" not in text_of(mail)
    assert not {"\x1b", "\x00", "\u202e"} & set(text_of(mail) + mail["Subject"])
    html = mail.get_body(("html",))
    assert html is not None and "<script>" not in html.get_content()


def test_the_same_finding_twice_is_one_alert(root: Path, hook: Receiver) -> None:
    assert raise_alert(root, finding()) is True
    assert raise_alert(root, finding(what="They moved by 0.002.")) is False
    flush(root)
    assert raise_alert(root, finding()) is False
    flush(root)
    assert titles(hook) == [BLOCKS]


def test_what_waited_together_arrives_together(root: Path, hook: Receiver) -> None:
    for number in range(2 * TOGETHER + 5):
        raise_alert(root, waiting(number))
    flush(root)
    assert titles(hook) == [f"{TOGETHER} alerts", f"{TOGETHER} alerts", "5 alerts"]
    assert all(f"number {number}\n" in "".join(b["message"] for b in hook.got) for number in range(2 * TOGETHER + 5))


def test_a_kind_that_is_switched_off_is_not_raised(root: Path, hook: Receiver) -> None:
    edit(root, {"alerts.events": ["tick_failed"]})
    assert raise_alert(root, finding()) is False
    assert not (root / OUTBOX).exists() and flush(root) == []
    assert hook.paths == []


def test_nobody_to_tell_is_silent_and_status_says_so(root: Path) -> None:
    raise_alert(root, finding())
    assert flush(root) == []
    told = reached(root)
    assert told["alerts_go_to"] == ["log of this process"]
    assert told["alerts_go_nowhere"] == {"apprise": "GLEANER_ALERT_URLS is not set"}
    (missed,) = told["undelivered_alerts"]
    assert (missed["title"], missed["reason"]) == (BLOCKS, "apprise: GLEANER_ALERT_URLS is not set")


def test_somebody_who_can_be_told_later_is_told_what_is_not_old(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_alert(root, waiting(1), lambda: 0.0)
    raise_alert(root, waiting(2), lambda: 5 * DAY)
    flush(root, lambda: 5 * DAY)
    with webhook() as receiver:
        monkeypatch.setenv(VARIABLE, receiver.url)
        flush(root, lambda: 6 * DAY)
        assert titles(receiver) == ["number 2"]
    assert reached(root, lambda: 6 * DAY)["undelivered_alerts"] == []


# they do not arrive ---------------------------------------------------------------------------------------


def test_a_receiver_that_is_down_gets_it_once_when_it_is_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv(VARIABLE, Receiver(port).url)
    raise_alert(root, finding(), lambda: 1000.0)
    told = flush(root, lambda: 1000.0)
    assert told == ["1 alert waits for apprise json://127.0.0.1: nobody listens there (tried 1 times)"]
    with webhook(port) as receiver:
        assert flush(root, lambda: 1059.0) == told and receiver.paths == [], "the pause is not over"
        assert flush(root, lambda: 1061.0) == []
        assert flush(root, lambda: 99999.0) == []
        assert titles(receiver) == [BLOCKS]


def test_one_target_that_is_down_does_not_keep_the_others_waiting_or_told_twice(
    root: Path, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"json://127.0.0.1:{closed_port()}/x {hook.url}")
    raise_alert(root, finding(), lambda: 0.0)
    for minute in range(3):
        assert len(flush(root, lambda minute=minute: 600.0 * minute)) == 1  # type: ignore[misc]
    assert titles(hook) == [BLOCKS]
    assert [missed["target"] for missed in reached(root, lambda: 0.0)["undelivered_alerts"]] == [
        "apprise json://127.0.0.1"
    ]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "500": ({"status": 500}, "it answered 500"),
    "403 with all secrets in the answer": ({"status": 403, "echo": True}, "it answered 403"),
    "a redirect": ({"status": 302, "location": "http://127.0.0.1:9/elsewhere"}, "it answered 302"),
    "no answer": ({"hang": True}, "no answer in time"),
    "an answer that never ends": ({"drip": True}, "no answer within"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_told_and_no_secret_of_the_address_is_written_anywhere(
    root: Path, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    faults, reason = FAULTS[fault]
    monkeypatch.setattr(apprise, "STARTING_SECONDS", 4.0)
    caplog.set_level(0)
    with webhook(**{**faults, **({"hang": threading.Event()} if "hang" in faults else {})}) as receiver:
        monkeypatch.setenv(VARIABLE, receiver.url)
        raise_alert(root, replace_text(finding(), f"leaked: {receiver.url} {SECRET}"))
        (line,) = flush(root)
        told = json.dumps(reached(root))
        assert receiver.asked.is_set()
    assert reason in line and reason in told
    printed = "".join(capfd.readouterr())
    for written in (line, told, caplog.text, printed, *(file.read_bytes().decode("latin-1") for file in files(root))):
        assert SECRET not in written and "ann:" not in written


def replace_text(alert: Alert, text: str) -> Alert:
    return type(alert)(**{**vars(alert), "text": text})


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.name != "params.yaml"]


def test_a_mail_server_that_refuses_is_told_by_its_number(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server(refusal=f"554 no {SECRET}") as box:
        monkeypatch.setenv(VARIABLE, box.url)
        raise_alert(root, finding())
        (line,) = flush(root)
    assert "the mail server answered 554" in line


def test_a_wrong_address_does_not_stop_a_tick_and_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"nonsense://{SECRET}")
    raise_alert(root, finding())
    (line,) = flush(root)
    assert "GLEANER_ALERT_URLS: address 1 is not one that Apprise can use" in line and SECRET not in line


def test_a_channel_of_ones_own_that_is_wrong_is_told_and_hides_nothing(
    root: Path, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(plugins.find("alerts", "log"), "send", broken)
    raise_alert(root, finding())
    (line,) = flush(root)
    assert "its code failed with KeyError" in line and SECRET not in line
    assert titles(hook) == [BLOCKS]


# time -----------------------------------------------------------------------------------------------------


def test_the_pauses_double_up_to_six_hours(root: Path) -> None:
    at, pauses = 0.0, []
    with open_outbox(root) as outbox:
        outbox.add(waiting(1), at)
        for _ in range(12):
            outbox.failed(outbox.due("x", at), "x", "down", at)
            pause = next(p for p in [60.0 * 2**n for n in range(9)] + [LONGEST_PAUSE] if outbox.due("x", at + p))
            pauses.append(pause)
            at += pause
    assert pauses == [60.0 * 2**n for n in range(9)] + [LONGEST_PAUSE] * 3


def test_what_was_given_up_is_sent_when_the_target_takes_something_else(root: Path) -> None:
    with open_outbox(root) as outbox:
        outbox.add(waiting(1), 0.0)
        for times in range(12):
            outbox.failed([waiting(1)], "x", "down", times * DAY)
        assert outbox.due("x", 30 * DAY) == []
        assert [missed.title for missed in outbox.undelivered(30 * DAY)] == ["number 1"]
        outbox.add(waiting(2), 30 * DAY)
        outbox.sent(outbox.due("x", 30 * DAY), "x", 30 * DAY)
        assert outbox.due("x", 30 * DAY) == [waiting(1)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e9, 4e9), min_size=1, max_size=30))
def test_a_clock_that_jumps_neither_loses_an_alert_nor_makes_a_storm(times: list[float]) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        outbox = _in_memory(connection)
        outbox.add(waiting(1), times[0])
        for at in times:
            due = outbox.due("x", at)
            outbox.failed(due, "x", "down", at)
            assert outbox.due("x", at) == [], "tried once, whatever the clock says"
        outbox.hurry()
        assert outbox.due("x", times[-1]) == [waiting(1)]


def _in_memory(connection: sqlite3.Connection) -> Any:
    from monitoring.outbox import SCHEMA, Outbox

    connection.row_factory = sqlite3.Row
    connection.executescript(SCHEMA)
    return Outbox(connection)


# crashes and twins ----------------------------------------------------------------------------------------


def told_in(urls: str, root: Path) -> str:
    os.environ[VARIABLE] = urls
    raise_alert(root, finding())
    return "; ".join(flush(root))


def test_killed_anywhere_it_arrives_and_twice_only_when_killed_between_sending_and_noting_it(root: Path) -> None:
    edit(root, {"alerts.channels": ["apprise"]})
    with webhook() as calm:
        passed = run_in_child(partial(told_in, calm.url), copy(root, root.with_name("calm"))).passed
    assert passed == [
        f"alert:{at}" for at in ("raise:before", "raise:after", "send:before", "send:after", "noted:after")
    ]
    for number, point in enumerate(passed, 1):
        place = copy(root, root.with_name(f"killed-{number}"))
        with webhook() as receiver:
            assert run_in_child(partial(told_in, receiver.url), place, kill_at=number).killed
            before = len(receiver.got)
            assert run_in_child(partial(told_in, receiver.url), place).text == ""
            twice = point == "alert:send:after" and before == 1
            assert titles(receiver) == [BLOCKS] * (2 if twice else 1), point


def test_of_two_processes_one_delivers_and_takes_what_the_other_raised_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(root, {"alerts.options": {"apprise": {"timeout_seconds": 30.0}}})
    with webhook(hang=threading.Event()) as receiver:
        assert receiver.hang is not None
        monkeypatch.setenv(VARIABLE, receiver.url)
        first = start(partial(told_in, receiver.url), root)
        assert receiver.asked.wait(60)
        raise_alert(root, waiting(1))
        flush(root)
        assert len(receiver.paths) == 1, "the second process sent nothing"
        receiver.hang.set()
        assert first().text == ""
        assert titles(receiver) == [BLOCKS, "number 1"]


def test_a_process_that_is_killed_lets_the_next_one_deliver(root: Path) -> None:
    with only_one(root) as mine, only_one(root) as second:
        assert (mine, second) == (True, False)
    with only_one(root) as again:
        assert again


# without an outbox ----------------------------------------------------------------------------------------


def test_a_damaged_outbox_is_put_aside_and_a_new_one_begun(root: Path, hook: Receiver) -> None:
    (root / OUTBOX).write_bytes(b"no database" * 1000)
    assert raise_alert(root, finding())
    flush(root)
    assert titles(hook) == [BLOCKS] and (root / f"{OUTBOX}.damaged").exists()


def test_an_outbox_with_a_damaged_page_is_put_aside_too(root: Path, hook: Receiver) -> None:
    with open_outbox(root) as outbox:
        for number in range(60):
            outbox.add(replace_text(waiting(number), "x" * 500), 0.0)
    content = bytearray((root / OUTBOX).read_bytes())
    content[8192:12288] = b"\xff" * 4096
    (root / OUTBOX).write_bytes(content)
    assert raise_alert(root, finding())
    flush(root)
    assert titles(hook) == [BLOCKS]


def test_without_an_outbox_an_alert_goes_out_at_once_but_no_storm_of_them(
    root: Path, hook: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / OUTBOX).mkdir()
    at = 1e9
    for minutes in (0, 5, 59, 61):
        assert raise_alert(root, finding(), lambda minutes=minutes: at + 60 * minutes)  # type: ignore[misc]
    assert titles(hook) == [BLOCKS] * 2
    said = capsys.readouterr().err
    assert said.count(BLOCKS) == 4 and "unable to open database file" in said
    assert "alerts wait: " in flush(root)[0]
    assert "outbox" in reached(root)["alerts_go_nowhere"]


def test_without_outbox_and_receiver_both_are_said_and_nothing_is_raised(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, Receiver(closed_port()).url)
    (root / OUTBOX).mkdir()
    tick_failed(root, GleanerError("the disk is full"), "train")
    said = capsys.readouterr().err
    assert "the tick failed at train" in said and "nobody listens there" in said and SECRET not in said


# ticks ----------------------------------------------------------------------------------------------------


def test_a_failure_is_told_once_and_that_ticks_work_again_and_the_next_failure(root: Path, hook: Receiver) -> None:
    for _ in range(3):
        tick_failed(root, GleanerError("the disk is full"), "train")
    assert [tick_worked(root), tick_worked(root)] == [[], []]
    tick_failed(root, GleanerError("the disk is full"), "train")
    failed = "the tick failed at train: GleanerError"
    assert titles(hook) == [failed, "ticks work again", failed]
    assert hook.got[0]["message"] == "the disk is full"


@pytest.mark.parametrize("error", [Busy("in use"), Blocked("refused")])
def test_what_is_no_failure_is_not_told(root: Path, error: GleanerError, hook: Receiver) -> None:
    tick_failed(root, error, "import labels")
    assert hook.paths == []


def test_a_slip_of_the_pen_is_told_only_when_nobody_is_at_the_terminal(
    root: Path, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, near = os.openpty()
    with open(far, "rb", buffering=0), open(near) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.delenv(UNATTENDED)
        tick_failed(root, BadInput("params.yaml:3: no such key"), "import labels")
        assert hook.paths == []
        tick_failed(root, GleanerError("broken"), "import labels")
        monkeypatch.setenv(UNATTENDED, "1")
        tick_failed(root, BadInput("params.yaml:3: no such key"), "import labels")
    assert titles(hook) == [f"the tick failed at import labels: {name}" for name in ("GleanerError", "BadInput")]


def test_params_that_cannot_be_read_are_told_too(root: Path, hook: Receiver) -> None:
    (root / "params.yaml").write_text("campaign: [")
    tick_failed(root, BadInput("params.yaml:1: this bracket is not closed"), "import labels")
    assert titles(hook) == ["the tick failed at import labels: BadInput"]


def test_where_there_is_no_campaign_nothing_is_made(tmp_path: Path, hook: Receiver) -> None:
    tick_failed(tmp_path, BadInput("not a campaign"), "import labels")
    assert list(tmp_path.iterdir()) == [] and hook.paths == []


def test_a_tick_with_nothing_to_tell_starts_no_process(
    root: Path, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_alert(root, finding())
    flush(root)
    monkeypatch.setattr(subprocess, "run", None)
    assert tick_worked(root) == []
    assert "apprise" not in sys.modules


# the command line -----------------------------------------------------------------------------------------


def gleaner(root: Path, *arguments: str, urls: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, VARIABLE: urls, "PYTHONPATH": str(root), "COLUMNS": "200", "PATH": path}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=root, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def campaign(closed_iteration: Path, tmp_path: Path) -> Path:
    """A whole workspace, iterations 0 and 1 closed."""
    return copy(closed_iteration, tmp_path / "workspace")


def test_a_test_alert_says_of_each_target_whether_it_arrived(campaign: Path) -> None:
    nobody = gleaner(campaign, "alert", "--test")
    assert nobody.returncode == 1
    assert nobody.stdout == "log of this process: delivered\napprise: not delivered: GLEANER_ALERT_URLS is not set\n"
    with webhook() as receiver:
        done = gleaner(campaign, "alert", "--test", urls=receiver.url)
        assert (done.returncode, titles_any(receiver)) == (0, ["a test alert"])
        assert "apprise json://127.0.0.1: delivered" in done.stdout
    failed = gleaner(campaign, "alert", "--test", urls=receiver.url)
    assert failed.returncode == 1 and "apprise json://127.0.0.1: not delivered: nobody listens there" in failed.stdout


def titles_any(receiver: Receiver) -> list[str]:
    return [str(body["title"]).partition(": ")[2] for body in receiver.got]


def test_a_tick_that_fails_is_told_and_status_says_what_was_not_delivered(campaign: Path) -> None:
    (campaign / "params.yaml").write_text("campaign: [")
    with webhook() as receiver:
        done = gleaner(campaign, "tick", urls=receiver.url)
        assert done.returncode == 2 and "error: " in done.stderr
        assert titles_any(receiver) == ["the tick failed at import labels: BadInput"]


def test_status_shows_who_is_told_and_what_was_not_delivered(campaign: Path) -> None:
    raise_alert(campaign, finding())
    urls = Receiver(closed_port()).url
    assert "nobody is told; apprise: GLEANER_ALERT_URLS is not set" in gleaner(campaign, "status").stdout
    assert gleaner(campaign, "alert", urls=urls).returncode == 1
    shown, value = (
        gleaner(campaign, "status", urls=urls).stdout,
        gleaner(campaign, "status", "--json", urls=urls).stdout,
    )
    assert "apprise json://127.0.0.1" in shown and f"{BLOCKS}: apprise json://127.0.0.1: nobody listens there" in shown
    (missed,) = json.loads(value)["undelivered_alerts"]
    assert (missed["reason"], missed["attempts"]) == ("nobody listens there", 1)
    assert SECRET not in shown + value


@pytest.mark.slow
def test_a_real_tick_tells_of_labels_a_finding_that_blocks_and_nothing_twice(campaign: Path) -> None:
    text = (campaign / "params.yaml").read_text()
    text = text.replace(
        "stagnant_rankings:\n    severity: warn", "stagnant_rankings:\n    severity: block\n    max_flat: 0.0"
    )
    (campaign / "params.yaml").write_text(text)
    with webhook() as receiver:
        for _ in range(2):
            assert gleaner(campaign, "tick", urls=receiver.url).returncode == Blocked.exit_code
        told = " ".join(body["title"] + body["message"] for body in receiver.got)
    assert told.count("stagnant_rankings blocks iteration 2") == 1
    assert told.count("tasks of iteration 1 are answered") == 1
    assert "the tick failed" not in told


def test_the_module_that_ticks_call_needs_no_ledger(root: Path) -> None:
    assert alarm.raise_alert(root, finding()) and not (root / ".gleaner/ledger.sqlite").exists()
