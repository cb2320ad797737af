"""Where a workspace's own MLflow database says its artefacts are: absolute, so `mv` and `cp -r` leave them behind.

    file:///old/digits/.gleaner/mlartifacts/5f3a…/artifacts
    file:///new/digits/.gleaner/mlartifacts/5f3a…/artifacts     after `follow`

The files came along with the workspace; until the addresses follow, its runs would read and write the old one's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FOLDER = "/.gleaner/mlartifacts"
#: MLflow derives every other address from its experiment's, so the first column alone tells whether there is work
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def follow(uri: str, home: Path) -> None:
    """Make the addresses below any other workspace's artefacts ones below `home`; all or none, and no write at home."""
    from sqlalchemy import NullPool, String, column, create_engine, func, inspect, literal, select, table

    with create_engine(uri, poolclass=NullPool).begin() as connection:
        if not inspect(connection).has_table("experiments"):  # an empty file, which MLflow fills
            return
        tables = [(table(rows, column(name, String)), name) for rows, name in COLUMNS]
        found = connection.scalars(select(tables[0][0])).all()
        for old, new in _moves(found, home).items():
            for rows, name in tables:
                # not LIKE, to which w is W and _ is anything; the slash keeps /srv/w1 apart from /srv/w10
                below = func.substr(rows.c[name] + "/", 1, len(old) + 1) == old + "/"
                moved = literal(new) + func.substr(rows.c[name], len(old) + 1)
                connection.execute(rows.update().where(below).values({name: moved}))


def _moves(addresses: Iterable[str | None], home: Path) -> dict[str, str]:
    """The artefact folders of other workspaces among `addresses`, each with `home` written as it is: URI or path."""
    moves = {}
    for address in filter(None, addresses):
        workspace, mark, below = address.rpartition(FOLDER)
        if mark and below[:1] in ("", "/") and address.startswith(("/", "file:///")):
            moves[workspace + mark] = home.as_uri() if address.startswith("file:") else str(home)
    return {old: new for old, new in moves.items() if old != new}
