"""What the tests of the importers share: numbers recorded from the originals, and the weights that they came from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Recorded:
    """A network of the original: settings, weights, and what it computed. See recorded/README.md."""

    settings: dict[str, Any]
    state: dict[str, Tensor]
    arrays: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]


def _weights(layout: list[tuple[str, list[int]]], seed: int) -> dict[str, Tensor]:
    rng, state = np.random.RandomState(seed), {}
    for name, shape in layout:
        z = rng.standard_normal(tuple(shape))
        one = 1.0 if name.endswith("weight") else 0.0
        value = one + 0.1 * z if len(shape) == 1 else z / math.sqrt(math.prod(shape[1:]))
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Recorded]:
    """The recording with that name, made anew each time."""

    def open_recording(name: str) -> Recorded:
        meta = json.loads((FOLDER / f"{name}.json").read_text())
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
            found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        kept = {key.removeprefix("kept/"): value for key, value in found.items() if key.startswith("kept/")}
        return Recorded(meta["settings"], _weights(meta["layout"], meta["seed"]) | kept, found)

    return open_recording
