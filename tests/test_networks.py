"""Every file of tasks/networks against the contract; what each network must be able to learn."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load, save

from tasks import plugins
from tasks.networks import _dropout, _scaling, _training, linear
from tasks.networks.cnn import _images, _shapes

Array = npt.NDArray[Any]
NETWORKS = plugins.names("networks")
WITH_SAMPLE = [n for n in NETWORKS if "sample" in plugins.functions_of("networks", n)]
SHAPE = (4, 4, 1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bytes are promised on one thread."""
    import torch

    torch.set_num_threads(1)


def global_state() -> str:
    return repr(np.random.get_state())  # noqa: NPY002 - that it stays as it is, is the test


def network(name: str) -> ModuleType:
    return plugins.find("networks", name)


def blobs(count: int, classes: int = 3, seed: int = 0) -> tuple[Array, Array]:
    """Images (count, 16) in [0, 1] of well separated classes, and their labels."""
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).random((classes, 16))
    noise = np.random.default_rng(seed).normal(scale=0.05, size=(count, 16))
    return np.clip(centres[labels] + noise, 0, 1).astype(np.float32), labels.astype(np.int64)


def fitted(name: str, count: int = 30, classes: int = 3, seed: int = 0) -> dict[str, Array]:
    features, labels = blobs(count)
    state: dict[str, Array] = network(name).fit(features, labels, classes, SHAPE, seed)
    return state


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_separable_blobs(name: str) -> None:
    unseen, labels = blobs(200, seed=1)
    assert (network(name).predict(fitted(name), unseen).argmax(axis=1) == labels).mean() > 0.98


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    assert save(fitted(name)) == save(fitted(name))


@pytest.mark.parametrize("name", ["mlp", "cnn"])  # not of the contract: a network may have one optimum
def test_another_seed_gives_another_network(name: str) -> None:
    assert save(fitted(name, seed=0)) != save(fitted(name, seed=1))


@pytest.mark.parametrize("name", NETWORKS)
def test_fitting_leaves_its_arguments_and_the_global_generators_alone(name: str) -> None:
    import torch

    features, labels = blobs(30)
    before = (features.copy(), labels.copy(), global_state(), torch.get_rng_state().tolist())
    network(name).fit(features, labels, 3, SHAPE, 0)
    assert np.array_equal(features, before[0])
    assert np.array_equal(labels, before[1])
    assert (global_state(), torch.get_rng_state().tolist()) == before[2:]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("classes", [3, 7])
def test_few_labels_and_absent_classes_give_finite_logits_of_every_class(name: str, count: int, classes: int) -> None:
    logits = network(name).predict(fitted(name, count, classes), blobs(9, seed=1)[0])
    assert logits.shape == (9, classes)
    assert logits.dtype == np.float64
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_absent_class_is_not_predicted(name: str) -> None:
    logits = network(name).predict(fitted(name, classes=5), blobs(60, seed=1)[0])
    assert set(logits.argmax(axis=1)) <= {0, 1, 2}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_class_alone_is_predicted_everywhere(name: str) -> None:
    features, _ = blobs(12)
    state = network(name).fit(features, np.full(12, 1), 3, SHAPE, 0)
    assert set(network(name).predict(state, features).argmax(axis=1)) == {1}


