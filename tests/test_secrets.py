"""No secret of the environment is in what a campaign writes, and none is repeated when one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.disclosure import secrets
from tasks.verify import verify
from tests.quick import copy, found, tick

SECRET = "-".join(["hunter2"] * 2)  # workspaces hold a copy of this file


@pytest.fixture
def root(closed_iteration: Path, tmp_path: Path) -> Path:
    """A workspace of the test's own, iterations 0 and 1 closed."""
    return copy(closed_iteration, tmp_path / "workspace")


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("LABEL_STUDIO_TOKEN", "data/report/report.md"),
        ("MLFLOW_TRACKING_PASSWORD", ".gleaner/logs/iter-0001-train.log"),
        ("GLEANER_WEBHOOK_SECRET", ".gleaner/tracking/iter-0001/record.json"),
        ("API_KEY", "params.yaml"),
    ],
)
def test_a_secret_in_a_file_is_found_and_not_repeated(
    root: Path, variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, SECRET)
    assert verify(root) == []
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with open(root / name, "a") as handle:
        handle.write(f"token: {SECRET}\n")
    (violation,) = [v for v in verify(root) if v.invariant.startswith("I7")]
    assert name in violation.what and variable in violation.what and SECRET not in violation.what


@pytest.mark.parametrize("url", [f"slack://T1/{SECRET}/C3", f"mailto://ann:{SECRET}@example.org?to=team@example.org"])
def test_a_secret_of_an_alert_address_is_found_and_not_repeated(
    root: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLEANER_ALERT_URLS", f"json://127.0.0.1:9/in, {url}")
    assert verify(root) == []
    with open(root / ".gleaner/logs.txt", "a") as handle:
        handle.write(f"sent to {SECRET}\n")
    (violation,) = [v for v in verify(root) if v.invariant.startswith("I7")]
    assert ".gleaner/logs.txt holds the value of GLEANER_ALERT_URLS" in violation.what and SECRET not in violation.what


def test_the_token_of_ones_own_label_studio_is_known_where_it_belongs_and_found_elsewhere(root: Path) -> None:
    (root / ".gleaner/label-studio").mkdir()
    (root / ".gleaner/label-studio/token").write_text(SECRET)
    assert verify(root) == []
    with open(root / "data/report/report.md", "a") as handle:
        handle.write(f"token: {SECRET}\n")
    (violation,) = [v for v in verify(root) if v.invariant.startswith("I7")]
    assert "data/report/report.md holds the value of LABEL_STUDIO_API_KEY" in violation.what
    assert SECRET not in violation.what


def test_a_secret_that_was_once_committed_is_found_by_deep(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(f"{text}# {SECRET}\n")
    assert tick(root) == "iteration 2"
    (root / "params.yaml").write_text(text)
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", SECRET)
    text = found(root, deep=True)["I7 no secret in files"]
    assert "iter-0002:params.yaml holds the value of LABEL_STUDIO_TOKEN" in text and SECRET not in text


def test_of_a_secret_of_many_lines_the_longest_is_searched_for_and_the_others_still_are(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(f"{text}# {SECRET}\n# {SECRET[::-1]}\n")
    assert tick(root) == "iteration 2"
    (root / "params.yaml").write_text(text)
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", SECRET)
    monkeypatch.setenv("SIGNING_KEY", f"-----\n{SECRET[::-1]}\n-----")
    told = found(root, deep=True)["I7 no secret in files"]
    assert "iter-0002:params.yaml holds the value of LABEL_STUDIO_TOKEN" in told
    assert "iter-0002:params.yaml holds the value of SIGNING_KEY" in told


def test_what_is_a_secret_is_told_by_its_name_or_its_address(tmp_path: Path) -> None:
    environment = {
        "MLFLOW_TRACKING_URI": "https://ann:correct-horse@mlflow.example/x",
        "AWS_SECRET_ACCESS_KEY": "abcdefgh",
        "SHORT_TOKEN": "1234567",
        "GLEANER_TEMPLATE": "/srv/gleaner",
        "TOKENIZERS_PARALLELISM": "parallel",
        "SSH_KEY": str(tmp_path),
    }
    assert secrets(environment) == {
        "AWS_SECRET_ACCESS_KEY": "abcdefgh",
        "MLFLOW_TRACKING_URI (its password)": "correct-horse",
    }
