"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from flows import label_studio
from tasks.errors import GleanerError
from tests.calm import Calm
from tests.children import run_in_child
from tests.quick import broken, copy, image_folder, make_workspace, run_child, state, tick
from tests.real_label_studio import RealLabelStudio


@pytest.fixture(scope="session")
def closed_iteration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small workspace whose iterations 0 and 1 are closed. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("closed")
    root = make_workspace(folder / "workspace", image_folder(folder / "images"))
    run_child(root, 2)
    return root


@pytest.fixture(scope="session")
def calm(closed_iteration: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """What an undisturbed third iteration is."""
    after = copy(closed_iteration, tmp_path_factory.mktemp("calm") / "after")
    ended = run_in_child(tick, after)
    assert (ended.text, broken(after)) == ("iteration 2", [])
    return Calm(closed_iteration, state(after), ended.passed)


#: optional parts that tests may skip without; GLEANER_REQUIRE=fashion-mnist,shared-data makes a skip a failure
OPTIONAL = ("fashion-mnist", "shared-data", "small-disk", "chromium", "label-studio")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips for an optional part fails where GLEANER_REQUIRE names that part."""
    report = yield
    required = set(filter(None, os.environ.get("GLEANER_REQUIRE", "").split(",")))
    if report.skipped and call.excinfo is not None:
        reason = str(call.excinfo.value)
        missing = sorted(name for name in required if reason.startswith(f"{name}:"))
        if missing:
            report.outcome = "failed"
            report.longrepr = f"GLEANER_REQUIRE names {missing[0]}, and the test was skipped: {reason}"
    return report


@pytest.fixture(scope="session")
def label_studio_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[RealLabelStudio, None, None]:
    """The real Label Studio, one for all tests of this process; `real` gives it without projects."""
    try:
        label_studio.install()
    except GleanerError as error:
        pytest.skip(f"label-studio: {error}")
    with RealLabelStudio(tmp_path_factory.mktemp("label-studio-server")) as server:
        yield server


@pytest.fixture
def real(label_studio_server: RealLabelStudio) -> RealLabelStudio:
    """The real Label Studio without a project."""
    label_studio_server.wipe()
    return label_studio_server
