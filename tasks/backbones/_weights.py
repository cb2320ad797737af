"""Foreign weights: found, downloaded, hashed and opened without pickle's powers.

path = fetch("https://download.pytorch.org/models/resnet18-f37072fd.pth", cache_folder())
digest(path), read_state(path)
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any

from tasks.errors import BadInput
from tasks.store import replacing, sha256

TIMEOUT = 60  # seconds without a byte
PROMISED = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")  # torch's weights carry the beginning of their SHA-256
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
    opener = urllib.request.build_opener(_NoRedirect)
    with _explained(url, target):
        response = opener.open(url, timeout=TIMEOUT)
    with response, replacing(target) as handle:
        for block in _whole(response, url, target):
            handle.write(block)
    return target


def _whole(response: HTTPResponse, url: str, target: Path) -> Iterator[bytes]:
    """All blocks of the body. Raises BadInput when it breaks off, or is not the file that its name says."""
    length, promised = 0, PROMISED.search(target.name)
    hashed = hashlib.sha256()
    with _explained(url, target):
        while block := response.read(1 << 20):
            length += len(block)
            hashed.update(block)
            yield block
        announced = response.headers.get("Content-Length")
        if announced is not None and int(announced) != length:
            raise ConnectionError(f"it broke off after {length} of {announced} bytes")
        if promised and not hashed.hexdigest().startswith(promised[1]):
            raise ConnectionError(f"what came has the SHA-256 {hashed.hexdigest()[:12]}, not {promised[1]}")


@contextmanager
def _explained(url: str, target: Path) -> Iterator[None]:
    """Turn what a network does into one clear error, with the fix."""
    try:
        yield
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise BadInput(
            f"cannot download the backbone's weights from {url}: {getattr(error, 'reason', error)}. "
            f"Put that file at {target}, or give its path as embed.options.weights, "
            "or use embed.backbone pixels or efficientnet_lite0."
        ) from None


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
