"""Searches what a campaign writes down for the secrets of this process's environment (invariant I7).

A variable is secret when its name says so (LABEL_STUDIO_TOKEN, MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY …) or
when it is an address with a password in it; of GLEANER_ALERT_URLS each token and password is one. The variable and the file are named, the value never is.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tasks import alert_urls, repository
from tasks.store import Store

SECRET = re.compile(r"(^|_)(API_?)?(TOKEN|PASSWORD|PASSWD|SECRET|KEY|CREDENTIALS?)(_|$)", re.IGNORECASE)
SHORTEST = 8  # characters: shorter values are found everywhere
#: where the campaign writes text: logs, the tracker's queue and database, reports. The images are hashes' business
FOLDERS = (".gleaner", "data/report", "data/evaluation", "data/inputs", "data/exchange", "models")
FILES = ("data/refused.csv",)
PRIVATE = ".gleaner/label-studio"  # a server of one's own (0700): its database and its token (0600) are there, and nowhere else
IMAGES = (".png", ".jpg", ".bmp", ".gif", ".tif", ".webp", ".img", ".npy")


def secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Variable -> secret value (of several lines the longest: git searches by line), if long enough to be looked for."""
    found = {name: value for name, value in environment.items() if SECRET.search(name)}
    for name, value in environment.items():
        password = _password(value)
        if password:
            found[f"{name} (its password)"] = password
    for number, url in enumerate(alert_urls.entries(environment.get(alert_urls.VARIABLE, "")), 1):
        for part, value in enumerate(alert_urls.secret_parts(url)):
            if value not in found.values():
                found[f"{alert_urls.VARIABLE} (part {part} of address {number})"] = value
    told = {name: max(value.splitlines(), key=len, default="") for name, value in sorted(found.items())}
    return {name: line for name, line in told.items() if len(line) >= SHORTEST and not os.path.exists(line)}  # noqa: PTH110 - pathlib raises for a name that is too long


def _password(value: str) -> str | None:
    try:
        return urlsplit(value).password if "://" in value else None
    except ValueError:
        return None


def secrets_in_files(store: Store, deep: bool = False) -> Iterator[str]:
    """Each file that holds a secret of the environment; `deep` looks through every tag too."""
    token = store.path(f"{PRIVATE}/token")
    own = {"LABEL_STUDIO_API_KEY": token.read_text(encoding="utf-8")} if token.is_file() else {}
    wanted = secrets({**own, **os.environ})
    if not wanted:
        return
    for path in _files(store):
        for name, value in wanted.items():
            if _holds(path, value):
                yield f"{path.relative_to(store.root)} holds the value of {name}. Change that secret, then remove it."
    for name, value in wanted.items() if deep else ():
        for place in repository.search_history(store.root, repository.tags(store.root), value):
            yield f"{place} holds the value of {name}. Change that secret: git keeps what was committed."


def _files(store: Store) -> Iterator[Path]:
    names = {store.path(name) for name in (*repository.tracked(store.root), *FILES)}
    for folder in FOLDERS:
        names |= {path for path in store.path(folder).rglob("*") if path.suffix not in IMAGES}
    names = {path for path in names if not path.is_relative_to(store.path(PRIVATE))}
    yield from sorted(path for path in names if path.is_file() and not path.is_symlink())


def _holds(path: Path, value: str) -> bool:
    if path.stat().st_size == 0:
        return False
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(value.encode("utf-8", "surrogateescape")) >= 0
