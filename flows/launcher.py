"""`gleaner`: finds the workspace and runs that workspace's own code with this environment's Python.

A workspace holds a copy of the code (code, params and data share one history). Running the clone's code on a
workspace's data would mix two versions; so this file does nothing but start `python -m flows.cli` in the workspace.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ANYWHERE = {"init", "demo", "--help", "-h", "--version"}  # commands that need no workspace: the clone's own code runs


def here(path: str) -> Path:
    """A path as the user wrote it: relative to where the command was started, not to the workspace."""
    return (Path(os.environ.get("GLEANER_STARTED_IN", ".")) / Path(path).expanduser()).resolve()


def main() -> int:
    """Replace this process by the workspace's command line. Returns an exit code only when it cannot."""
    arguments = sys.argv[1:]
    workspace, rest = _split(arguments)
    home = Path(__file__).resolve().parent.parent
    if workspace == "":
        print("error: --workspace needs a folder.", file=sys.stderr)
        return 2
    if not rest or rest[0] in ANYWHERE:
        code = home
    else:
        code = _workspace(workspace)
        if not (code / "flows" / "cli.py").exists():
            if {"--help", "-h"} & set(rest):
                code = home
            else:
                what = "is not a campaign workspace" if code.exists() else "does not exist"
                print(
                    f"error: {code} {what}. `gleaner init DIR` makes one; --workspace DIR names one.",
                    file=sys.stderr,
                )
                return 2
    environment = {**os.environ, "GLEANER_STARTED_IN": str(Path.cwd()), "GLEANER_TEMPLATE": str(home)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    environment["PYTHONPATH"] = str(code)
    os.chdir(code)
    return os.execve(sys.executable, [sys.executable, "-m", "flows.cli", *rest], environment)  # noqa: S606


def _split(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Take `--workspace DIR` (or -w DIR) out of the arguments, wherever it stands."""
    rest, workspace = [], None
    remaining = iter(arguments)
    for argument in remaining:
        if argument in ("--workspace", "-w"):
            workspace = next(remaining, "")
        elif argument.startswith("--workspace="):
            workspace = argument.partition("=")[2]
        else:
            rest.append(argument)
    return workspace, rest


def _workspace(named: str | None) -> Path:
    """The folder that was named, as it stands; else the nearest one upwards from here that holds a params.yaml."""
    start = Path(named or ".").expanduser().resolve()
    if named is not None:
        return start  # a slip of the pen must not find another campaign
    return next((folder for folder in (start, *start.parents) if (folder / "params.yaml").exists()), start)
