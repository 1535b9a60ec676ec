r"""Models: a process, a denoiser and the scaling of its data, in one piece and on the data's own terms."""

from __future__ import annotations

__all__ = ["Model", "load"]

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .build import MODEL_ROOMS, build
from .checkpoint import load_checkpoint
from .data import Scaling
from .denoiser import Denoiser
from .likelihood import LogProb, log_prob
from .noise import Noise, Stream
from .processes import SDE
from .runtime import exact_float32
from .sampling import sample, state_like
from .solvers import Solver


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        denoiser: the denoiser, in evaluation mode.
        scaling: the map between data values and the model's range.
        shape: the event shape, (C, *spatial) or (D,).
        classes: the number of classes of a model that is told a `label`; None for others.
    """

    denoiser: Denoiser
    scaling: Scaling
    shape: tuple[int, ...]
    classes: int | None = None

    @property
    def process(self) -> SDE:
        """The process that the model was trained for."""
        return self.denoiser.process

    def sample(
        self,
        n: int,
        *,
        solver: Solver,
        seed: int = 0,
        first: int = 0,
        condition: Mapping[str, Tensor] | None = None,
        denoise: bool = True,
    ) -> Tensor:
        """Draws n samples as data values: levels (uint8 for images) or continuous values, with shape (n, *).

        Args:
            n: how many.
            solver: how to integrate.
            seed: the seed of all noise.
            first: the index of the first sample, as in :func:`sde.sample`.
            condition: as in :func:`sde.sample`; a model with classes draws them in turn where no `label` is given.
            denoise: remove the noise that is left at `t_min` by one more call.
        """
        if self.classes is not None and "label" not in (condition or {}):
            label = torch.arange(first, first + n, device=state_like(self.denoiser).device) % self.classes
            condition = {**(condition or {}), "label": label}
        drawn = sample(
            self.denoiser, (n, *self.shape), solver=solver, seed=seed, first=first, condition=condition, denoise=denoise
        )
        return self.scaling.to_data(drawn.x.cpu())

    def log_prob(
        self, x: Tensor, *, seed: int = 0, index: Tensor | None = None, repeat: int = 0, **settings: Any
    ) -> LogProb:
        r"""The log-density of data in the model's range, in nats; discrete values are dequantised with uniform noise.

        Args:
            x: data values as the data set gives them, with shape (B, \*).
            seed: the seed of probes and dequantisation.
            index: the positions of the samples in their data set, int64 with shape (B,); 0 to B - 1 by default.
            repeat: which draw of the dequantisation noise.
            settings: `solver`, `trace`, `condition`, `prior`, `atol`, `differentiable` as in :func:`sde.log_prob`.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"this model is for data of shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        index = torch.arange(len(x)) if index is None else index.cpu()
        u = None
        if self.scaling.levels is not None:
            counter = torch.full_like(index, repeat)
            u = Noise(seed).uniform(Stream.DEQUANTISE, index, counter, self.shape, torch.float64)
        like = state_like(self.denoiser)
        y = self.scaling.to_model(x.cpu(), u, dtype=like.dtype).to(like.device)
        with exact_float32():
            # Repeats differ in their probes too: each takes its own range of keys.
            return log_prob(self.denoiser, y, seed=seed, index=index + repeat * 2**40, **settings)

    def bits_per_dim(self, x: Tensor, **settings: Any) -> Tensor:
        """Bits per dimension of data values, with shape (B,); the arguments are those of :meth:`log_prob`."""
        return self.scaling.bits_per_dim(self.log_prob(x, **settings).nats, math.prod(self.shape))


def load(
    path: str | os.PathLike[str],
    ema: str | None = "default",
    settings: Mapping[str, Any] | None = None,
    process: SDE | None = None,
    *,
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> Model:
    """Loads a model from a checkpoint or a run directory.

    Args:
        path: the checkpoint file, or the run directory, whose newest checkpoint is taken.
        ema: the name of the weight average to load; None for the raw weights.
        settings: not used by this library's own checkpoints, which hold their settings.
        process: a process in place of the one that the model was trained for.
        device: where to put the model.
        trust: packages of your own that the checkpoint may name classes from.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if the file is damaged or no checkpoint, or has no such average.
    """
    content = load_checkpoint(path)
    return from_checkpoint(content, ema=ema, process=process, device=device, trust=trust)


def from_checkpoint(
    content: Mapping[str, Any],
    *,
    ema: str | None = "default",
    process: SDE | None = None,
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> Model:
    """The model of a checkpoint's content; the arguments are those of :func:`load`."""
    missing = {"model", "weights", "ema"} - content.keys()
    if missing:
        raise ValueError(f"this checkpoint is not of a model: it lacks {', '.join(sorted(missing))}")
    tree = json.loads(content["model"])
    scaling = build(tree["scaling"], rooms=MODEL_ROOMS)
    if process is None:
        process = build(tree["process"], rooms=MODEL_ROOMS, trust=trust)
    network = build(tree["network"], rooms=MODEL_ROOMS, trust=trust)
    denoiser = build(tree["denoiser"], rooms=MODEL_ROOMS, trust=trust, network=network, process=process)
    if ema is not None and ema not in content["ema"]:
        raise ValueError(
            f"this checkpoint has no EMA {ema!r}: it has {', '.join(content['ema']) or 'none'}; "
            "ema=None loads the raw weights"
        )
    denoiser.load_state_dict(content["weights"] if ema is None else content["ema"][ema])
    return Model(denoiser.to(device).eval().requires_grad_(False), scaling, tuple(tree["shape"]), tree.get("classes"))
