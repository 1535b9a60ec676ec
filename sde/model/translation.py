r"""Editing, translation between two models, and interpolation, by the flows and processes of denoisers.

**Editing** (SDEdit, Meng et al. 2022, https://arxiv.org/abs/2108.01073): data is noised up to a level at which only its
coarse features are left, and denoised again. For data of the model's own distribution the result is of it too, and the
closer to its source the less noise there was. Other data comes only as far as the noise lets it.

**Dual bridges** (DDIB, Su et al. 2023, https://arxiv.org/abs/2203.08382): one model encodes data along its flow, and
another decodes the latent. Going there and back returns the data, up to the error of the solver, and the data of one
model becomes samples of the other to the accuracy to which both have the same prior. The states of two processes are
matched where both have one noise level :math:`\sigma/\alpha`, as :math:`x/\alpha` (:func:`matched`).

**Interpolation** goes through the latents, spherically, because the prior is Gaussian: a mean of two latents would be
shorter than those that a model knows.
"""

from __future__ import annotations

__all__ = ["edit", "edit_time", "interpolate", "matched", "slerp", "translate"]

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..noise import Noise, Stream
from ..processes import SDE
from ..sampling import Samples, encode, sample
from ..shapes import check_event, expand, float64, working
from ..solvers import Solver

# The noise level beyond which the marginals of data of unit variance are taken for the prior.
_FORGOTTEN = 5.0


def edit_time(process: SDE, strength: float) -> float:
    r"""The time where :math:`\arctan(\sigma_t/\alpha_t)` is `strength` times that of `t_max`: 1/2 is about equal parts
    of data and noise, whatever the process."""
    if not (isinstance(strength, numbers.Real) and 0.0 < strength <= 1.0):
        raise ValueError(f"expected 0 < strength <= 1, from no change to a new sample, got strength={strength!r}")
    end = float64(process.t_max)
    if strength == 1.0:
        return process.t_max
    angle = strength * torch.atan2(process.sigma(end), process.alpha(end))
    return max(process.time(-2.0 * angle.tan().log()).item(), process.t_min)


def edit(
    denoiser: Denoiser,
    x: Tensor,
    strength: float,
    *,
    solver: Solver | None = None,
    seed: int = 0,
    first: int = 0,
    condition: Mapping[str, Tensor] | None = None,
    denoise: bool = True,
    progress: Callable[[float], object] | None = None,
) -> Samples:
    r"""Data noised to the time of a strength (:func:`edit_time`) and sampled from there.

    Args:
        denoiser: the model.
        x: data in the model's range, with shape (B, \*).
        strength: from 0, no change, to 1, a new sample.
        solver, seed, first, condition, denoise, progress: as in :func:`sde.sample`.

    Raises:
        ValueError: if the strength is out of range.
    """
    start = edit_time(denoiser.process, strength)
    x = working(x)
    index = torch.arange(first, first + len(x), device=x.device)
    z = Noise(seed).normal(Stream.PERTURB, index, torch.zeros_like(index), x.shape[1:], x.dtype)
    mean, std = denoiser.process.marginal(x, float64(start))
    call: dict[str, Any] = {"solver": solver, "seed": seed, "first": first, "condition": condition}
    return sample(denoiser, x_start=mean + expand(std, z) * z, start=start, denoise=denoise, progress=progress, **call)


def matched(source: SDE, target: SDE) -> tuple[float, float, float]:
    r"""The times where the states of two processes are one: t of one and s of the other with the same noise level
    :math:`\sigma/\alpha`, the largest that both reach, and the factor :math:`\alpha'_s / \alpha_t` of the state.

    Raises:
        ValueError: if that level is below 5, so that data of unit variance would not be forgotten there.
    """
    ends = float64(source.t_max), float64(target.t_max)
    first, second = source.log_snr(ends[0]), target.log_snr(ends[1])
    log_snr = torch.maximum(first, second)
    level = math.exp(-0.5 * log_snr.item())
    if not level >= _FORGOTTEN:
        raise ValueError(
            f"{source} and {target} cannot be matched: the largest noise level sigma/alpha that both reach is "
            f"{level:.3g}, where data is not forgotten and the priors differ; expected {_FORGOTTEN:g} at least"
        )
    t = source.t_max if bool(first == log_snr) else source.time(log_snr).item()
    s = target.t_max if bool(second == log_snr) else target.time(log_snr).item()
    # The ratio of the sigmas is that of the alphas, and finite where these are 0.
    return t, s, (target.sigma(float64(s)) / source.sigma(float64(t))).item()


