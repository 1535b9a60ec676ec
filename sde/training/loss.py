r"""The loss of a batch as a module, and what it is a function of: data, times and noise of a step.

Times and noise of a sample are keyed by (seed, step, place in the batch), so that the rows of a batch may be computed
one after another, or on several ranks, from the same draws.
"""

from __future__ import annotations

__all__ = ["Loss", "Rows", "check_divides", "chosen_condition", "cut", "draws", "keyed_dropout", "prepare"]

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import Scaling
from ..data.dataset import check_labels
from ..denoisers import Denoiser
from ..networks.conditions import as_labels
from ..noise import Noise, Stream
from ..objective import Objective
from ..sampling import state_like
from ..shapes import check_kind, check_recordable, recordable
from .batches import Batch, to_model
from .execution import Execution
from .ranks import rank, size


class Loss(nn.Module):
    """The loss of each sample: denoiser and objective as one module, whose parameters are all that is trained.

    Args:
        denoiser: the model.
        objective: the loss, which may be a module with parameters of its own.
        execution: the precision and memory format.
    """

    def __init__(self, denoiser: Denoiser, objective: Objective, execution: Execution | None = None) -> None:
        check_kind("the denoiser", denoiser, Denoiser, "sde.NetworkDenoiser(net, sde.VP())")
        super().__init__()
        self.denoiser, self.objective = denoiser, objective
        self.execution = Execution() if execution is None else execution

    def forward(self, x0: Tensor, u: Tensor, z: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The losses, with shape (B,); the arguments are those of :class:`sde.objective.Objective`."""
        with self.execution.precision(x0.device):
            return self.objective(self.denoiser, self.execution.arranged(x0), u, z, **condition)

    def check_trained(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuses weights that cannot be trained, and an optimiser that leaves the objective's as they are."""
        for name, module in self.named_children():
            check_recordable(module, "its weights cannot be trained", name)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self.named_parameters():
            if name.startswith("objective.") and parameter.requires_grad and id(parameter) not in trained:
                raise ValueError(
                    f"the optimiser lacks the parameter {name}: give it those of the denoiser and of the objective, "
                    "[*denoiser.parameters(), *objective.parameters()]"
                )


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of the batch of a step.

    Attributes:
        first: the place of the first one in the whole batch.
        count: how many.
        batch: the size of the whole batch.
    """

    first: int
    count: int
    batch: int


def check_divides(batch: int, ranks: int, parts: int = 1) -> None:
    """Refuses a batch of a size that does not divide into equal parts on equally many ranks."""
    if batch % (ranks * parts):
        raise ValueError(
            f"a batch of {batch} samples does not divide into {ranks} ranks times accumulate={parts} equal parts: give "
            "another batch_size= or accumulate=; a DataLoader with a smaller last batch needs drop_last=True"
        )


def cut(batch: Batch, parts: int, rank: int, ranks: int) -> list[tuple[Rows, Batch]]:
    """The rows that a rank has of a batch, in equal parts.

    Args:
        batch: the rows of this rank.
        parts: the number of parts.
        rank: the number of this rank.
        ranks: the number of ranks, which have equally many rows.

    Raises:
        ValueError: if the parts cannot be equal.
    """
    n, whole = len(batch.values) // parts, len(batch.values) * ranks
    check_divides(whole, ranks, parts)
    places = [rank * len(batch.values) + k * n for k in range(parts)]
    return [(Rows(first, n, whole), batch.rows(k * n, n)) for k, first in enumerate(places)]


def prepare(
    denoiser: Denoiser, batch: Batch, scaling: Scaling | None, noise: Noise, conditions: Sequence[str] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The model values of a batch and its conditions, on the device of the denoiser."""
    reference, condition = state_like(denoiser), chosen_condition(denoiser, batch, conditions)
    x0 = to_model(batch, scaling, noise, reference.dtype)
    return x0.to(reference.device), {name: recordable(value.to(reference.device)) for name, value in condition.items()}


def chosen_condition(denoiser: Denoiser, batch: Batch, conditions: Sequence[str] | None) -> dict[str, Tensor]:
    """The conditions of a batch that the denoiser takes, with labels of classes that it has."""
    names = batch.condition if conditions is None else conditions
    for name in names:
        if name not in batch.condition:
            there = ", ".join(batch.condition) or "none"
            raise ValueError(f"the batches have no condition {name!r}: they have {there}")
    chosen = {name: batch.condition[name] for name in names}
    for name in denoiser.process.needs:
        if name not in chosen:
            raise ValueError(
                f"{type(denoiser.process).__name__} needs the condition {name!r} of every sample, got batches with "
                f"{', '.join(batch.condition) or 'no condition'}, of which the model is given "
                f"{', '.join(chosen) or 'none'}: give pairs (x0, {{{name!r}: ...}}); in a config, data with the "
                f"condition {name} and conditional=true"
            )
    if denoiser.classes is not None and "label" in chosen:
        chosen["label"] = as_labels("labels", chosen["label"])
        check_labels("labels", chosen["label"], denoiser.classes, null=batch.null)
    return chosen


def draws(noise: Noise, step: int, x0: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """The uniforms of the times, spread evenly over the batch with one random offset, and the noise of one step, of
    the rows x0 of a batch."""
    place = torch.arange(rows.first, rows.first + len(x0), device=x0.device)
    counter = torch.tensor(step, device=x0.device)
    offset = noise.uniform(Stream.TIME, counter, torch.zeros_like(counter), (), torch.float64)
    u = ((offset + place / rows.batch) % 1.0).to(x0.dtype)
    # Rounding to float32 may give 1, which is not a time of a chain.
    u = u.clamp(max=1.0 - torch.finfo(x0.dtype).eps)
    return u, noise.normal(Stream.PERTURB, place, counter, x0.shape[1:], x0.dtype)


@contextlib.contextmanager
def keyed_dropout(noise: Noise, step: int, device: torch.device) -> Iterator[None]:
    """On several ranks, the state of torch's global generator inside is a function of (seed, step, rank).

    So dropout differs between the ranks, and a run goes on from its checkpoint on any number of them. Afterwards the
    generator is as it was, the same on every rank.
    """
    if size() == 1:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        keyed = noise.generator(Stream.NETWORK, step, rank())
        torch.set_rng_state(keyed.get_state())
        if device.type == "cuda":
            own = torch.Generator(device).manual_seed(keyed.initial_seed())
            torch.cuda.set_rng_state(own.get_state(), device)
        yield
