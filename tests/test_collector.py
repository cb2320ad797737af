"""The collector: one budget for all processes, a random share that never stops, nothing lost or kept twice when killed."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from tasks.campaign import IDENTITY
from tasks.choose import Candidates
from tasks.collecting import Guess, draws, wanted
from tasks.collector import BUDGET, INBOX, LINES, STAGED, Collector, Offer
from tasks.errors import BadInput
from tasks.offering import offer_files
from tasks.params_sections import Stream
from tasks.pool import read_manifest
from tasks.store import Store
from tasks.tables import SELECTION
from tests.children import run_in_child
from tests.quick import TEMPLATE, broken, copy, edit, tick

UNSURE = {"deer": 0.5, "fox": 0.45, "empty": 0.05}
SURE = {"deer": 0.99, "fox": 0.01}
OPEN: dict[str, Any] = {
    "stream.enabled": True, "stream.random_share": 0.0, "stream.random_per_day": 0, "stream.per_hour": 0,
    "stream.per_day": 0, "stream.per_class_per_day": 0,
}  # fmt: skip


def place(root: Path, **changes: Any) -> Path:
    """A campaign's folder with the settings of a stream; without limits unless `changes` sets them."""
    root.mkdir(parents=True, exist_ok=True)
    Store(root).write_json(IDENTITY, {"id": "stream-1", "forked_from": None})
    shutil.copyfile(TEMPLATE / "params.yaml", root / "params.yaml")
    edit(root, {**OPEN, **{f"stream.{name}": value for name, value in changes.items()}})
    return root


def content(number: int) -> bytes:
    return b"BM%d" % number


def inbox(root: Path, why: str = "*") -> list[str]:
    return sorted(path.name for path in (root / INBOX).glob(f"{why}/*"))


def kept(root: Path) -> int:
    with sqlite3.connect(root / BUDGET) as db:
        return int(db.execute("SELECT count(*) FROM kept").fetchone()[0])


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def offers(collector: Collector, start: int, count: int, said: dict[str, float] | None = None) -> list[Offer]:
    return [collector.offer(content(number), said or UNSURE) for number in range(start, start + count)]


# what is kept -----------------------------------------------------------------------------------------------


def test_an_image_in_the_band_is_kept_with_its_line(tmp_path: Path) -> None:
    root = place(tmp_path / "w", band_share=0.9, random_share=0.0)
    clock = Clock()
    number = next(n for n in range(9) if Collector(root, clock).offer(content(n), UNSURE).kept)
    (name,) = inbox(root, "band")
    assert (root / INBOX / "band" / name).read_bytes() == content(number)
    assert name.endswith(".bmp")
    assert json.loads((root / LINES).read_text()) == {
        "item_id": name.removesuffix(".bmp"), "why": "band", "inclusion": 0.9, "label": "deer", "confidence": 0.5,
        "at": clock.now,
    }  # fmt: skip


def test_what_the_model_is_sure_about_or_says_nothing_about_is_left_to_the_random_share(tmp_path: Path) -> None:
    collector = Collector(place(tmp_path / "w"))
    assert collector.offer(content(1), SURE) == Offer(False, "confidence 0.99 is outside the band", 0.0)
    assert not collector.offer(content(1)).kept
    edit(tmp_path / "w", {"stream.random_share": 1.0})
    assert Collector(tmp_path / "w").offer(content(1)) == Offer(True, "random", 1.0)


def test_the_same_bytes_are_kept_once_and_offering_them_again_changes_no_verdict(tmp_path: Path) -> None:
    root = place(tmp_path / "w", random_share=0.5, band_share=0.5)
    first = offers(Collector(root), 0, 50)
    again = offers(Collector(root), 0, 50)
    assert [offer.why for offer in again if not offer.kept and "before" in offer.why].count(
        "the same bytes were kept before"
    ) == sum(offer.kept for offer in first)
    assert [o.why for o in again if "before" not in o.why] == [o.why for o in first if not o.kept]
    assert len(inbox(root)) == sum(offer.kept for offer in first)


def test_the_shares_are_what_they_are_said_to_be() -> None:
    rules = Stream(enabled=True, random_share=0.1, band_share=0.4)
    found = [wanted(rules, draws("salt", str(n)), Guess("deer", 0.5)) for n in range(20_000)]
    counts = Counter(verdict.why for verdict in found)
    for why, inclusion in (("random", 0.1), ("band", 0.36)):
        assert {round(v.inclusion, 9) for v in found if v.why == why} == {inclusion}
        assert abs(counts[why] - 20_000 * inclusion) < 4 * (20_000 * inclusion * (1 - inclusion)) ** 0.5
    blind = [
        wanted(rules, draws("salt", str(n)), guess).why == "random"
        for n in range(99)
        for guess in (None, Guess("x", 1))
    ]
    assert blind[::2] == blind[1::2] == [verdict.why == "random" for verdict in found[:99]]


