"""A picture and, beside it, the values in it: what the scripts write that draw, edit or translate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde.evaluation.outputs import check_replaceable
from sde.plots import save_samples
from sde.storage.files import write_atomically


class Sheet:
    """The PNG file `out`, or the default, and the `.npz` file beside it; neither replaces one of other settings.

    Args:
        config: the config, with `out` and `overwrite`.
        default: the path where `out` is null.
        settings: the settings that the files depend on.
    """

    def __init__(self, config: Mapping[str, Any], default: Path, settings: dict[str, Any]) -> None:
        self.picture = Path(config["out"] or default)
        self.values = self.picture.with_suffix(".npz")
        self.settings = settings
        for file in (self.picture, self.values):
            check_replaceable(file, settings, overwrite=config["overwrite"])

    def write_pairs(self, source: Any, x: Any, scaling: Any, **arrays: Any) -> str:
        """As :meth:`write`, with each source beside what was made of it."""
        columns = 2 * max(1, round(math.sqrt(len(x) / 2))) if x.ndim > 2 else 2
        shown = torch.stack([source, x], 1).flatten(0, 1)
        return self.write(shown, scaling, columns=columns, x=x.numpy(), source=source.numpy(), **arrays)

    def write(self, shown: Any, scaling: Any, *, model: Any = None, columns: int | None = None, **arrays: Any) -> str:
        """Writes both, and returns what was written: the picture of `shown`, and the arrays."""
        self.picture.parent.mkdir(parents=True, exist_ok=True)
        save_samples(self.picture, shown, scaling, settings=self.settings, model=model, columns=columns)
        arrays["settings"] = json.dumps(self.settings)
        if scaling.levels is not None:
            arrays["levels"] = np.array([scaling.levels])
        write_atomically(self.values, lambda file: np.savez_compressed(file, **arrays))
        return f"wrote {self.picture} and {self.values}"