def translate(
    source: Denoiser,
    x: Tensor,
    target: Denoiser,
    *,
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
    target_condition: Mapping[str, Tensor] | None = None,
    denoise: bool = False,
) -> Tensor:
    r"""The data of one model as that of another: encoded by the flow of one, decoded by that of the other.

    Args:
        source: the model of x.
        x: data in its range, with shape (B, \*).
        target: the other model, of the same event shape.
        solver: a deterministic solver, for both ways.
        condition: that of x.
        target_condition: that of the result.
        denoise: as in :func:`sde.sample`; without it the way back returns x.

    Raises:
        ValueError: if the processes cannot be matched (:func:`matched`).
    """
    t, s, factor = matched(source.process, target.process)
    latent = encode(source, x, solver=solver, condition=condition, stop=t)
    call: dict[str, Any] = {"solver": solver, "condition": target_condition, "denoise": denoise}
    return sample(target, x_start=factor * latent, start=s, eta=0.0, **call).x


def slerp(a: Tensor, b: Tensor, w: float | Tensor) -> Tensor:
    r"""The point at the fraction w of the great circle from a to b, sample by sample (Shoemake 1985).

    .. math:: \frac{\sin((1-w)\theta)\, a + \sin(w\theta)\, b}{\sin\theta}, \qquad
              \cos\theta = \frac{\langle a, b \rangle}{|a| |b|}

    Independent normals stay normal for any fixed w, in many dimensions, where :math:`\theta` is about a right angle.

    Args:
        a: the start, with shape (B, \*).
        b: the end.
        w: a number, or one for each sample, with shape (B,).
    """
    flat_a, flat_b = a.double().flatten(1), b.double().flatten(1)
    cosine = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1)).clamp(min=1e-300)
    theta = cosine.clamp(-1.0, 1.0).acos()
    w = torch.as_tensor(w, dtype=torch.float64, device=a.device)
    straight = theta.sin() < 1e-6
    sine = theta.sin().where(~straight, torch.ones_like(theta))
    start = torch.where(straight, 1.0 - w, ((1.0 - w) * theta).sin() / sine)
    stop = torch.where(straight, w.expand_as(theta), (w * theta).sin() / sine)
    return expand(start, a) * a + expand(stop, b) * b


def interpolate(
    denoiser: Denoiser,
    a: Tensor,
    b: Tensor,
    steps: int = 8,
    *,
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
    denoise: bool = False,
) -> Tensor:
    r"""A path of the model between two batches of data, through their latents, with shape (B, steps, \*).

    Args:
        denoiser: the model.
        a: data in the model's range, with shape (B, \*), which the path begins with.
        b: data that it ends with.
        steps: the number of points, both ends included.
        solver: a deterministic solver.
        condition: as in :func:`sde.sample`, for all points of a path.
        denoise: as in :func:`sde.sample`.

    Raises:
        ValueError: if a and b have different shapes, or there are fewer than 2 steps.
    """
    check_event(b, tuple(a.shape[1:]), "interpolation")
    if len(a) != len(b) or steps < 2:
        raise ValueError(f"expected as many ends as starts and steps >= 2, got {len(a)}, {len(b)} and steps={steps}")
    start, stop = (encode(denoiser, x, solver=solver, condition=condition) for x in (a, b))
    call: dict[str, Any] = {"solver": solver, "condition": condition, "denoise": denoise, "eta": 0.0}
    weights = [k / (steps - 1) for k in range(steps)]
    return torch.stack([sample(denoiser, x_T=slerp(start, stop, w), **call).x for w in weights], 1)
