"""The command line. Each command is a thin face of a function elsewhere; heavy imports happen inside the commands."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli_labeling import app as labeling
from flows.cli_schedule import app as schedules
from flows.launcher import ANYWHERE, here
from tasks.errors import BadInput, GleanerError, InvariantBroken

EPILOG = """A first campaign: gleaner init deer; cd deer; edit params.yaml (source, classes); gleaner ingest; gleaner tick.

Exit codes: 0 done, or nothing to do; 1 failed; 2 wrong input; 3 a check refused the batch; 4 an invariant is broken; 75 busy."""

app = typer.Typer(
    help="Active learning that a team can trust with a labeling budget. Every command takes --workspace DIR (default: here).",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"gleaner {version('gleaner')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before a command."""


@app.command()
def init(
    directory: Annotated[str, typer.Argument(help="Folder to make; must not exist or be empty.")],
    name: Annotated[str | None, typer.Option(help="Campaign name (default: the folder's).")] = None,
) -> None:
    """Make a campaign workspace: code, params, a git and a DVC repository of its own."""
    from tasks.workspace import init as make

    target = here(directory)
    template = Path(os.environ.get("GLEANER_TEMPLATE", Path(__file__).parent.parent))
    campaign = make(template, target, name)
    print(
        f"campaign {campaign} is in {target}\nNext: cd {directory}; edit params.yaml (source, labeling); gleaner ingest"
    )


@app.command()
def ingest(
    source: Annotated[
        str | None, typer.Argument(help="Folder, CSV or Parquet table; written to params.yaml. Default: what is there.")
    ] = None,
    rebuild: Annotated[bool, typer.Option(help="Decode every image again (pool.size or pool.mode changed).")] = False,
    as_json: Json = False,
) -> None:
    """Read images into the pool: decode, hash, fold duplicates, group, split, quarantine what is broken."""
    from tasks.counts import summary
    from tasks.ingest import ingest as take

    counts = take(Path.cwd(), here(source) if source else None, rebuild=rebuild)
    if as_json:
        _print_json(asdict(counts))
    else:
        print(summary(counts))


@app.command()
def tick(
    accept: Annotated[str | None, typer.Option(help="Overrule this check's finding for the open iteration.")] = None,
    because: Annotated[str | None, typer.Option(help="Why; recorded for ever.")] = None,
) -> None:
    """One tick of the loop: recover, import labels, and run an iteration if one is due."""
    from flows.run import run_ticks

    if (accept is None) != (because is None):
        raise BadInput("--accept CHECK and --because REASON go together.")
    if accept is not None and because is not None:
        _accept(accept, because)
    _tell(run_ticks(Path.cwd(), 1))


def _accept(check: str, reason: str) -> None:
    from tasks import plugins
    from tasks.campaign import open_campaign
    from tasks.findings import blocking

    plugins.require("checks", check)
    with open_campaign(Path.cwd(), "accept") as campaign:
        latest = campaign.ledger.latest()
        if latest is None or latest.state != "open":
            raise BadInput("no iteration is open: there is no finding to accept. `gleaner status` shows what is next.")
        if check not in (found := [finding["check"] for finding in blocking(campaign.store)]):
            refused = f"the checks that block are: {', '.join(found)}" if found else "no check blocks the batch"
            raise BadInput(f"iteration {latest.number} has nothing of {check} to accept: {refused}.")
        campaign.ledger.decide("accept", latest.number, check, reason)


def _tell(ticks: list[Any]) -> None:
    from flows.run import Idle

    for done in ticks:
        if isinstance(done, Idle):
            print(f"nothing to do: {done.why}.")
            _warn(done.warnings)
        elif done.closed is not None:
            print(
                f"iteration {done.closed.number}: {done.closed.asked} tasks sent."
                + (f" Annotators: {done.closed.where}." if done.closed.where else "")
                + (f" Campaign finished: {done.closed.stop}." if done.closed.stop else "")
            )
            _warn(done.warnings)
        else:
            print(f"nothing to do: {done.why}.")


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


@app.command()
def run(
    iterations: Annotated[int, typer.Option(min=1, help="At most this many iterations.")] = 10,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for answers before giving up.")] = 0.0,
) -> None:
    """Tick until nothing is due, or so many iterations are done."""
    from flows.run import run_ticks

    _tell(run_ticks(Path.cwd(), iterations, wait))


@app.command()
def simulate(
    strategy: Annotated[
        list[str] | None, typer.Option(help="Repeat for more than one. Default: params.yaml's and uniform.")
    ] = None,
    labels: Annotated[int, typer.Option(min=1, help="Training labels to spend in each run.")] = 300,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy.")] = 5,
    as_json: Json = False,
) -> None:
    """Compare strategies on the pool's known labels, many seeds in parallel; nothing is asked, nothing is stored in the ledger."""
    from flows.simulation import compare

    result = compare(Path.cwd(), tuple(strategy or ()), labels, seeds)
    if as_json:
        _print_json(result.as_json())
    else:
        print(result.text())


