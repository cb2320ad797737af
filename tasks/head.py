"""The trained head: weights in `models/head/head.safetensors`, what they mean in `head.json`.

    head = read(store)                     # hash checked before the file is opened
    head.probabilities(features)           -> (N, C) float32, calibrated, rows sum to 1

Before there are training labels the network is "none": no weights, every class equally likely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks import plugins
from tasks.calibration import softmax
from tasks.errors import GleanerError
from tasks.store import Array, Store, sha256

TENSORS = "models/head/head.safetensors"
DESCRIPTION = "models/head/head.json"
NONE = "none"


@dataclass(frozen=True)
class Head:
    """A head and its calibration."""

    network: str  # a file in tasks/networks, or "none"
    state: dict[str, Array]
    temperature: float
    classes: tuple[str, ...]
    backbone: str  # version of the features it was trained on
    sha256: str  # of head.safetensors

    @property
    def trained(self) -> bool:
        """Whether there were labels to learn from."""
        return self.network != NONE

    def require(self, backbone: str) -> None:
        """Raise GleanerError unless the head was trained on features of this backbone version."""
        if self.backbone != backbone:
            raise GleanerError(
                f"models/head was trained on features of {self.backbone!r}, data/features hold {backbone!r}. "
                "Run the stage train again."
            )

    def probabilities(self, features: Array) -> Array:
        """Calibrated probabilities (N, C) float64 of features (N, D); NaN where the logits are not finite."""
        if not self.trained:
            return np.full((len(features), len(self.classes)), 1.0 / len(self.classes))
        return self._softmax(plugins.find("networks", self.network).predict(self.state, features))

    def samples(self, features: Array, draws: int, rng: np.random.Generator) -> Array:
        """Probabilities of `draws` passes with dropout (T, N, C); the network must have `sample`."""
        logits = plugins.find("networks", self.network).sample(self.state, features, draws, rng)
        return self._softmax(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)

    def embeddings(self, features: Array) -> Array:
        """Penultimate activations (N, H) float32; the network must have `embed`."""
        return np.asarray(plugins.find("networks", self.network).embed(self.state, features))

    def _softmax(self, logits: Array) -> Array:
        finite = np.isfinite(logits).all(axis=1)
        result = np.full(logits.shape, np.nan)
        if finite.any():
            result[finite] = softmax(logits[finite], self.temperature)
        return result


def write(store: Store, state: dict[str, Array], description: dict[str, Any]) -> None:
    """Write weights and `description` (network, temperature, classes, backbone, …); adds the weights' SHA-256."""
    store.write_tensors(TENSORS, state)
    store.write_json(DESCRIPTION, {**description, "sha256": sha256(store.path(TENSORS))})


def read(store: Store) -> Head:
    """Read the head. Raises GleanerError when the weights are not those that head.json describes."""
    value = store.read_json(DESCRIPTION)
    path = store.path(TENSORS)
    if not path.exists() or sha256(path) != value["sha256"]:
        raise GleanerError(f"{path} is not there, or not the file that {DESCRIPTION} describes. Run train again.")
    return Head(
        value["network"],
        store.read_tensors(TENSORS),
        value["temperature"],
        tuple(value["classes"]),
        value["backbone"],
        value["sha256"],
    )
