"""The commands that let a campaign tick by itself; `flows/cli.py` takes them up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def deploy(
    every: Annotated[str, typer.Option(help="Interval, like 90s, 15m, 3h or 1d. Default without --cron: 15m.")] = "",
    cron: Annotated[str, typer.Option(help="Cron line instead, like '*/15 8-18 * * 1-5'.")] = "",
    timezone: Annotated[str, typer.Option(help="Of the cron line, like Europe/Zurich.")] = "UTC",
    remove: Annotated[bool, typer.Option("--remove", help="Take the deployment and its automations away.")] = False,
) -> None:
    """Let the campaign tick on a schedule: a Prefect deployment with its automations; again, to change it."""
    from flows.deploy import deploy as register
    from flows.deploy import remove as take_away
    from flows.schedule import wanted

    if remove:
        print("removed." if take_away(Path.cwd()) else "there was none to remove.")
        return
    done = register(Path.cwd(), wanted(every, cron, timezone))
    print(f"{done.name}: {done.words}, at {done.api}\nNext: gleaner worker")


@app.command()
def worker() -> None:
    """Execute the scheduled ticks of this campaign, until Ctrl-C."""
    from flows.deploy import work

    work(Path.cwd())


@app.command()
def listen(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8765,
    exposed: Annotated[bool, typer.Option("--exposed", help="Allow an address that other machines reach.")] = False,
) -> None:
    """Wake a tick when the labeling tool posts to /wake with the secret of GLEANER_WEBHOOK_SECRET, until Ctrl-C."""
    from flows.listen import listen as serve

    serve(Path.cwd(), host, port, exposed)


@app.command()
def watchdog(
    within: Annotated[str, typer.Option(help="How long silence may last, like 3h. Default: 3 intervals.")] = "",
) -> None:
    """Exit with 1 and raise an alert when no tick has ended well for too long; for cron, outside Prefect."""
    from flows.watchdog import main as watch

    raise typer.Exit(watch(Path.cwd(), within))
