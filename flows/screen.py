"""What people read on the terminal: the status of a campaign and the demo's closing table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.tables import ARMS

SHOWN = 5  # refused answers


def show_status(value: dict[str, Any]) -> None:
    """Print `gleaner status`."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in _status_rows(value):
        table.add_row(name, text)
    Console().print(table)


def _status_rows(value: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("campaign", value["campaign"])]
    if "workspace" in value:
        rows.append(("workspace", value["workspace"]))
    if value.get("images") is not None:
        rows.append(("pool", f"{value['images']} images"))
    if value.get("iteration") is not None:
        rows.append(("iteration", f"{value['iteration']} ({value['state']})"))
    if "labeled" in value:
        rows.append(("labels spent", spent(value["labeled"])))
        rows.append(("asked", asked(value)))
        rows += _correction_rows(value["corrections"])
        rows.append(("accuracy", accuracy(value)))
        rows.append(
            ("champion", "none yet" if value["champion"] is None else f"the model of iteration {value['champion']}")
        )
        rows.append(
            (
                "remote",
                value["remote"]
                or "none: data is on this machine only (`dvc remote add --default NAME URL`, then commit .dvc/config)",
            )
        )
    rows += _people_rows(value)
    if value.get("waiting_for_tracker"):
        rows.append(("not in MLflow yet", f"{value['waiting_for_tracker']} iterations"))
    rows += _alert_rows(value)
    rows += [(f"{f['severity']}: {f['check']}", f"{f['what']} {f['todo']}") for f in value.get("findings", ())]
    return [*rows, ("next", value["next"])]


def _people_rows(value: dict[str, Any]) -> list[tuple[str, str]]:
    """Where annotators work, what they spent, and what they should look at again."""
    rows = []
    if value.get("annotators_work_at"):
        rows.append(("annotators", value["annotators_work_at"]))
    if value.get("minutes_spent") is not None:
        rows.append(
            ("people's time", f"{value['minutes_spent']:.0f} minutes, {value['minutes_per_label']:.2f} a label")
        )
    rows += [("adjudicate", each) for each in value.get("disputed", ())[:SHOWN]]
    if len(value.get("disputed", ())) > SHOWN:
        rows.append(("", f"and {len(value['disputed']) - SHOWN} more (--json lists all)"))
    rows += [("answer refused", reason) for reason in value.get("refused_answers", ())[:SHOWN]]
    if len(value.get("refused_answers", ())) > SHOWN:
        rows.append(("", f"and {len(value['refused_answers']) - SHOWN} more"))
    if value.get("refused_file"):
        rows.append(("", f"{value['refused_file']}: each with file, row, value and reason"))
    return rows


def _correction_rows(counts: dict[str, int]) -> list[tuple[str, str]]:
    if not counts["told"] + counts["waiting"]:
        return []
    texts = [f"{counts['told']} by users, {counts['unasked']} of them of images that nobody was asked about"]
    texts += [f"{counts['waiting']} wait for the next tick"] * (counts["waiting"] > 0)
    return [("corrections", "; ".join(texts))]


def _alert_rows(value: dict[str, Any]) -> list[tuple[str, str]]:
    """Who is told, and what was not delivered; the log alone tells nobody who is away."""
    if "alerts_go_to" not in value:
        return []
    told = [name for name in value["alerts_go_to"] if not name.startswith("log ")]
    nowhere = [f"{channel}: {why}" for channel, why in value["alerts_go_nowhere"].items()]
    last = [
        f"last told at {at}: {name}" for name, at in value["alerts_last_sent"].items() if not name.startswith("log ")
    ]
    who = ", ".join(told) or "; ".join(["nobody is told", *nowhere, *last])
    missed = [alert for alert in value["undelivered_alerts"] if alert["target"] or told]
    rows = [("alerts go to", who)]
    rows += [("not delivered", f"{a['title']}: {a['target'] or 'anybody'}: {a['reason']}") for a in missed[:SHOWN]]
    return rows + ([("", f"and {len(missed) - SHOWN} more")] if len(missed) > SHOWN else [])


def spent(labels: dict[str, int]) -> str:
    """'seed 20, active 162, control 18, holdout 300: total 500'."""
    return ", ".join(f"{arm} {labels[arm]}" for arm in ARMS) + f": total {labels['total']}"


def asked(value: dict[str, Any]) -> str:
    """'36 of a budget of 500: 30 labeled, 6 waiting, 0 skipped'."""
    budget = f" of a budget of {value['budget']}" if value["budget"] else ""
    states = f"{value['labeled']['total']} labeled, {value['pending']} waiting, {value['skipped']} skipped"
    disputed = f", {len(value['disputed'])} need adjudication" if value["disputed"] else ""
    return f"{value['asked']['total']}{budget}: {states}{disputed}"


def accuracy(value: dict[str, Any]) -> str:
    """'97.3% on the holdout (interval 94.8% to 99.0%)'."""
    if value.get("accuracy") is None:
        measured = value.get("labeled", {}).get("holdout")
        return "not measured yet (no model yet)" if measured else "not measured yet (no holdout labels)"
    return f"{value['accuracy']:.1%} on the holdout (interval {value['low']:.1%} to {value['high']:.1%})"


def show_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a closing table of names and texts."""
    table = Table(title=title, title_justify="left", show_header=False, pad_edge=False, title_style="bold")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    Console().print(table)
