r"""Models in files: written to one checkpoint, and loaded from any kind of checkpoint.

:func:`save` writes the weights and a tree of plain values that describes the rest, in public names
(`sde.VP`, `sde.networks.UNet`). Of a class of the user's own, the file contains the name and no more, because nothing
in a file is ever run: :func:`load` then takes the object as an argument.
"""

from __future__ import annotations

__all__ = ["from_checkpoint", "load", "load_denoiser", "save"]

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..denoisers import Denoiser, Wrapper
from ..instantiate import MODEL_ROOMS, build, class_name, describe
from ..interop import read
from ..interop.formats import Settings, Source
from ..networks.network import inside
from ..processes import SDE
from ..shapes import described
from ..storage.checkpoint import misfits, write
from ..storage.wrappers import fitted
from ..version import __version__
from .model import Model


def save(path: str | os.PathLike[str], model: Model) -> None:
    """Writes a model to one file, with its SHA-256 digest beside it, that :func:`load` reads.

    The file appears whole or not at all. A file of an earlier :func:`save` or of `scripts/convert.py` is replaced;
    anything else at the path, the checkpoint of a training run included, is refused and stays.

    The model's network, process, parametrisation and wrappers are described if they are classes of this library; of a
    compiled or data-parallel network, the network itself is. The weights are those of the model, under the name
    `default`. Of a class of your own, the file contains the name alone,
    and :func:`load` takes an object of it: a network or a process, or a whole denoiser if more of it is your own.

    Args:
        path: the file; its directory is created if it is missing.
        model: the model.

    Raises:
        ValueError: if there is a directory or another file at the path.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"save: expected a Model, got {type(model).__name__}; a denoiser becomes one as "
            "sde.Model(denoiser, scaling, shape)"
        )
    path = Path(path)
    if path.exists() and not _is_model(path):
        raise ValueError(
            f"{path} is not a model that sde.save has written, and is not replaced: give another path, or remove it"
        )
    leaf: Any = model.denoiser
    wrappers: list[dict[str, Any]] = []
    while isinstance(leaf, Wrapper) and "_target_" in (tree := _description(leaf, "inner")):
        wrappers.insert(0, tree)
        leaf = leaf.inner
    denoiser = _description(leaf, "network", "process")
    parts: dict[str, Any] = {}
    if "_target_" in denoiser:
        parts = {"process": _description(leaf.process), "network": _description(inside(leaf.network))}
    tree = {
        **parts,
        "denoiser": denoiser,
        "wrappers": wrappers,
        "scaling": describe(model.scaling),
        "shape": list(model.shape),
        "classes": model.classes,
        "encoder": None if model.encoder is None else _description(model.encoder),
        "keep_dtype": True,
    }
    weights = {name: value.detach().cpu() for name, value in leaf.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": __version__, "config": "{}", "model": json.dumps(tree, indent=1), "data": None, "step": 0}
    write(path, {**content, "weights": weights, "ema": {"default": weights}})


def _description(value: Any, *without: str) -> dict[str, Any]:
    """The tree of an object, or, for a class of the user's own, its name under the key `class`."""
    try:
        return dict(describe(value, without=without))
    except ValueError:
        return {"class": class_name(value)}


def _is_model(path: Path) -> bool:
    """Whether a file is a model without the state of a training run."""
    try:
        content = Source(path).content
    except ValueError:
        return False
    return isinstance(content, dict) and {"format", "model"} <= content.keys() and "optimizer" not in content