@pytest.mark.parametrize("name", NETWORKS)
def test_constant_features_are_no_reason_to_fail(name: str) -> None:
    state = network(name).fit(np.full((6, 16), 0.5, np.float32), np.arange(6) % 2, 2, SHAPE, 0)
    assert np.isfinite(network(name).predict(state, np.full((2, 16), 0.5, np.float32))).all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    features, labels = blobs(12)
    features[5, 3] = bad
    with pytest.raises(ValueError, match=r"1 of 12 labeled items .* first at position 5"):
        network(name).fit(features, labels, 3, SHAPE, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_state_survives_safetensors_and_predicts_the_same(name: str) -> None:
    state, unseen = fitted(name), blobs(20, seed=1)[0]
    restored = load(save(state))
    assert {k: (v.dtype, v.shape) for k, v in state.items()} == {k: (v.dtype, v.shape) for k, v in restored.items()}
    assert np.array_equal(network(name).predict(state, unseen), network(name).predict(restored, unseen))


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_of_an_item_do_not_depend_on_its_chunk(name: str) -> None:
    state, unseen = fitted(name), blobs(40, seed=1)[0]
    parts = [network(name).predict(state, part) for part in np.array_split(unseen, 3)]
    np.testing.assert_allclose(np.concatenate(parts), network(name).predict(state, unseen), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_memory_mapped_read_only_pool_can_be_predicted(name: str) -> None:
    unseen = blobs(5, seed=1)[0]
    unseen.setflags(write=False)
    assert network(name).predict(fitted(name), unseen).shape == (5, 3)


@pytest.mark.parametrize("name", [n for n in NETWORKS if "embed" in plugins.functions_of("networks", n)])
def test_embeddings_are_one_finite_float32_row_an_item(name: str) -> None:
    embeddings = network(name).embed(fitted(name), blobs(9, seed=1)[0])
    assert embeddings.ndim == 2
    assert len(embeddings) == 9
    assert embeddings.dtype == np.float32
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_samples_differ_between_draws_repeat_with_the_seed_and_average_to_the_prediction(name: str) -> None:
    state, unseen = fitted(name), blobs(9, seed=1)[0]
    draws = network(name).sample(state, unseen, 2000, np.random.default_rng(0))
    assert draws.shape == (2000, 9, 3)
    assert draws.dtype == np.float64
    assert np.array_equal(draws[:5], network(name).sample(state, unseen, 5, np.random.default_rng(0)))
    assert draws.std(axis=0).min() > 0
    error = draws.std(axis=0) / np.sqrt(2000)
    assert (np.abs(draws.mean(axis=0) - network(name).predict(state, unseen)) < 5 * error).all()


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_samples_of_an_item_do_not_depend_on_its_chunk(name: str) -> None:
    state, unseen = fitted(name), blobs(9, seed=1)[0]
    whole = network(name).sample(state, unseen, 4, np.random.default_rng(0))
    alone = network(name).sample(state, unseen[7:8], 4, np.random.default_rng(0))
    np.testing.assert_allclose(whole[:, 7:8], alone, rtol=1e-4, atol=1e-4)


def test_dropout_by_hand() -> None:
    rng = np.random.default_rng(0)
    kept = np.random.default_rng(0).random((3, 2)) >= 0.5
    result = _dropout.sampled(np.array([[1.0, 10.0]]), np.array([[1.0], [1.0]]), np.array([0.5]), 0.5, 3, rng)
    np.testing.assert_allclose(result[:, 0, 0], kept @ [2.0, 20.0] + 0.5)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_predicting_imports_no_torch_and_no_sklearn(name: str) -> None:
    code = (
        "import sys, numpy as np; from safetensors.numpy import load; "
        f"from tasks.networks import {name} as network; "
        "network.predict(load(sys.stdin.buffer.read()), np.zeros((2, 16), np.float32)); "
        "print(sorted({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=save(fitted(name)), cwd=plugins.ROOT, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"


def test_the_gradient_of_linear_is_the_slope_of_its_loss() -> None:
    from scipy.optimize import check_grad

    features, labels = blobs(10)
    arguments = (features.astype(np.float64), np.eye(3)[labels], 0.5)
    start = np.random.default_rng(0).normal(size=17 * 3)
    value, slope = (lambda w: linear._loss(w, *arguments)[0]), (lambda w: linear._loss(w, *arguments)[1])
    assert check_grad(value, slope, start) < 1e-5


def test_linear_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = blobs(60)
    state = linear.fit(features, labels, 3, SHAPE, 0, l2=0.5, max_iterations=5000)
    reference = LogisticRegression(C=2.0, tol=1e-10, max_iter=5000).fit(linear.embed(state, features), labels)
    ours, theirs = linear.predict(state, features), reference.decision_function(linear.embed(state, features))
    np.testing.assert_allclose(
        ours - ours.mean(axis=1, keepdims=True), theirs - theirs.mean(axis=1, keepdims=True), atol=0.02
    )


def test_fitting_the_default_head_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np; from tasks.networks import mlp; "
        "mlp.fit(np.zeros((2, 3), np.float32), np.array([0, 1]), 2, (1, 3, 1), 0, steps=2); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=plugins.ROOT, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "False"


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (1, 1, 3), (5, 9, 1)])
def test_the_cnn_takes_images_of_many_shapes(shape: tuple[int, int, int]) -> None:
    features = np.random.default_rng(0).random((6, int(np.prod(shape)))).astype(np.float32)
    state = network("cnn").fit(features, np.arange(6) % 2, 2, shape, 0, steps=2, epochs=1)
    assert network("cnn").predict(state, features).shape == (6, 2)


def test_the_cnn_halves_images_to_a_handful_of_pixels() -> None:
    sides = {side: np.sqrt(_shapes((side, side, 1), 16, 8, 2)["hidden.weight"][1] / 64) for side in (3, 8, 28, 32)}
    assert sides == {3: 3, 8: 4, 28: 7, 32: 4}


def test_the_cnn_finds_a_shape_wherever_it_is() -> None:
    def bars(count: int, seed: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(seed)
        images, labels = np.zeros((count, 8, 8), np.float32), np.arange(count) % 2
        for image, label in zip(images, labels, strict=True):
            row, column = rng.integers(0, 4, 2)
            image[(row, slice(column, column + 4)) if label else (slice(row, row + 4), column)] = 1
        return images.reshape(count, 64), labels

    state = network("cnn").fit(*bars(60, 0), 2, (8, 8, 1), 0)
    unseen, labels = bars(200, 1)
    assert (network("cnn").predict(state, unseen).argmax(axis=1) == labels).mean() > 0.95


def test_the_cnn_refuses_features_that_are_no_pixels_and_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"embed\.backbone to pixels"):
        network("cnn").fit(np.zeros((2, 512), np.float32), np.array([0, 1]), 2, (8, 8, 1), 0)


def test_initial_weights_have_the_variance_of_he() -> None:
    weights = _training.initial({"a.weight": (400, 50), "a.bias": (400,)}, np.random.default_rng(0))
    assert abs(float(weights["a.weight"].var()) * 50 / 2 - 1) < 0.05
    assert not weights["a.bias"].any()


def test_more_labels_train_longer_and_all_of_them_are_used() -> None:
    seen: list[int] = []
    weights = {"w": np.ones((1, 1), np.float32)}

    def slopes(chosen: Array, rng: np.random.Generator) -> dict[str, Array]:
        seen.extend(chosen.tolist())
        return {"w": 2.0 * weights["w"]}

    rng = np.random.default_rng(0)
    _training.minimise(weights, slopes, count=1000, steps=3, epochs=10, batch=100, rate=0.1, decay=0.0, rng=rng)
    assert len(seen) == 10_000
    assert len(set(seen)) > 990


def test_adamw_steps_equal_torchs() -> None:
    import torch

    ours = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(ours.copy()))
    optimizer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    first, second = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    for step in range(1, 6):
        slope = np.full((3, 2), float(step), np.float32)
        theirs.grad = torch.from_numpy(slope)
        optimizer.step()
        _training._adamw(ours, slope, first, second, step, 0.01, 0.1)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)


