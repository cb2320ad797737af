"""The commands about annotators and their tools; `flows/cli.py` takes them up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.errors import BadInput

app = typer.Typer()


@app.command()
def close_batch(because: Annotated[str, typer.Option(help="Why; recorded for ever.")]) -> None:
    """Go on without the answers that are missing; those that come later count in the iteration after."""
    from tasks.campaign import open_campaign

    with open_campaign(Path.cwd(), "close-batch") as campaign:
        latest = campaign.ledger.latest()
        if latest is None or latest.state != "closed":
            raise BadInput("no batch is waiting for answers. `gleaner status` shows what is next.")
        campaign.ledger.decide("close", latest.number, "batch", because)
    print(f"the batch of iteration {latest.number} is closed. Next: gleaner tick")


@app.command()
def accept_deletions(because: Annotated[str, typer.Option(help="Why; recorded for ever.")]) -> None:
    """Believe the labeling tool that many answers were deleted on purpose; they no longer count."""
    from tasks.campaign import open_campaign

    with open_campaign(Path.cwd(), "accept-deletions") as campaign:
        latest = campaign.ledger.latest()
        if latest is None:
            raise BadInput("no task was sent yet. Next: gleaner tick")
        campaign.ledger.decide("deletions", latest.number, "answers", because)
    print("answers that are gone from the labeling tool no longer count. Next: gleaner tick")


@app.command()
def resend(because: Annotated[str, typer.Option(help="Why; recorded for ever.")]) -> None:
    """Give up the labeling tool that holds the tasks; those that wait go to the one that params.yaml names."""
    from tasks.campaign import open_campaign

    with open_campaign(Path.cwd(), "resend") as campaign:
        latest = campaign.ledger.latest()
        if latest is None:
            raise BadInput("no task was sent yet. Next: gleaner tick")
        campaign.ledger.send_elsewhere(latest.number, because)
    print("the next tick sends the tasks that wait to the labeling tool that params.yaml names. Next: gleaner tick")


@app.command()
def label_studio(
    port: Annotated[int, typer.Option(help="Preferred port; another free one when it is taken.")] = 8080,
) -> None:
    """A Label Studio of your own over this workspace, on loopback, until Ctrl-C; installed the first time."""
    from flows.label_studio import serve

    serve(Path.cwd(), port)
