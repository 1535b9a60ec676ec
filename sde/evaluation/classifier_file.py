r"""Files of trained classifiers, in the format of checkpoints.

Keys: `format`, `classifier` (shape, classes, width, features), `weights`, `accuracy` (on test items, or None), `data`
    (fingerprint of the training items), `settings` (JSON text, of the training). The SHA-256 of the file is stored
    beside it (:mod:`sde.storage.checkpoint`); loading runs no code of the file.
"""

from __future__ import annotations

__all__ = ["load_classifier", "save_classifier"]

import os
from pathlib import Path

import torch

from ..metrics.features import ClassifierNetwork, ModuleFeatures
from ..storage.checkpoint import load_checkpoint, misfits, write


def save_classifier(
    path: str | os.PathLike[str],
    network: ClassifierNetwork,
    *,
    data: str = "",
    accuracy: float | None = None,
    settings: str = "{}",
) -> None:
    """Writes a classifier atomically.

    Args:
        path: the file, which is replaced if it exists; its directory must exist.
        network: the classifier.
        data: the fingerprint of its training items.
        accuracy: the proportion of test items that it recognises.
        settings: the settings of the training, as JSON text.
    """
    facts = {"shape": list(network.shape), "classes": network.classes, "width": network.width, "features": network.size}
    weights = {name: value.detach().float().cpu() for name, value in network.state_dict().items()}
    write(path, {"classifier": facts, "weights": weights, "accuracy": accuracy, "data": data, "settings": settings})


def load_classifier(
    path: str | os.PathLike[str],
    *,
    block: int = 256,
    dtype: str = "float64",
    device: torch.device | str = "cpu",
) -> ModuleFeatures:
    """The features of a classifier of :func:`save_classifier`; its network is their `module`.

    Args:
        path: the file.
        block: the number of items of every call.
        dtype: float64 or float32; in float64, results do not depend on `block` to 1e-12.
        device: the device of the network.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is truncated, altered or not one of a classifier.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no classifier at {path}: expected a file of scripts/feature_classifier.py")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"expected dtype float32 or float64, got {dtype!r}")
    try:
        content = load_checkpoint(path)
        facts, weights = content["classifier"], content["weights"]
        kwargs = {"width": facts["width"], "features": facts["features"]}
        with torch.device("meta"):
            sizes = ClassifierNetwork(facts["shape"], facts["classes"], **kwargs).state_dict()
        if text := misfits({name: value.shape for name, value in sizes.items()}, weights):
            raise ValueError(f"its weights are not those of its settings: {text}")
        network = ClassifierNetwork(facts["shape"], facts["classes"], **kwargs)
        network.load_state_dict(weights)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(
            f"{path} does not contain a usable classifier: {reason}; expected a file of scripts/feature_classifier.py"
        ) from error
    kind = torch.float64 if dtype == "float64" else torch.float32
    return ModuleFeatures(network, name=f"classifier {path.stem}", block=block, dtype=kind, device=device)