def test_the_gradient_of_mlp_is_the_slope_of_its_loss() -> None:
    from scipy.optimize import check_grad

    from tasks.networks.mlp import gradient, predict

    features, labels = blobs(10)
    rng = np.random.default_rng(0)
    sizes = {"hidden.weight": (6, 16), "hidden.bias": (6,), "out.weight": (3, 6), "out.bias": (3,)}
    ends = np.cumsum([np.prod(size) for size in sizes.values()])[:-1]
    mask = (rng.random((1, 6)) >= 0.5) * 2.0  # one for all items: then it is a scale of the last layer

    def weights(flat: Array) -> dict[str, Array]:
        parts = zip(sizes.items(), np.split(flat, ends), strict=True)
        return {name: part.reshape(size) for (name, size), part in parts}

    def loss(flat: Array) -> float:
        state = weights(flat)
        plain = {"mean": np.zeros(16), "deviation": np.ones(1)}
        logits = predict({**state, **plain, "out.weight": state["out.weight"] * mask}, features)
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(10), labels]).mean())

    def slope(flat: Array) -> Array:
        found = gradient(weights(flat), features, labels, np.repeat(mask, 10, axis=0))
        return np.concatenate([found[name].ravel() for name in sizes])

    start = rng.normal(size=sum(np.prod(size) for size in sizes.values()))
    assert check_grad(loss, slope, start, epsilon=1e-3) < 1e-3