@settings(max_examples=200, deadline=None)
@given(item=st.text(), salt=st.text(alphabet="abc"), confidence=st.floats(0, 1), share=st.floats(0, 1))
def test_any_image_is_kept_for_one_reason_or_refused_with_one(
    item: str, salt: str, confidence: float, share: float
) -> None:
    drawn = draws(salt, item)
    assert all(0.0 <= draw < 1.0 for draw in drawn)
    verdict = wanted(Stream(random_share=share, band_share=1 - share), drawn, Guess("deer", confidence))
    assert verdict.kept == (verdict.why in ("random", "band")) == (verdict.inclusion > 0)


# limits -----------------------------------------------------------------------------------------------------


def test_each_limit_holds_and_is_named(tmp_path: Path) -> None:
    for name in ("per_hour", "per_day", "per_class_per_day", "total"):
        root = place(tmp_path / name, **{name: 3})
        found = offers(Collector(root, Clock()), 0, 5)
        assert [offer.kept for offer in found] == [True] * 3 + [False] * 2
        assert found[-1].why == f"the limit stream.{name} is reached"
    root = place(tmp_path / "classes", per_class_per_day=3)
    offers(Collector(root), 0, 5)
    assert [o.kept for o in offers(Collector(root), 5, 5, {"fox": 0.5})] == [True] * 3 + [False] * 2


def test_random_collection_goes_on_when_the_bands_budget_is_used_up(tmp_path: Path) -> None:
    root = place(tmp_path / "w", random_share=0.3, total=2, per_hour=1)
    found = offers(Collector(root), 0, 100)
    assert sum(offer.why == "band" for offer in found) == 1
    assert sum(offer.why == "random" for offer in found[50:]) > 5
    root = place(tmp_path / "limited", random_share=1.0, random_per_hour=4)
    assert sum(offer.kept for offer in offers(Collector(root), 0, 10)) == 4


def test_room_comes_back_with_time(tmp_path: Path) -> None:
    clock = Clock()
    collector = Collector(place(tmp_path / "w", per_hour=2, per_day=3), clock)
    assert sum(o.kept for o in offers(collector, 0, 5)) == 2
    clock.now += 3600
    assert sum(o.kept for o in offers(collector, 10, 5)) == 1
    clock.now += 86400
    assert sum(o.kept for o in offers(collector, 20, 5)) == 2


