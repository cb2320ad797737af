"""When a campaign ticks by itself: an interval or a cron line, and what was deployed, in `.gleaner/schedule.json`.

Schedule(every="15m").gap()   ->   900.0        Schedule(cron="0 8 * * 1-5", timezone="Europe/Zurich").gap()   ->   259200.0
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from tasks.errors import BadInput, GleanerError
from tasks.store import Store

SCHEDULE = ".gleaner/schedule.json"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST = 10  # seconds; a tick with nothing due takes about as long
USUAL = "15m"
HORIZON = timedelta(days=9)  # a cron line's longest pause is looked for here: a week and its weekend


@dataclass(frozen=True)
class Schedule:
    """Either `every` (like 15m) or `cron` with a time zone."""

    every: str = ""
    cron: str = ""
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        if bool(self.every) == bool(self.cron):
            raise BadInput("give either --every (like 15m) or --cron (like '*/15 * * * *'), not both.")
        if self.every and seconds(self.every, "--every") < SHORTEST:
            raise BadInput(f"--every {self.every}: at least {SHORTEST}s.")

    def as_prefect(self) -> Any:
        """The same for Prefect. Raises BadInput for a cron line or a time zone that cannot be."""
        from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
        from pydantic import ValidationError

        if self.every:
            return IntervalSchedule(
                interval=timedelta(seconds=seconds(self.every, "--every")), anchor_date=datetime.now(UTC)
            )
        try:
            return CronSchedule(cron=self.cron, timezone=self.timezone)
        except ValidationError as error:
            wrong = "; ".join(f"{part['loc'][0]}: {part['msg']}" for part in error.errors())
            raise BadInput(f"--cron {self.cron!r} --timezone {self.timezone}: {wrong}.") from None

    def gap(self) -> float:
        """The longest pause between two ticks, in seconds."""
        if self.every:
            return seconds(self.every, "--every")
        dates = self._firings()
        if len(dates) < 2:
            raise BadInput(f"--cron {self.cron!r} never comes, or once: no such day.")
        return max((b - a).total_seconds() for a, b in pairwise(dates))

    def _firings(self) -> list[datetime]:
        import asyncio

        from prefect.server.schemas.schedules import CronSchedule

        self.as_prefect()
        cron = CronSchedule(cron=self.cron, timezone=self.timezone)
        begin = datetime.now(UTC)
        dates: list[datetime] = []
        while len(dates) < 2 or dates[-1] < begin + HORIZON:
            start = dates[-1] + timedelta(seconds=1) if dates else begin
            try:
                more = asyncio.run(cron.get_dates(n=500, start=start))
            except ValueError:  # no such day, like the 31st of February
                break
            if not more:
                break
            dates += more
        return dates

    def words(self) -> str:
        """'every 15m' or 'cron 0 8 * * 1-5 (UTC)'."""
        return f"every {self.every}" if self.every else f"cron {self.cron} ({self.timezone})"


def wanted(every: str, cron: str, timezone: str) -> Schedule:
    """What a command line asks for; a quarter of an hour when it says nothing."""
    return Schedule(every or ("" if cron else USUAL), cron, timezone)


@dataclass(frozen=True)
class Deployed:
    """What was deployed, when, and how long its longest pause is."""

    deployment: str
    schedule: Schedule
    gap: float  # seconds
    at: str  # UTC, ISO 8601


def write(root: Path, deployed: Deployed) -> None:
    """Remember it for the watchdog, which must not need Prefect."""
    Store(root).write_json(SCHEDULE, asdict(deployed))


def read(root: Path) -> Deployed | None:
    """What was deployed, None when nothing was. Raises GleanerError when the file is damaged."""
    store = Store(root)
    if not store.exists(SCHEDULE):
        return None
    try:
        value = store.read_json(SCHEDULE)
        found = Deployed(value["deployment"], Schedule(**value["schedule"]), float(value["gap"]), value["at"])
        datetime.fromisoformat(found.at)
    except (TypeError, KeyError, ValueError, AttributeError, BadInput) as error:
        raise GleanerError(f"{store.path(SCHEDULE)} is damaged ({error}). `gleaner deploy` writes it again.") from None
    return found


def seconds(text: str, option: str) -> float:
    """'90s', '15m', '3h', '1d' as seconds. Raises BadInput that names the option."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip())
    if match is None or not int(match[1]):
        raise BadInput(f"{option} {text!r}: write a whole number and s, m, h or d, like 90s, 15m, 3h or 1d.")
    return float(int(match[1]) * UNITS[match[2]])