def test_a_tenth_of_the_units_dropped_keeps_the_mean() -> None:
    mask = _training.kept((2000, 50), 0.1, np.random.default_rng(0))
    assert set(np.unique(mask).tolist()) == {0.0, float(np.float32(1 / 0.9))}
    assert abs(float(mask.mean()) - 1) < 0.01


def test_scaling_uses_one_deviation_for_all_columns() -> None:
    mean, deviation = _scaling.scaling(np.array([[0.0, 5.0], [2.0, 5.0]], np.float32))
    np.testing.assert_allclose(mean, [1.0, 5.0])
    np.testing.assert_allclose(deviation, [np.sqrt(0.5)])


def digits() -> tuple[Array, Array, Array, Array]:
    """scikit-learn's digits, shuffled: 1,347 to learn from, 450 to test on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    features = (data.data[order] / 16).astype(np.float32)
    return features[450:], data.target[order][450:], features[:450], data.target[order][:450]


@pytest.mark.parametrize(("name", "least"), [("linear", 0.93), ("mlp", 0.95), ("cnn", 0.95)])
def test_400_digits_teach_a_network_the_rest(name: str, least: float) -> None:
    features, labels, unseen, truth = digits()
    state = network(name).fit(features[:400], labels[:400], 10, (8, 8, 1), 0)
    assert (network(name).predict(state, unseen).argmax(axis=1) == truth).mean() >= least


def test_asking_by_margin_needs_fewer_digits_than_asking_at_random() -> None:
    from tasks.calibration import softmax
    from tasks.strategies import margin

    features, labels, unseen, truth = digits()
    mlp = network("mlp")

    def accuracy_at_140(ask_by_margin: bool) -> float:
        known = np.arange(20)
        while True:
            state = mlp.fit(features[known], labels[known], 10, (8, 8, 1), 0)
            if len(known) == 140:
                return float((mlp.predict(state, unseen).argmax(axis=1) == truth).mean())
            others = np.setdiff1d(np.arange(len(features)), known)
            utilities = margin.utility(softmax(mlp.predict(state, features[others])))
            known = np.append(known, others[np.argsort(-utilities)[:20] if ask_by_margin else slice(20)])

    assert accuracy_at_140(True) > accuracy_at_140(False) + 0.01


def test_pixels_keep_their_row_column_and_channel() -> None:
    image = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)
    assert _images(image.reshape(1, -1), (2, 3, 4))[0, 3, 1, 2] == image[0, 1, 2, 3]


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_dropout_is_on_while_a_network_is_fitted(name: str) -> None:
    features, labels = blobs(12)
    weights = [network(name).fit(features, labels, 3, SHAPE, 0, dropout=d)["out.weight"] for d in (0.0, 0.5)]
    assert not np.array_equal(*weights)
