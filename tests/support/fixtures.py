"""What lies in tests/fixtures: see the README there."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DIGITS_MIXTURE = FIXTURES / "digits_mixture.npz"
OLD = FIXTURES / "version_0.1.0"


def arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an archive."""
    with np.load(path, allow_pickle=False) as content:
        return {name: torch.from_numpy(content[name]) for name in content.files}


@dataclass(frozen=True)
class Recorded:
    """A network of another project: settings, weights, and what its authors' code computed."""

    settings: dict[str, Any]
    state: dict[str, Tensor]
    arrays: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]


def recorded(name: str) -> Recorded:
    """A recording of fixtures/edm_openai, read again for each call."""
    folder = FIXTURES / "edm_openai"
    meta, content = json.loads((folder / f"{name}.json").read_text()), arrays(folder / f"{name}.npz")
    buffers = {key.removeprefix("kept/"): value for key, value in content.items() if key.startswith("kept/")}
    return Recorded(meta["settings"], _weights(meta["layout"], meta["seed"]) | buffers, content)


def _weights(layout: list[tuple[str, list[int]]], seed: int) -> dict[str, Tensor]:
    rng, state = np.random.RandomState(seed), {}
    for name, shape in layout:
        z = rng.standard_normal(tuple(shape))
        one = 1.0 if name.endswith("weight") else 0.0
        value = one + 0.1 * z if len(shape) == 1 else z / math.sqrt(math.prod(shape[1:]))
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state
