"""What is measured about annotators in an iteration: agreement, minutes, how far they follow the model's suggestions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tasks.agreement import Votes, by_annotator
from tasks.store import Store
from tasks.tables import ANNOTATORS, VOTES


def read_votes(store: Store) -> Votes:
    """The frozen votes as columns."""
    values = store.read_table(VOTES).to_pydict()
    return Votes(
        values["item_id"],
        values["annotator"],
        values["label"],
        np.array(values["seconds"], dtype=np.float64),
        np.array(values["accepted"], dtype=np.int8),
        values["arm"],
        values["predicted"],
    )


def annotators_table(votes: Votes) -> pa.Table:
    """One row an annotator."""
    rows = by_annotator(votes)
    return pa.table(
        {name: pa.array(rows.get(name, []), ANNOTATORS.schema.field(name).type) for name in ANNOTATORS.schema.names}
    )
