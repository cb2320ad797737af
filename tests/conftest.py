"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quick import image_folder, make_workspace, run_child


@pytest.fixture(scope="session")
def closed_iteration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small workspace whose iterations 0 and 1 are closed. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("closed")
    root = make_workspace(folder / "workspace", image_folder(folder / "images"))
    run_child(root, 2)
    return root
