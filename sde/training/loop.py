r"""Training: a generator of steps whose whole state is a function of the seed and the step.

Batches, times, noise and dequantisation are keyed by (seed, position), so that a run stopped anywhere and continued
is bit for bit the undisturbed one; only dropout draws from torch's global generator, whose state the checkpoint
keeps. The learning rate warms up and then stays: no schedule here depends on the number of steps, so that a run can
go on further.
"""

from __future__ import annotations

__all__ = ["NonFiniteLoss", "Report", "Training", "train", "validate"]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..noise import Noise, Stream
from ..objective import Objective
from ..sampling import evaluating, state_like
from .batches import Batches
from .ema import EMA


class NonFiniteLoss(FloatingPointError):
    """The loss, or its gradient, became infinite or NaN; the weights are those of the step before."""


@dataclass(frozen=True)
class Report:
    """What one training step did.

    Attributes:
        step: its number, counted from 1.
        loss: the mean of the objective over the batch.
        grad_norm: the norm of the gradient before it was clipped.
        learning_rate: the learning rate used.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


class Training:
    """A model in training.

    Args:
        denoiser: the model; its parameters are trained.
        objective: what is minimised.
        batches: the data.
        optimizer: a torch optimiser over the denoiser's parameters; its learning rate is the one after warm-up.
        ema: the averages to keep, by name.
        warmup: steps over which the learning rate grows from 0.
        clip: the largest norm of the gradient; larger ones are scaled down.
        seed: the seed of times and noise.
        conditional: hand the labels to the denoiser, as `label`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        *,
        ema: Mapping[str, EMA],
        warmup: int = 0,
        clip: float = 1.0,
        seed: int = 0,
        conditional: bool = False,
    ) -> None:
        if warmup < 0 or not clip > 0.0:
            raise ValueError(f"training needs warmup >= 0 and clip > 0, got warmup={warmup}, clip={clip}")
        if conditional and batches.split.labels is None:
            raise ValueError("conditional training needs labels, and this data set has none")
        self.denoiser, self.objective, self.batches, self.optimizer = denoiser, objective, batches, optimizer
        self.ema, self.warmup, self.clip, self.conditional = dict(ema), warmup, clip, conditional
        self.noise = Noise(seed)
        self.step = 0
        self._rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return state_like(self.denoiser).device

    def check(self) -> None:
        """Computes the loss of two samples without a step: finds a network that does not fit the data at once."""
        x0, condition = self._batch(0)
        two = {name: value[:2] for name, value in condition.items()}
        with torch.no_grad(), evaluating(self.denoiser):
            self.objective(self.denoiser, x0[:2], *_draws(self.noise, 0, x0[:2]), **two)

    def advance(self) -> Report:
        """One step of training.

        Raises:
            NonFiniteLoss: if the loss or its gradient is not finite; the step is not taken.
        """
        x0, condition = self._batch(self.step)
        self.denoiser.train()
        loss = self.objective(self.denoiser, x0, *_draws(self.noise, self.step, x0), **condition).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.clip)
        step = self.step + 1
        value, grad_norm = loss.item(), norm.item()
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise NonFiniteLoss(
                f"training stopped at step {step}: the loss is {value}, the norm of its gradient {grad_norm}; "
                "a smaller learning rate, a longer warm-up or other data scaling may help"
            )
        warm = min(1.0, step / self.warmup) if self.warmup else 1.0
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate * warm
        self.optimizer.step()
        for average in self.ema.values():
            average.update(self.denoiser, step)
        self.step = step
        return Report(step, value, grad_norm, self._rates[0] * warm)

    def _batch(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        x0, labels = self.batches[number]
        x0 = x0.to(state_like(self.denoiser))
        return x0, {"label": labels.to(x0.device)} if self.conditional and labels is not None else {}

    def state(self) -> dict[str, Any]:
        """All that continuing needs, as tensors and plain values; the live ones, to be saved at once."""
        return {
            "step": self.step,
            "weights": self.denoiser.state_dict(),
            "ema": {name: average.weights for name, average in self.ema.items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state; torch's global generator, which dropout uses, goes with it."""
        self.step = int(state["step"])
        self.denoiser.load_state_dict(state["weights"])
        for name, average in self.ema.items():
            if name not in state["ema"]:
                raise ValueError(f"this state has no EMA {name!r}: it has {', '.join(state['ema']) or 'none'}")
            average.load(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])


def train(training: Training, steps: int) -> Iterator[Report]:
    """Yields a report after every step until `steps` steps have been taken in all, earlier runs included."""
    while training.step < steps:
        yield training.advance()


@torch.no_grad()
def validate(
    denoiser: Denoiser, objective: Objective, batches: Batches, *, seed: int = 0, conditional: bool = False
) -> float:
    """The mean loss over one epoch of a held-out split, under noise that is the same at every call."""
    noise, total, count = Noise(seed), 0.0, 0
    with evaluating(denoiser):
        for number in range(-(-len(batches.split) // batches.size)):
            x0, labels = batches[number]
            left = min(batches.size, len(batches.split) - count)
            x0 = x0[:left].to(state_like(denoiser))
            condition = {"label": labels[:left].to(x0.device)} if conditional and labels is not None else {}
            total += objective(denoiser, x0, *_draws(noise, number, x0), **condition).sum().item()
            count += left
    return total / count


def _draws(noise: Noise, step: int, x0: Tensor) -> tuple[Tensor, Tensor]:
    """The times' uniforms, spread evenly over the batch with one random offset, and the noise, of one step."""
    batch = len(x0)
    place = torch.arange(batch, device=x0.device)
    counter = torch.tensor(step, device=x0.device)
    offset = noise.uniform(Stream.TIME, counter, torch.zeros_like(counter), (), torch.float64)
    u = ((offset + place / batch) % 1.0).to(x0.dtype)
    # Rounding to float32 may reach 1, which is no time of a chain.
    u = u.clamp(max=1.0 - torch.finfo(x0.dtype).eps)
    return u, noise.normal(Stream.PERTURB, place, counter, x0.shape[1:], x0.dtype)
