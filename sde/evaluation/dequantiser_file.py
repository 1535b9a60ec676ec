r"""Files of learned dequantisers, in the format of checkpoints.

Keys: `format`, `dequantiser` (shape, levels, layers, width, alpha), `weights`, `checkpoint_sha256` (of the model that
    it was trained for), `settings` (JSON text, of the training). The SHA-256 of the file is stored beside it, as for a
    checkpoint (:mod:`sde.storage.checkpoint`); loading runs no code of the file.
"""

from __future__ import annotations

__all__ = ["check_free", "load_dequantiser", "save_dequantiser"]

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import Scaling
from ..likelihood.variational import VariationalDequantiser
from ..storage.checkpoint import load_checkpoint, write
from ..storage.files import check_writable


def check_free(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuses a path where writing a dequantiser would destroy something.

    Args:
        path: the path of the new file.
        overwrite: allow to replace a dequantiser.

    Raises:
        ValueError: if nothing can be written there, or something exists at the path, unless it is a dequantiser and
            `overwrite` is True.
    """
    path = Path(path)
    check_writable(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already: give another out=, or overwrite=true to replace it")
    if path.exists():
        load_dequantiser(path)  # refuses any other file


def save_dequantiser(
    path: str | os.PathLike[str], dequantiser: VariationalDequantiser, *, checkpoint_sha256: str, settings: str = "{}"
) -> None:
    """Writes a dequantiser atomically.

    Args:
        path: the file, which is replaced if it exists; its directory must exist.
        dequantiser: the dequantiser.
        checkpoint_sha256: the digest of the checkpoint that it was trained for.
        settings: the settings of the training, as JSON text.
    """
    facts = {"shape": list(dequantiser.shape), "levels": dequantiser.levels, "layers": len(dequantiser.networks)}
    content = {
        "dequantiser": {**facts, "width": dequantiser.width, "alpha": dequantiser.alpha},
        "weights": {name: value.detach().cpu() for name, value in dequantiser.state_dict().items()},
        "checkpoint_sha256": checkpoint_sha256,
        "settings": settings,
    }
    write(path, content)


def load_dequantiser(
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    scaling: Scaling | None = None,
    device: torch.device | str = "cpu",
) -> VariationalDequantiser:
    """Loads a dequantiser, whose parameters then require no gradients.

    Args:
        path: a file of :func:`save_dequantiser`.
        shape: the event shape that it must have; any by default.
        scaling: the scaling whose number of levels it must have; any by default.
        device: the device of the parameters.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is truncated, altered or not one of a dequantiser, or it is for data of another shape or
            number of levels.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no dequantiser at {path}: expected a file of scripts/dequantise.py")
    try:
        content = load_checkpoint(path)
        facts, weights = content["dequantiser"], content["weights"]
        rule = _checked(facts, weights)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0].partition("; ")[0]
        raise ValueError(
            f"{path} does not contain a usable dequantiser: {reason}; expected a whole file of scripts/dequantise.py"
        ) from error
    wanted = rule.shape if shape is None else tuple(shape)
    levels = rule.levels if scaling is None else scaling.levels
    if (rule.shape, rule.levels) != (wanted, levels):
        ours, theirs = (", ".join(map(str, sizes)) for sizes in (wanted, rule.shape))
        raise ValueError(
            f"{path} is for data of shape (B, {theirs}) with {rule.levels} levels, and this model is for "
            f"{'continuous data' if levels is None else f'{levels} levels'} of shape (B, {ours}): train one for it"
        )
    return rule.to(device).requires_grad_(False)


def _checked(facts: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> VariationalDequantiser:
    """The dequantiser of these settings and weights, built only if their sizes agree."""
    shape, levels, layers, width, alpha = (facts[key] for key in ("shape", "levels", "layers", "width", "alpha"))
    if 6 * layers != len(weights):
        raise ValueError(f"{layers} layers have {6 * layers} tensors, got {len(weights)}")
    with torch.device("meta"):
        sizes = VariationalDequantiser(shape, levels, layers=layers, width=width, alpha=alpha).state_dict()
    if {name: value.shape for name, value in sizes.items()} != {name: value.shape for name, value in weights.items()}:
        raise ValueError(f"its weights are not those of {layers} layers of width {width} for the shape {tuple(shape)}")
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ValueError("its weights are not finite")
    rule = VariationalDequantiser(shape, levels, layers=layers, width=width, alpha=alpha)
    rule.load_state_dict(weights)
    return rule
