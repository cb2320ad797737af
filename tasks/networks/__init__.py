"""Networks (code, not weights), one file each; the file name is the value of train.network.

    state = fit(features, labels, classes=10, shape=(8, 8, 1), seed=0, hidden=128)   # options by keyword
    predict(state, features)           -> (N,C) float64 logits
    embed(state, features)             -> (N,H) float32 activations that the last layer reads
    sample(state, features, 20, rng)   -> (T,N,C) float64 logits with dropout, where the network has dropout

Features are (N,D) float32, labels (N,) int64 in [0, classes); N may be 1 and classes may be absent from the labels.
A network that can learn from one backbone only names it: `BACKBONE = "pixels"`.
The state holds NumPy arrays only, so that it travels as safetensors. Same arguments, same bytes (on one thread).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
State = dict[str, Array]
Rng = np.random.Generator
Shape = tuple[int, int, int]  # height, width, channels
