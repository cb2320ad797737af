"""Great Expectations over the tables of an iteration: manifest, labels, scores, selection, and all that was ever asked.

    report = validate(store)
    report.passed        ->  False
    report.problems()    ->  ("scores.utility: 2 of 1797 rows are not: a number; first: NaN (item 3f2a...)",)

Runs once an iteration in the flow's process (the import alone costs 5.5 CPU-seconds), reads the Parquet files as
they are on disk, and writes nothing. `render` gives a page that loads nothing from anywhere, unlike Great
Expectations' own, which refers to eight outside hosts.
"""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from monitoring.frames import Rule, frames
from tasks.inputs import read_iteration
from tasks.store import Store
from tasks.tables import ASKED, FROZEN_MANIFEST, LABELS, SCORES, SELECTION, TableKind

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5  # bad values that are named
FORMAT = {"result_format": "SUMMARY", "partial_unexpected_count": SHOWN}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }}
.met td:first-child {{ color: #256d3b; }}
.broken td {{ background: #fdecea; }}
.broken td:first-child {{ color: #a4161a; font-weight: 700; }}
</style></head><body>
<h1>{title}</h1>
<table>
<thead>
<tr><th>Result</th><th>Table</th><th>Column</th><th>A good row is</th><th>Bad rows</th><th>The first</th></tr>
</thead>
<tbody>
{rows}
</tbody></table></body></html>
"""
TABLES = (FROZEN_MANIFEST, LABELS, ASKED, SELECTION, SCORES)


@dataclass(frozen=True)
class Expectation:
    """How one rule went."""

    table: str
    column: str
    means: str
    rows: int
    bad: int  # rows that break it
    first: tuple[str, ...]  # the first bad values, with the item they belong to

    @property
    def met(self) -> bool:
        """Whether no row breaks it."""
        return self.bad == 0

    def sentence(self) -> str:
        """Table, column, number of bad rows and the first of them."""
        where, first = f"{self.table}.{self.column}", ", ".join(self.first)
        return f"{where}: {self.bad} of {self.rows} rows are not: {self.means}; first: {first}"


@dataclass(frozen=True)
class TableReport:
    """All expectations of one iteration's tables."""

    iteration: int
    expectations: tuple[Expectation, ...]

    @property
    def passed(self) -> bool:
        """Whether all are met (and there are any)."""
        return bool(self.expectations) and all(e.met for e in self.expectations)

    def problems(self) -> tuple[str, ...]:
        """A sentence for each that is not met."""
        return tuple(e.sentence() for e in self.expectations if not e.met)


def validate(store: Store) -> TableReport:
    """Check the tables of the iteration in the workspace. Raises GleanerError when one cannot be read at all."""
    iteration = read_iteration(store)
    unlike = tuple(e for kind in TABLES for e in _unlike_schema(store, kind))
    if unlike:
        return TableReport(iteration.number, unlike)
    # a list column of a million rows is the one that must not be in memory whole
    tables = {kind: store.read_table(kind, [c for c in kind.schema.names if c != "probabilities"]) for kind in TABLES}
    found: list[Expectation] = []
    with _great_expectations() as run:
        for name, frame, rules in frames(store, iteration, tables):
            found += _judge(run, name, frame, rules)
    return TableReport(iteration.number, tuple(found))


def _unlike_schema(store: Store, kind: TableKind) -> list[Expectation]:
    """One broken expectation a column that the file lacks or has with another type."""
    try:
        found = pq.read_schema(store.path(kind.path))
    except (pa.ArrowInvalid, OSError):
        return []  # reading the table says what is wrong with the file
    types = dict(zip(found.names, found.types, strict=True))
    return [
        Expectation(kind.path, name, f"a column of type {kind_of}", 1, 1, (str(types.get(name, "no such column")),))
        for name, kind_of in zip(kind.schema.names, kind.schema.types, strict=True)
        if types.get(name) != kind_of
    ]


@contextmanager
def _great_expectations() -> Iterator[Callable[[str, pd.DataFrame, list[Rule]], list[Any]]]:
    """A function that validates a data frame in memory: no project folder, no telemetry, no progress bars, no log."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations import expectations

    log = logging.getLogger("great_expectations")
    level = log.level
    log.setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("workspace")

    def run(name: str, frame: pd.DataFrame, rules: list[Rule]) -> list[Any]:
        """One result a rule, in the order of the rules."""
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        columns = [{} if rule.column == "*" else {"column": rule.column} for rule in rules]
        kinds = [getattr(expectations, rule.kind) for rule in rules]
        made = [kind(**column, **rule.arguments) for kind, column, rule in zip(kinds, columns, rules, strict=True)]
        suite = context.suites.add(gx.ExpectationSuite(name, expectations=made))
        found = batch.get_batch({"dataframe": frame}).validate(suite, result_format=FORMAT).results
        by_rule = {(r.expectation_config.type, r.expectation_config.kwargs.get("column", "*")): r for r in found}
        return [by_rule[one.expectation_type, rule.column] for one, rule in zip(made, rules, strict=True)]

    try:
        yield run
    finally:
        log.setLevel(level)


def _judge(
    run: Callable[[str, pd.DataFrame, list[Rule]], list[Any]], name: str, frame: pd.DataFrame, rules: list[Rule]
) -> list[Expectation]:
    results = run(name, frame, rules)
    return [_expectation(name, frame, rule, result) for rule, result in zip(rules, results, strict=True)]


def _expectation(name: str, frame: pd.DataFrame, rule: Rule, result: Any) -> Expectation:
    rows, found = len(frame), result.result
    if result.success:
        return Expectation(name, rule.column, rule.means, rows, 0, ())
    if rule.column == "*":
        told = f"{rows} rows, not {rule.arguments['value']}"
        return Expectation(name, rule.column, rule.means, rows, max(rows, 1), (told,))
    values = found.get("partial_unexpected_list", [])[:SHOWN]
    items = [frame["item_id"].iloc[at] for at in found.get("partial_unexpected_index_list", [])[:SHOWN]]
    first = tuple(f"{value} (item {item})" for value, item in zip(values, items, strict=False))
    return Expectation(name, rule.column, rule.means, rows, int(found.get("unexpected_count", rows)) or 1, first)


def render(report: TableReport) -> str:
    """The report as one HTML page that loads nothing; everything in it is escaped."""
    verdict = "all expectations are met" if report.passed else f"{len(report.problems())} expectations are not met"
    title = f"Tables of iteration {report.iteration}: {verdict}"
    rows = "\n".join(_row(e) for e in sorted(report.expectations, key=lambda e: e.met))
    return PAGE.format(title=html.escape(title), rows=rows)


def _row(expectation: Expectation) -> str:
    cells = (
        "met" if expectation.met else "NOT MET",
        expectation.table,
        expectation.column,
        expectation.means,
        f"{expectation.bad} of {expectation.rows}",
        ", ".join(expectation.first),
    )
    kind = "met" if expectation.met else "broken"
    return f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
