"""Every file of tasks/strategies against the contract, and each strategy against a slow, obvious reference."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tasks import plugins
from tasks.strategies import _seeding, badge, bald, entropy, k_center, kmeans, least_confidence, margin, uniform

Array = npt.NDArray[Any]
STRATEGIES = plugins.names("strategies")
BATCH_AWARE = [n for n in STRATEGIES if plugins.entry_point("strategies", n).function == "batch"]
PER_ITEM = [n for n in STRATEGIES if n not in BATCH_AWARE]
CLASSES = 4


def evidence(count: int, seed: int = 0, labeled: int = 3) -> dict[str, Array]:
    """Random evidence of every kind for `count` candidates."""
    rng = np.random.default_rng(seed)
    return {
        "probabilities": rng.dirichlet(np.ones(CLASSES), count),
        "features": rng.normal(size=(count, 6)).astype(np.float32),
        "embeddings": np.abs(rng.normal(size=(count, 5))).astype(np.float32),
        "samples": rng.dirichlet(np.ones(CLASSES), (7, count)),
        "labeled_features": rng.normal(size=(labeled, 6)).astype(np.float32),
        "labeled_embeddings": np.abs(rng.normal(size=(labeled, 5))).astype(np.float32),
    }


def global_state() -> str:
    return repr(np.random.get_state())  # noqa: NPY002 - that it stays as it is, is the test


def taken(given_evidence: dict[str, Array], order: Array) -> dict[str, Array]:
    """The same evidence with the candidates at `order`."""
    return {
        word: values if word.startswith("labeled") else np.take(values, order, axis=1 if word == "samples" else 0)
        for word, values in given_evidence.items()
    }


def ask(name: str, given_evidence: dict[str, Array], k: int, seed: int = 0) -> Array:
    """Call a strategy with the evidence it names; a utility becomes the k best positions."""
    entry = plugins.entry_point("strategies", name)
    known: dict[str, Any] = {
        **given_evidence,
        "k": k,
        "rng": np.random.default_rng(seed),
        "count": len(given_evidence["probabilities"]),
    }
    module: ModuleType = plugins.find("strategies", name)
    result: Array = getattr(module, entry.function)(*(known[word] for word in entry.evidence))
    return result if entry.function == "batch" else np.argsort(-result, kind="stable")[:k]


def utility(name: str, given_evidence: dict[str, Array]) -> Array:
    entry = plugins.entry_point("strategies", name)
    module = plugins.find("strategies", name)
    result: Array = module.utility(*(given_evidence[word] for word in entry.evidence))
    return result


def assert_batch(picks: Array, count: int, k: int) -> None:
    assert picks.shape == (k,)
    assert np.issubdtype(picks.dtype, np.int64)
    assert len(set(picks.tolist())) == k
    assert picks.min() >= 0
    assert picks.max() < count


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("labeled", [0, 3])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 2), (50, 1), (50, 13), (50, 50)])
def test_a_batch_is_exactly_k_distinct_positions(name: str, labeled: int, count: int, k: int) -> None:
    assert_batch(ask(name, evidence(count, labeled=labeled), k), count, k)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 3))
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_batch_is_valid_when_many_items_coincide(name: str, count: int, share: float, seed: int, levels: int) -> None:
    k = max(1, round(share * count))
    assert_batch(ask(name, taken(evidence(levels, seed), np.arange(count) % levels), k, seed), count, k)


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_zero_evidence_is_ranked_without_complaint(name: str) -> None:
    constant = {word: np.zeros_like(values) for word, values in evidence(12).items()}
    assert_batch(ask(name, constant, 5), 12, 5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_batch(name: str) -> None:
    assert ask(name, evidence(60), 20, seed=7).tolist() == ask(name, evidence(60), 20, seed=7).tolist()


@pytest.mark.parametrize("name", [n for n in BATCH_AWARE if "rng" in plugins.entry_point("strategies", n).evidence])
def test_another_seed_gives_another_batch(name: str) -> None:
    batches = {tuple(ask(name, evidence(60), 10, seed=seed).tolist()) for seed in range(6)}
    assert len(batches) > 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_leaves_its_evidence_and_the_global_rng_alone(name: str) -> None:
    used, state = evidence(30), global_state()
    ask(name, used, 10)
    assert all(np.array_equal(used[word], values) for word, values in evidence(30).items())
    assert global_state() == state


@pytest.mark.parametrize("name", PER_ITEM)
def test_a_utility_belongs_to_the_item_not_to_its_place_or_chunk(name: str) -> None:
    given_evidence, order = evidence(5000), np.random.default_rng(1).permutation(5000)
    whole = utility(name, given_evidence)
    assert whole.shape == (5000,)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(utility(name, taken(given_evidence, order)), whole[order], rtol=1e-12, atol=1e-15)
    parts = [utility(name, taken(given_evidence, part)) for part in np.array_split(np.arange(5000), 7)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["k_center"])
def test_a_batch_without_draws_follows_the_items_when_they_are_shuffled(name: str) -> None:
    given_evidence, order = evidence(80), np.random.default_rng(1).permutation(80)
    assert order[ask(name, taken(given_evidence, order), 20)].tolist() == ask(name, given_evidence, 20).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "word"),
    [
        (n, w)
        for n in STRATEGIES
        for w in plugins.entry_point("strategies", n).evidence
        if w not in ("k", "rng", "count")
    ],
)
def test_evidence_that_is_not_finite_is_refused_by_name_and_position(name: str, word: str, bad: float) -> None:
    spoilt = evidence(9)
    position = 2
    spoilt[word][(slice(None), position, 0) if word == "samples" else (position, 0)] = bad
    with pytest.raises(ValueError, match=rf"{word}: 1 of \d+ items .* first at position 2"):
        ask(name, spoilt, 4)


def test_finite_evidence_whose_sum_overflows_is_not_refused() -> None:
    features = np.full((4, 3), 3e38, dtype=np.float32)
    np.testing.assert_array_equal(np.sort(kmeans.batch(features, 4, np.random.default_rng(0))), np.arange(4))


@pytest.mark.parametrize("strategy", ["k_center", "kmeans", "badge"])
def test_values_whose_squares_overflow_are_refused_rather_than_ranked_first(strategy: str) -> None:
    huge = evidence(8)
    huge["features"][3] = huge["embeddings"][3] = 1e25
    with pytest.raises(ValueError, match=r"squared_lengths: . of 8 items"):
        ask(strategy, huge, 3)


@pytest.mark.parametrize("name", PER_ITEM)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_class_or_certain_predictions_give_finite_utilities(name: str, dtype: Any) -> None:
    for classes in (1, 3):
        certain = np.eye(classes, dtype=dtype)[np.zeros(5, dtype=int)]
        result = utility(name, {"probabilities": certain, "samples": np.stack([certain] * 3)})
        np.testing.assert_allclose(result, np.zeros(5), atol=1e-12)


# Hand-computed values and slow references


def test_least_confidence_by_hand() -> None:
    np.testing.assert_allclose(
        least_confidence.utility(np.array([[0.9, 0.1], [0.4, 0.6], [0.0, 1.0]])), [0.1, 0.4, 0.0]
    )


def test_margin_by_hand() -> None:
    np.testing.assert_allclose(
        margin.utility(np.array([[0.5, 0.4, 0.1], [0.1, 0.0, 0.9], [0.5, 0.5, 0.0]])), [0.9, 0.2, 1.0]
    )


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(2, 6)), elements=st.floats(0, 1)))
def test_margin_equals_the_sorted_margin(probabilities: Array) -> None:
    ranked = np.sort(probabilities, axis=1)
    np.testing.assert_allclose(margin.utility(probabilities), 1 - (ranked[:, -1] - ranked[:, -2]), atol=1e-12)


def test_entropy_by_hand() -> None:
    values = entropy.utility(np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]))
    np.testing.assert_allclose(values, [np.log(2), 0.0, 0.25 * np.log(4) + 0.75 * np.log(4 / 3)])


def test_bald_by_hand() -> None:
    disagree, unsure = [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]
    np.testing.assert_allclose(
        bald.utility(np.array([disagree, unsure]).transpose(1, 0, 2)), [np.log(2), 0.0], atol=1e-12
    )


def test_bald_equals_the_mean_divergence_from_the_mean() -> None:
    samples = np.random.default_rng(0).dirichlet(np.ones(5), (20, 1500))
    direct = (samples * np.log(samples / samples.mean(axis=0))).sum(axis=2).mean(axis=0)
    np.testing.assert_allclose(bald.utility(samples), direct, atol=1e-12)
    np.testing.assert_allclose(bald.utility(samples.astype(np.float32)), direct, atol=1e-5)


def test_uniform_draws_each_item_equally_often() -> None:
    rng = np.random.default_rng(0)
    drawn = np.bincount(np.concatenate([uniform.batch(10, 3, rng) for _ in range(5000)]), minlength=10)
    expected = 5000 * 3 / 10
    assert ((drawn - expected) ** 2 / expected).sum() < 33  # chi-squared with 9 degrees of freedom: p < 1e-4 by chance


def assert_greedy(features: Array, centres: Array, picks: Array) -> None:
    """Each pick is the farthest from all centres before it, within float32."""
    exact = features.astype(np.float64)
    known = list(centres.astype(np.float64))
    for pick in picks:
        nearest = np.min([((exact - c) ** 2).sum(axis=1) for c in known], axis=0)
        assert nearest[pick] >= nearest.max() * (1 - 1e-4) - 1e-9
        known.append(exact[pick])


@pytest.mark.parametrize("hot", [1, 4, 16, 64, 2048])
def test_k_center_is_the_brute_force_greedy_whatever_is_kept_hot(hot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_center, "HOT", hot)
    given_evidence = evidence(300, seed=3, labeled=5)
    picks = k_center.batch(given_evidence["features"], given_evidence["labeled_features"], 60)
    assert_greedy(given_evidence["features"], given_evidence["labeled_features"], picks)


@pytest.mark.parametrize("hot", [1, 8])
def test_k_center_survives_ties_and_far_away_features(hot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_center, "HOT", hot)
    corners = np.array([[x, y] for x in range(4) for y in range(4)] * 4, dtype=np.float32) + 1000
    picks = k_center.batch(corners, corners[:1], 64)
    assert_batch(picks, 64, 64)
    assert len(np.unique(corners[picks[:15]], axis=0)) == 15
    assert_greedy(corners, corners[:1], picks[:15])


def test_k_center_without_labels_starts_nearest_to_the_mean() -> None:
    line = np.array([[0.0], [1.0], [2.0], [3.0], [9.0]], dtype=np.float32)  # mean 3
    assert k_center.batch(line, line[:0], 3).tolist() == [3, 4, 0]


def test_kmeans_takes_one_item_of_each_blob_and_the_largest_first() -> None:
    rng = np.random.default_rng(0)
    sizes = [50, 5, 30]
    blob = np.repeat(np.arange(3), sizes)
    features = (np.eye(3)[blob] * 100 + rng.normal(size=(85, 3))).astype(np.float32)
    for seed in range(10):
        picks = kmeans.batch(features, 3, np.random.default_rng(seed))
        assert blob[picks].tolist() == [0, 2, 1]
        for pick, members in zip(picks, [features[blob == b] for b in (0, 2, 1)], strict=True):
            to_mean = ((members - members.mean(axis=0)) ** 2).sum(axis=1)
            assert ((features[pick] - members.mean(axis=0)) ** 2).sum() <= to_mean.min() * 1.001


def test_kmeans_gives_every_distinct_item_before_repeating_one() -> None:
    distinct = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    features = np.repeat(distinct, 4, axis=0)
    picks = kmeans.batch(features, 6, np.random.default_rng(0))
    assert sorted((picks // 4).tolist()) == [0, 1, 2, 3, 4, 5]


def plain_kmeans_plus_plus(distances: Array, k: int, first: int, rng: np.random.Generator) -> list[int]:
    """The textbook algorithm on an explicit N x N table of squared distances."""
    picks = [first]
    while len(picks) < k:
        nearest = distances[:, picks].min(axis=1)
        picks.append(int(rng.choice(len(distances), p=nearest / nearest.sum())))
    return picks


def explicit_gradients(probabilities: Array, embeddings: Array) -> Array:
    errors = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
    result: Array = np.einsum("nc,nh->nch", errors, embeddings).reshape(len(errors), -1)
    return result


def table_of(points: Array) -> Array:
    result: Array = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    return result


def test_badge_equals_kmeans_plus_plus_over_explicit_gradient_embeddings() -> None:
    given_evidence = evidence(200, seed=5)
    gradients = explicit_gradients(given_evidence["probabilities"], given_evidence["embeddings"])
    table, first = table_of(gradients), int((gradients**2).sum(axis=1).argmax())
    for seed in range(20):
        rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
        explicit = _seeding.draw(lambda rows, centres: table[rows][:, centres], 200, 40, first, rng)
        factored = badge.batch(given_evidence["probabilities"], given_evidence["embeddings"], 40, same)
        assert factored.tolist() == explicit.tolist()


@pytest.mark.parametrize("pending", [1, 64])
def test_draws_with_stale_distances_have_the_distribution_of_plain_kmeans_plus_plus(
    pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_seeding, "PENDING", pending)
    points = np.random.default_rng(2).normal(size=(6, 2)) * [3.0, 1.0]
    table, draws, rng = table_of(points), 6000, np.random.default_rng(0)
    lazy = [_seeding.draw(lambda rows, centres: table[rows][:, centres], 6, 4, 0, rng)[-1] for _ in range(draws)]
    plain = [plain_kmeans_plus_plus(table, 4, 0, rng)[-1] for _ in range(draws)]
    a, b = np.bincount(lazy, minlength=6)[1:], np.bincount(plain, minlength=6)[1:]
    assert ((a - b) ** 2 / np.maximum(a + b, 1)).sum() < 24  # chi-squared, 4 degrees of freedom: p < 1e-4 by chance


def test_factored_distances_are_those_of_the_outer_products() -> None:
    given_evidence = evidence(30)
    errors, hidden = given_evidence["probabilities"], given_evidence["embeddings"].astype(np.float64)
    lengths = (errors**2).sum(axis=1) * (hidden**2).sum(axis=1)
    outer = np.einsum("nc,nh->nch", errors, hidden).reshape(30, -1)
    everything = np.arange(30)
    factored = badge._factored(errors, hidden, lengths)(everything, everything)
    np.testing.assert_allclose(factored, table_of(outer), atol=1e-9)


def test_draws_are_distinct_even_when_rounding_gives_an_item_a_distance_to_itself() -> None:
    picks = _seeding.draw(
        lambda rows, centres: np.ones((len(np.arange(9)[rows]), len(centres))), 9, 9, 0, np.random.default_rng(0)
    )
    assert sorted(picks.tolist()) == list(range(9))
