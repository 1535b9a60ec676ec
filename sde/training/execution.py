r"""Execution of a training step: precision, compilation, memory format and activation checkpointing.

Micikevicius et al., Mixed Precision Training, 2018, https://arxiv.org/abs/1710.03740; Chen et al., Training Deep Nets
with Sublinear Memory Cost, 2016, https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

__all__ = ["Execution", "LossScale", "blocks"]

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..denoisers import Denoiser
from ..shapes import recording

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """The computation of the loss and its gradient; weights, averages and all around the network stay in float32.

    Args:
        autocast: `bf16` or `fp16` for products and convolutions of the network, or None. With `fp16` the loss is
            scaled (:class:`LossScale`).
        compile: the backend of `torch.compile` for the network, `inductor` for torch's own, or None.
        channels_last: store images with the channels last, which convolutions on GPUs are faster with.
        checkpointing: compute the activations of the network's blocks, which are the entries of its `ModuleList`, a
            second time in the backward pass instead of storing them.
    """

    autocast: str | None = None
    compile: str | None = None
    channels_last: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.autocast not in (None, *_AUTOCAST):
            raise ValueError(f"expected autocast to be bf16, fp16 or None, got {self.autocast!r}")
        if self.compile is not None and self.compile not in (names := torch.compiler.list_backends(())):
            raise ValueError(f"compile={self.compile!r}: expected a backend of torch.compile, {', '.join(names)}")

    @recording(True)
    def prepare(self, denoiser: Denoiser) -> None:
        """Sets the networks of a denoiser up, in place; names and values of its weights stay.

        Raises:
            ValueError: if there is no block whose activations could be computed a second time.
        """
        if self.channels_last:
            denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.checkpointing:
            modules = list(blocks(denoiser))
            if not modules:
                raise ValueError("checkpointing=true needs a network whose blocks are entries of a ModuleList")
            for block in modules:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if self.compile is not None:
            for network in _networks(denoiser):
                network.compile(backend=self.compile)

    def undo(self, denoiser: Denoiser) -> None:
        """Undoes :meth:`prepare` for a copy of a denoiser, which `copy.deepcopy` has made without compiled code."""
        if self.checkpointing:
            for block in blocks(denoiser):
                del block.forward
        if self.channels_last:
            denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def arranged(self, x0: Tensor) -> Tensor:
        """A batch in the memory format of the network."""
        return x0.contiguous(memory_format=torch.channels_last) if self.channels_last and x0.ndim == 4 else x0

    def precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """The precision of products and convolutions inside the context."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, _AUTOCAST[self.autocast])

    def scale(self) -> LossScale | None:
        """The scale of the loss that this precision needs."""
        return LossScale() if self.autocast == "fp16" else None


@dataclass
class LossScale:
    """The factor of the loss by which gradients in float16 stay above its smallest number, 6e-8.

    It is halved after a gradient that is not finite, and the step is left out; it is doubled after `interval` steps
    without one.

    Attributes:
        value: the factor.
        steps: the steps since it changed.
        interval: the number of steps after which it grows.
    """

    value: float = 2.0**16
    steps: int = 0
    interval: int = 2000

    def update(self, finite: bool) -> None:
        """Takes note of a step whose gradient was finite, or was not."""
        self.steps = self.steps + 1 if finite else 0
        if not finite or self.steps == self.interval:
            self.value, self.steps = self.value * (2.0 if finite else 0.5), 0

    @property
    def exhausted(self) -> bool:
        """Whether the factor is so small that the gradient itself is at fault, and not the range of float16."""
        return self.value < 1.0


def blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """The outermost entries of `ModuleList` below a module, with parameters."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from blocks(child, True)
        elif not listed:
            yield from blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def _networks(denoiser: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules below a denoiser that are no denoisers."""
    for child in denoiser.children():
        if isinstance(child, Denoiser):
            yield from _networks(child)
        else:
            yield child
