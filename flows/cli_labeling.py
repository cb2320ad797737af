"""The commands about annotators, their tools and users' corrections; `flows/cli.py` takes them up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.launcher import here
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


@app.command()
def correct(
    image: Annotated[
        str | None, typer.Argument(help="A name or item id of the pool, or a file with its bytes.")
    ] = None,
    label: Annotated[str | None, typer.Argument(help="What is right: a class, or skip to take it back.")] = None,
    by: Annotated[str, typer.Option(help="Who says so.")] = "",
    file: Annotated[str | None, typer.Option(help="A CSV file with the columns image, label and by.")] = None,
) -> None:
    """Say that a served prediction was wrong and what is right; the next tick reads it, also when one is at work now."""
    from tasks.corrections import Correction, correct_all, item_of, read_file

    if (file is None) == (image is None) or (image is not None and not (label and by)):
        raise BadInput("give IMAGE LABEL --by NAME, or --file FILE with the columns image, label and by.")
    if file is not None:
        found = read_file(here(file), by)
    else:
        path = here(str(image))
        found = [Correction(item_of(path.read_bytes()) if path.is_file() else str(image), str(label), by)]
    noted = len(correct_all(Path.cwd(), found))
    print(f"{noted} correction{'' if noted == 1 else 's'} noted. The next `gleaner tick` reads what is new.")


@app.command()
def collect(
    files: Annotated[list[str], typer.Argument(help="Images of a stream, in the order in which they came.")],
    random_only: Annotated[bool, typer.Option("--random-only", help="Ask no model: the random share alone.")] = False,
) -> None:
    """Offer images of a stream to the pool: a random share, and those the newest model is unsure about, within limits."""
    from tasks.offering import offer_files

    kept = 0
    for name, offer in offer_files(Path.cwd(), [here(name) for name in files], random_only=random_only):
        kept += offer.kept
        print(f"{'kept' if offer.kept else 'not kept'}: {name.name}: {offer.why}")
    print(f"{kept} of {len(files)} images are kept; the next tick that opens an iteration ingests them.")
