r"""The methods of a model that take data to other data: editing, translation, interpolation; and its conditions.

These are the methods of :class:`sde.Model` for data values; :mod:`sde.model.translation` has the mathematics.
"""

from __future__ import annotations

__all__ = ["Editing"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..data import Scaling
from ..data.captions import Encoder
from ..denoisers import Denoiser
from ..sampling import state_like
from ..shapes import check_event, check_kind, named_tensors, numbers_of
from ..solvers import Solver
from .conditions import Labels, Numbers, condition_from
from .translation import edit, interpolate, translate


class Editing:
    """The methods of :class:`sde.Model` that take data to other data."""

    denoiser: Denoiser
    scaling: Scaling
    shape: tuple[int, ...]
    classes: int | None
    encoder: Encoder | None

    def condition(
        self,
        n: int,
        *,
        first: int = 0,
        label: Labels | None = None,
        embedding: Numbers | None = None,
        image: Numbers | None = None,
        prompt: str | Sequence[str] | None = None,
        **others: Numbers | None,
    ) -> dict[str, Tensor]:
        r"""The condition of n samples from plain values, such as `label=7` or `prompt="a seven"`.

        A value stands for all samples; of a list of them, each sample has one in its turn.

        Args:
            n: the number of samples.
            first: the index of the first sample.
            label: a class, "none" for no label, or a list of them.
            embedding: E numbers, or a list of such.
            image: values (C, \*) or (M, C, \*), in the model's range.
            prompt: a text, or a list of texts, for the encoder of the model.
            others: values of other conditions by name, for a network of one's own.

        Raises:
            ValueError: for what the model does not take, with the list of what it does, or a label that is none of its
                classes.
        """
        named: dict[str, Labels | None] = {"label": label, "embedding": embedding, "image": image, **others}
        return condition_from(self.denoiser.takes, self.encoder, n, first, classes=self.classes, prompt=prompt, **named)

    def edit(
        self,
        x: Tensor,
        strength: float = 0.5,
        *,
        solver: Solver | None = None,
        seed: int = 0,
        first: int = 0,
        condition: Mapping[str, Tensor] | None = None,
        denoise: bool = True,
        progress: Callable[[float], object] | None = None,
    ) -> Tensor:
        r"""Variants of data values, by noising and denoising them (SDEdit), as data values with the shape of x.

        Args:
            x: data values, with shape (B, \*).
            strength: from 0, no change, to 1, new samples; 0.5 is about equal parts of data and noise
                (:func:`sde.model.translation.edit_time`).
            solver: a solver, deterministic or not; :func:`sde.sampling.default_solver` by default.
            seed: the seed of all noise; sample i has that of index `first + i`.
            first: the index of the first sample.
            condition: as in :func:`sde.sample`; a model with classes needs a label.
            denoise: as in :meth:`sample`.
            progress: called after every step with the fraction of the work that is done.
        """
        call: dict[str, Any] = {"solver": solver, "seed": seed, "first": first, "denoise": denoise}
        named = self._on_device(condition)
        r = edit(self.denoiser, self._to_model(x), strength, condition=named, progress=progress, **call)
        return self.scaling.to_data(r.x.cpu())

    def translate(
        self,
        x: Tensor,
        other: Editing,
        *,
        solver: Solver | None = None,
        condition: Mapping[str, Tensor] | None = None,
        target_condition: Mapping[str, Tensor] | None = None,
        denoise: bool = False,
    ) -> Tensor:
        r"""Data values of this model as those of another, through the latent of both (DDIB), with the shape of x.

        Args:
            x: data values of this model, with shape (B, \*).
            other: a model of data of the same shape, of any process that reaches a noise level of 5 at least.
            solver: a deterministic solver for both ways; :func:`sde.sampling.default_solver` by default.
            condition: the condition of x.
            target_condition: the condition of the result.
            denoise: remove the noise that is left at `t_min`; without it `other.translate(y, self)` returns x.

        Raises:
            ValueError: if the shapes differ or the processes cannot be matched (:func:`sde.model.matched`).
        """
        check_kind("the other model", other, type(self), "sde.load(path)")
        check_event(numbers_of("data values", x), other.shape, "the other model")
        named, target = self._on_device(condition), other._on_device(target_condition)
        call: dict[str, Any] = {"condition": named, "target_condition": target, "denoise": denoise}
        y = translate(self.denoiser, self._to_model(x), other.denoiser, solver=solver, **call)
        return other.scaling.to_data(y.cpu())

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        steps: int = 8,
        *,
        solver: Solver | None = None,
        condition: Mapping[str, Tensor] | None = None,
        denoise: bool = False,
    ) -> Tensor:
        r"""Paths between data values through their latents (:func:`sde.model.interpolate`), with shape (B, steps, \*).

        Args:
            a: data values, with shape (B, \*).
            b: data values.
            steps: the number of points of a path, both ends included.
            solver, condition, denoise: as in :meth:`translate`.
        """
        named, ends = self._on_device(condition), (self._to_model(a), self._to_model(b))
        path = interpolate(self.denoiser, *ends, steps, solver=solver, condition=named, denoise=denoise)
        return self.scaling.to_data(path.flatten(0, 1).cpu()).unflatten(0, (len(a), steps))

    def _on_device(self, condition: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The condition on the model's device."""
        device = state_like(self.denoiser).device
        return {name: value.to(device) for name, value in named_tensors(condition).items()}

    def _to_model(self, x: Tensor) -> Tensor:
        """Data values in the model's range, on its device; discrete ones at the centres of their bins."""
        x = numbers_of("data values", x)
        check_event(x, self.shape)
        reference = state_like(self.denoiser)
        return self.scaling.to_model(x.cpu(), dtype=reference.dtype).to(reference.device)
