"""Foreign weights: found, downloaded, hashed and opened without pickle's powers.

path = fetch("https://download.pytorch.org/models/resnet18-f37072fd.pth", cache_folder())
digest(path), read_state(path)
"""

from __future__ import annotations

import os
import pickle
import urllib.error
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any

from tasks.errors import BadInput
from tasks.store import replacing, sha256

TIMEOUT = 60  # seconds without a byte
NESTED = ("state_dict", "model")  # where training scripts put the weights in their checkpoints


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def digest(path: Path) -> str:
    """The first 12 hex digits of a file's SHA-256, as versions carry it."""
    return sha256(path)[:12]


def fetch(url: str, folder: Path) -> Path:
    """The file of a URL in `folder`, downloaded when it is not there. Raises BadInput offline, with the fix."""
    target = folder / url.rsplit("/", 1)[-1]
    if target.exists():
        return target
    if not url.startswith("https://"):
        raise BadInput(f"embed.options.weights: {url!r} is not an https:// address.")
    try:
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(url, timeout=TIMEOUT) as response, replacing(target) as handle:
            while block := response.read(1 << 20):
                handle.write(block)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise BadInput(
            f"cannot download the backbone's weights from {url}: {getattr(error, 'reason', error)}. "
            f"Put that file at {target}, or give its path as embed.options.weights, "
            "or use embed.backbone pixels or efficientnet_lite0."
        ) from None
    return target


def cache_folder() -> Path:
    """Where torch keeps downloaded weights: $TORCH_HOME/hub/checkpoints, ~/.cache/torch/hub/checkpoints by default."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
    return home / "hub" / "checkpoints"


def read_state(path: Path) -> dict[str, Any]:
    """Tensors by name from a .safetensors file, or any other through torch.load(weights_only=True).

    Raises BadInput when the file is missing, damaged, or holds more than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"embed.options.weights: {path} not found. Give a file, a URL or an enum's name.") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"embed.options.weights: {path} holds no readable tensors ({reason}).") from None
    for key in NESTED:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise BadInput(f"embed.options.weights: {path} is not a state dict (names to tensors).")
    return value
