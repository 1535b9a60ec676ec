r"""The pilot run for particles: the variance of the data given the state, at every noise level.

.. math:: v_t = \tfrac1D\, E \|x_0 - E[x_0 | x_t]\|^2

It is measured once for a model: samples of it are made noisy at each level and denoised.
"""

from __future__ import annotations

__all__ = ["tune_particles"]

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..data.scaling import check_entries
from ..denoisers import Conditioned, Denoiser, Prediction
from ..measurement import PilotCovariance, PilotVariance
from ..noise import Noise, Stream, repeat_key
from ..sampling import evaluating, sample, state_like
from ..shapes import check_count, expand, float64, recording
from ..solvers import Solver


def tune_particles(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    *,
    data: Tensor | None = None,
    levels: int = 32,
    covariance: bool = False,
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: Callable[[float], object] | None = None,
) -> PilotVariance | PilotCovariance:
    r"""The variance of the data given the state, for `variance=` of posterior denoisers and `solvers.Particles`.

    It takes one call for each sample and level, and, without data, those of drawing the samples. Every value has the
    relative error :math:`\sqrt{2/n}` or less for n samples; 512 are enough.

    Args:
        denoiser: the model, without a measurement.
        shape: the shape (B, \*) of samples to draw from the model.
        data: data in the model's range to use instead, with shape (B, \*): data as the model was trained on.
        levels: the number of noise levels, evenly spaced in log-SNR.
        covariance: measure the covariance over all directions, which halves the errors of particles where the data has
            directions of very different variance, as images have. Its factors cost :math:`D^3` a step for each
            different operator: for a few hundred dimensions. It is shrunk towards its mean variance as far as the
            number of samples asks for (Ledoit and Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4).
        solver: the solver that draws the samples, as in :func:`sde.sample`.
        condition: the condition of each sample, as in :func:`sde.sample`.
        seed: the seed of the samples and their noise.
        dtype: the dtype of the states; that of the denoiser or of the data by default.
        progress: called with the fraction of the levels that is done.

    Raises:
        ValueError: unless exactly one of shape and data is given.
    """
    if (shape is None) == (data is None):
        raise ValueError(
            f"tune_particles needs either shape=(B, ...) or data=, got {'neither' if data is None else 'both'}"
        )
    check_count("tune_particles", "levels", levels, 2)
    number = shape[0] if data is None else len(data)  # type: ignore[index]
    check_count("tune_particles", "number of samples", number, 1 + covariance)
    if data is not None:
        check_entries("data", data, data.isfinite(), "a finite number")
    process = denoiser.process
    if data is None:
        key = repeat_key(0, 1)  # other samples than those of `sde.sample` with this seed
        pilot = {"solver": solver, "condition": condition, "seed": seed, "first": key, "dtype": dtype}
        data = sample(denoiser, shape, denoise=True, **pilot).x  # type: ignore[arg-type]
    x0 = data.to(state_like(denoiser).device, dtype or data.dtype)
    # Without noise at t_min there is no log-SNR: the rule beyond the last level is exact there.
    noisy = bool(process.var(float64(process.t_min)) > 0.0)
    low = process.t_min if noisy else process.t_min + 1e-6 * (process.t_max - process.t_min)
    ends = process.log_snr(float64([process.t_max, low]))
    places = torch.linspace(ends[0], ends[1], levels, dtype=torch.float64, device="cpu")
    values, noise = [], Noise(seed)
    index = torch.arange(len(x0), device=x0.device)
    counts = torch.zeros_like(index)
    with recording(False), evaluating(denoiser):
        conditioned = Conditioned(denoiser, condition, counts)
        for k, t in enumerate(process.time(places)):
            z = noise.normal(Stream.PERTURB, repeat_key(index, 1), index * 0 + k, x0.shape[1:], x0.dtype)
            mean, std = process.marginal(x0, t)
            error = x0 - conditioned.predict(Prediction.X0, mean + expand(std, x0) * z, t)
            values.append(_shrunk(error.flatten(1).double()) if covariance else error.double().square().mean())
            if progress is not None:
                progress((k + 1) / levels)
    if covariance:
        return PilotCovariance(places.tolist(), torch.stack(values))
    return PilotVariance(places.tolist(), [value.item() for value in values])


def _shrunk(error: Tensor) -> Tensor:
    """The second moments of errors (n, D), shrunk towards their mean on the diagonal by the rule of Ledoit and Wolf."""
    n, dims = error.shape
    moments = error.mT @ error / n
    mean = moments.diagonal().mean()
    target = mean * torch.eye(dims, dtype=error.dtype, device=error.device)
    spread = (moments - target).square().sum()
    sampled = (error.square().sum(1).square().mean() - moments.square().sum()) / n
    weight = (sampled / spread).clamp(1e-9, 1.0) if float(spread) > 0.0 else torch.ones_like(mean)
    return ((1.0 - weight) * moments + weight * target).cpu()
