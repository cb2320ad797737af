"""The addresses in GLEANER_ALERT_URLS: one by one, as they may be shown, and what in them is secret. Pure.

entries("slack://T1/B2/x9, mailto://ann:hunter2@example.org?to=bob@example.org")  ->  2 URLs
shown("mailto://ann:hunter2@example.org?to=bob@example.org")                      ->  "mailto://example.org"
shown("slack://T1/B2/x9")                                                         ->  "slack://…"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote

VARIABLE = "GLEANER_ALERT_URLS"
BETWEEN = re.compile(r"\s+|,+(?=\s|$|[A-Za-z][A-Za-z0-9+.-]*://)")  # `?to=a,b` is one address
SCHEMA = re.compile(r"[a-z][a-z0-9+.-]{0,30}", re.IGNORECASE)
HOST = re.compile(r"(?:[^@]*@)?([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
SECRET_NAME = re.compile(r"pass|pwd|token|secret|key|auth", re.IGNORECASE)
#: schemas whose host is one: in most others (slack://TOKEN/…) it is a part of the secret
WITH_HOST = {"json", "jsons", "xml", "xmls", "form", "forms", "mailto", "mailtos", "http", "https"}


def entries(text: str) -> tuple[str, ...]:
    """The addresses, separated by spaces, line ends or commas."""
    return tuple(part for part in BETWEEN.split(text.strip()) if part.strip(","))


def shown(url: str) -> str | None:
    """Schema and host where that is no secret; None for what is not an address."""
    schema, separator, rest = url.partition("://")
    if not separator or not SCHEMA.fullmatch(schema):
        return None
    schema = schema.lower()
    place, _, after = _cut(rest)
    host = HOST.fullmatch(place)
    hidden = "@" in after or host is None or schema not in WITH_HOST  # an @ further on: a password with a slash in it
    return f"{schema}://…" if hidden or host is None else f"{schema}://{host[1]}"


def secret_parts(url: str) -> Iterator[str]:
    """What must not be written down anywhere: the password, and all that looks like a token."""
    schema, _, rest = url.partition("://")
    place, query, path = _cut(rest)
    user, _, host = place.rpartition("@")
    yield unquote(rest[: len(rest) - len(query)].rpartition("@")[0].partition(":")[2])  # the password
    asked = parse_qsl(query)
    yield from (value for name, value in asked if SECRET_NAME.search(name))
    parts = [*path.split("/"), *user.split(":"), *(value for name, value in asked if "@" not in value)]
    if schema.lower() not in WITH_HOST:
        parts.append(host)
    yield from (part for part in map(unquote, parts) if len(part) >= 20 or re.search(r"[0-9]", part))


def _cut(rest: str) -> tuple[str, str, str]:
    """What follows `schema://` as place, query and path."""
    head, _, query = rest.partition("?")
    place, *path = re.split(r"[/#]", head, maxsplit=1)
    return place, query, path[0] if path else ""
