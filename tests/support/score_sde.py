"""Checkpoints of yang-song/score_sde_pytorch, rebuilt from the draws that their weights came from.

The weights are sums of random draws: `base + 0.05 z` for those that training would hold, and `0.02 z'` more for their
averages. All draws come from one Mersenne Twister. A checkpoint is kept as its seed, the positions of its draws, and
the difference in units in the last place, which takes a fifteenth of the space. See fixtures/score_sde/README.md.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .fixtures import FIXTURES, arrays

FOLDER = FIXTURES / "score_sde"
NAMES = ["ddpm_vp", "ddpmpp_vp", "ncsnpp_ve", "ncsnpp_256_ve"]

F32 = np.float32

# The group of parameters of torch.optim.Adam, whose learning rate the original's warm-up makes a float64 of NumPy.
ADAM = {
    "lr": np.float64(1.2e-7),
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": False,
}


def settings(name: str) -> dict[str, Any]:
    """The settings of a checkpoint, as its author wrote them."""
    result: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return result


def outputs(name: str) -> dict[str, torch.Tensor]:
    """What the original computed from a checkpoint."""
    return arrays(FOLDER / f"{name}.npz")


def write(name: str, folder: Path) -> Path:
    """Writes NAME.pth as the original does, and its settings NAME.json beside it; returns the path of the first."""
    path = folder / f"{name}.pth"
    torch.save(checkpoint(name), path)
    path.with_suffix(".json").write_bytes((FOLDER / path.with_suffix(".json").name).read_bytes())
    return path


def checkpoint(name: str) -> dict[str, Any]:
    """The dictionary that the original saves: optimiser, weights of the parallel module, averages in a list, step."""
    weights, averages = (
        {key: torch.from_numpy(value.copy()) for key, value in values.items()} for values in _values(name)
    )
    with np.load(FOLDER / f"{name}.weights.npz", allow_pickle=False) as stored:
        layout = json.loads(str(stored["layout"]))
    model: OrderedDict[str, torch.Tensor] = OrderedDict((f"module.{key}", weights[key]) for key in layout["order"])
    # PyTorch keeps the version of every module in this attribute of a state dictionary.
    vars(model)["_metadata"] = OrderedDict((key, {"version": 1}) for key in layout["modules"])
    return {
        "optimizer": {"state": {}, "param_groups": [ADAM | {"params": list(range(layout["optimised"]))}]},
        "model": model,
        "ema": {"decay": layout["decay"], "num_updates": layout["step"], "shadow_params": list(averages.values())},
        "step": layout["step"],
    }


@functools.cache
def _values(name: str) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float32]]]:
    """The weights, and the averages of those that are trained."""
    with np.load(FOLDER / f"{name}.weights.npz", allow_pickle=False) as stored:
        layout = json.loads(str(stored["layout"]))
        rest = {key: _signed(stored[key]) for key in ("weights", "averages")}
        weights = {key.removeprefix("kept/"): stored[key] for key in stored.files if key.startswith("kept/")}
    # A float32 draw in [0, 1) is the lower 24 bits of an output.
    source = np.random.RandomState(layout["seed"])
    uniform = (source.randint(2**32, size=layout["draws"], dtype=np.uint32) & (2**24 - 1)).astype(F32) / F32(2**24)
    averages, start = {}, 0
    for key, shape, scale, base, first, second in layout["parameters"]:
        n = int(np.prod(shape))
        value = np.full(n, scale, F32) if base is None else (F32(2) * uniform[base : base + n] - F32(1)) * F32(scale)
        value = _moved(value + F32(0.05) * _normal(uniform, first, n), rest["weights"][start : start + n])
        average = _moved(value + F32(0.02) * _normal(uniform, second, n), rest["averages"][start : start + n])
        weights[key], averages[key] = value.reshape(shape), average.reshape(shape)
        start += n
    return weights, averages


def _normal(uniform: NDArray[np.float32], start: int | None, n: int) -> NDArray[np.float32]:
    """PyTorch's n >= 16 normal draws: if n is no multiple of 16, the last 16 come from 16 further uniform draws."""
    if start is None:
        return np.zeros(n, F32)
    last = uniform[start + n : start + n + 16] if n % 16 else uniform[:0]
    z = _box_muller(uniform[start : start + n // 16 * 16])
    return np.concatenate([z[: n - len(last)], _box_muller(last)])


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Box and Muller's transform of blocks of 16, a radius in each first half and an angle in each second half."""
    u = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * np.log((F32(1) - u[:, 0]).astype(np.float64)))
    angle = 2.0 * np.pi * u[:, 1].astype(np.float64)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1).astype(F32)


def _signed(planes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Integers from their four bytes, lowest first, with the sign in the lowest bit."""
    z = np.ascontiguousarray(planes.T).view("<u4")[:, 0]
    return (z >> 1).astype(np.int32) ^ -(z & 1).astype(np.int32)


def _moved(values: NDArray[np.float32], units: NDArray[np.int32]) -> NDArray[np.float32]:
    """Values moved by some units in the last place."""
    return (values.view(np.int32) + units).view(F32)
