"""Any torchvision classifier by name, its last layer taken off: resnet18 gives 512 features.

embed:
  backbone: torchvision
  options: {model: resnet18, weights: DEFAULT}        # or IMAGENET1K_V1, a file, a URL, "" (random)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from tasks.backbones import Backbone, describe
from tasks.backbones._forward import embedder
from tasks.backbones._weights import cache_folder, digest, fetch, read_state
from tasks.errors import BadInput, did_you_mean

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSIFIERS = ("fc", "classifier", "head", "heads")  # how torchvision's models call their last part


def load(
    size: int,
    mode: str,
    *,
    model: str = "resnet18",
    weights: str = "DEFAULT",
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Backbone:
    """A torchvision model's penultimate activations, on images normalised as its weights want.

    `weights`: a name of the model's enum, a `.safetensors` or `.pth` file, an https URL, or "" for random
    weights (always the same: for tests without a network). `precision`: float32 or bfloat16 (twice as fast
    where the processor has it, other bytes where it has not). Raises BadInput for an unknown model or weights,
    or weights that cannot be downloaded, with the fix.
    """
    module = _build(model)
    removed = _take_off_classifier(module, model)
    mean, std, mark = _fill(module, model, weights, removed)
    dimension = _dimension(module, model, size)
    version = describe("torchvision", model, mark, size, mode, *([precision] if precision != "float32" else []))
    scaled_mean, scaled_std = (tuple(255.0 * value for value in values) for values in (mean, std))
    return Backbone(version, dimension, embedder(module, scaled_mean, scaled_std, precision))


def _build(model: str) -> Any:
    import torch
    from torchvision import models

    allowed = models.list_models(module=models)
    if model not in allowed:
        raise BadInput(
            f"embed.options.model: torchvision has no classifier {model!r}.{did_you_mean(model, allowed)} "
            f"Allowed: {', '.join(allowed)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.get_model(model, weights=None)


def _take_off_classifier(module: Any, model: str) -> str:
    """Replace the last layer by the identity; returns the prefix of its tensors' names."""
    from torch import nn

    name = next((name for name in CLASSIFIERS if isinstance(getattr(module, name, None), nn.Module)), None)
    if name is None:
        raise BadInput(f"embed.options.model: {model!r} has no last layer named {', '.join(CLASSIFIERS)}.")
    last = getattr(module, name)
    linear = [key for key, child in last.named_children() if isinstance(child, nn.Linear)]
    if linear:
        setattr(last, linear[-1], nn.Identity())
        return f"{name}.{linear[-1]}."
    setattr(module, name, nn.Identity() if isinstance(last, nn.Linear) else nn.AdaptiveAvgPool2d(1))
    return f"{name}."


def _fill(module: Any, model: str, weights: str, removed: str) -> tuple[Any, Any, str]:
    """Load the weights; returns mean, std and what marks these weights in the version."""
    if not weights:
        return IMAGENET_MEAN, IMAGENET_STD, f"random-{_fingerprint(module)}"
    mean, std, path = _locate(model, weights)
    found = module.load_state_dict(
        {name: tensor for name, tensor in read_state(path).items() if not name.startswith(removed)}, strict=False
    )
    extra = [name for name in found.unexpected_keys if not name.startswith(("AuxLogits.", "aux"))]
    missing = [name for name in found.missing_keys if not name.startswith(("AuxLogits.", "aux"))]
    if missing or extra:
        raise BadInput(
            f"embed.options.weights: {path} does not fit {model}: {len(missing)} tensors missing ({missing[:2]}), "
            f"{len(extra)} unknown ({extra[:2]}). Give the weights of that model."
        )
    return mean, std, digest(path)


def _locate(model: str, weights: str) -> tuple[Any, Any, Path]:
    from torchvision import models

    if "/" in weights or "." in weights:
        path = fetch(weights, cache_folder()) if "://" in weights else Path(weights)
        return IMAGENET_MEAN, IMAGENET_STD, path
    choices = models.get_model_weights(model)
    allowed = ["DEFAULT", *(choice.name for choice in choices)]
    if weights not in allowed:
        raise BadInput(
            f"embed.options.weights: {model} has no {weights!r}.{did_you_mean(weights, allowed)} "
            f'Allowed: {", ".join(allowed)}, a file, an https URL, or "" for random weights.'
        )
    choice = choices[weights]
    preset = choice.transforms()
    return tuple(preset.mean), tuple(preset.std), fetch(choice.url, cache_folder())


def _fingerprint(module: Any) -> str:
    fingerprint = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        fingerprint.update(name.encode())
        fingerprint.update(tensor.numpy().tobytes())
    return fingerprint.hexdigest()[:12]


def _dimension(module: Any, model: str, size: int) -> int:
    import torch

    try:
        with torch.inference_mode():
            return int(module.eval()(torch.zeros(1, 3, size, size)).flatten(1).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"pool.size: {model} cannot take {size}x{size} images ({reason}). Use a larger one.") from None
