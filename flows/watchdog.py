"""`gleaner watchdog`: the dead man's switch, outside Prefect. Run it from cron or systemd, beside the ticks.

    python -m flows.watchdog --within 3h     # in a workspace, the same: exit code 0 alive, 1 silent

It reads three small files (heartbeat, schedule, lock) and nothing else: no ledger, no lock, no Prefect. Waiting for
annotators is health: a tick has looked. Silence is when no tick has ended well for too long.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import heartbeat, schedule
from flows.deploy import INTERVALS, campaign_id
from flows.heartbeat import Beat, age
from flows.schedule import Deployed
from tasks.errors import BadInput, GleanerError
from tasks.lock import is_locked, last_holder
from tasks.stage import guarded

FUTURE = 60.0  # seconds that a heartbeat may be ahead of the clock


@dataclass(frozen=True)
class Seen:
    """What the watchdog judges by, all of it gathered at one time."""

    at: str  # now, UTC, ISO 8601
    beat: Beat | None
    deployed: Deployed | None
    holder: dict[str, Any] | None  # who took the campaign's lock last
    held: bool  # and whether it has it still


@dataclass(frozen=True)
class Verdict:
    """Whether the campaign is alive, in one line: since when, and what to do."""

    alive: bool
    line: str


def watch(root: Path, within: str = "") -> Verdict:
    """Judge the campaign; raise an alert when it is silent. Raises BadInput when there is nothing to judge by."""
    campaign = campaign_id(root)
    seen = gather(root, must_know=not within)
    verdict = judge(seen, _window(within, seen.deployed))
    if not verdict.alive:
        _alert(root, campaign, seen, verdict)
    return verdict


def gather(root: Path, *, must_know: bool = False) -> Seen:
    """Read the files; one that is missing or damaged says nothing, but for the schedule when it `must_know` that."""
    try:
        deployed = schedule.read(root)
    except GleanerError:
        if must_know:
            raise
        deployed = None
    return Seen(heartbeat.now(), heartbeat.read(root), deployed, last_holder(root), is_locked(root))


def _window(within: str, deployed: Deployed | None) -> float:
    if within:
        return schedule.seconds(within, "--within")
    if deployed is None:
        raise BadInput("nothing is deployed here: say how long silence may last, `gleaner watchdog --within 3h`.")
    return INTERVALS * deployed.gap


def judge(seen: Seen, window: float) -> Verdict:
    """Alive when a tick has ended well within `window` seconds, or the deployment is younger than that. Pure."""
    well = seen.beat.well if seen.beat else ""
    if well and age(well, seen.at) < -FUTURE:
        return Verdict(
            False, f"the last heartbeat is from the future ({well}): the clock has jumped. The next tick sets it right."
        )
    since = max(filter(None, (well, _deployed(seen))), default="")
    if since and age(since, seen.at) <= window:
        return Verdict(True, f"alive: {_last(seen)}")
    silence = f"no tick has ended well since {since}" if since else "no tick has ever ended well"
    return Verdict(False, f"{silence} (allowed: {words(window)}). {_cause(seen, since)}")


def _deployed(seen: Seen) -> str:
    """When it was deployed; from the future it says nothing."""
    at = seen.deployed.at if seen.deployed else ""
    return at if at and age(at, seen.at) >= -FUTURE else ""


def _last(seen: Seen) -> str:
    if seen.beat is None or not seen.beat.well:
        return "it was deployed just now, and no tick has ended well yet."
    what = f"the last tick ended well {words(age(seen.beat.well, seen.at))} ago"
    failed = f"; the newest one failed ({seen.beat.why})" if seen.beat.outcome == "failed" else f" ({seen.beat.why})"
    if seen.beat.iteration is None:
        return f"{what}{failed}."
    return f"{what}{failed}; iteration {seen.beat.iteration} was finished {words(age(seen.beat.closed, seen.at))} ago."


def _cause(seen: Seen, since: str) -> str:
    """What the silence looks like from here, and what to do."""
    if seen.held:
        who = "another process"
        if seen.holder:
            who = f"`{seen.holder['purpose']}`, process {seen.holder['pid']}, since {seen.holder['since']}"
        return (
            f"The campaign is in use by {who}: long at work, or hung. Look at .gleaner/logs; when it hangs, end that "
            "process: the next tick goes on from there."
        )
    if seen.beat and seen.beat.outcome == "failed" and seen.beat.finished > since:
        return f"Ticks begin and fail, the last at {seen.beat.finished} ({seen.beat.why}): `gleaner tick` shows what it is."
    if (
        seen.holder
        and seen.holder["purpose"] == "tick"
        and age(since or seen.holder["since"], seen.holder["since"]) >= 0
    ):
        return (
            f"A tick began at {seen.holder['since']} (process {seen.holder['pid']}) and was killed: is memory or a time "
            "limit short? `gleaner tick` goes on from there."
        )
    return "No tick has begun: are `gleaner worker` and Prefect's server (`gleaner ui`) running? `gleaner tick` ticks by hand."


def words(seconds: float) -> str:
    """'42 s', '15 min', '3.5 h', '2.0 days'."""
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _alert(root: Path, campaign: str, seen: Seen, verdict: Verdict) -> None:
    """Tell people, once a day for each silence; this machine's mail or log has the line in any case."""
    from monitoring.alarm import flush, raise_alert
    from monitoring.alerts import Alert

    began = seen.beat.well if seen.beat else ""
    title = "the loop is silent: no iteration is finished or looked for"
    key = f"watchdog:{began}:{seen.at[:10]}"
    raise_alert(root, Alert("error", "watchdog", title, verdict.line, campaign, None, key))
    for problem in flush(root):
        print(f"warning: {problem}", file=sys.stderr)


def main(root: Path, within: str = "") -> int:
    """Say how it is, in one line; returns the exit code."""
    verdict = watch(root, within)
    print(verdict.line, file=sys.stdout if verdict.alive else sys.stderr)
    return 0 if verdict.alive else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Is the loop of the campaign in this folder alive?")
    parser.add_argument("--within", default="", help="how long silence may last, like 3h; default: 3 intervals")
    wanted = parser.parse_args().within
    sys.exit(guarded(lambda: sys.exit(main(Path.cwd(), wanted))))