@settings(max_examples=30, deadline=None)
@given(
    jumps=st.lists(
        st.sampled_from([0.0, 5.0, 1799.0, 3601.0, -10.0, -1800.0, -7200.0, 1e6, -1e6]), min_size=1, max_size=25
    )
)
def test_no_window_of_recorded_time_holds_more_than_the_limit_however_the_clock_jumps(
    jumps: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root, clock = place(tmp_path_factory.mktemp("clock") / "w", per_hour=3), Clock()
    collector = Collector(root, clock)
    for number, jump in enumerate(jumps):
        clock.now += jump
        offers(collector, 3 * number, 3)
    with sqlite3.connect(root / BUDGET) as db:
        times = [row[0] for row in db.execute("SELECT at FROM kept")]
    assert all(sum(start <= at < start + 3600 for at in times) <= 3 for start in times)


def test_a_clock_that_was_far_ahead_does_not_stop_collection(tmp_path: Path) -> None:
    clock = Clock()
    collector = Collector(place(tmp_path / "w", per_hour=2, per_day=2), clock)
    clock.now += 1e9
    offers(collector, 0, 3)
    clock.now -= 1e9
    assert sum(offer.kept for offer in offers(collector, 10, 3)) == 2


def _offer_many(root: str, start: int, result: Any) -> None:
    result.put(sum(offer.kept for offer in offers(Collector(Path(root)), start, 30)))


def test_four_processes_use_one_budget_up_and_never_exceed_it(tmp_path: Path) -> None:
    root = place(tmp_path / "w", per_hour=40)
    context = multiprocessing.get_context("forkserver")
    result = context.Queue()
    workers = [context.Process(target=_offer_many, args=(str(root), start, result)) for start in (0, 20, 40, 60)]
    for worker in workers:
        worker.start()
    assert sum(result.get(timeout=120) for _ in workers) == 40
    for worker in workers:
        worker.join()
    assert len(inbox(root)) == kept(root) == len((root / LINES).read_text().splitlines()) == 40
    assert not list((root / STAGED).iterdir())


# kills ------------------------------------------------------------------------------------------------------


def _one(root: Path) -> str:
    return str(Collector(root).offer(content(1), UNSURE))


def _next(root: Path) -> str:
    return str(Collector(root).offer(content(2), UNSURE))


def test_a_kill_at_any_effect_neither_exceeds_the_limit_nor_loses_what_was_counted(tmp_path: Path) -> None:
    passed = run_in_child(_one, place(tmp_path / "calm", per_hour=2)).passed
    assert [name.split(":")[1] for name in passed] == ["staged", "row", "place", "line"]
    for at in range(1, len(passed) + 1):
        root = place(tmp_path / f"kill{at}", per_hour=2)
        assert run_in_child(_one, root, kill_at=at).killed
        _next(root)
        _one(root)
        assert len(inbox(root)) == kept(root) == 2, passed[at - 1]
        assert len({json.loads(line)["item_id"] for line in (root / LINES).read_text().splitlines()}) == 2
        assert not offers(Collector(root), 5, 1)[0].kept


# what is refused --------------------------------------------------------------------------------------------


def test_a_campaign_that_collects_nothing_and_numbers_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    root = place(tmp_path / "w")
    for value in (1.5, -0.1, float("nan")):
        with pytest.raises(BadInput, match="the probability of 'deer'"):
            Collector(root).offer(content(1), {"deer": value})
    edit(root, {"stream.enabled": False})
    with pytest.raises(BadInput, match=r"stream\.enabled is false"):
        Collector(root)


# the loop ---------------------------------------------------------------------------------------------------


@pytest.fixture
def root(closed_iteration: Path, tmp_path: Path) -> Path:
    """A workspace whose iterations 0 and 1 are closed, and which collects."""
    root = copy(closed_iteration, tmp_path / "workspace")
    edit(root, {**OPEN, "stream.band": [0.0, 1.0], "select.batch": 40, "select.control": 0.5})
    return root


def stream(folder: Path, count: int) -> list[Path]:
    """Images that the source does not hold."""
    folder.mkdir()
    digits = load_digits()
    pixels = digits.images[digits.target < 3][-count:]
    for number, image in enumerate(pixels):
        Image.fromarray((image * 15.9).astype(np.uint8)).save(folder / f"{number:03d}.png")
    return sorted(folder.iterdir())


def test_what_is_kept_is_in_the_next_iterations_pool_and_is_served(root: Path, tmp_path: Path) -> None:
    before = read_manifest(Store(root)).num_rows
    edit(root, {"stream.random_share": 0.5})
    found = list(offer_files(root, stream(tmp_path / "stream", 30), random_only=False))
    assert Counter(offer.why for _, offer in found).keys() == {"random", "band"}
    lines = [json.loads(line) for line in (root / LINES).read_text().splitlines()]
    assert all(line["label"] in ("0", "1", "2") and 0 < line["confidence"] <= 1 for line in lines)
    shutil.rmtree(tmp_path / "stream")
    assert tick(root) == "iteration 2"
    manifest = read_manifest(Store(root)).to_pylist()
    added = [row["uri"].split("/")[0] for row in manifest[before:]]
    assert set(added) == {"random", "band"}
    assert [tick(root), tick(root)] == ["iteration 3", "iteration 4"]
    asked = {row["item_id"]: row["arm"] for row in Store(root).read_table(SELECTION).to_pylist()}
    band = {row["item_id"] for row in manifest if row["uri"].startswith("band/")}
    assert not {asked[item] for item in band & set(asked)} & {"control", "holdout"}
    assert broken(root) == []


def test_without_a_model_files_are_offered_to_the_random_share_alone(root: Path, tmp_path: Path) -> None:
    found = list(offer_files(root, stream(tmp_path / "stream", 3), random_only=True))
    assert {offer.why for _, offer in found} == {"not in the random share, and there is no prediction"}
    with pytest.raises(BadInput, match=r"gone.png: cannot be read"):
        list(offer_files(root, [tmp_path / "gone.png"], random_only=True))


def test_an_inbox_that_is_empty_yet_is_no_problem(root: Path) -> None:
    assert tick(root) == "iteration 2"
    assert broken(root) == []


def test_images_that_a_model_chose_are_in_no_random_arm() -> None:
    flags = np.array([False, True, False, True])
    reserved = np.array([False, False, True, True])
    candidates = Candidates(
        np.array(list("abcd"), dtype=object), np.arange(4), reserved, np.zeros(4, bool), False, flags
    )
    assert candidates.eligible().tolist() == [0, 1]
    assert candidates.representative().tolist() == [0]
    assert candidates.unmeasured().tolist() == [2]
