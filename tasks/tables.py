"""The tables that cross a border between stages: column names, types and keys, in one place.

Each is written through `Store.write_table`, which refuses another schema, a null, or a repeated key.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

#: why an item is in a batch
ARMS = ("seed", "active", "control", "holdout")
#: of a label that came from a user's correction of an image that nobody was asked about
CORRECTION = "correction"
#: what evaluate measured: flat JSON
METRICS = "data/evaluation/metrics.json"


@dataclass(frozen=True)
class TableKind:
    """A table's file (relative to the workspace), schema and unique key."""

    path: str
    schema: pa.Schema
    key: tuple[str, ...]


def _kind(path: str, key: str, **columns: pa.DataType) -> TableKind:
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])
    return TableKind(path, schema, tuple(key.split()))


_MANIFEST_COLUMNS = {
    "item_id": pa.string(),  # SHA-256 of the image's bytes, hex
    "uri": pa.string(),  # where the bytes were read; the source can fetch them again
    "shard": pa.int32(),  # data/pool/shard-<5 digits>.npy
    "row": pa.int32(),  # row in that shard
    "width": pa.int32(),  # pixels, after EXIF orientation
    "height": pa.int32(),
    "bytes": pa.int64(),  # length of the original file
    "group": pa.string(),  # items that stay together in a split: item_id of the group's first member
    "sequence": pa.string(),  # burst or location the source names, "" when none
    "taken": pa.string(),  # ISO 8601 time the source gives, "" when none
    "split": pa.string(),  # pool | holdout
    "phash": pa.uint64(),  # 64-bit perceptual hash
    "ingest": pa.int32(),  # number of the ingest run that added it
}

#: one row an item: all that was accepted, in order of arrival
MANIFEST = _kind("data/pool/manifest.parquet", "item_id", **_MANIFEST_COLUMNS)
#: the same, frozen at the opening of the iteration
FROZEN_MANIFEST = _kind("data/inputs/manifest.parquet", "item_id", **_MANIFEST_COLUMNS)
#: one row a file seen: accepted, duplicate or quarantined, and why
SIGHTINGS = _kind(
    "data/pool/sightings.parquet",
    "uri sha256",
    uri=pa.string(),
    sha256=pa.string(),  # "" when the bytes could not be read
    size=pa.int64(),  # bytes; -1 when unknown
    mtime_ns=pa.int64(),  # -1 when the source has no clock
    outcome=pa.string(),  # accepted | duplicate | quarantined
    reason=pa.string(),  # "" | "same bytes as URI" | why it was refused
    ingest=pa.int32(),
)
#: labels that came with the source; read by the oracle and by simulations, never by a stage
KNOWN_LABELS = _kind("data/pool/known_labels.parquet", "item_id", item_id=pa.string(), label=pa.string())

