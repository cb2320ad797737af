"""Sixty thousand real images: Debian's package `dataset-fashion-mnist`, through the very functions that users call."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import repository, verify
from tasks.ingest import ingest
from tasks.workspace import init
from tests.quick import TEMPLATE, edit, ticks_until

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.slow
def test_a_campaign_on_sixty_thousand_images(tmp_path: Path) -> None:
    if not FASHION.is_dir():
        pytest.skip("fashion-mnist: Debian's package dataset-fashion-mnist is not installed")
    root = tmp_path / "fashion"
    init(TEMPLATE, root)
    edit(root, {"source.kind": "idx", "source.path": str(FASHION), "pool.size": 28, "train.network": "linear"})
    counts = ingest(root, None)
    assert counts.seen == 60_000 == counts.accepted + counts.duplicate + counts.quarantined
    assert counts.accepted > 59_000
    ticks_until(root, 2)
    assert repository.tags(root) == ["iter-0000", "iter-0001"]
    assert verify.verify(root) == []
    again = ingest(root, None)
    assert (again.accepted, again.known) == (0, counts.accepted)
