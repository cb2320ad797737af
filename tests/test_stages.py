"""The stages embed, train, score, evaluate and report on real files, in this process."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import plugins
from tasks.errors import GleanerError
from tasks.features import Features
from tasks.head import read
from tasks.plots import ARM_COLOURS, Tile, contact_sheet, learning_curve
from tasks.tables import CURVE, FROZEN_MANIFEST, MANIFEST, PER_CLASS, PREDICTIONS, SCORES, SELECTION
from tests.workspace import World, build, rows

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

OUTPUTS = (
    "data/features",
    "models/head",
    "data/scores.parquet",
    "data/selection.parquet",
    "data/evaluation",
    "data/report",
)


def start(tmp_path: Path, **more: Any) -> World:
    world = build(tmp_path, **{"items": 100, **more})
    world.change("train", network="linear", folds=3)
    world.change("select", batch=8, first_batch=8, control=0.25)
    world.change("holdout", labels=15)
    world.change("evaluate", resamples=100)
    return world


def iterate(world: World, times: int, **answer: int) -> World:
    """Run `times` whole iterations; the next one is open."""
    world.open()
    for _ in range(times):
        world.run("embed", "train", "score", "select", "evaluate")
        world.answer(**answer)
        world.open()
    return world


def metrics(world: World) -> dict[str, Any]:
    measured: dict[str, Any] = world.store.read_json("data/evaluation/metrics.json")
    return measured


def outputs(world: World) -> dict[str, bytes]:
    files = [path for name in OUTPUTS for path in [world.store.path(name), *world.store.path(name).glob("*")]]
    return {str(path.relative_to(world.store.root)): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_the_same_inputs_give_the_same_bytes_twice(tmp_path: Path, network: str) -> None:
    world = start(tmp_path)
    world.change("train", network=network)
    iterate(world, 2)
    world.run()
    first = outputs(world)
    for name in first:
        world.store.path(name).unlink()
    world.run()
    assert outputs(world) == first
    assert len(first) >= 14


# embed


def test_features_are_read_by_item_in_any_order(tmp_path: Path) -> None:
    world = start(tmp_path, shards=3)
    world.run("embed")
    table = world.store.read_table(MANIFEST)
    shards, rows_ = table["shard"].to_numpy(), table["row"].to_numpy()
    features = Features.open(world.store)
    pool = [world.store.read_array(f"data/pool/shard-{shard:05d}.npy") for shard in range(3)]
    expected = np.stack([pool[shard][row].reshape(-1) for shard, row in zip(shards, rows_, strict=True)])
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_allclose(features.of(shards[order], rows_[order]), expected[order] / 255, rtol=1e-6)
    seen = np.full(expected.shape, np.nan, dtype=np.float32)
    for positions, block in features.blocks(shards[order], rows_[order], size=7):
        assert len(block) <= 7
        seen[positions] = block
    assert (seen == features.of(shards[order], rows_[order])).all()


def add_shard(world: World) -> None:
    """A later ingest: one more shard of ten images."""
    table = world.store.read_table(MANIFEST).to_pylist()
    images = np.random.default_rng(9).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)
    world.store.write_array("data/pool/shard-00002.npy", images)
    new = [{**table[0], "item_id": f"{i:064d}", "group": f"{i:064d}", "shard": 2, "row": i} for i in range(10)]
    world.store.write_table(MANIFEST, rows(MANIFEST, table + new))


def test_a_grown_pool_embeds_only_the_new_shard_and_ends_as_if_done_at_once(tmp_path: Path) -> None:
    world, fresh = start(tmp_path / "a"), start(tmp_path / "b")
    world.run("embed")
    old = [world.store.path(f"data/features/shard-0000{i}.npy") for i in (0, 1)]
    before = [path.stat().st_mtime_ns for path in old]
    for one in (world, fresh):
        add_shard(one)
        one.run("embed")
    assert [path.stat().st_mtime_ns for path in old] == before
    assert outputs(world) == outputs(fresh)
    assert len(outputs(world)) == 4


@pytest.mark.parametrize("section,change", [("embed", {"batch": 7}), ("compute", {"threads": 2})])
def test_what_rounds_otherwise_is_embedded_again(tmp_path: Path, section: str, change: dict[str, int]) -> None:
    world = start(tmp_path)
    world.run("embed")
    path = world.store.path("data/features/shard-00000.npy")
    before = path.stat().st_mtime_ns
    world.change(section, **change)
    world.run("embed")
    assert path.stat().st_mtime_ns != before


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    one, four = start(tmp_path / "a"), start(tmp_path / "b")
    for world, workers in ((one, 1), (four, 4)):
        world.change("compute", workers=workers)
        world.change("embed", batch=3)
        world.run("embed")
    assert outputs(one) == outputs(four)


def test_another_backbone_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.run("embed")
    world.store.write_bytes("data/features/stray.npy", b"x")
    world.change("embed", backbone="torchvision", options={"model": "shufflenet_v2_x0_5", "weights": ""})
    world.store.write_json("data/pool/pool.json", {"size": 8, "mode": "L"})
    world.run("embed")
    assert Features.open(world.store).dimension == 1024
    assert not world.store.exists("data/features/stray.npy")
    assert world.store.read_array("data/features/shard-00000.npy").shape == (50, 1024)


def test_an_embed_that_died_half_way_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, fresh = start(tmp_path / "a"), start(tmp_path / "b")

    def die(name: str) -> None:
        if name == "embed:1:before":
            raise KeyboardInterrupt

    monkeypatch.setattr("tasks.embed.checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        world.run("embed")
    monkeypatch.undo()
    kept = world.store.path("data/features/shard-00000.npy").stat().st_mtime_ns
    world.run("embed")
    fresh.run("embed")
    assert outputs(world) == outputs(fresh)
    assert world.store.path("data/features/shard-00000.npy").stat().st_mtime_ns == kept


# train


def test_the_holdout_is_never_trained_on(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 2)
    world.run("train")
    first = world.store.path("models/head/head.safetensors").read_bytes()
    for row in world.asked:
        if row["arm"] == "holdout":
            world.truth[row["item_id"]] = (world.truth[row["item_id"]] + 1) % 3
    world.open()
    world.run("train")
    assert world.store.path("models/head/head.safetensors").read_bytes() == first
    assert world.store.read_json("models/head/head.json")["labels"] == 16


def test_labels_change_the_model(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 1)
    world.run("train")
    first = read(world.store).sha256
    item = next(row["item_id"] for row in world.asked if row["arm"] == "seed")
    world.truth[item] = (world.truth[item] + 1) % 3
    world.open()
    world.run("train")
    assert read(world.store).sha256 != first


@pytest.mark.parametrize("classes", [[0], [0, 0, 0], [0, 1], [2, 2, 0]])
def test_few_labels_or_one_class_still_give_a_head(tmp_path: Path, classes: list[int]) -> None:
    world = start(tmp_path)
    for wanted in classes:
        taken = {row["item_id"] for row in world.asked}
        world.ask(next(i for i, label in world.truth.items() if label == wanted and i not in taken), "seed")
    world.number = 1
    world.open()
    world.run("embed", "train", "score")
    description = world.store.read_json("models/head/head.json")
    assert description["temperature"] > 0
    assert description["training_accuracy"] == 1.0
    if len(set(classes)) == 1:
        assert (description["temperature"], description["cross_validated_accuracy"]) == (1.0, None)


def test_without_labels_the_network_is_none_and_every_class_equally_likely(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.open()
    world.run("embed", "train", "score")
    assert not read(world.store).trained
    scores = world.store.read_table(SCORES)
    assert np.allclose(scores["probabilities"].to_pylist(), 1 / 3)
    assert set(scores["utility"].to_pylist()) == {0.0}


def test_a_label_outside_the_pool_is_named(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.open()
    world.run("embed")
    world.truth["f" * 64] = 0
    world.ask("f" * 64, "seed")
    world.open()
    with pytest.raises(GleanerError, match="f" * 64):
        world.run("train")


def test_a_tampered_head_is_refused(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 1)
    world.run("train")
    path = world.store.path("models/head/head.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(GleanerError, match=r"head\.safetensors.*Run train again"):
        world.run("score")


def test_a_head_of_other_features_is_refused(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 1)
    world.run("train")
    value = world.store.read_json("data/features/backbone.json")
    world.store.write_json("data/features/backbone.json", {**value, "version": "other"})
    with pytest.raises(GleanerError, match="other"):
        world.run("score")


# score


def test_scores_cover_every_item_with_probabilities_that_sum_to_one(tmp_path: Path) -> None:
    world = iterate(start(tmp_path, shards=3), 1)
    world.run("train", "score")
    scores = world.store.read_table(SCORES)
    assert scores["item_id"].equals(world.store.read_table(FROZEN_MANIFEST)["item_id"])
    assert np.allclose(np.array(scores["probabilities"].to_pylist()).sum(axis=1), 1, atol=1e-5)
    assert np.isfinite(scores["utility"].to_numpy()).all()


@pytest.mark.parametrize("strategy", [n for n in plugins.names("strategies") if n != "uniform"])
def test_scores_do_not_depend_on_how_features_are_cut_into_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    world = start(tmp_path)
    world.change("select", strategy=strategy)
    world.change("train", network="mlp")
    iterate(world, 1)
    world.run("train", "score")
    whole = world.store.read_table(SCORES)["utility"].to_numpy()
    plain = Features.blocks
    monkeypatch.setattr(Features, "blocks", lambda self, shards, rows: plain(self, shards, rows, 7))
    world.run("score")
    np.testing.assert_allclose(world.store.read_table(SCORES)["utility"].to_numpy(), whole, atol=1e-6)


def test_batch_strategies_are_scored_by_their_margin(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.change("select", strategy="k_center")
    iterate(world, 1)
    world.run("train", "score")
    scores = world.store.read_table(SCORES)
    ordered = np.sort(np.array(scores["probabilities"].to_pylist()), axis=1)
    np.testing.assert_allclose(scores["utility"].to_numpy(), 1 - ordered[:, -1] + ordered[:, -2], atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_gives_no_number_is_named_with_the_item(tmp_path: Path, bad: float) -> None:
    world = iterate(start(tmp_path), 1)
    world.run("train")
    features = np.array(world.store.read_array("data/features/shard-00001.npy"))
    features[4] = bad
    world.store.write_array("data/features/shard-00001.npy", features)
    item = world.store.read_table(MANIFEST)["item_id"][54].as_py()
    with pytest.raises(GleanerError, match=f"score: .*{item}"):
        world.run("score")


# evaluate


def test_without_holdout_labels_nothing_is_claimed(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.open()
    world.run("embed", "train", "score", "select", "evaluate", "report")
    measured = metrics(world)
    for name in ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "nll", "ece", "champion", "champion_p"):
        assert measured[name] is None
    assert (measured["holdout_labels"], measured["labels_total"], measured["champion_changed"]) == (0, 0, False)


def test_measures_agree_with_scikit_learn(tmp_path: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_fscore_support

    world = iterate(start(tmp_path, classes=4), 2)
    world.run("train", "score", "select", "evaluate")
    said = {row["item_id"]: row["probabilities"] for row in world.store.read_table(SCORES).to_pylist()}
    items = [row["item_id"] for row in world.asked if row["arm"] == "holdout"]
    truth, chances = [world.truth[item] for item in items], np.array([said[item] for item in items], dtype=float)
    guess = chances.argmax(axis=1)
    measured = metrics(world)
    assert measured["holdout_labels"] == len(items) == 15
    assert measured["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert measured["macro_f1"] == pytest.approx(f1_score(truth, guess, labels=sorted(set(truth)), average="macro"))
    chances /= chances.sum(axis=1, keepdims=True)
    assert measured["nll"] == pytest.approx(log_loss(truth, chances, labels=range(4)), rel=1e-4)
    assert measured["accuracy_low"] <= measured["accuracy"] <= measured["accuracy_high"]
    table = world.store.read_table(PER_CLASS).to_pydict()
    expected = precision_recall_fscore_support(truth, guess, labels=range(4), zero_division=np.nan)
    np.testing.assert_allclose([table["precision"], table["recall"]], expected[:2])
    assert table["holdout"] == expected[3].tolist()


def test_labels_spent_are_counted_by_arm(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 3, skip=1)
    world.run("train", "score", "select", "evaluate")
    labeled = [row["arm"] for row in world.asked if row["state"] == "labeled"]
    measured = metrics(world)
    for arm in ("seed", "active", "control", "holdout"):
        assert measured[f"labels_{arm}"] == labeled.count(arm)
    assert measured["labels_total"] == len(labeled)
    assert measured["training_labels"] == len(labeled) - labeled.count("holdout")


def test_the_curve_measures_every_iteration_on_the_current_holdout_labels(tmp_path: Path) -> None:
    world = start(tmp_path)
    iterate(world, 3, pending=4)
    world.run("train", "score", "select", "evaluate")
    curve = world.store.read_table(CURVE).to_pylist()
    predictions = world.store.read_table(PREDICTIONS).to_pylist()
    items = [row["item_id"] for row in world.asked if row["arm"] == "holdout" and row["state"] == "labeled"]
    assert [row["iteration"] for row in curve] == [0, 1, 2, 3]
    assert curve[0]["accuracy"] == pytest.approx(1 / 3)
    for row in curve[1:]:
        own = [p for p in predictions if p["iteration"] == row["iteration"]]
        said = {p["item_id"]: int(np.argmax(p["probabilities"])) for p in own}
        assert row["accuracy"] == pytest.approx(np.mean([said[item] == world.truth[item] for item in items]))
        assert row["low"] <= row["accuracy"] <= row["high"]
    assert curve[-1]["accuracy"] == pytest.approx(metrics(world)["accuracy"])
    earlier = [row["seed"] + row["active"] + row["control"] for row in world.history]
    assert [row["labels"] for row in curve] == [*earlier, metrics(world)["training_labels"]]


def test_predictions_keep_every_reserved_item_of_every_iteration(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 2)
    world.run("train", "score", "select", "evaluate")
    reserved = world.store.read_table(MANIFEST)["split"].to_pylist().count("holdout")
    numbers = world.store.read_table(PREDICTIONS)["iteration"].to_pylist()
    assert {number: numbers.count(number) for number in set(numbers)} == {0: reserved, 1: reserved, 2: reserved}


def with_predictions(world: World, right_before: int, right_now: int) -> None:
    """Make the champion (iteration 1) right on the first n holdout labels and the present scores on the first m."""
    items = sorted(row["item_id"] for row in world.asked if row["arm"] == "holdout" and row["state"] == "labeled")

    def answers(right: int) -> dict[str, list[float]]:
        guesses = {i: world.truth[i] if place < right else (world.truth[i] + 1) % 3 for place, i in enumerate(items)}
        return {item: np.eye(3, dtype=np.float32)[guess].tolist() for item, guess in guesses.items()}

    for kind, path, right in (
        (SCORES, "data/scores.parquet", right_now),
        (PREDICTIONS, "data/inputs/previous/predictions.parquet", right_before),
    ):
        moved = type(kind)(path, kind.schema, kind.key)
        said = answers(right)
        table = world.store.read_table(moved)
        values = [said.get(row["item_id"], row["probabilities"]) for row in table.to_pylist()]
        field = table.schema.field("probabilities")
        index = table.schema.get_field_index("probabilities")
        world.store.write_table(moved, table.set_column(index, field, pa.array(values, field.type)))


@pytest.mark.parametrize("before,now,changes", [(4, 14, True), (14, 4, False), (10, 10, False), (10, 12, False)])
def test_the_champion_changes_only_when_the_paired_test_says_so(
    tmp_path: Path, before: int, now: int, changes: bool
) -> None:
    from scipy.stats import binomtest

    world = iterate(start(tmp_path), 2)
    assert world.history[-1]["champion"] == 1
    world.run("train", "score", "select")
    with_predictions(world, before, now)
    world.run("evaluate")
    measured = metrics(world)
    assert measured["champion"] == (2 if changes else 1)
    assert measured["champion_changed"] == changes
    wins, losses = max(now - before, 0), max(before - now, 0)
    expected = binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
    assert measured["champion_p"] == pytest.approx(expected)


def test_without_a_holdout_the_newest_model_is_champion(tmp_path: Path) -> None:
    world = start(tmp_path)
    world.change("holdout", labels=0)
    iterate(world, 3)
    assert [row["champion"] for row in world.history] == [-1, 1, 2]
    assert all(math.isnan(row["accuracy"]) for row in world.history)


def test_control_answers_measure_the_model_that_had_not_seen_them(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 2)
    said = {row["item_id"]: row["probabilities"] for row in world.store.read_table(SCORES).to_pylist()}
    world.run("train", "score", "select", "evaluate")
    control = [row["item_id"] for row in world.asked if row["arm"] == "control"]
    measured = metrics(world)
    assert measured["control_measured"] == len(control) == 2
    assert measured["control_correct"] == sum(int(np.argmax(said[i])) == world.truth[i] for i in control)


# report


def picture(content: bytes) -> Picture:
    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB")


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_a_learning_curve_has_a_picture_at_any_length(count: int) -> None:
    labels = np.arange(1, count + 1) * 20
    accuracy = np.linspace(0.5, 0.9, count)
    content = learning_curve(labels, accuracy, accuracy - 0.1, accuracy + 0.05, "test")
    assert picture(content).size == (864, 528)
    assert content == learning_curve(labels, accuracy, accuracy - 0.1, accuracy + 0.05, "test")
    assert b"Software" not in content and b"tIME" not in content


def test_the_contact_sheet_shows_each_image_framed_in_its_arms_colour() -> None:
    from PIL import ImageColor

    images = [np.full((8, 8, 1), 40 * i, dtype=np.uint8) for i in range(4)]
    arms = ["seed", "active", "control", "holdout"]
    pairs = enumerate(zip(images, arms, strict=True))
    tiles = [Tile(image, rank, arm, "a name that is much too long: 99%") for rank, (image, arm) in pairs]
    sheet = picture(contact_sheet(tiles, "test"))
    for place, arm in enumerate(arms):
        left = 8 + place * 112
        assert sheet.getpixel((left + 1, 61)) == ImageColor.getrgb(ARM_COLOURS[arm])
        assert sheet.getpixel((left + 52, 112)) == (40 * place,) * 3


def test_an_empty_batch_has_a_sheet_too() -> None:
    assert picture(contact_sheet([], "nothing")).width > 100


def test_the_report_names_arms_predictions_and_what_the_checks_found(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 1)
    world.run("train", "score", "select", "evaluate")
    finding = {"check": "score_gap", "severity": "warn", "outcome": "fail", "what": "Sign <b>flipped</b>."}
    finding["todo"] = "Look."
    passed = {**finding, "check": "fine", "outcome": "pass"}
    world.store.write_json("data/findings.json", {"iteration": 1, "findings": [finding, passed]})
    world.run("report")
    text = world.store.path("data/report/report.md").read_text()
    assert "on 15 holdout labels" in text
    assert "| seed | active | control | holdout | total |" in text
    assert "| 8 | 0 | 0 | 15 | 23 |" in text
    assert "**score_gap** (warn): Sign &lt;b>flipped&lt;/b>. To do: Look." in text
    assert "fine" not in text
    guesses = {row["predicted"] for row in world.store.read_table(SELECTION).to_pylist()}
    assert all(f"class {guess} (" in text for guess in guesses)


def test_a_report_without_a_batch_shows_no_picture_of_one(tmp_path: Path) -> None:
    world = iterate(start(tmp_path), 1)
    world.run("train", "score", "select", "evaluate")
    world.store.write_json("data/findings.json", {"iteration": 1, "findings": []})
    world.run("report")
    sheet = world.store.path("data/report/batch.png")
    assert sheet.exists() and "batch.png" in sheet.with_name("report.md").read_text()
    world.store.write_table(SELECTION, SELECTION.schema.empty_table())
    world.run("report")
    assert not sheet.exists() and "batch.png" not in sheet.with_name("report.md").read_text()
