"""Schedules without Prefect's server: intervals and cron lines, heartbeats, what is superseded, what the watchdog says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import heartbeat, schedule, settings, watchdog
from flows.heartbeat import Beat, beating
from flows.run import run_ticks
from flows.schedule import Deployed, Schedule
from flows.scheduled import superseded
from flows.watchdog import Seen, judge
from monitoring.outbox import open_outbox
from tasks.campaign import LEDGER
from tasks.errors import BadInput, Busy, GleanerError
from tasks.lock import campaign_lock
from tests.quick import copy

NOW = "2026-03-04T12:00:00.000+00:00"
HOUR = 3600.0


def ago(hours: float) -> str:
    return (datetime.fromisoformat(NOW) - timedelta(hours=hours)).isoformat(timespec="milliseconds")


# when -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("3h", 10800), ("1d", 86400), (" 2h ", 7200)])
def test_an_interval_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert schedule.seconds(text, "--every") == seconds


@given(st.text(max_size=12))
def test_any_other_text_is_refused_with_what_is_allowed(text: str) -> None:
    try:
        assert schedule.seconds(text, "--every") > 0
    except BadInput as error:
        assert "--every" in str(error) and "15m" in str(error)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "either --every"), ({"every": "1h", "cron": "* * * * *"}, "not both"), ({"every": "9s"}, "at least 10s"),
        ({"every": "0m"}, "write a whole number"),
    ],
)  # fmt: skip
def test_a_schedule_is_one_thing_or_the_other(values: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Schedule(**values)


@pytest.mark.parametrize(
    ("made", "gap"),
    [
        (Schedule(every="15m"), 900.0),
        (Schedule(cron="*/15 * * * *"), 900.0),
        (Schedule(cron="0 8 * * 1-5"), 3 * 24 * HOUR),  # over the weekend
        (Schedule(cron="0 0 1 1 *"), 365 * 24 * HOUR),
    ],
)
def test_the_longest_pause_of_a_schedule(made: Schedule, gap: float) -> None:
    assert made.gap() == pytest.approx(gap, rel=0.003)  # a leap year


@pytest.mark.parametrize(
    ("cron", "timezone", "says"),
    [
        ("* * * *", "UTC", "cron"), ("*/15 * * * 1-9", "UTC", "cron"), ("0 8 * * *", "Europe/Zrich", "timezone"),
        ("0 0 31 2 *", "UTC", "never comes"),
    ],
)  # fmt: skip
def test_a_cron_line_that_cannot_be_is_named(cron: str, timezone: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Schedule(cron=cron, timezone=timezone).gap()


def test_what_was_deployed_is_read_back_and_damage_is_named(tmp_path: Path) -> None:
    assert schedule.read(tmp_path) is None
    deployed = Deployed("scheduled tick/x", Schedule(every="15m"), 900.0, NOW)
    schedule.write(tmp_path, deployed)
    assert schedule.read(tmp_path) == deployed
    for damaged in ("", "{}", "[]", '{"deployment": 1, "schedule": 3, "gap": "x", "at": "y"}'):
        (tmp_path / schedule.SCHEDULE).write_text(damaged)
        with pytest.raises(GleanerError, match=r"schedule\.json"):
            schedule.read(tmp_path)


# heartbeat ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".gleaner").mkdir()
    return tmp_path


def beat_of(folder: Path) -> Beat:
    found = heartbeat.read(folder)
    assert found is not None
    return found


def test_a_tick_leaves_when_it_began_and_ended_and_what_it_did(folder: Path) -> None:
    with beating(folder) as tell:
        tell("iteration", "the campaign begins", 0)
    first = beat_of(folder)
    assert first.started <= first.finished == first.well == first.closed
    assert (first.outcome, first.iteration) == ("iteration", 0)
    with beating(folder) as tell:
        tell("idle", "waiting for annotators", None)
    second = beat_of(folder)
    assert (second.outcome, second.iteration, second.closed) == ("idle", 0, first.closed)
    assert second.well == second.finished >= first.finished


def test_a_tick_that_fails_says_so_and_keeps_when_all_was_well(folder: Path) -> None:
    with beating(folder) as tell:
        tell("idle", "", None)
    well = beat_of(folder).well
    with pytest.raises(GleanerError), beating(folder):
        raise GleanerError("a secret detail")
    failed = beat_of(folder)
    assert (failed.outcome, failed.why, failed.well) == ("failed", "GleanerError", well)
    assert "secret" not in (folder / heartbeat.HEARTBEAT).read_text()


def test_a_tick_that_was_told_who_works_leaves_nothing(folder: Path) -> None:
    with pytest.raises(Busy), beating(folder):
        raise Busy("in use")
    assert heartbeat.read(folder) is None


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}", '{"started": 1}', '{"started": "x", "finished": "y"}'])
def test_a_damaged_heartbeat_is_none_and_the_next_tick_writes_it_again(folder: Path, damaged: str) -> None:
    (folder / heartbeat.HEARTBEAT).write_text(damaged)
    assert heartbeat.read(folder) is None
    with beating(folder) as tell:
        tell("idle", "", None)
    assert beat_of(folder).outcome == "idle"


def test_a_heart_that_cannot_be_heard_does_not_fail_the_tick(folder: Path) -> None:
    (folder / heartbeat.HEARTBEAT).mkdir()  # nothing can be renamed over it
    with beating(folder) as tell:
        tell("idle", "", None)


def test_where_there_is_no_campaign_nothing_is_written(tmp_path: Path) -> None:
    with beating(tmp_path) as tell:
        tell("idle", "", None)
    assert list(tmp_path.iterdir()) == []


# superseded -----------------------------------------------------------------------------------------------

ENDED = Beat(ago(1.0), ago(0.9), "idle", "", well=ago(0.9))


@pytest.mark.parametrize(("hours", "expected"), [(2.0, True), (1.01, True), (0.99, False), (0.0, False), (-0.1, False)])
def test_a_run_is_superseded_by_a_tick_that_began_after_it_was_due(hours: float, expected: bool) -> None:
    assert superseded(datetime.fromisoformat(ago(hours)), ENDED, NOW) is expected


def test_a_failed_tick_supersedes_too_and_a_heartbeat_from_the_future_never_does() -> None:
    due = datetime.fromisoformat(ago(2.0))
    assert superseded(due, replace(ENDED, outcome="failed"), NOW)
    assert not superseded(due, replace(ENDED, started=ago(-5.0)), NOW)
    assert not superseded(due, None, NOW)


# watchdog -------------------------------------------------------------------------------------------------

WELL = Seen(NOW, replace(ENDED, why="waiting for annotators: 3 of 9", iteration=4, closed=ago(50)), None, None, False)
DEPLOYED = Deployed("scheduled tick/x", Schedule(every="15m"), 900.0, ago(0.5))


def holder(hours: float, purpose: str = "tick") -> dict[str, object]:
    return {"pid": 123, "purpose": purpose, "since": ago(hours).replace(".000", "")}


SILENT = replace(WELL, beat=replace(ENDED, started=ago(9.1), finished=ago(9), well=ago(9)))


@pytest.mark.parametrize(
    ("seen", "alive", "says"),
    [
        (WELL, True, "waiting for annotators: 3 of 9); iteration 4 was finished 2.1 days ago"),
        (SILENT, False, f"no tick has ended well since {ago(9)} (allowed: 3.0 h). No tick has begun: are `gleaner worker`"),
        (replace(SILENT, holder=holder(9.05)), False, "No tick has begun"),
        (replace(SILENT, holder=holder(2)), False, f"A tick began at {holder(2)['since']} (process 123) and was killed"),
        (replace(SILENT, holder=holder(8), held=True), False, "in use by `tick`, process 123"),
        (replace(SILENT, holder=holder(8, "ingest"), held=True), False, "in use by `ingest`, process 123"),
        (replace(SILENT, held=True), False, "in use by another process"),
        (replace(WELL, beat=None), False, "no tick has ever ended well (allowed: 3.0 h)"),
        (replace(WELL, beat=None, deployed=DEPLOYED), True, "it was deployed just now"),
        (replace(SILENT, deployed=DEPLOYED), True, "alive: the last tick ended well 9.0 h ago"),
        (replace(SILENT, deployed=replace(DEPLOYED, at=ago(-9))), False, "No tick has begun"),
        (replace(WELL, beat=replace(ENDED, well=ago(-2))), False, "from the future"),
    ],
)  # fmt: skip
def test_what_the_watchdog_sees_and_says(seen: Seen, alive: bool, says: str) -> None:
    verdict = judge(seen, 3 * HOUR)
    assert verdict.alive is alive
    assert says in verdict.line and "\n" not in verdict.line


def test_ticks_that_fail_are_told_from_ticks_that_do_not_come() -> None:
    failing = replace(ENDED, started=ago(0.2), finished=ago(0.1), outcome="failed", why="Blocked", well=ago(9))
    assert (
        f"Ticks begin and fail, the last at {ago(0.1)} (Blocked)" in judge(replace(WELL, beat=failing), 3 * HOUR).line
    )
    lately = replace(failing, well=ago(1))
    assert judge(replace(WELL, beat=lately), 3 * HOUR).alive
    assert "the newest one failed (Blocked)" in judge(replace(WELL, beat=lately), 3 * HOUR).line


GLEANER = Path(sys.executable).with_name("gleaner")


def gleaner(root: Path, *arguments: str) -> tuple[int, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_"))}
    done = subprocess.run(
        [str(GLEANER), *arguments, "--workspace", str(root)], env=clean, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def silence(root: Path, hours: float) -> None:
    """Make the campaign silent for so long."""
    then = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="milliseconds")
    text = json.dumps({"started": then, "finished": then, "outcome": "idle", "why": "", "well": then})
    (root / heartbeat.HEARTBEAT).write_text(text)


def test_a_silent_campaign_raises_an_alert_and_fails_even_when_the_ledger_is_broken_and_a_tick_hangs(
    closed_iteration: Path, tmp_path: Path
) -> None:
    root = copy(closed_iteration, tmp_path / "copy")
    code, said = gleaner(root, "watchdog")
    assert (code, "gleaner watchdog --within 3h" in said) == (2, True)
    silence(root, 5)
    (root / LEDGER).write_bytes(b"not a database")
    with campaign_lock(root, "tick"):
        code, said = gleaner(root, "watchdog", "--within", "3h")
    assert code == 1
    assert f"in use by `tick`, process {os.getpid()}" in said
    with open_outbox(root) as outbox:
        assert outbox.newest("watchdog") == "error"
    assert gleaner(root, "watchdog", "--within", "6h")[0] == 0
    (root / schedule.SCHEDULE).write_text("{")
    assert gleaner(root, "watchdog", "--within", "6h")[0] == 0
    code, said = gleaner(root, "watchdog")
    assert (code, "schedule.json" in said) == (1, True)


def test_the_watchdog_alone_is_light() -> None:
    code = "import sys, flows.watchdog; print([m for m in ('prefect', 'torch', 'dvc', 'mlflow') if m in sys.modules])"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_tick_that_finds_nothing_due_leaves_a_heartbeat(closed_iteration: Path, tmp_path: Path) -> None:
    root = copy(closed_iteration, tmp_path / "copy")
    assert gleaner(root, "stop", "--because", "holiday")[0] == 0
    run_ticks(root, 1)
    found = beat_of(root)
    assert (found.outcome, "holiday" in found.why) == ("idle", True)
    assert judge(watchdog.gather(root), HOUR).alive


# the workspace's own server -------------------------------------------------------------------------------


def test_a_server_is_found_while_its_process_lives_and_by_its_own_workspace_only(tmp_path: Path) -> None:
    root, other = tmp_path / "one", tmp_path / "two"
    assert settings.own_server(root) is None
    settings.announce_server(root, "http://127.0.0.1:4200/api")
    assert settings.own_server(root) == "http://127.0.0.1:4200/api"
    copy(root, other)
    assert settings.own_server(other) is None
    said = json.loads((root / settings.SERVER).read_text())
    for mark in (f"{2**22 - 1} 12345 {root}", "", "x y", f"x y {root}"):
        (root / settings.SERVER).write_text(json.dumps({**said, "mark": mark}))
        assert settings.own_server(root) is None
    (root / settings.SERVER).write_text("{")
    assert settings.own_server(root) is None
