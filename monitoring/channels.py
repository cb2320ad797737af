"""Who is told: the channels of params.yaml with their targets, and what a channel may do wrong.

everyone(alerts)  ->  (Told("log the log", …), Told("apprise mailto://example.org", …))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from monitoring.alerts import Alert
from tasks import plugins
from tasks.campaign import IDENTITY
from tasks.errors import GleanerError
from tasks.params import load
from tasks.params_sections import Alerts
from tasks.store import Store

#: a channel of somebody's own may be wrong in any way; that must not hide what it was to tell of
FAULTS = (
    GleanerError, OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, ImportError
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """One target of one channel."""

    channel: str
    target: str  # "" for a channel that has nobody to tell
    module: ModuleType | None
    options: dict[str, Any]
    why: str = ""  # why there is nobody

    @property
    def name(self) -> str:
        """As it is shown and noted down: channel and target."""
        return f"{self.channel} {self.target}".strip()

    def send(self, alerts: Sequence[Alert]) -> None:
        """One message. Raises what is in FAULTS."""
        assert self.module is not None
        self.module.send(alerts, self.target, **self.options)


def alert_settings(root: Path) -> Alerts:
    """The section `alerts`; the defaults when params.yaml cannot be read: that, too, is to be told."""
    try:
        return load(root / "params.yaml").alerts
    except GleanerError:
        return Alerts()


def everyone(alerts: Alerts) -> tuple[Told, ...]:
    """Every target of every channel; a channel without one is in it once, with the reason."""
    return tuple(one for name in alerts.channels for one in _targets(name, alerts.options.get(name, {})))


def _targets(channel: str, options: dict[str, Any]) -> list[Told]:
    try:
        module = plugins.find("alerts", channel)
        targets = module.targets()
    except FAULTS as error:
        return [Told(channel, "", None, options, reason_of(error))]
    why = str(getattr(module, "NOBODY", "it names nobody"))
    return [Told(channel, target, module, options) for target in targets] or [Told(channel, "", None, options, why)]


def reason_of(error: BaseException) -> str:
    """Why a channel failed, as it may be shown: of errors that are not ours only the class."""
    return str(error) if isinstance(error, GleanerError) else f"its code failed with {type(error).__name__}"


def identity(root: Path) -> str:
    """The campaign's id; the folder's name when there is none to be read."""
    try:
        return str(Store(root).read_json(IDENTITY)["id"])
    except (GleanerError, OSError, KeyError, TypeError):
        return root.resolve().name