@app.command()
def status(as_json: Json = False) -> None:
    """Where the campaign stands and what to do next, on one screen."""
    from flows.screen import show_status
    from monitoring.reached import reached
    from tasks.status import status as read

    value = {**read(Path.cwd()), **reached(Path.cwd())}
    if as_json:
        _print_json(value)
    else:
        show_status(value)


@app.command()
def alert(
    test: Annotated[bool, typer.Option("--test", help="Send a test alert through every channel instead.")] = False,
) -> None:
    """Deliver the alerts that wait, now; with --test send one through every channel and say whether it arrived."""
    from monitoring.reached import deliver_now, send_test

    results = send_test(Path.cwd()) if test else deliver_now(Path.cwd())
    for name, reason in results:
        print(f"{name}: {f'not delivered: {reason}' if reason else 'delivered'}")
    if not results:
        print("nothing waits." if not test else "nobody is told: alerts.channels in params.yaml is empty.")
    if any(reason for _, reason in results) or (test and not results):
        raise typer.Exit(GleanerError.exit_code)


@app.command()
def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Read every cached byte of every iteration again.")] = False,
    as_json: Json = False,
) -> None:
    """Check every invariant; name what is broken (exit code 4)."""
    from tasks.verify import verify as check

    violations = check(Path.cwd(), deep=deep)
    if as_json:
        _print_json([{"invariant": v.invariant, "what": v.what} for v in violations])
    elif violations:
        print("\n".join(f"broken: {v.invariant}: {v.what}" for v in violations))
    else:
        read = "every byte was read" if deep else "sizes and presence; --deep reads every byte"
        print(f"all invariants hold ({read}).")
    if violations:
        raise typer.Exit(InvariantBroken.exit_code)


@app.command()
def restore(
    iteration: Annotated[int, typer.Argument(min=0, help="Number of a closed iteration.")],
    to: Annotated[str, typer.Option(help="Folder to make.")],
) -> None:
    """Bring an iteration back bit for bit into a new folder, and prove it against its manifest."""
    from tasks.restore import restore as bring

    target = here(to)
    proven = bring(Path.cwd(), iteration, target)
    print(
        f"iteration {iteration} is in {target}: {proven} files, each with the SHA-256 of its manifest.\nIt is read-only; `gleaner fork --workspace {to}` makes it a campaign of its own."
    )


@app.command()
def fork() -> None:
    """Give a restored copy a campaign id of its own, so that it may tick."""
    from tasks.restore import fork as make

    print(f"this copy is now campaign {make(Path.cwd())}. Next: gleaner tick")


@app.command()
def stop(because: Annotated[str, typer.Option(help="Why; shown by every later tick.")]) -> None:
    """Stop the campaign by hand; later ticks are no-ops until `gleaner resume`."""
    _decide("stop", because)
    print("stopped. An iteration that is open is still finished; `gleaner resume` goes on.")


@app.command()
def resume(because: Annotated[str, typer.Option(help="Why.")] = "") -> None:
    """Take a manual stop back."""
    if _decide("resume", because) is None:
        print("it was not stopped. Next: gleaner tick")
    else:
        print("resumed. Next: gleaner tick")


def _decide(kind: str, reason: str) -> str | None:
    """Record a decision; returns why the campaign was stopped before it, None when it was not."""
    from tasks.campaign import open_campaign

    with open_campaign(Path.cwd(), kind) as campaign:
        latest, before = campaign.ledger.latest(), campaign.ledger.stopped_by_hand()
        campaign.ledger.decide(kind, latest.number if latest else -1, "campaign", reason)
        return before


@app.command()
def ui(
    mlflow_port: Annotated[int, typer.Option(help="Preferred port; another free one when it is taken.")] = 5000,
    prefect_port: Annotated[int, typer.Option(help="Preferred port; another free one when it is taken.")] = 4200,
) -> None:
    """Open MLflow and Prefect over this workspace, on loopback, until Ctrl-C."""
    from flows.ui import serve

    serve(Path.cwd(), mlflow_port, prefect_port)


@app.command()
def demo(directory: Annotated[str, typer.Argument(help="The demo's workspace.")] = "workspaces/demo") -> None:
    """A whole campaign on real images: init, ingest, ten iterations, a random arm beside it, one closing table."""
    from flows.demo import start_demo

    start_demo(Path(os.environ.get("GLEANER_TEMPLATE", Path.cwd())), here(directory))


app.registered_commands += labeling.registered_commands + schedules.registered_commands
for _command in app.registered_commands:
    if getattr(_command.callback, "__name__", "") not in ANYWHERE:
        _command.epilog = "--workspace DIR names the campaign; default: the one that the current folder is in."


def _interrupted(*_: object) -> None:
    os.write(2, b"\ninterrupted: nothing is lost, the same command goes on from here.\n")
    sys.exit(130)


def main() -> None:
    """Entry point: errors as one message, exit codes as documented."""
    signal.signal(signal.SIGINT, _interrupted)
    if sys.stderr.isatty():  # a person reads errors and warnings once; elsewhere alerts go to the log that stderr is
        logging.getLogger("gleaner.alerts").addHandler(logging.NullHandler())
    try:
        app(prog_name="gleaner")
    except GleanerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
