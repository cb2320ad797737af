"""Stage `score`: what the head says of every image, and what the strategy makes of it. Writes data/scores.parquet.

    item_id   split    probabilities        utility
    3f5a…     pool     [0.48, 0.47, 0.05]   0.99

Features stream from disk a block at a time. Before there is a model all classes are equally likely and every
utility is 0. A strategy that chooses whole batches has no utility of its own; 1 - margin stands in for it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tasks import acquire
from tasks.columns import to_lists
from tasks.errors import GleanerError
from tasks.features import Features
from tasks.head import Head, read
from tasks.inputs import Iteration, read_iteration
from tasks.params_sections import Select, Train
from tasks.stage import main
from tasks.store import Array, Store
from tasks.tables import FROZEN_MANIFEST, SCORES


def run(store: Store, train: Train, select: Select) -> None:
    """Score all items of the frozen manifest. Raises GleanerError for a number that is not finite, with the item."""
    iteration = read_iteration(store)
    head = read(store)
    _require_network(head, train)
    manifest = store.read_table(FROZEN_MANIFEST, ["item_id", "split", "shard", "row"])
    count = manifest.num_rows
    probabilities = np.full((count, len(head.classes)), 1.0 / len(head.classes), dtype=np.float32)
    utility = np.zeros(count)
    if head.trained and count:
        strategy = acquire.strategy(select.strategy, select.options)
        _score(store, manifest, head, strategy, iteration, probabilities, utility)
    _require_finite(manifest, probabilities, utility)
    store.write_table(SCORES, _table(manifest, probabilities, utility))


def _require_network(head: Head, train: Train) -> None:
    if head.trained and head.network != train.network:
        raise GleanerError(f"score: the head is a {head.network!r}, not a {train.network!r}. Run train again.")


def _score(
    store: Store,
    manifest: pa.Table,
    head: Head,
    strategy: acquire.Strategy,
    iteration: Iteration,
    probabilities: Array,
    utility: Array,
) -> None:
    """Fill `probabilities` (N, C) and `utility` (N,), block by block."""
    features = Features.open(store)
    head.require(features.version)
    shards, rows = manifest["shard"].to_numpy(), manifest["row"].to_numpy()
    seen = acquire.covered(store, manifest) if strategy.reads_labeled else np.zeros(len(shards), dtype=bool)
    labeled = features.of(shards[seen], rows[seen])
    for positions, block in features.blocks(shards, rows):
        chances = head.probabilities(block)
        probabilities[positions] = chances
        _require_rows(manifest, positions, chances)
        known = acquire.Known(len(block), head, chances, block, labeled)
        utility[positions] = _utility(strategy, known, iteration, int(positions[0]))


def _utility(strategy: acquire.Strategy, known: acquire.Known, iteration: Iteration, block: int) -> Array:
    if strategy.chooses:
        best = np.sort(known.probabilities, axis=1)
        return 1.0 - (best[:, -1] - best[:, -2]) if best.shape[1] > 1 else np.zeros(len(best))
    draws = np.random.default_rng([iteration.seed, iteration.number, block])
    # The same masks in every block: a pass with dropout is one model, whatever it is shown.
    values = acquire.ask(strategy, known, known.count, draws, iteration.rng("dropout"))
    if values.shape != (known.count,):
        raise GleanerError(f"score: {strategy.name!r} gave utilities of shape {values.shape} for {known.count} items.")
    return values


def _require_rows(manifest: pa.Table, positions: Array, chances: Array) -> None:
    """Refuse before a strategy sees them: it would only say that something is not finite."""
    broken = positions[~np.isfinite(chances).all(axis=1)]
    if len(broken):
        item = manifest["item_id"][int(broken[0])]
        raise GleanerError(f"score: the model's logits are not finite for {len(broken)} items, the first is {item}.")


def _require_finite(manifest: pa.Table, probabilities: Array, utility: Array) -> None:
    broken = np.flatnonzero(~(np.isfinite(utility) & np.isfinite(probabilities).all(axis=1)))
    if len(broken):
        item = manifest["item_id"][int(broken[0])]
        raise GleanerError(f"score: {len(broken)} items have a utility that is not finite, the first is {item}.")


def _table(manifest: pa.Table, probabilities: Array, utility: Array) -> pa.Table:
    columns = {"probabilities": to_lists(probabilities), "utility": utility}
    return pa.table({"item_id": manifest["item_id"], "split": manifest["split"], **columns})


if __name__ == "__main__":
    main(run)
