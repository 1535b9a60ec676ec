r"""Training as a generator of steps.

Times and noise are keyed by (seed, step), and so are :class:`sde.Batches`: a run that was stopped anywhere and
continued is bit for bit the undisturbed one. Only dropout draws from torch's global generator, whose state is saved; on
several ranks it is keyed by (seed, step, rank). The learning rate is a function of the step alone
(:mod:`sde.training.schedules`), so that a run can be continued further.
"""

from __future__ import annotations

__all__ = ["Training"]

import contextlib
import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Scaling
from ..denoisers import Denoiser
from ..model import Model
from ..noise import Noise
from ..objective import DenoisingScoreMatching, Objective
from ..sampling import evaluating, state_like
from ..shapes import recording
from .batches import Batch, BatchSource, warn_of_spreads
from .conditions import dropout_of, dropped
from .ema import EMA, Average
from .execution import Execution, LossScale
from .fingerprints import of_code, of_tensors
from .gradients import clip
from .iterated import Iterated
from .loss import Loss, Rows, check_divides, chosen_condition, cut, draws, keyed_dropout, prepare
from .ranks import DDP, Ranks, agree, full, rank, size, total
from .report import NonFiniteLoss, Report
from .schedules import Constant, Decay
from .state import checked, head_of, load, restore_optimizer, whole_state
from .validation import Validation, losses_of


