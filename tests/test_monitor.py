"""The stage monitor on real files: what it gathers, that it never hides a finding, and that it always exits 0."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from monitoring import run as monitor
from monitoring.alerts.log import line, send
from monitoring.evidence import Finding, alarming, from_json
from monitoring.news import of_findings
from tasks import plugins
from tasks.errors import GleanerError
from tasks.findings import blocking
from tasks.params import load
from tasks.params_sections import CheckSetting
from tasks.store import Store
from tasks.tables import ASKED, LABELS, PREVIOUS_SCORES, SCORES, SELECTION
from tests.iteration_files import BATCH, ITEMS, edit, item, put, write_iteration
from tests.workspace import digits, run_stages

ALL = {name: CheckSetting(severity="block") for name in plugins.names("checks")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_iteration(tmp_path)


def findings(store: Store, settings: dict[str, CheckSetting] = ALL) -> dict[str, Finding]:
    monitor.run(store, settings)
    return {finding.check: finding for finding in from_json(store.read_json("data/findings.json"))}


def test_a_healthy_iteration_has_no_failing_check(store: Store) -> None:
    found = findings(store)
    assert list(found) == list(ALL)
    assert {name: f.what for name, f in found.items() if f.outcome == "fail"} == {}
    assert found["repeated_selections"].outcome == found["stagnant_rankings"].outcome == "pass"
    assert store.read_json("data/findings.json")["iteration"] == 2


def test_the_findings_are_the_same_bytes_again(store: Store) -> None:
    findings(store)
    before = store.path("data/findings.json").read_bytes()
    findings(store)
    assert store.path("data/findings.json").read_bytes() == before


def test_evidence_is_in_the_order_of_the_manifest_whatever_the_order_of_the_scores(store: Store) -> None:
    before = monitor.gather(store)
    path = store.path(SCORES.path)
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(0).permutation(ITEMS)), path)
    after = monitor.gather(store)
    np.testing.assert_array_equal(before.scores.utility, after.scores.utility)
    np.testing.assert_array_equal(before.scores.predicted, after.scores.predicted)
    assert before.trained.sum() == 30
    assert before.labeled.sum() == 90
    assert before.representative.sum() == 22
    assert np.isfinite(before.wrong).sum() == 60
    assert before.curve.correct.shape == (2, 60)
    assert np.allclose(np.nanmean(before.curve.correct, axis=1), before.curve.accuracy)


@pytest.mark.parametrize("source", [LABELS, ASKED])
def test_an_item_selected_again_blocks(store: Store, source: Any) -> None:
    rows = pq.read_table(store.path(source.path)).to_pydict()
    again = next(i for i, arm in zip(rows["item_id"], rows["arm"], strict=True) if arm == "active")
    edit(store, SELECTION, item_id=put(4, again))
    found = findings(store)
    assert [f["check"] for f in blocking(store)] == ["repeated_selections"]
    assert again in found["repeated_selections"].evidence["items"]


def test_a_reserved_item_in_the_batch_blocks(store: Store) -> None:
    edit(store, SELECTION, item_id=put(4, item(0)))
    assert findings(store)["repeated_selections"].outcome == "fail"


def test_an_unknown_item_in_the_batch_blocks(store: Store) -> None:
    edit(store, SELECTION, item_id=put(BATCH - 1, "of another pool"))
    assert findings(store)["repeated_selections"].evidence["counts"]["not in the manifest"] == 1


def test_stale_scores_on_disk_are_found(store: Store) -> None:
    shutil.copyfile(store.path(PREVIOUS_SCORES.path), store.path(SCORES.path))
    assert findings(store)["stagnant_rankings"].outcome == "fail"


def test_scores_with_the_sign_flipped_on_disk_are_found(store: Store) -> None:
    edit(store, SCORES, utility=lambda column: [-value for value in column])
    assert findings(store)["score_gap"].outcome == "fail"


@pytest.mark.parametrize("row", [[], [0.2, 0.8], [float("nan"), 0.5, 0.5], [0.9, 0.9, 0.9], [-1.0, 1.0, 1.0]])
def test_a_row_that_is_no_distribution_is_found(store: Store, row: list[float]) -> None:
    edit(store, SCORES, probabilities=put(3, row))
    assert monitor.gather(store).scores.predicted[3] == -1
    assert findings(store)["stagnant_rankings"].outcome == "fail"


def test_a_row_missing_from_the_scores_is_found(store: Store) -> None:
    path = store.path(SCORES.path)
    pq.write_table(pq.read_table(path).slice(1), path)
    assert findings(store)["stagnant_rankings"].outcome == "fail"


def test_the_first_iteration_has_nothing_to_compare(store: Store) -> None:
    shutil.rmtree(store.path("data/inputs/previous"))
    iteration = store.read_json("data/inputs/iteration.json")
    store.write_json("data/inputs/iteration.json", {**iteration, "number": 0})
    for kind in (LABELS, ASKED):
        pq.write_table(kind.schema.empty_table(), store.path(kind.path))
    store.write_json("models/head/head.json", {"sha256": "0" * 64, "labels": 0, "network": "none"})
    edit(store, SCORES, utility=lambda column: [0.0] * len(column), probabilities=lambda c: [[1 / 3] * 3] * len(c))
    edit(store, SELECTION, arm=lambda column: ["seed"] * len(column))
    pq.write_table(
        pq.read_table(store.path("data/evaluation/curve.parquet")).slice(0, 0),
        store.path("data/evaluation/curve.parquet"),
    )
    outcomes = {name: finding.outcome for name, finding in findings(store).items()}
    assert outcomes.pop("repeated_selections") == "pass"
    assert set(outcomes.values()) == {"not_applicable"}


def test_severity_and_limits_are_those_of_params(store: Store) -> None:
    settings = {
        "score_gap": CheckSetting.model_validate({"severity": "warn", "limit": 0.0, "sigmas": -100.0}),
        "stagnant_rankings": CheckSetting(severity="off"),
    }
    found = findings(store, settings)
    assert (found["score_gap"].outcome, found["score_gap"].severity) == ("fail", "warn")
    assert (found["stagnant_rankings"].outcome, found["stagnant_rankings"].severity) == ("not_applicable", "off")
    assert blocking(store) == []
    assert [f.check for f in alarming(found.values())] == ["score_gap"]


def test_a_check_that_crashes_fails_instead_of_passing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(evidence: Any) -> Finding:
        raise KeyError("nothing of that name")

    monkeypatch.setattr("monitoring.checks.score_gap.check", crash)
    found = findings(store)
    assert found["score_gap"].outcome == "fail"
    assert "KeyError" in found["score_gap"].what
    assert found["repeated_selections"].outcome == "pass"


@pytest.mark.parametrize(
    "name", ["data/scores.parquet", "data/selection.parquet", "data/evaluation/curve.parquet", "models/head/head.json"]
)
def test_missing_evidence_is_an_error_that_names_the_file(store: Store, name: str) -> None:
    store.path(name).unlink()
    with pytest.raises(GleanerError, match=Path(name).name):
        monitor.gather(store)


def test_damaged_scores_are_an_error_that_names_the_file(store: Store) -> None:
    store.path(SCORES.path).write_bytes(store.path(SCORES.path).read_bytes()[:200])
    with pytest.raises(GleanerError, match=r"scores\.parquet"):
        monitor.gather(store)


def test_the_stage_exits_0_with_a_blocking_finding(store: Store) -> None:
    shutil.copyfile(plugins.ROOT / "params.yaml", store.path("params.yaml"))
    edit(store, SELECTION, item_id=put(4, item(0)))
    done = subprocess.run(
        [sys.executable, "-m", "monitoring.run"],
        cwd=store.root,
        env={**os.environ, "PYTHONPATH": str(plugins.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fail            repeated_selections" in done.stdout
    assert [f["check"] for f in blocking(store)] == ["repeated_selections"]


def test_the_templates_checks_are_all_there_are() -> None:
    assert set(load(plugins.ROOT / "params.yaml").monitor) == set(ALL)


def test_alerts_are_one_line_each_and_leave_out_what_is_fine(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    edit(store, SELECTION, item_id=put(4, item(0)))
    found = list(findings(store).values())
    hostile = replace(found[0], check="x", severity="warn", outcome="fail", what="class\n2026 ERROR fake \x1b[31m")
    alerts = of_findings("deer", 2, [*found, hostile, replace(hostile, severity="off")])
    with caplog.at_level(logging.INFO, "gleaner.alerts"):
        send(alerts, "of this process")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert all("\n" not in r.getMessage() and "\x1b" not in r.getMessage() for r in caplog.records)
    assert all("To do:" in line(alert) for alert in alerts)


def test_the_real_stages_give_three_healthy_iterations(tmp_path: Path) -> None:
    world = digits(tmp_path)
    for _ in range(3):
        world.open()
        run_stages(world.store, world.params, "embed", "train", "score", "select", "evaluate")
        found = findings(world.store)
        assert {name: finding.what for name, finding in found.items() if finding.outcome == "fail"} == {}
        world.answer()
    assert found["stagnant_rankings"].outcome == found["score_gap"].outcome == "pass"


def test_findings_are_json_that_others_can_read(store: Store) -> None:
    findings(store)
    text = store.path("data/findings.json").read_text()
    assert json.loads(text)["findings"][0].keys() >= {"check", "severity", "outcome", "what", "why", "causes", "todo"}
