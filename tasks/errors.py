"""Every error a user can meet, with the exit code that the shell sees.

    GleanerError            1   something failed; nothing half-done is left behind
    ├── Unreachable         1   a network, server or disk did not answer; the same call may go through later
    ├── BadInput            2   params, a source or an answer is wrong: the message names it and the fix
    ├── Blocked             3   a check stopped the batch before money was spent
    ├── InvariantBroken     4   `gleaner verify` found something wrong
    └── Busy               75   another process holds the campaign's lock (sysexits' EX_TEMPFAIL)

A message says what is wrong, where (file, row or key), what is allowed, and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GleanerError(Exception):
    """Base of all errors that are shown to the user without a traceback."""

    exit_code = 1


class Unreachable(GleanerError):
    """Something outside did not answer; worth trying again."""


class BadInput(GleanerError):
    """What the user gave cannot be used."""

    exit_code = 2


class Blocked(GleanerError):
    """A check refused the batch; nothing was exported."""

    exit_code = 3


class InvariantBroken(GleanerError):
    """The campaign's state contradicts itself."""

    exit_code = 4


class Busy(GleanerError):
    """Another process is working on this campaign."""

    exit_code = 75


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """' Did you mean 'margin'?' for 'margn', '' when nothing is close."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