class Training:
    r"""A model in training.

    Under `torchrun` the ranks share each batch and take the same steps; every rank makes the same calls with the same
    arguments, :meth:`model` and :meth:`state` among them.

    Args:
        denoiser: the model; its parameters are trained.
        batches: :class:`sde.Batches`, with exact resumption, or any iterable, such as a torch DataLoader, which is
            started again when it is exhausted. A batch is a tensor with shape (B, \*), or a pair of such a tensor and a
            condition: a mapping of named tensors, or a tensor of labels, which is named `label`. On several ranks each
            has the same batches and takes its own rows of them.
        scaling: the map between the data units of the batches and the model's range. Integers are dequantised with new
            uniform noise at every visit. None for batches in the model's range, which are floats.
        objective: the loss; :class:`sde.objective.DenoisingScoreMatching` by default. The parameters of one that is a
            module are trained too.
        optimizer: a torch optimiser over the denoiser's parameters and the objective's; its learning rate is the one
            after warm-up. Adam with a learning rate of 2e-4 by default, as in DDPM.
        ema: moving averages of the weights: a decay or an :class:`sde.EMA`, which is named `default`, or several of
            them by name.
        warmup: the number of steps over which the learning rate grows from 0.
        clip: the largest norm of the gradient; larger ones are scaled down.
        seed: the seed of times and noise.
        conditions: the names of the conditions that the denoiser takes, [] for none, or a mapping to the probability
            with which each is left out (:mod:`sde.training.conditions`); all those of the batches by default. Labels of
            a :class:`sde.data.Split` or a tensor are classes; in a mapping, `label` may be that of "no label".
        decay: the factor of the learning rate as a function of the step (:mod:`sde.training.schedules`).
        accumulate: the number of equal parts in which a batch is computed, one after another, with the times and noise
            of the whole batch; only one part is in memory at a time. Dropout draws for each part.
        max_skipped: the number of steps that may be left out, in all, because the loss or its gradient was not finite;
            each is warned of. The next one, and by default the first one, is an error.
        execution: precision, compilation, memory format and activation checkpointing.
        ranks: how several ranks keep the weights, :class:`sde.training.DDP` by default.

    Attributes:
        step: the number of steps taken, those that were left out included.
        skipped: the number of steps left out.
        loss: denoiser and objective as one module.

    Raises:
        ValueError: if a setting is out of range, nothing can be trained, such as a network that was made under
            `torch.inference_mode()`, the optimiser lacks the parameters of the objective, or :class:`sde.Batches` have
            a label that is none of the network's or lack one of the `conditions`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        batches: BatchSource | Iterable[Any],
        scaling: Scaling | None = None,
        objective: Objective | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        ema: float | Average | Mapping[str, float | Average] = 0.999,
        *,
        warmup: int = 0,
        clip: float = 1.0,
        seed: int = 0,
        conditions: Sequence[str] | Mapping[str, float] | None = None,
        decay: Decay | None = None,
        accumulate: int = 1,
        max_skipped: int = 0,
        execution: Execution | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if warmup < 0 or not clip > 0.0 or accumulate < 1:
            raise ValueError(
                "training needs warmup >= 0, clip > 0 and accumulate >= 1, "
                f"got warmup={warmup}, clip={clip}, accumulate={accumulate}"
            )
        self.execution = Execution() if execution is None else execution
        self.loss = Loss(denoiser, DenoisingScoreMatching() if objective is None else objective, self.execution)
        trained = [p for p in self.loss.parameters() if p.requires_grad]
        if not any(p.requires_grad for p in denoiser.parameters()):
            raise ValueError("no parameter requires gradients: call requires_grad_() of a denoiser that was loaded")
        self.denoiser, self.scaling = denoiser, scaling
        self.batches = batches if isinstance(batches, BatchSource) else Iterated(batches, seed=seed)
        self.optimizer = torch.optim.Adam(trained, lr=2e-4) if optimizer is None else optimizer
        self.loss.check_trained(self.optimizer)
        named = ema if isinstance(ema, Mapping) else {"default": ema}
        self.ema = {name: e if isinstance(e, Average) else EMA(denoiser, e) for name, e in named.items()}
        self.warmup, self.clip, self.conditions = warmup, clip, None if conditions is None else list(conditions)
        self.dropout = dropout_of(denoiser, conditions)
        self.decay, self.accumulate, self.max_skipped = Constant() if decay is None else decay, accumulate, max_skipped
        self.noise = Noise(seed)
        self.step = self.skipped = 0
        self.scale: LossScale | None = self.execution.scale()
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.ranks = DDP() if ranks is None else ranks
        self._wrapped: nn.Module | None = None
        self._rows: BatchSource | None = None
        self._facts: dict[str, str] = {}
        self._whole: Denoiser | None = None  # a denoiser to copy where each rank has only a part of the weights
        if size() > 1:
            self._facts = {"code": of_code(self.loss), "weights": of_tensors(self.loss.state_dict())}
            self._whole = copy.deepcopy(denoiser).cpu() if self.ranks.shards else None
        self.execution.prepare(denoiser)
        if self._whole is not None:
            self._shard()
        if denoiser.classes is not None and (conditions is None or "label" in conditions):
            self.batches.check_labels(denoiser.classes)
        if (whole := self.batches.whole) is not None:
            chosen_condition(denoiser, whole, self.conditions)
        self._compared = warn_of_spreads(self.batches, scaling)  # the spreads of the columns

    @property
    def objective(self) -> Objective:
        """The loss."""
        return self.loss.objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self.loss.objective = objective

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return state_like(self.denoiser).device

    def run(self, steps: int) -> Iterator[Report]:
        """Yields a report after every step until `steps` steps have been taken in all, including earlier ones."""
        while self.step < steps:
            yield self.advance()

    @recording(True)
    def check(self, *others: Batch) -> None:
        """Computes the loss of two samples, of the next batch and each of `others`, without a step, which raises if the
        network does not fit the data.

        Raises:
            ValueError: also if the batch does not divide into equal parts, or the ranks have other code, weights or
                data.
        """
        self._module()
        cut(self._part()[self.step], self.accumulate, rank(), size())
        with torch.no_grad(), evaluating(self.loss):
            for batch in (self.batches[self.step], *others):
                self._losses(self.loss, *self._few(batch))

    @recording(True)  # as above and below: the modes of the caller are not those of a training
    def advance(self) -> Report:
        """One step of training.

        Raises:
            NonFiniteLoss: if the loss or its gradient is not finite, and no step may be left out any more; the step is
                not taken.
        """
        module, step = self._module(), self.step + 1
        self.loss.train()
        self.optimizer.zero_grad(set_to_none=True)
        scale = 1.0 if self.scale is None else self.scale.value
        loss = torch.zeros((), device=self.device)
        parts = cut(self._part()[self.step], self.accumulate, rank(), size())
        self._compared = self._compared or warn_of_spreads(self.batches, self.scaling)
        with keyed_dropout(self.noise, self.step, self.device):
            for k, (place, batch) in enumerate(parts, start=1):
                x0, condition = prepare(self.denoiser, batch, self.scaling, self.batches.noise, self.conditions)
                where = self.noise, self.step, place.first, len(x0)
                condition = dropped(self.denoiser, condition, self.dropout, *where)
                with contextlib.nullcontext() if k == len(parts) else self.ranks.without_averaging(module):
                    mean = self._losses(module, x0, place, condition).mean() / len(parts)
                    (mean * scale).backward()
                loss = loss + mean.detach()
        self.ranks.finish(self.loss)
        value = (total(loss) / size()).item()
        grad_norm = clip(self.loss.parameters(), self.clip, scale).item()
        factor = (min(1.0, step / self.warmup) if self.warmup else 1.0) * self.decay(step)
        rates = [rate * factor for rate in self._rates]
        finite = math.isfinite(value) and math.isfinite(grad_norm)
        if not finite:
            self._skip(step, value, grad_norm)
        else:
            for group, rate in zip(self.optimizer.param_groups, rates):
                group["lr"] = rate
            # The optimiser keeps its counters on torch's default device.
            with torch.device("cpu"):
                self.optimizer.step()
            for average in self.ema.values():
                average.update(self.denoiser, step)
        if self.scale is not None:
            self.scale.update(finite)
        self.step = step
        return Report(step, value, grad_norm, rates[0], not finite)

    def validate(
        self, batches: BatchSource | Iterable[Any], *, ema: str | None = "default", seed: int = 0, levels: int = 1
    ) -> Validation:
        """The loss over one epoch of other data, with the same noise at every call; see :func:`validate`.

        Args:
            batches: as in :class:`Training`.
            ema: the name of the averaged weights; None for the raw weights.
            seed: the seed of times and noise.
            levels: the number of parts of the distribution of times whose losses are wanted.
        """
        source = batches if isinstance(batches, BatchSource) else Iterated(batches, seed=seed)
        settings: dict[str, Any] = {"seed": seed, "conditions": self.conditions, "levels": levels}
        if size() > 1:
            settings["spare"] = next(source.epoch())
            source = source.shard(rank(), size())
        with contextlib.nullcontext() if ema is None else self.ema[ema].applied_to(self.denoiser):
            return losses_of(self.loss, source, self.scaling, **settings)

    def _skip(self, step: int, value: float, grad_norm: float) -> None:
        """Leaves a step out, or refuses to."""
        if self.scale is not None and math.isfinite(value) and not self.scale.exhausted:
            return  # beyond the range of float16, which a smaller scale of the loss mends
        text = f"the loss is {value}, the norm of its gradient {grad_norm}"
        if self.skipped >= self.max_skipped:
            left_out = f" after {self.skipped} steps were left out" if self.skipped else ""
            raise NonFiniteLoss(
                f"training stopped at step {step}{left_out}: {text}; "
                "a smaller learning rate, a longer warm-up or other data scaling may help"
            )
        self.skipped += 1
        warnings.warn(
            f"step {step} is left out, number {self.skipped} of at most {self.max_skipped}: {text}",
            RuntimeWarning,
            stacklevel=4,  # the caller of `advance`, which has a decorator
        )

    def _losses(self, module: nn.Module, x0: Tensor, place: Rows, condition: Mapping[str, Tensor]) -> Tensor:
        """The losses of some rows of a batch, with shape (B,); the error of a denoiser that takes none of its
        conditions names the way out, unless `conditions` chose them."""
        u, z = draws(self.noise, self.step, x0, place)
        try:
            losses: Tensor = module(x0, u, z, condition)
            return losses
        except (TypeError, ValueError) as error:
            if not condition or self.conditions is not None:
                raise
            try:
                module(x0, u, z, {})
            except Exception:
                raise error from None
            advice = f"the batches have conditions ({', '.join(condition)}), and conditions=[] trains without them"
            raise ValueError(f"{error}; {advice}") from error

    # Ranks

    def _part(self) -> BatchSource:
        """The batches of this rank."""
        if size() == 1:
            return self.batches
        if self._rows is None:
            self._rows = self.batches.shard(rank(), size())
        return self._rows

    def _shard(self) -> None:
        """Leaves this rank its part of the weights, and the optimiser and the averages with it."""
        names = {id(p): name for name, p in self.loss.named_parameters()}
        self.ranks.shard(self.loss)
        now = dict(self.loss.named_parameters())
        for group in self.optimizer.param_groups:
            group["params"] = [now[names[id(p)]] for p in group["params"]]
        for average in self.ema.values():
            average.shard(self.denoiser)

    def _module(self) -> nn.Module:
        """The module by whose forward this rank takes part in a step; the first call compares the ranks."""
        if self._wrapped is None:
            if size() > 1:
                batch = self.batches[self.step]
                check_divides(len(batch.values), size(), self.accumulate)
                tensors = {"values": batch.values, "index": batch.index, **batch.condition}
                agree({**self._facts, "data": of_tensors(tensors), "steps": str(self.step)})
            self._wrapped = self.ranks.wrap(self.loss, size() > 1 and self._has_unused())
        return self._wrapped

    def _has_unused(self) -> bool:
        """Whether the loss depends on some of the parameters only."""
        parameters = [p for p in self.loss.parameters() if p.requires_grad]
        with evaluating(self.loss):
            losses = self._losses(self.loss, *self._few(self.batches[self.step]))
        return any(g is None for g in torch.autograd.grad(losses.mean(), parameters, allow_unused=True))

    def _few(self, batch: Batch) -> tuple[Tensor, Rows, dict[str, Tensor]]:
        """Two samples of a batch, for a loss without a step."""
        x0, condition = prepare(self.denoiser, batch.rows(0, 2), self.scaling, self.batches.noise, self.conditions)
        return x0, Rows(0, len(x0), len(x0)), condition

    @recording(True)
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
        denoiser = copy.deepcopy(self.denoiser if self._whole is None else self._whole)
        if self._whole is None:
            self.execution.undo(denoiser)
        weights = self.denoiser.state_dict() if ema is None else self.ema[ema].weights
        denoiser.to(self.device).load_state_dict({name: full(value) for name, value in weights.items()})
        denoiser.zero_grad(set_to_none=True)
        event = self.batches[max(self.step - 1, 0)].values.shape[1:] if shape is None else shape
        scaling = scaling or self.scaling or Scaling.identity()
        return Model(denoiser.eval().requires_grad_(False), scaling, tuple(event), classes)

    def state(self) -> dict[str, Any]:
        """The state of the training as tensors and plain values: not copies, and to be saved at once."""
        more = {
            "objective": {name: full(value) for name, value in head_of(self.loss).items()},
            "loss_scale": None if self.scale is None else asdict(self.scale),
            "skipped": self.skipped,
            "batches": self.batches.state(self.step),
        }
        return {
            "step": self.step,
            "weights": {name: full(value) for name, value in self.denoiser.state_dict().items()},
            "ema": {name: average.whole() for name, average in self.ema.items()},
            "optimizer": whole_state(self.optimizer),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            **{name: value for name, value in more.items() if value},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state, that of torch's global generator for dropout included.

        The state may come from another number of ranks. Batches without a state, such as those of a DataLoader, go on
        at the start of the next epoch, with a warning.

        Raises:
            ValueError: if the weights are of another network, or an average is missing; nothing is then changed.
        """
        raw, averages, head = checked(state, self.loss, self.ema)
        self.batches.restore(state.get("batches"), int(state["step"]))
        self.step, self.skipped = int(state["step"]), int(state.get("skipped", 0))
        load(self.denoiser, raw)
        load(self.loss, head)
        for name, average in self.ema.items():
            average.load(averages[name])
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.scale is not None:
            self.scale = LossScale(**state.get("loss_scale", {}))
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])