#: what the label events resolve to, as of the iteration's event sequence number
LABELS = _kind(
    "data/inputs/labels.parquet",
    "item_id",
    item_id=pa.string(),
    label=pa.string(),
    class_index=pa.int16(),  # position in iteration.json's classes
    arm=pa.string(),  # seed | active | control | holdout | correction
    asked_in=pa.int32(),  # iteration that asked, -1 for a correction
    event=pa.int64(),  # sequence number of the label event it came from
)
#: every item ever asked about
ASKED = _kind(
    "data/inputs/asked.parquet",
    "item_id",
    item_id=pa.string(),
    iteration=pa.int32(),
    rank=pa.int32(),
    arm=pa.string(),
    state=pa.string(),  # pending | labeled | skipped | disputed
)
#: everybody's newest answer to each item, as of the same event
VOTES = _kind(
    "data/inputs/votes.parquet",
    "event",
    event=pa.int64(),
    item_id=pa.string(),
    annotator=pa.string(),  # as the tool names them, "" when it does not
    label=pa.string(),  # "" for a skip
    seconds=pa.float64(),  # lead time, NaN when unknown
    truth=pa.bool_(),  # marked as ground truth
    accepted=pa.int8(),  # the model's suggestion: 1 submitted unchanged, 0 changed, -1 not taken up or not known
    arm=pa.string(),
    predicted=pa.string(),  # class that the model gave the item when it was selected, "" without a model
)
#: one row a closed iteration, in order
HISTORY = _kind(
    "data/inputs/history.parquet",
    "iteration",
    iteration=pa.int32(),
    seed=pa.int32(),  # labels known when its model was trained, per arm
    active=pa.int32(),
    control=pa.int32(),
    holdout=pa.int32(),
    correction=pa.int32(),  # corrections of images that nobody was asked about, trained on as well
    asked=pa.int32(),  # size of the batch it exported
    accuracy=pa.float64(),  # on the holdout labels of that time; NaN before there were any
    low=pa.float64(),
    high=pa.float64(),
    model_sha256=pa.string(),
    champion=pa.int32(),  # iteration whose model was champion after it, -1 before there was one
)
_SCORE_COLUMNS = {
    "item_id": pa.string(),
    "split": pa.string(),
    "probabilities": pa.list_(pa.float32()),  # calibrated, one per class
    "utility": pa.float64(),  # the strategy's; 1 - margin where the strategy is batch-aware
}
#: one row an item of the frozen manifest
SCORES = _kind("data/scores.parquet", "item_id", **_SCORE_COLUMNS)
PREVIOUS_SCORES = _kind("data/inputs/previous/scores.parquet", "item_id", **_SCORE_COLUMNS)
#: the batch, in rank order
SELECTION = _kind(
    "data/selection.parquet",
    "item_id",
    item_id=pa.string(),
    rank=pa.int32(),  # 0 is shown first
    arm=pa.string(),  # seed | active | control | holdout
    utility=pa.float64(),  # at selection; NaN where there was no model
    inclusion=pa.float64(),  # probability of inclusion for random arms, 0 for active ones
    predicted=pa.int16(),  # class the model gave it, before it is trained on; -1 without a model
    confidence=pa.float64(),  # calibrated probability of that class
    group=pa.string(),
)
_PREDICTION_COLUMNS = {
    "iteration": pa.int32(),
    "item_id": pa.string(),
    "probabilities": pa.list_(pa.float32()),
}
#: what each iteration's model says of the reserved holdout items (labeled or not), cumulative
PREDICTIONS = _kind("data/evaluation/predictions.parquet", "iteration item_id", **_PREDICTION_COLUMNS)
PREVIOUS_PREDICTIONS = _kind("data/inputs/previous/predictions.parquet", "iteration item_id", **_PREDICTION_COLUMNS)
#: the learning curve: all iterations measured on the same, current holdout labels
CURVE = _kind(
    "data/evaluation/curve.parquet",
    "iteration",
    iteration=pa.int32(),
    labels=pa.int32(),  # training labels: seed + active + control
    accuracy=pa.float64(),
    low=pa.float64(),
    high=pa.float64(),
)
#: per-class measures of this iteration's model on the holdout
PER_CLASS = _kind(
    "data/evaluation/per_class.parquet",
    "label",
    label=pa.string(),
    holdout=pa.int32(),  # holdout labels of that class
    training=pa.int32(),  # training labels of that class
    precision=pa.float64(),
    recall=pa.float64(),
    f1=pa.float64(),
    compared=pa.int32(),  # annotators' votes for that class that can be compared with another person's
    disagreement=pa.float64(),  # share of the other people's votes that differ; NaN when none can be compared
)
#: one row an annotator: what they did, how often others contradict them, what it took
ANNOTATORS = _kind(
    "data/evaluation/annotators.parquet",
    "annotator",
    annotator=pa.string(),
    labels=pa.int32(),
    skips=pa.int32(),
    compared=pa.int32(),
    disagreement=pa.float64(),
    minutes=pa.float64(),  # lead times summed, of what is known
    median_seconds=pa.float64(),
    suggestions_used=pa.float64(),  # answers that began from the model's suggestion
    suggestions_accepted=pa.float64(),  # share of those that were submitted unchanged
    match_suggested=pa.float64(),  # share of answers that are the model's class, where it was shown
    match_hidden=pa.float64(),  # the same where it was hidden (control, holdout)
)
