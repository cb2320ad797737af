"""Stage `select`: the next batch. Reads scores and what was asked so far, writes data/selection.parquet.

    rank  arm      item_id  utility  predicted  confidence
    0     active   3f5a…    0.99     4          0.48
    1     control  a01b…    0.12     7          0.94

The rules that hold for every strategy (what may not be asked, groups, arms, order) are in tasks/choose.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks import acquire
from tasks.choose import (
    Ask,
    Batch,
    Candidates,
    Picker,
    Plan,
    by_batches,
    by_utility,
    choose,
    first_plan,
    holdout_target,
    later_plan,
    tie_order,
)
from tasks.collecting import BAND
from tasks.columns import matrix
from tasks.errors import GleanerError
from tasks.features import Features
from tasks.head import Head, read
from tasks.inputs import Iteration, read_iteration
from tasks.params_sections import Holdout, Select, Stream
from tasks.stage import main
from tasks.store import Array, Store
from tasks.tables import ASKED, FROZEN_MANIFEST, LABELS, SCORES, SELECTION


@dataclass(frozen=True)
class Scored:
    """The pool with its scores, in item order."""

    manifest: pa.Table
    candidates: Candidates
    probabilities: Array  # (N, C)
    utility: Array  # (N,)
    measured: int  # holdout labels that are there or asked for
    asked: int  # items asked about so far


def run(store: Store, select: Select, holdout: Holdout, stream: Stream) -> None:
    """Choose the batch. Raises BadInput when the budget is too small for a first batch."""
    iteration, head = read_iteration(store), read(store)
    scored = _gather(store, len(iteration.classes), select.exclude, stream.enabled)
    plan = _plan(scored, head, iteration, select, holdout)
    name, options = (select.strategy, select.options) if head.trained else (select.cold_start, {})
    picker = _picker(store, scored, head, acquire.strategy(name, options), iteration)
    batch = choose(scored.candidates, plan, picker, iteration.rng("select"))
    store.write_table(SELECTION, _table(scored, batch, head))


def _gather(store: Store, classes: int, exclude: tuple[str, ...], streamed: bool) -> Scored:
    manifest = store.read_table(FROZEN_MANIFEST, ["item_id", "uri", "group", "split", "shard", "row"]).sort_by(
        "item_id"
    )
    scores = store.read_table(SCORES).sort_by("item_id")
    if not scores["item_id"].equals(manifest["item_id"]):
        raise GleanerError("select: data/scores.parquet is not of the frozen manifest. Run the stage score again.")
    asked = store.read_table(ASKED, ["item_id", "arm", "state"])
    probabilities, utility = matrix(scores["probabilities"], classes), scores["utility"].to_numpy()
    broken = np.flatnonzero(~(np.isfinite(utility) & np.isfinite(probabilities).all(axis=1)))
    if len(broken):
        item = scores["item_id"][int(broken[0])]
        raise GleanerError(f"select: {len(broken)} scores are not finite, the first is of item {item}.")
    answered = pc.and_(pc.equal(asked["arm"], "holdout"), pc.not_equal(asked["state"], "skipped"))
    measured = asked.filter(answered).num_rows
    known = pa.chunked_array([*asked["item_id"].chunks, *store.read_table(LABELS)["item_id"].chunks], pa.string())
    return Scored(
        manifest, _candidates(manifest, known, exclude, streamed), probabilities, utility, measured, asked.num_rows
    )


def _candidates(manifest: pa.Table, known: pa.ChunkedArray, exclude: tuple[str, ...], streamed: bool) -> Candidates:
    excluded = pc.is_in(manifest["uri"], pa.array(exclude, pa.string()))
    return Candidates(
        np.array(manifest["item_id"].to_pylist(), dtype=object),
        manifest["group"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64),
        pc.equal(manifest["split"], "holdout").to_numpy(),
        pc.is_in(manifest["item_id"], known.combine_chunks()).to_numpy(),
        excluded.to_numpy(),
        pc.starts_with(manifest["uri"], f"{BAND}/").to_numpy() if streamed else False,
    )


def _plan(scored: Scored, head: Head, iteration: Iteration, select: Select, holdout: Holdout) -> Plan:
    budget = None if iteration.remaining is None else iteration.remaining + scored.asked
    missing = max(0, holdout_target(holdout.labels, select.first_batch, budget) - scored.measured)
    missing = min(missing, len(scored.candidates.unmeasured()))
    if head.trained:
        return later_plan(select.batch, select.control, missing, iteration.remaining)
    return first_plan(select.first_batch, missing, iteration.remaining, begun=scored.asked > 0)


def _picker(store: Store, scored: Scored, head: Head, strategy: acquire.Strategy, iteration: Iteration) -> Picker:
    ties = tie_order(scored.candidates.item_ids, iteration.seed)
    if strategy.chooses:
        return by_batches(_asker(store, scored, head, strategy, iteration))
    if head.trained:
        return by_utility(scored.utility, ties)
    return by_utility(_cold_utility(store, scored, head, strategy, iteration), ties)


def _asker(store: Store, scored: Scored, head: Head, strategy: acquire.Strategy, iteration: Iteration) -> Ask:
    """Asks a batch-aware strategy about some positions; what this batch already holds counts as labeled."""
    reads = strategy.reads_features or strategy.reads_labeled
    features = _features(store, scored, head, reads)
    seen = np.flatnonzero(acquire.covered(store, scored.manifest))
    rng = iteration.rng("strategy")

    def ask(positions: Array, k: int, taken: Array) -> Array:
        labeled = features[np.concatenate([seen, taken])]
        own = acquire.Known(len(positions), head, scored.probabilities[positions], features[positions], labeled)
        return acquire.ask(strategy, own, k, rng, iteration.rng("dropout"))

    return ask


def _cold_utility(store: Store, scored: Scored, head: Head, strategy: acquire.Strategy, iteration: Iteration) -> Array:
    """Utilities (N,) without a model, from features alone; 0 for items that may not be asked about."""
    eligible = scored.candidates.eligible()
    features = _features(store, scored, head, strategy.reads_features or strategy.reads_labeled)
    labeled = features[acquire.covered(store, scored.manifest)]
    own = acquire.Known(len(eligible), head, scored.probabilities[eligible], features[eligible], labeled)
    utility = np.zeros(scored.manifest.num_rows)
    if len(eligible):
        rng = iteration.rng("strategy")
        utility[eligible] = acquire.ask(strategy, own, len(eligible), rng, rng)
    if not np.isfinite(utility).all():
        raise GleanerError(f"select: strategy {strategy.name!r} gave a utility that is not finite.")
    return utility


def _features(store: Store, scored: Scored, head: Head, wanted: bool) -> Array:
    """Features (N, D) of all items, (N, 0) when nobody reads them."""
    if not wanted or not scored.manifest.num_rows:
        return np.zeros((scored.manifest.num_rows, 0), dtype=np.float32)
    features = Features.open(store)
    head.require(features.version)
    return features.of(scored.manifest["shard"].to_numpy(), scored.manifest["row"].to_numpy())


def _table(scored: Scored, batch: Batch, head: Head) -> pa.Table:
    """The batch with what the model said of it before it is trained on it."""
    chances = scored.probabilities[batch.positions]
    blank = np.full(len(batch.positions), np.nan)
    at = pa.array(batch.positions)
    return pa.table(
        {
            "item_id": scored.manifest["item_id"].take(at),
            "rank": np.arange(len(batch.positions)),
            "arm": pa.array(batch.arms.tolist(), pa.string()),
            "utility": scored.utility[batch.positions] if head.trained else blank,
            "inclusion": batch.inclusion,
            "predicted": chances.argmax(axis=1) if head.trained else np.full(len(blank), -1),
            "confidence": chances.max(axis=1, initial=0.0) if head.trained else blank,
            "group": scored.manifest["group"].take(at),
        }
    )


if __name__ == "__main__":
    main(run)
