"""Acquisition functions, one file each; the file name is the value of select.strategy.

A strategy defines one function and names the evidence it needs as its arguments:

    def utility(probabilities: Array) -> Array                  # (N,) higher = ask sooner, item by item
    def batch(features: Array, k: int, rng: Rng) -> Array       # (k,) distinct positions, in the order to ask

Evidence: probabilities (N,C), features (N,D), embeddings (N,H), samples (T,N,C), labeled_features (M,D),
labeled_embeddings (M,H), count N, k <= N, rng. Options are keyword-only with a type and a literal default. Evidence
that is not finite is refused with ValueError. Files that start with `_` are shared parts, not strategies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rng = np.random.Generator
