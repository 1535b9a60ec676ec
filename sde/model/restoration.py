r"""Restoration in data units: the posterior of data values given a measurement of them.

Data values x and the model's range :math:`x' = a x + b` (for levels b is that of the middle of a bin) have measurements
that differ by

.. math:: y' = A x' + a \sigma z = a y + b\, A(1), \qquad \sigma' = a \sigma,

for every linear A, which itself stays as it is; a nonlinear one, or a scaling with several scales, gets the inverse of
the scaling before it. A measurement in whole levels has been rounded, which adds the variance 1/12 to that of its
noise.

Without noise the measurement holds exactly. Samplers see a small noise all the same, that of rounding for levels and a
thousandth of the model's range for continuous data, and the measured part is put back at the end, by :math:`x + A^T (A
A^T)^{-1} (y - A x)`.
"""

from __future__ import annotations

__all__ = ["Method", "Restored", "pixel_mask", "prepared", "restore"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data import Scaling
from ..denoisers import Denoiser
from ..dynamics import Reverse
from ..measurement import Compose, DiffPIR, LinearOperator, Measurement, Operator, Unguided, Variance
from ..measurement.measurement import check_noise
from ..measurement.operator import applied, boolean, rowwise
from ..metrics import EvidenceShift, evidence_shift
from ..networks.conditions import as_taken
from ..noise import repeat_key, sample_index
from ..sampling import Samples, chosen_solver, coupling_times, polish, sample, state_like
from ..shapes import check_condition, check_count, check_kind, float64, named_tensors, numbers_of
from ..solvers import Particles, Polish, Solver

# A posterior denoiser of a denoiser and a measurement, such as sde.measurement.PiGDM or a partial of it.
Method = Callable[[Denoiser, Measurement], Denoiser]


@dataclass(frozen=True)
class Restored:
    r"""Draws from the posterior of data given a measurement; n draws for each of B measurements.

    Attributes:
        x: the draws in data units, with shape (B, n, \*).
        misfit: the root mean square of :math:`y - A x` in units of the noise, with shape (B, n); about 1 for a draw
            that fits. It does not tell whether the draw is from the right mode. Infinite for a draw that diverged, as
            those of some methods do; its x has the middle of the model's range.
        nfe: the network calls of each draw, int64 with shape (B, n).
        vjps: the vector-Jacobian products of each draw, int64 with shape (B, n).
        log_evidence: of particles, the logarithm of an estimate of p(y) in the model's range, in nats, with shape
            (B, n).
        ess: of particles, the smallest effective sample size of each run, with shape (B, n).
        shift: of several draws by particles, how far they move when they are weighed by their evidence, a sign of a
            mode that some runs lost, with its null: see :func:`sde.metrics.evidence_shift`; each (B,). None where
            draws come from one population.
    """

    x: Tensor
    misfit: Tensor
    nfe: Tensor
    vjps: Tensor
    log_evidence: Tensor | None
    ess: Tensor | None
    shift: EvidenceShift | None = None


class _FromModel(LinearOperator):
    """Data values of states, x = (x' - b) / a, or without the shift."""

    trusted = True

    def __init__(self, a: Tensor, b: Tensor | float) -> None:
        self.a, self.b = a, b
        self.linear = isinstance(b, float) and b == 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return (x - (self.b.to(x) if isinstance(self.b, Tensor) else self.b)) / self.a.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y / self.a.to(y)

    def pullback(self, x: Tensor, y: Tensor) -> Tensor:
        return self.adjoint(y)


def in_model_range(operator: Operator, y: Tensor, noise: Tensor, scaling: Scaling, x: Tensor) -> Measurement:
    r"""The measurement in the model's range of one in data units.

    Args:
        operator: the operator on data values.
        y: the measurements in data units, with shape (B, \*m).
        noise: their standard deviation, of shape () or (B,).
        scaling: the scaling of the data.
        x: states like those of the model, with shape (B, \*).
    """
    a, b = coefficients(scaling, x)
    seen = applied(operator, torch.ones_like(x), y.shape[1:])
    if not operator.linear:
        return Measurement(Compose(_FromModel(a, b), operator), y.to(x), noise)
    if a.ndim == 0:
        return Measurement(operator, a.to(x) * y.to(x) + b.to(x) * seen, a.to(noise) * noise)
    offset = operator((b / a).to(x).expand_as(x))
    return Measurement(Compose(_FromModel(a, 0.0), operator), y.to(x) + offset, noise)


def coefficients(scaling: Scaling, x: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of the map of data values to states like `x`, float64, of shape () or broadcasting along the channels."""
    a, b = float64(scaling.scale), float64(scaling.shift)
    if scaling.levels is not None:
        b = b + 0.5 * a
    if a.ndim:
        a, b = (value.reshape(1, -1, *(1,) * (x.ndim - 2)) for value in (a, b))
    return a.to(x.device), b.to(x.device)


def prepared(
    denoiser: Denoiser,
    scaling: Scaling,
    shape: tuple[int, ...],
    y: Tensor,
    operator: Operator,
    noise: Tensor | float,
    *,
    method: Method | None = None,
    solver: Solver | None = None,
    polishing: Polish | None = None,
) -> tuple[Measurement, Tensor, Tensor]:
    """The measurement in the model's range, after all checks of a restoration; no network call is made.

    Args:
        denoiser, scaling, shape: the parts of the model.
        y, operator, noise, method, solver, polishing: as in :meth:`sde.Model.restore`.

    Returns:
        The measurement; the standard deviation of its noise in data units, with that of rounding, and whether there is
        none, each of shape () or (B,).

    Raises:
        ValueError: if the measurement is none, or the method, the solver or the polish cannot serve it.
    """
    reference, std = state_like(denoiser), check_noise(noise, len(y) if y.ndim else 0)
    if y.is_complex() or y.ndim < 2:
        hint = "; complex numbers are measured as torch.view_as_real(y), as by sde.measurement.Fourier"
        raise ValueError(
            f"restore: expected real y of shape (B, ...), got {y.dtype} {tuple(y.shape)}{hint * y.is_complex()}"
        )
    exact, rounded = std == 0.0, not y.is_floating_point()
    # The variance of the model's dequantisation and that of the measurement's own rounding are the same number.
    if rounded or scaling.levels is not None:
        std = torch.where(exact | torch.tensor(rounded, device=std.device), (std.square() + 1.0 / 12.0).sqrt(), std)
    else:
        std = torch.where(exact, 1e-3 / float(float64(scaling.scale).max()), std)
    data = reference.new_zeros(len(y), *shape)
    measurement = in_model_range(operator, y.to(reference.device, torch.float64), std, scaling, data)
    measurement.check(data)
    if polishing is not None:
        coupling_times(denoiser.process, measurement)
        reason = polishing.incompatibility(Reverse(Unguided(denoiser, measurement)))
        if reason is not None:
            raise ValueError(f"Polish cannot serve this measurement: {reason}")
    guided = (method or DiffPIR)(denoiser, measurement)
    chosen = chosen_solver(denoiser, solver, lambda: Particles(50))
    chosen.bind(Reverse(guided, eta=chosen.eta))
    if guided.measured() is not None and not chosen.imposes:
        raise ValueError(
            f"{type(guided).__name__} leaves the measurement to the solver, and {type(chosen).__name__} does not know "
            "it, so that y would not count: use sde.solvers.Particles, Decoupled or Replacement, or another method, "
            "such as sde.measurement.PiGDM"
        )
    return measurement, std, exact


def restore(
    denoiser: Denoiser,
    scaling: Scaling,
    shape: tuple[int, ...],
    y: Tensor,
    operator: Operator,
    noise: Tensor | float,
    *,
    variance: Callable[[], Variance],
    method: Method | None = None,
    solver: Solver | None = None,
    polishing: Polish | None = None,
    n: int = 1,
    seed: int = 0,
    index: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    progress: Callable[[float], object] | None = None,
) -> Restored:
    """As :meth:`sde.Model.restore`, of the parts of a model; `variance` gives that of the pilot run if it is needed."""
    check_count("restore", "n", n)
    check_count("restore", "batch_size", 1 if batch_size is None else batch_size)
    check_kind("the operator", operator, Operator, "sde.measurement.Mask(mask)")
    y, noise = numbers_of("y", y), numbers_of("noise", noise)
    measurement, std, exact = prepared(
        denoiser, scaling, shape, y, operator, noise, method=method, solver=solver, polishing=polishing
    )
    reference, batch = state_like(denoiser), len(y)
    keys = sample_index(y, index).to(reference.device)
    condition = {name: value.to(reference.device) for name, value in named_tensors(condition).items()}
    check_condition(condition, batch)
    condition = condition if denoiser.takes is None else as_taken(denoiser.takes, condition)
    target = y.to(reference.device, torch.float64)
    if method is None or solver is None:
        pilot = variance()
        method = partial(DiffPIR, variance=pilot) if method is None else method
        solver = Particles(50, variance=pilot) if solver is None else solver
    total, size = batch * n, batch_size or batch * n
    results = []
    for first in range(0, total, size):
        place = torch.arange(first, min(first + size, total), device=reference.device)
        rows, repeat = place // n, place % n
        guided = method(denoiser, measurement.select(rows))
        part = {name: value[rows] if value.ndim else value for name, value in condition.items()}
        done = None if progress is None else partial(_report, progress, first / total, len(place) / total)
        index = keys[rows] + repeat * repeat_key(0, 1)
        how: dict[str, Any] = {"seed": seed, "condition": part}
        r = sample(guided, (len(place), *shape), solver=solver, index=index, denoise=True, progress=done, **how)
        if polishing is not None:
            r = _polished(r, shape, denoiser, measurement, polishing, rows, index, how)
        results.append(r)
    x = torch.cat([r.x for r in results])
    draws = x.shape[1] if x.ndim > 1 + len(shape) else 1
    rows = torch.arange(batch, device=x.device).repeat_interleave(n * draws)
    states = x.reshape(-1, *shape)
    picked = operator.select(rows)
    diverged = ~states.flatten(1).isfinite().all(1)
    states = torch.where(rowwise(diverged.to(states), states) > 0, 0.0, states)
    if operator.linear and bool(exact.any()):
        seen = measurement.select(rows)
        rest = seen.operator.adjoint(seen.operator.solve(seen.residual(states), 1.0, 0.0))
        states = states + torch.where(rowwise(exact.expand(batch)[rows].to(states), states) > 0, rest, 0.0)
    values = scaling.to_data(states.cpu())
    residual = target[rows].to(states) - picked(values.to(states))
    if operator.measured(y) is not None:
        residual = torch.where(picked.measured(residual), residual, 0.0)  # type: ignore[arg-type]
    misfit = residual.flatten(1).square().sum(1) / measurement.select(rows).count.to(states)
    each = std.to(states)[rows] if std.ndim else std.to(states)
    shaped = (batch, n * draws)

    def joined(name: str) -> Tensor | None:
        parts = [getattr(r, name) for r in results]
        return None if parts[0] is None else torch.cat(parts).reshape(batch, n).cpu()

    nfe, vjps = (torch.cat([getattr(r, name) for r in results]).reshape(batch, n).cpu() for name in ("nfe", "vjps"))
    fit = torch.where(diverged, math.inf, misfit.sqrt() / each).reshape(shaped).cpu()
    evidence = joined("log_evidence")
    several = evidence is not None and n > 1 and draws == 1
    shift = evidence_shift(states.cpu().reshape(batch, n, -1), evidence) if several else None  # type: ignore[arg-type]
    return Restored(values.reshape(*shaped, *shape), fit, nfe, vjps, evidence, joined("ess"), shift)


def _polished(
    r: Samples,
    shape: tuple[int, ...],
    denoiser: Denoiser,
    measurement: Measurement,
    polishing: Polish,
    rows: Tensor,
    index: Tensor,
    how: dict[str, Any],
) -> Samples:
    """Draws, one or several of each run, after the polish, with its calls counted."""
    draws = r.x[0].numel() // math.prod(shape)
    each = torch.arange(len(rows), device=rows.device).repeat_interleave(draws)
    place = torch.arange(len(each), device=rows.device) % draws
    keys = repeat_key(index[each] + place * repeat_key(0, 2**10), 2**20)  # other noise than that of the draws
    condition = {name: value[each] if value.ndim else value for name, value in how["condition"].items()}
    how = {"solver": polishing, "seed": how["seed"], "condition": condition, "index": keys}
    moved = polish(denoiser, measurement.select(rows[each]), r.x.reshape(-1, *shape), **how)
    spent = {name: getattr(moved, name).reshape(-1, draws).sum(1) for name in ("nfe", "vjps")}
    return replace(r, x=moved.x.reshape(r.x.shape), nfe=r.nfe + spent["nfe"], vjps=r.vjps + spent["vjps"])


def pixel_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask of entries from one of pixels, bool of the event shape or (B, \\*).

    Args:
        mask: True where measured: bool, of the event shape (C, \\*spatial), with one channel in place of all of them,
            or without channels; with one axis more in front for one mask per sample, where it has channels.
        shape: the event shape.
    """
    mask, event = boolean(mask, "inpaint"), tuple(shape)
    if mask.ndim == len(event) - 1:
        mask = mask[None]
    own = tuple(mask.shape[mask.ndim - len(event) :])
    if mask.ndim - len(event) not in (0, 1) or own not in (event, (1, *event[1:])):
        raise ValueError(
            f"expected a mask of shape {event}, {(1, *event[1:])} or {event[1:]}, or one for each sample of shape "
            f"(B, {', '.join(map(str, event))}), got {tuple(mask.shape)}"
        )
    return mask.expand(*mask.shape[: mask.ndim - len(event)], *event)


def _report(progress: Callable[[float], object], before: float, share: float, done: float) -> None:
    progress(before + share * done)
