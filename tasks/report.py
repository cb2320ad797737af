"""Stage `report`: one screen that a person understands. Writes data/report.

learning_curve.png      accuracy against training labels, with its interval
batch.png               the images that are asked about next, in rank order (none: no file)
report.md               the numbers in words, and what the checks found
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.features import pool_shard
from tasks.findings import failed
from tasks.inputs import Iteration, read_iteration
from tasks.params_sections import Campaign
from tasks.plots import Tile, contact_sheet, learning_curve
from tasks.stage import main
from tasks.store import Array, Store
from tasks.tables import ANNOTATORS, ARMS, CORRECTION, CURVE, FROZEN_MANIFEST, METRICS, SELECTION

FOLDER = "data/report"
SHOWN = 60  # images in the contact sheet


def run(store: Store, campaign: Campaign) -> None:
    """Draw and write the report of this iteration."""
    iteration = read_iteration(store)
    metrics = store.read_json(METRICS)
    batch = store.read_table(SELECTION).sort_by("rank")
    store.write_bytes(f"{FOLDER}/learning_curve.png", _curve(store, campaign, metrics))
    if batch.num_rows:
        store.write_bytes(f"{FOLDER}/batch.png", _sheet(store, campaign, iteration, batch))
    else:
        store.path(f"{FOLDER}/batch.png").unlink(missing_ok=True)
    people = store.read_table(ANNOTATORS).to_pylist()
    text = _report(campaign, iteration, metrics, batch, failed(store), people)
    store.write_bytes(f"{FOLDER}/report.md", text.encode())


def _curve(store: Store, campaign: Campaign, metrics: dict[str, Any]) -> bytes:
    curve = store.read_table(CURVE).sort_by("iteration")
    curve = curve.filter(pc.greater(curve["labels"], 0))  # before there is a model there is only chance
    labels, accuracy, low, high = (curve[name].to_numpy() for name in ("labels", "accuracy", "low", "high"))
    title = f"{campaign.name}: learning curve on {metrics['holdout_labels']} holdout labels"
    return learning_curve(labels, accuracy, low, high, title)


def _sheet(store: Store, campaign: Campaign, iteration: Iteration, batch: pa.Table) -> bytes:
    shown = batch.slice(0, SHOWN).to_pylist()
    images = _images(store, [row["item_id"] for row in shown])
    tiles = [
        Tile(image, row["rank"], row["arm"], _guess(row, iteration)) for row, image in zip(shown, images, strict=True)
    ]
    more = f", the first {SHOWN} shown" if batch.num_rows > SHOWN else ""
    title = f"{campaign.name}, iteration {iteration.number}: {batch.num_rows} images to label{more}"
    return contact_sheet(tiles, title)


def _guess(row: dict[str, Any], iteration: Iteration) -> str:
    return "" if row["predicted"] < 0 else f"{iteration.classes[row['predicted']]}: {row['confidence']:.0%}"


def _images(store: Store, item_ids: list[str]) -> list[Array]:
    manifest = store.read_table(FROZEN_MANIFEST, ["item_id", "shard", "row"])
    wanted = set(item_ids)
    columns = (manifest[name].to_pylist() for name in ("item_id", "shard", "row"))
    place = {item: (shard, row) for item, shard, row in zip(*columns, strict=True) if item in wanted}
    shards = {shard: store.read_array(pool_shard(shard)) for shard, _ in place.values()}
    return [np.asarray(shards[place[item][0]][place[item][1]]) for item in item_ids]


def _report(
    campaign: Campaign,
    iteration: Iteration,
    metrics: dict[str, Any],
    batch: pa.Table,
    findings: list[dict[str, Any]],
    annotators: list[dict[str, Any]],
) -> str:
    lines = [
        f"# {_safe(campaign.name)}: iteration {iteration.number}",
        "",
        *_summary(metrics),
        "",
        "## Labels spent",
        "",
        *_row_table([*ARMS, "total"], [metrics[f"labels_{arm}"] for arm in (*ARMS, "total")]),
        *_corrections(metrics[f"labels_{CORRECTION}"]),
        "",
        f"## Next batch: {batch.num_rows} images",
        "",
        *_batch(iteration, batch),
        "",
        *_annotators(metrics, annotators),
        "## Checks",
        "",
        *_checks(findings),
        "",
        "![learning curve](learning_curve.png)",
        "",
        *(["![batch](batch.png)", ""] if batch.num_rows else []),
    ]
    return "\n".join(lines)


def _corrections(count: int) -> list[str]:
    return ["", f"And {count} corrections of users, which cost no label of the budget."] if count else []


def _summary(metrics: dict[str, Any]) -> list[str]:
    accuracy = "not measured yet (no holdout labels)"
    if metrics["accuracy"] is not None:
        accuracy = (
            f"**{metrics['accuracy']:.1%}** ({metrics['accuracy_low']:.1%} to {metrics['accuracy_high']:.1%}) "
            f"on {metrics['holdout_labels']} holdout labels"
        )
    champion = "none yet" if metrics["champion"] is None else f"the model of iteration {metrics['champion']}"
    if metrics["champion_changed"]:
        champion += " (new)"
    return [f"- Accuracy: {accuracy}", f"- Training labels: {metrics['training_labels']}", f"- Champion: {champion}"]


def _batch(iteration: Iteration, batch: pa.Table) -> list[str]:
    if not batch.num_rows:
        return ["The budget is spent." if iteration.remaining == 0 else "No image is left to ask about."]
    arms = Counter(batch["arm"].to_pylist())
    present = [arm for arm in ARMS if arms[arm]]
    lines = _row_table(present, [arms[arm] for arm in present])
    guesses = Counter(guess for guess in batch["predicted"].to_pylist() if guess >= 0)
    if guesses:
        named = [f"{_safe(iteration.classes[guess])} ({count})" for guess, count in guesses.most_common()]
        lines += ["", f"By predicted class: {', '.join(named)}."]
    return lines


def _annotators(metrics: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Who answered, what it took, and how far people agree with each other and follow the model; [] without answers."""
    if not rows:
        return []
    shown = [
        f"| {_safe(r['annotator']) or 'unnamed'} | {r['labels']} | {r['skips']} | {_share(r['disagreement'])} "
        f"| {_number(r['median_seconds'])} | {_share(r['suggestions_accepted'])} | {_share(r['match_suggested'])} "
        f"| {_share(r['match_hidden'])} |"
        for r in rows
    ]
    cost = metrics["minutes_per_label"]
    return [
        "## Annotators",
        "",
        "| annotator | labels | skips | contradicted | median seconds | suggestions accepted | as the model: shown | hidden |",
        f"|{'---|' * 8}",
        *shown,
        "",
        *(
            [f"A label took {cost:.2f} minutes, {metrics['minutes_spent']:.0f} minutes in all."]
            if cost is not None
            else []
        ),
        *_agreement(metrics),
        "",
    ]


def _agreement(metrics: dict[str, Any]) -> list[str]:
    if metrics["disagreement"] is None:
        return []
    alpha = metrics["agreement_alpha"]
    measured = "" if alpha is None else f" (Krippendorff's alpha {alpha:.2f})"
    return [f"Where several people answered, {metrics['disagreement']:.1%} of the votes are contradicted{measured}."]


def _share(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else ""


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else ""


def _checks(findings: list[dict[str, Any]]) -> list[str]:
    if not findings:
        return ["No check found anything."]
    return [f"- **{f['check']}** ({f['severity']}): {_safe(f['what'])} To do: {_safe(f['todo'])}" for f in findings]


def _row_table(names: list[str], values: list[int]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", f"| {' | '.join(str(v) for v in values)} |"]


def _safe(text: str) -> str:
    """Text of other people as plain words: no HTML, no table, no line breaks."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").split())


if __name__ == "__main__":
    main(run)