def load(
    path: str | os.PathLike[str],
    ema: str | None = "default",
    settings: Settings | None = None,
    process: SDE | None = None,
    network: nn.Module | None = None,
    *,
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> Model:
    """Loads a model from a file of :func:`save`, a run directory, or another project's checkpoint.

    Nothing in a file is run, and a file that asks for it is refused.

    Args:
        path: the file, or a run directory, whose newest checkpoint is taken.
        ema: the name of the averaged weights; None for the raw weights. A file with a single set of weights, such as
            those of :func:`save`, has it under both.
        settings: the settings of the network as its project names them, or the path of a JSON file with them; by
            default the JSON file beside the checkpoint with the same name. This library's own checkpoints contain
            theirs.
        process: a process in place of the one that the model was trained for; needed for a process of your own.
        network: a network in place of the one that the file describes; needed for a network of your own. The weights
            are put into it, in its dtype, and it becomes the model's: in evaluation mode and without gradients. For a
            denoiser of your own, the denoiser.
        device: the device of the model.
        trust: packages of your own from which the checkpoint may name classes.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if the file is damaged, not a checkpoint of a known kind or one that would run code, if its weights
            do not fit the network, if a class of your own is missing, or if it has no such averaged weights.
            `network` is then unchanged.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"load: expected the path of a file or of a run directory, got {described(path)}")
    with torch.inference_mode(False), torch.device("cpu"):
        content = read(path, settings, process)
    return from_checkpoint(content, ema=ema, process=process, network=network, device=device, trust=trust)


def load_denoiser(path: str | os.PathLike[str], ema: str | None = "default") -> Denoiser:
    """The denoiser of the model at a path, such as the reference of autoguidance in a config; as in :func:`load`."""
    return load(path, ema).denoiser


def from_checkpoint(
    content: Mapping[str, Any],
    *,
    ema: str | None = "default",
    process: SDE | None = None,
    network: nn.Module | None = None,
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> Model:
    """The model of a checkpoint's content; the arguments are those of :func:`load`."""
    if missing := {"model", "weights", "ema"} - content.keys():
        raise ValueError(f"this checkpoint is not of a model: it lacks {', '.join(sorted(missing))}")
    if ema is not None and ema not in content["ema"]:
        raise ValueError(
            f"this checkpoint has no EMA {ema!r}: it has {', '.join(content['ema']) or 'none'}; "
            "ema=None loads the raw weights"
        )
    weights = content["weights"] if ema is None else content["ema"][ema]
    tree = json.loads(content["model"])
    scaling = build(tree["scaling"], rooms=MODEL_ROOMS)
    # The caller's modes are for tensors of the caller.
    with torch.inference_mode(False), torch.device("cpu"):
        leaf = denoiser = _leaf(tree, process, network, trust)
        for wrapper in tree.get("wrappers", ()):
            denoiser = build(wrapper, rooms=MODEL_ROOMS, inner=denoiser)
        shapes = {name: value.shape for name, value in leaf.state_dict().items()}
        weights = fitted(shapes, weights)
        if process is not None:  # with its own parameters, if it has any, in place of those in the checkpoint
            parameters = {name: value for name, value in leaf.state_dict().items() if name.startswith("process.")}
            weights = {name: value for name, value in weights.items() if not name.startswith("process.")} | parameters
        if difference := misfits(shapes, weights):
            raise ValueError(f"the weights of this checkpoint do not fit the network: {difference}")
        leaf.to(device).load_state_dict(weights, assign=network is None and tree.get("keep_dtype", False))
        denoiser = denoiser.to(device).eval().requires_grad_(False)
    encoder = tree.get("encoder")
    if isinstance(encoder, Mapping) and "class" in encoder:
        encoder = None  # of the user's own; tokens can be given all the same
    encoder = build(encoder, rooms=MODEL_ROOMS, trust=trust)
    return Model(denoiser, scaling, tuple(tree["shape"]), tree.get("classes"), encoder)


def _leaf(tree: Mapping[str, Any], process: SDE | None, network: nn.Module | None, trust: Sequence[str]) -> Denoiser:
    """The denoiser inside all wrappers, with the process and the network that are given or that the tree describes."""

    def part(name: str, value: Any, expected: str) -> Any:
        node = tree[name]
        if value is None and isinstance(node, Mapping) and "class" in node:
            raise ValueError(
                f"this checkpoint contains the weights for {node['class']}, a class of your own, and not the class: "
                f"give sde.load {name}={expected}, built with the same arguments"
            )
        return build(node, rooms=MODEL_ROOMS, trust=trust) if value is None else value

    node = tree["denoiser"]
    if isinstance(node, Mapping) and "class" in node:
        if process is not None or not isinstance(network, Denoiser):
            raise ValueError(
                f"this checkpoint contains the weights of a denoiser that is or contains a class of your own, "
                f"{node['class']}: give sde.load the denoiser as network=, with its process, and no process="
            )
        return network
    process, network = part("process", process, "an SDE"), part("network", network, "a module")
    return build(node, rooms=MODEL_ROOMS, trust=trust, network=network, process=process)
