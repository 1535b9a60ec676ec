r"""Training as a generator of steps.

Times and noise are keyed by (seed, step), and so are :class:`sde.Batches`: a run that was stopped anywhere and
continued is bit for bit the undisturbed one. Only dropout draws from torch's global generator, whose state is saved.
The learning rate warms up and then stays: no schedule depends on the number of steps, so that a run can be continued
further.
"""

from __future__ import annotations

__all__ = ["NonFiniteLoss", "Report", "Training", "train", "validate"]

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Scaling
from ..data.dataset import check_labels
from ..denoisers import Denoiser
from ..model import Model
from ..noise import Noise, Stream
from ..objective import DenoisingScoreMatching, Objective
from ..sampling import evaluating, state_like
from ..shapes import recordable
from ..storage.checkpoint import misfits
from ..storage.wrappers import fitted
from .batches import Batch, BatchSource, Iterated, to_model
from .ema import EMA


class NonFiniteLoss(FloatingPointError):
    """A loss or gradient that is infinite or NaN; the weights are those of the step before."""


@dataclass(frozen=True)
class Report:
    """Report of one training step.

    Attributes:
        step: its number, counted from 1.
        loss: the mean of the objective over the batch.
        grad_norm: the norm of the gradient before clipping.
        learning_rate: the learning rate.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


class Training:
    r"""A model in training.

    Args:
        denoiser: the model; its parameters are trained.
        batches: :class:`sde.Batches`, with exact resumption, or any iterable, such as a torch DataLoader, which is
            started again when it is exhausted. A batch is a tensor with shape (B, \*), or a pair of such a tensor and a
            condition: a mapping of named tensors, or a tensor of labels, which is named `label`.
        scaling: the map between the data units of the batches and the model's range. Integers are dequantised with new
            uniform noise at every visit. None for batches in the model's range, which are floats.
        objective: the loss; :class:`sde.objective.DenoisingScoreMatching` by default.
        optimizer: a torch optimiser over the denoiser's parameters; its learning rate is the one after warm-up. Adam
            with a learning rate of 2e-4 by default, as in DDPM.
        ema: moving averages of the weights: a decay or an :class:`sde.EMA`, which is named `default`, or several of
            them by name.
        warmup: the number of steps over which the learning rate grows from 0.
        clip: the largest norm of the gradient; larger ones are scaled down.
        seed: the seed of times and noise.
        conditions: the names of the conditions that the denoiser takes, [] for none; all those of the batches by
            default. The labels of a :class:`sde.data.Split`, and a tensor of labels, are classes of the network; in a
            mapping, `label` may be the one that means "no label".

    Attributes:
        step: the number of steps taken.

    Raises:
        ValueError: if a setting is out of range, nothing can be trained, or :class:`sde.Batches` have a label that is
            none of the network's or lack one of the `conditions`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        batches: BatchSource | Iterable[Any],
        scaling: Scaling | None = None,
        objective: Objective | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        ema: float | EMA | Mapping[str, float | EMA] = 0.999,
        *,
        warmup: int = 0,
        clip: float = 1.0,
        seed: int = 0,
        conditions: Sequence[str] | None = None,
    ) -> None:
        if warmup < 0 or not clip > 0.0:
            raise ValueError(f"training needs warmup >= 0 and clip > 0, got warmup={warmup}, clip={clip}")
        parameters = [p for p in denoiser.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("no parameter requires gradients: call requires_grad_() of a denoiser that was loaded")
        self.denoiser, self.scaling = denoiser, scaling
        self.batches = batches if isinstance(batches, BatchSource) else Iterated(batches, seed=seed)
        self.objective = DenoisingScoreMatching() if objective is None else objective
        self.optimizer = torch.optim.Adam(parameters, lr=2e-4) if optimizer is None else optimizer
        named = ema if isinstance(ema, Mapping) else {"default": ema}
        self.ema = {name: e if isinstance(e, EMA) else EMA(denoiser, e) for name, e in named.items()}
        self.warmup, self.clip, self.conditions = warmup, clip, conditions
        self.noise = Noise(seed)
        self.step = 0
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        if denoiser.classes is not None and (conditions is None or "label" in conditions):
            self.batches.check_labels(denoiser.classes)
        if (whole := self.batches.whole) is not None:
            _condition(denoiser, whole, conditions)
            if whole.values.is_floating_point():
                (scaling or Scaling.identity()).warn_of_spreads(whole.values)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return state_like(self.denoiser).device

    def run(self, steps: int) -> Iterator[Report]:
        """Yields a report after every step until `steps` steps have been taken in all, including earlier ones."""
        while self.step < steps:
            yield self.advance()

    def check(self) -> None:
        """Computes the loss of two samples without a step, which raises if the network does not fit the data."""
        x0, condition = self._batch(0)
        condition = {name: value[:2] if value.ndim else value for name, value in condition.items()}
        with torch.no_grad(), evaluating(self.denoiser):
            _losses(self.objective, self.denoiser, x0[:2], self.noise, 0, condition, self.conditions)

    def advance(self) -> Report:
        """One step of training.

        Raises:
            NonFiniteLoss: if the loss or its gradient is not finite; the step is not taken.
        """
        x0, condition = self._batch(self.step)
        self.denoiser.train()
        loss = _losses(self.objective, self.denoiser, x0, self.noise, self.step, condition, self.conditions).mean()
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
        # The optimiser keeps its counters on torch's default device.
        with torch.device("cpu"):
            self.optimizer.step()
        for average in self.ema.values():
            average.update(self.denoiser, step)
        self.step = step
        return Report(step, value, grad_norm, self._rates[0] * warm)

    def _batch(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        return _prepared(self.denoiser, self.batches[number], self.scaling, self.batches.noise, self.conditions)

    def model(
        self,
        *,
        scaling: Scaling | None = None,
        shape: Sequence[int] | None = None,
        ema: str | None = "default",
        classes: int | None = None,
    ) -> Model:
        """A copy of the model as it is now, ready for use; training can go on.

        Args:
            scaling: the map between data values and the model's range; that of the training by default, or the
                identity.
            shape: the event shape; that of the batches by default.
            ema: the name of the averaged weights; None for the raw weights.
            classes: the number of classes, for a model that draws each in turn where no label is given.

        Raises:
            ValueError: if there is no such average, or the network has fewer classes.
        """
        if classes is not None and self.denoiser.classes is not None and classes > self.denoiser.classes:
            raise ValueError(f"expected classes up to {self.denoiser.classes}, those of the network, got {classes}")
        if ema is not None and ema not in self.ema:
            raise ValueError(f"this training has no EMA {ema!r}: it has {', '.join(self.ema) or 'none'}")
        denoiser = copy.deepcopy(self.denoiser)
        if ema is not None:
            denoiser.load_state_dict(self.ema[ema].weights)
        denoiser.zero_grad(set_to_none=True)
        event = self.batches[max(self.step - 1, 0)].values.shape[1:] if shape is None else shape
        scaling = scaling or self.scaling or Scaling.identity()
        return Model(denoiser.eval().requires_grad_(False), scaling, tuple(event), classes)

    def state(self) -> dict[str, Any]:
        """The state of the training as tensors and plain values: not copies, and to be saved at once."""
        return {
            "step": self.step,
            "weights": self.denoiser.state_dict(),
            "ema": {name: average.weights for name, average in self.ema.items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state, that of torch's global generator for dropout included.

        Raises:
            ValueError: if the weights are of another network, or an average is missing; nothing is then changed.
        """
        for name in self.ema:
            if name not in state["ema"]:
                raise ValueError(f"this state has no EMA {name!r}: it has {', '.join(state['ema']) or 'none'}")
        shapes = {name: value.shape for name, value in self.denoiser.state_dict().items()}
        raw, averages = fitted(shapes, state["weights"]), {n: fitted(shapes, state["ema"][n]) for n in self.ema}
        for weights in (raw, *averages.values()):
            if difference := misfits(shapes, weights):
                raise ValueError(f"this state is of another network: {difference}")
        self.step = int(state["step"])
        self.denoiser.load_state_dict(raw)
        for name, average in self.ema.items():
            average.load(averages[name])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])


def train(training: Training, steps: int) -> Iterator[Report]:
    """The reports of :meth:`Training.run`."""
    return training.run(steps)


@torch.no_grad()
def validate(
    denoiser: Denoiser,
    objective: Objective,
    batches: BatchSource | Iterable[Any],
    scaling: Scaling | None = None,
    *,
    seed: int = 0,
    conditions: Sequence[str] | None = None,
) -> float:
    """The mean loss over one epoch of other data, with the same noise at every call.

    Args:
        denoiser: the model.
        objective: the loss.
        batches: as in :class:`Training`, like the arguments that follow.
        scaling: the map between the data units of the batches and the model's range.
        seed: the seed of times and noise.
        conditions: the names of the conditions that the denoiser takes.
    """
    source = batches if isinstance(batches, BatchSource) else Iterated(batches, seed=seed)
    noise, total, count = Noise(seed), 0.0, 0
    with evaluating(denoiser):
        for number, batch in enumerate(source.epoch()):
            x0, condition = _prepared(denoiser, batch, scaling, source.noise, conditions)
            total += _losses(objective, denoiser, x0, noise, number, condition, conditions).sum().item()
            count += len(x0)
    return total / count


def _prepared(
    denoiser: Denoiser, batch: Batch, scaling: Scaling | None, noise: Noise, conditions: Sequence[str] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The model values of a batch and its conditions, on the device of the denoiser."""
    reference, condition = state_like(denoiser), _condition(denoiser, batch, conditions)
    x0 = to_model(batch, scaling, noise, reference.dtype)
    return x0.to(reference.device), {name: recordable(value.to(reference.device)) for name, value in condition.items()}


def _condition(denoiser: Denoiser, batch: Batch, conditions: Sequence[str] | None) -> dict[str, Tensor]:
    """The conditions of a batch that the denoiser takes, with labels of classes that it has."""
    names = batch.condition if conditions is None else conditions
    for name in names:
        if name not in batch.condition:
            there = ", ".join(batch.condition) or "none"
            raise ValueError(f"the batches have no condition {name!r}: they have {there}")
    chosen = {name: batch.condition[name] for name in names}
    if denoiser.classes is not None and "label" in chosen:
        check_labels("labels", chosen["label"], denoiser.classes, null=batch.null)
    return chosen


def _losses(
    objective: Objective,
    denoiser: Denoiser,
    x0: Tensor,
    noise: Noise,
    step: int,
    condition: Mapping[str, Tensor],
    conditions: Sequence[str] | None,
) -> Tensor:
    """The losses of a batch, with shape (B,); the error of a denoiser that takes none of its conditions names the way
    out, unless `conditions` chose them."""
    draws = _draws(noise, step, x0)
    try:
        return objective(denoiser, x0, *draws, **condition)
    except (TypeError, ValueError) as error:
        if not condition or conditions is not None:
            raise
        try:
            objective(denoiser, x0, *draws)
        except Exception:
            raise error from None
        names = ", ".join(condition)
        message = f"{error}; the batches have conditions ({names}), and conditions=[] trains without them"
        raise ValueError(message) from error


def _draws(noise: Noise, step: int, x0: Tensor) -> tuple[Tensor, Tensor]:
    """The uniforms of the times, spread evenly over the batch with one random offset, and the noise of one step."""
    place = torch.arange(len(x0), device=x0.device)
    counter = torch.tensor(step, device=x0.device)
    offset = noise.uniform(Stream.TIME, counter, torch.zeros_like(counter), (), torch.float64)
    u = ((offset + place / len(x0)) % 1.0).to(x0.dtype)
    # Rounding to float32 may give 1, which is not a time of a chain.
    u = u.clamp(max=1.0 - torch.finfo(x0.dtype).eps)
    return u, noise.normal(Stream.PERTURB, place, counter, x0.shape[1:], x0.dtype)
