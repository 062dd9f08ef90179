"""Loading of feature networks: torch-fidelity's Inception, timm models, the user's TorchScript modules, and pixels."""

from __future__ import annotations

import difflib
import hashlib
import io
from importlib.metadata import version
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional

from drl_dist.common.errors import UserError
from drl_dist.common.torchvision_import import make_importable
from drl_dist.evaluation.feature_spec import FeatureSpec
from drl_dist.evaluation.features import FeatureNetwork
from drl_dist.evaluation.weights import INCEPTION_SHA256, inception_weights, read_weights, tensors_sha256

_RGB = 3
PIXELS = 8
"""Height and width to which images are averaged down when their pixels are the features."""


def load_network(spec: FeatureSpec, device: torch.device, *, num_classes: int | None = None) -> FeatureNetwork:
    """Load a feature network onto a device.

    Args:
        spec: its option.
        device: of the network.
        num_classes: that a timm model with weights of the user's tells apart; by default those of timm's own.

    Raises:
        UserError: its weights are missing, damaged or those of another network.
    """
    if spec.kind == "timm":
        return _timm(spec, device, num_classes)
    load = {"inception": _inception, "torchscript": _torchscript, "pixels": _pixels}[spec.kind]
    return load(spec, device)


def _inception(spec: FeatureSpec, device: torch.device) -> FeatureNetwork:
    """TensorFlow's Inception of 2015, as torch-fidelity rebuilds it, with its resize to 299 pixels."""
    data = inception_weights(spec.source)
    make_importable()
    from torch_fidelity import FeatureExtractorInceptionV3

    # The class passes its path to torch.load, which also accepts an open file.
    module = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=io.BytesIO(data)
    ).to(device)
    identity = f"inception sha256={INCEPTION_SHA256} torch-fidelity={version('torch-fidelity')}"
    return FeatureNetwork(spec.text, identity, _RGB, device, module)


def _timm(spec: FeatureSpec, device: torch.device, num_classes: int | None) -> FeatureNetwork:
    """A timm model: its pooled features before the classifier, and the classifier's logits."""
    make_importable()
    import timm
    from timm.data import resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

    if not timm.is_model(spec.name):
        near = ", ".join(difflib.get_close_matches(spec.name, timm.list_models(), n=5))
        raise UserError(
            f"feature network {spec.text}",
            got=f"the model name {spec.name}",
            expected=f"a model of timm {version('timm')}" + (f", such as {near}" if near else ""),
            remedy="choose one that timm.list_models() lists",
        )
    # timm's models share no base class that knows their methods.
    if spec.source is None:
        module: Any = _published(spec)
    else:
        # None leaves timm's own number.
        module = timm.create_model(spec.name, pretrained=False, num_classes=num_classes)
        _load_state(module, spec, read_weights(spec.source))
    module.to(device).eval().requires_grad_(False)
    facts: dict[str, Any] = resolve_model_data_config(module)
    mean = torch.tensor(facts["mean"], device=device)[:, None, None]
    std = torch.tensor(facts["std"], device=device)[:, None, None]
    size, mode = tuple(facts["input_size"][1:]), str(facts["interpolation"])
    mode = mode if mode in ("bilinear", "bicubic") else "bilinear"

    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = images.float() / 255
        if pixels.shape[2:] != size:
            pixels = functional.interpolate(pixels, size, mode=mode, antialias=True).clamp(0, 1)
        hidden = module.forward_features((pixels - mean) / std)
        logits = module.forward_head(hidden) if module.num_classes > 0 else None
        return module.forward_head(hidden, pre_logits=True), logits

    identity = (
        f"timm {spec.name} sha256={tensors_sha256(module.state_dict())} size={size} {mode} mean={facts['mean']} "
        f"std={facts['std']} timm={version('timm')}"
    )
    return FeatureNetwork(spec.text, identity, int(facts["input_size"][0]), device, extract)


def _pixels(spec: FeatureSpec, device: torch.device) -> FeatureNetwork:
    """No network: grey values in [0, 1], averaged down to at most 8x8, (B, 64)."""

    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        grey = images.float().mean(1, keepdim=True) / 255
        side = min(PIXELS, *grey.shape[2:])
        return functional.adaptive_avg_pool2d(grey, side).flatten(1), None

    return FeatureNetwork(spec.text, f"pixels {PIXELS}", _RGB, device, extract)


def _published(spec: FeatureSpec) -> Any:
    """A timm model with the weights that timm publishes for it; timm downloads and keeps them."""
    import timm

    try:
        return timm.create_model(spec.name, pretrained=True)
    except Exception as error:
        raise UserError(
            f"weights of {spec.text}",
            got=f"{type(error).__name__}: {' '.join(str(error).split()).split('. ')[0][:200]}",
            expected="the weights that timm publishes",
            remedy=f"without internet bring them as a safetensors file: timm:{spec.name}=PATH",
        ) from error


def _load_state(module: nn.Module, spec: FeatureSpec, data: bytes) -> None:
    try:
        module.load_state_dict(load_safetensors(data))
    except (SafetensorError, RuntimeError) as error:
        # The first line names the class alone; the second says which weights are missing, or of what shape.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"weights {spec.source}",
            got=(lines[1] if len(lines) > 1 else lines[0])[:200],
            expected=f"a safetensors file with the weights of timm's {spec.name}",
            remedy="save them with safetensors.torch.save_file(model.state_dict(), PATH)",
        ) from error


def _torchscript(spec: FeatureSpec, device: torch.device) -> FeatureNetwork:
    """The user's scripted module: uint8 (B, C, H, W) -> features, or a pair of features and logits."""
    assert spec.source is not None
    data = read_weights(spec.source)
    try:
        module = torch.jit.load(io.BytesIO(data), map_location=device)
    except RuntimeError as error:
        raise UserError(
            f"feature network {spec.text}",
            got=" ".join(str(error).split())[:160],
            expected="a file that torch.jit.save wrote",
            remedy="name a TorchScript file",
        ) from error
    module.eval()

    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        made = module(images)
        return (made[0], made[1]) if isinstance(made, tuple) else (made, None)

    identity = f"torchscript sha256={hashlib.sha256(data).hexdigest()}"
    return FeatureNetwork(spec.text, identity, int(getattr(module, "channels", _RGB)), device, extract)
