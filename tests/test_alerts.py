"""Alerts: what a channel must do, what happened as sentences, addresses that show nothing, and who is not disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import news, standing
from monitoring.alerts import Alert, harmless, message, one_line
from monitoring.alerts._delivery import REASONS, UNKNOWN, reason
from monitoring.evidence import About
from tasks import plugins
from tasks.alert_urls import VARIABLE, entries, secret_parts, shown
from tasks.campaign import open_campaign
from tasks.disclosure import secrets
from tasks.errors import BadInput, GleanerError
from tasks.params import load
from tasks.params_sections import Event
from tasks.polling import poll
from tests.quick import copy, edit, tick
from tests.receivers import SECRET, mail_server, webhook

CHANNELS = plugins.names("alerts")
#: channel -> what makes it have targets; a channel of one's own is named here, too, if it needs something
PREPARED: dict[str, Callable[[ExitStack, pytest.MonkeyPatch], None]] = {}


def alert(key: str = "k", **changes: object) -> Alert:
    one = Alert(
        "warning", "finding_warns", "the scores stand still", "They moved by 0.01.\nTo do: look.", "deer", 3, key
    )
    return replace(one, **changes)  # type: ignore[arg-type]


def _apprise(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, box = stack.enter_context(webhook()), stack.enter_context(mail_server())
    monkeypatch.setenv(VARIABLE, f"{hook.url}, {box.url}")


PREPARED["apprise"] = _apprise


# every channel --------------------------------------------------------------------------------------------


@pytest.fixture(params=CHANNELS)
def channel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A channel that works."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with ExitStack() as stack:
        if request.param in PREPARED:
            PREPARED[request.param](stack, monkeypatch)
        yield request.param


def test_a_channel_names_its_targets_each_by_another_printable_name_without_a_secret(channel: str) -> None:
    names = plugins.find("alerts", channel).targets()
    assert names and len(set(names)) == len(names)
    assert all(name and name.isprintable() and SECRET not in name for name in names)


def test_a_channel_takes_one_alert_and_many(channel: str) -> None:
    module = plugins.find("alerts", channel)
    for target in module.targets():
        module.send([alert()], target)
        module.send([alert(str(n), text="\x1b[31m<b>\r\nSubject: x") for n in range(20)], target)


def test_a_channel_has_an_entry_point_whose_options_can_be_read(channel: str) -> None:
    entry = plugins.entry_point("alerts", channel)
    assert entry.evidence == ("alerts", "target")
    assert "targets" in plugins.functions_of("alerts", channel)


# what happened --------------------------------------------------------------------------------------------

ABOUT = About("stagnant", why="Old scores.", causes=("a stale file",), todo="Run again.")


def test_a_finding_becomes_one_alert_a_check_and_iteration_and_blocking_ones_are_errors() -> None:
    warns = ABOUT.fails("It stands still.", 0.1, 0.2)
    found = [
        replace(warns, severity="block"),
        replace(warns, check="b"),
        replace(warns, severity="off"),
        ABOUT.passes("ok", 1, 1),
    ]
    first, second = news.of_findings("deer", 3, found)
    assert (first.severity, first.kind, second.severity, second.kind) == (
        "error",
        "finding_blocks",
        "warning",
        "finding_warns",
    )
    assert "It stands still." in first.text and "Run again." in first.text and "--accept" in first.text
    assert news.of_findings("deer", 3, found)[0].key == first.key != news.of_findings("deer", 4, found)[0].key


def failure(text: str, day: str = "2026-07-01", recoveries: int = 0) -> Alert:
    return news.of_failure("deer", GleanerError(text), "train", day, recoveries)


def test_a_failed_tick_is_told_once_a_day_for_each_message_and_again_after_ticks_worked() -> None:
    first = failure("the disk has 120 bytes left")
    assert "train" in first.title and "GleanerError" in first.title and "120 bytes" in first.text
    assert failure("the disk has 7 bytes left").key == first.key, "other numbers are the same failure"
    others = [failure("the disk is gone"), failure(first.text, "2026-07-02"), failure(first.text, recoveries=1)]
    assert len({first.key, *(other.key for other in others)}) == 4


def test_ticks_that_fail_and_work_in_turn_are_told_of_a_few_times_a_day() -> None:
    told = {failure("x", recoveries=n).key for n in range(100)} | {
        again.key for n in range(100) if (again := news.of_recovery("deer", "2026-07-01", n))
    }
    assert len(told) == 2 * news.RECOVERIES + 1


def test_of_an_error_that_is_not_ours_only_class_and_place_are_told() -> None:
    try:
        raise ValueError(f"https://ann:{SECRET}@example.org refused")
    except ValueError as error:
        told = news.of_failure("deer", error, "score", "2026-07-01", 0)
    assert SECRET not in told.text and "ValueError in tests.test_alerts, line " in told.text


def test_a_batch_that_waits_is_told_after_the_limit_and_then_once_a_day() -> None:
    def at(hours: float, limit: float = 48.0, answered: int = 3) -> Alert | None:
        return news.of_waiting("deer", 4, answered, 20, hours, limit, "http://127.0.0.1:8080")

    assert at(47.9) is at(1e6, limit=0.0) is at(-5) is at(99, answered=20) is None
    keys = [told.key for hours in range(48, 48 + 72) if (told := at(hours))]
    assert len(keys) == 72 and len(set(keys)) == 3
    told = at(50)
    assert told is not None and "17 of 20 tasks" in told.text and "http://127.0.0.1:8080" in told.text


def test_one_message_holds_many_alerts_and_is_as_bad_as_the_worst() -> None:
    told = message([alert("a"), alert("b", severity="error", title="broken"), alert("c", severity="info")])
    assert (told.severity, told.title) == ("error", "deer: 3 alerts")
    assert "ERROR: broken" in told.text and told.text.count("To do: look.") == 3
    assert message([alert()]).title == "deer: the scores stand still"


# text of others -------------------------------------------------------------------------------------------


@given(st.text(max_size=300), st.integers(10, 100))
def test_whatever_the_text_is_it_has_no_control_signs_and_is_not_too_long(text: str, longest: int) -> None:
    for made in (harmless(text, longest), one_line(text, longest)):
        assert len(made) <= longest
        assert all(c.isprintable() or c == "\n" for c in made)
    assert "\n" not in one_line(text)


@pytest.mark.parametrize("text", ["@everyone look", "<!channel> x", "a <@U123>", "@HERE", "@all"])
def test_text_of_others_calls_nobody(text: str) -> None:
    assert harmless(text) != text and harmless(harmless(text)) == harmless(text)


def test_a_title_cannot_become_a_mail_header() -> None:
    assert one_line("a\r\nBcc: eve@example.org") == "a Bcc: eve@example.org"


# addresses ------------------------------------------------------------------------------------------------

SHOWN = {
    f"mailto://ann:{SECRET}@example.org?to=bob@example.org": "mailto://example.org",
    "json://127.0.0.1:8080/in": "json://127.0.0.1",
    "jsons://[::1]:8080/in": "jsons://[::1]",
    f"slack://{SECRET}/B2/x9": "slack://…",
    f"mailto://ann:a/{SECRET}@example.org": "mailto://…",
    f"mailto://ann:a#{SECRET}@example.org": "mailto://…",
    f"json://ann:a@{SECRET}@example.org": "json://…",
    f"https://hooks.slack.com/services/T1/B2/{SECRET}": "https://hooks.slack.com",
    f"{SECRET}": None,
    f"{SECRET}/x y://": None,
    "": None,
}


@pytest.mark.parametrize(("url", "told"), SHOWN.items())
def test_of_an_address_schema_and_host_are_shown_and_nothing_secret(url: str, told: str | None) -> None:
    assert shown(url) == told


@given(st.text(), st.text(min_size=1))
def test_no_part_of_a_login_is_ever_shown(user: str, password: str) -> None:
    told = shown(f"mailto://{quote(user, safe='')}:{quote(password, safe='')}@example.org/x")
    assert told == "mailto://example.org"


@given(st.text())
def test_whatever_stands_there_is_shown_as_a_schema_and_a_host_or_not_at_all(url: str) -> None:
    told = shown(url)
    assert told is None or (url.lower().startswith(told.partition("://")[0]) and told.count("://") == 1)


def test_addresses_are_separated_by_blanks_lines_and_commas_but_not_within_a_list() -> None:
    assert entries(" a://b?to=x,y, c://d\n\te://f,g://h ,, ") == ("a://b?to=x,y", "c://d", "e://f", "g://h")
    assert entries("") == entries(" , ") == ()


@pytest.mark.parametrize(
    "url",
    [
        f"slack://{SECRET}/B2/C3", f"slack://T1/{SECRET}", f"json://127.0.0.1/in?-key={SECRET}", f"ntfy://ntfy.sh/{SECRET}",
        f"mailto://ann:{SECRET}@example.org", f"tgram://{SECRET}/12", f"json://h/?password={SECRET}",
    ],
)  # fmt: skip
def test_a_secret_of_an_alert_address_is_searched_for(url: str) -> None:
    assert SECRET in secrets({VARIABLE: f"json://127.0.0.1/in {url}"}).values()


def test_what_is_no_secret_of_an_alert_address_is_not_searched_for() -> None:
    url = "mailto://example.org:2525?from=gleaner@example.org&to=team1@example.org"
    assert set(secret_parts(url)) - {""} == set()


# what Apprise says ----------------------------------------------------------------------------------------


@given(st.text())
def test_of_what_apprise_says_only_numbers_and_our_own_words_are_passed_on(said: str) -> None:
    frames = [words.split("{}")[0] for _, words in REASONS] + [UNKNOWN]
    told = reason([f"Failed to send {said}", said])
    assert any(
        told.startswith(frame) and (told[len(frame) :] == "" or told[len(frame) :].isdigit()) for frame in frames
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Failed to send JSON POST notification: Page not found., error=404.", "it answered 404"),
        ("Socket Exception: (535, b'5.7.8 bad login of ann')", "the mail server answered 535"),
        ("Socket Exception: {'team@example.org': (550, b'no')}", "the mail server answered 550"),
        ("Socket Exception: [Errno 111] Connection refused", "nobody listens there"),
        ("Max retries exceeded with url: /secret (Caused by ... [Errno -2] Name or service not known", "no such host"),
        ("something new", UNKNOWN),
    ],
)
def test_the_reason_is_told_in_words_of_our_own(said: str, told: str) -> None:
    assert reason([said]) == told


@pytest.mark.parametrize("url", [f"nonsense://{SECRET}", f"slack://{SECRET}", SECRET, f"mailto://{SECRET}"])
def test_a_wrong_address_is_named_by_its_place_and_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"json://127.0.0.1:9/in {url}")
    module = plugins.find("alerts", "apprise")
    with pytest.raises(BadInput, match=f"{VARIABLE}: address 2") as error:
        module.send([alert()], module.targets()[1])
    assert SECRET not in str(error.value)


# what the ledger gives reason for -------------------------------------------------------------------------


def hours_later(root: Path, hours: float) -> list[Alert]:
    with open_campaign(root, "test") as campaign:
        latest = campaign.ledger.latest()
        assert latest is not None and latest.closed_at is not None
        at = datetime.fromisoformat(latest.closed_at).timestamp() + 3600 * hours
        return standing.standing(campaign, lambda: datetime.fromtimestamp(at, UTC).isoformat())


def test_a_batch_that_waits_too_long_is_told_and_one_that_is_answered_too(
    closed_iteration: Path, tmp_path: Path
) -> None:
    root = copy(closed_iteration, tmp_path / "workspace")
    assert [told.kind for told in hours_later(root, 1)] == ["batch_sent"]
    assert [told.kind for told in hours_later(root, 49)] == ["batch_sent", "batch_waiting"]
    with open_campaign(root, "test") as campaign:
        poll(campaign)
    assert [told.kind for told in hours_later(root, 49)] == ["batch_sent", "labels_finished"]


def test_an_end_and_a_stop_are_told_with_their_reasons(closed_iteration: Path, tmp_path: Path) -> None:
    root = copy(closed_iteration, tmp_path / "workspace")
    with open_campaign(root, "test") as campaign:
        campaign.ledger.decide("stop", 1, "campaign", "holidays")
    (told,) = [told for told in hours_later(root, 0) if told.kind == "campaign_stopped"]
    assert "holidays" in told.text
    with open_campaign(root, "test") as campaign:
        campaign.ledger.decide("resume", 1, "campaign", "")
        campaign.ledger.decide("stop", 1, "campaign", "holidays")
    (again,) = [told for told in hours_later(root, 0) if told.kind == "campaign_stopped"]
    assert again.key != told.key
    with open_campaign(root, "test") as campaign:
        campaign.ledger.decide("resume", 1, "campaign", "")
    edit(root, {"stop.labels": 35})
    tick(root)
    (end,) = [told for told in hours_later(root, 0) if told.kind == "campaign_finished"]
    assert "budget spent" in end.text


# settings -------------------------------------------------------------------------------------------------


def test_every_event_is_in_params_yaml_or_said_to_be_off() -> None:
    text = (plugins.ROOT / "params.yaml").read_text(encoding="utf-8")
    assert set(load(plugins.ROOT / "params.yaml").alerts.events) == set(get_args(Event)) - {"batch_sent"}
    assert "also batch_sent" in text
