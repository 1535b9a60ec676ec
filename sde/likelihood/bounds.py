r"""Variational bounds on log-likelihoods in continuous time: expectations instead of a differential equation.

The model is the reverse SDE of a denoiser, started from the prior :math:`\pi`. By Girsanov's theorem its bounds are
integrals of denoising errors. **The bound on the likelihood of data**, with a decoder p(v | x) at `t_min`:

.. math::
    \log p(v) \ge -\mathrm{KL}\big(q(x_T | x_0) \,\|\, \pi\big)
        - \tfrac12 \int_{t_{\min}}^{t_{\max}} \frac{g^2}{\sigma^2}\, E\|\hat\varepsilon(x_t, t) - z\|^2\, dt
        + E \log p(v \mid x_{t_{\min}}).

**The bound on the density at** `t_min`, the density that :func:`sde.log_prob` computes for the flow, with paths from
:math:`x_s = x` at s = `t_min` and transitions :math:`x_t = \alpha_{t|s} x + \sigma_{t|s} z`:

.. math::
    \log p_s(x) \ge E \log \pi(x_T) + D \log \alpha_{T|s}
        - \int_s^T g^2\, E\Big[ \tfrac12 \|s_\theta(x_t, t)\|^2
            + \frac{s_\theta(x_t, t) \cdot z}{\sigma_{t|s}} \Big] dt .

With the true score, and the true :math:`p_T` as the prior, the second bound is an equality for every x. Times are drawn
with a density proportional to :math:`g^2/\sigma^2` (:class:`sde.objective.UniformLogSNR`), one in each of equal strata.
Most of the variance of an integrand is that of :math:`\|z\|^2`, whose mean D is known: it is used as a control variate,
with a coefficient from the neighbouring draws.

Song et al., Maximum Likelihood Training of Score-Based Diffusion Models, 2021, https://arxiv.org/abs/2101.09258,
theorem 3; Kingma et al., Variational Diffusion Models, 2021, https://arxiv.org/abs/2107.00630, section 4.
"""

from __future__ import annotations

__all__ = ["Bound", "continuous_bound", "density_bound"]

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.scaling import Scaling, nats_to_bits
from ..denoisers import Conditioned, Denoiser
from ..noise import Noise, Stream, repeat_key, sample_index
from ..objective import Times, UniformLogSNR
from ..processes import SDE
from ..sampling import evaluating, state_like
from ..shapes import (
    check_count,
    check_recordable,
    event_dims,
    expand,
    float64,
    recordable,
    recording,
    sum_event,
    working,
)
from .decoder import log_decoder
from .flow import PriorDensity, check_unguided

# Where the counters of the noise for the decoder and for a given prior begin, within those of a repeat.
_DATA, _PRIOR = 2**38, 2**39


@dataclass(frozen=True)
class Bound:
    r"""A lower bound on a log-likelihood and its terms, in nats, with shape (B,) unless it says otherwise.

    Attributes:
        nats: the bound, the sum of its three terms.
        prior: the term of the prior, at `t_max`.
        diffusion: the term of the path.
        data: the term of the decoder; 0 in a bound on the density at `t_min`.
        parts: the addends of `diffusion`, with shape (B, n): the steps of a chain in the order of time, or the
            contributions of the single draws of time.
        standard_error: of `nats` over the draws; NaN for a single draw.
        nfe: network calls, int64.
        bits_per_dim: `nats` as an upper bound on bits per dimension of data.
    """

    nats: Tensor
    prior: Tensor
    diffusion: Tensor
    data: Tensor
    parts: Tensor
    standard_error: Tensor
    nfe: Tensor
    bits_per_dim: Tensor


def continuous_bound(
    denoiser: Denoiser,
    values: Tensor,
    scaling: Scaling,
    *,
    draws: int = 100,
    data_draws: int = 8,
    times: Times | None = None,
    stratified: bool = True,
    std: float | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    repeat: int = 0,
    condition: Mapping[str, Tensor] | None = None,
) -> Bound:
    r"""The continuous-time bound on the likelihood of data, with a decoder at `t_min`.

    For discrete data it is a lower bound on the log-probability of the levels, for continuous data on the log-density
    in the model's range. The decoder is a Gaussian with mean :math:`E[x_0|x]` (:mod:`sde.likelihood.decoder`).

    Args:
        denoiser: the model; it is run in evaluation mode.
        values: data values as the data set gives them, with shape (B, \*).
        scaling: the scaling of the values.
        draws: the number of times for each sample.
        data_draws: the number of states at `t_min` for each sample.
        times: the distribution of times; :class:`sde.objective.UniformLogSNR` by default.
        stratified: True for one time in each of `draws` equal parts of the interval, False for independent times.
        std: the decoder's standard deviation; :math:`\sigma/\alpha` at `t_min` by default.
        seed: the seed of times and noise.
        index: the positions of the samples in their data set, int64 with shape (B,); 0 to B - 1 by default.
        repeat: the number of the draw of all noise.
        condition: tensors of leading size B, or scalars, passed to the denoiser by name.

    Raises:
        ValueError: if the values are not data values of this scaling, or a number of draws or `std` is not positive.
    """
    reference, process = state_like(denoiser), denoiser.process
    check_std(std)
    check_unguided(denoiser)
    check_count("continuous_bound", "draws", draws)
    check_count("continuous_bound", "data_draws", data_draws)
    x0 = scaling.to_model(values.cpu(), dtype=reference.dtype).to(reference.device)
    index, nfe, noise = sample_index(x0, index), x0.new_zeros(len(x0), dtype=torch.int64), Noise(seed)
    conditioned = Conditioned(denoiser, condition, nfe)
    low = float64(process.t_min)
    width = process.sigma(low) / process.alpha(low) if std is None else float64(std)
    with torch.no_grad(), evaluating(denoiser):
        prior = -process.prior_divergence(x0)
        rows = []
        for k, (t, weight) in enumerate(_times(process, times, noise, index, repeat, draws, stratified)):
            z = normal_like(x0, noise, index, repeat_key(k, repeat))
            mean, sigma = process.marginal(x0, t)
            error = (conditioned.noise(mean + expand(sigma, x0) * z, t) - z).double().square()
            scale = -0.5 * weight * process.g2(t) / process.var(t)
            rows.append(torch.stack([scale, sum_event(error), _excess(z)]))
        ends = []
        for k in range(data_draws):
            z = normal_like(x0, noise, index, repeat_key(_DATA + k, repeat))
            mean, sigma = process.marginal(x0, low)
            ends.append(log_decoder(scaling, values, conditioned(mean + expand(sigma, x0) * z, low), width))
    scale, errors, excess = torch.stack(rows, 2)
    unpredicted = _neighbours(errors / event_dims(x0)).clamp(0.0, 1.0)
    path, data = scale * (errors - unpredicted.square() * excess), torch.stack(ends, 1)
    error = (mean_error(path * draws, stratified).square() + mean_error(data, False).square()).sqrt()
    return assemble(scaling, event_dims(x0), prior, path, data.mean(1), error, nfe)


def density_bound(
    denoiser: Denoiser,
    x: Tensor,
    *,
    draws: int = 100,
    times: Times | None = None,
    stratified: bool = True,
    prior: PriorDensity | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    repeat: int = 0,
    condition: Mapping[str, Tensor] | None = None,
    scaling: Scaling | None = None,
    differentiable: bool = False,
) -> Bound:
    r"""The continuous-time bound on the log-density at `t_min`, the density that :func:`sde.log_prob` computes.

    Every draw of time is used with z and -z, in two calls: near `t_min` the variance of
    :math:`s_\theta \cdot z/\sigma_{t|s}` grows without limit, that of half the difference does not.

    Args:
        denoiser: the model; it is run in evaluation mode.
        x: data in the model's range, with shape (B, \*), as states at `t_min`. The computation runs in its dtype,
            float32 at least.
        draws, times, stratified, seed, index, repeat, condition: as in :func:`continuous_bound`.
        prior: anything with `log_prob(x)` in nats, in place of the process's own at `t_max`. It is averaged over
            `draws` states; the process's own is integrated exactly.
        scaling: the scaling of x, for bits/dim; :meth:`sde.data.Scaling.identity` by default.
        differentiable: keep the graph, for gradients with respect to x, the condition and the parameters.

    Raises:
        ValueError: if x has a wrong shape or dtype, or the number of draws is not positive.
    """
    check_unguided(denoiser)
    if differentiable:
        check_recordable(denoiser, "no gradient can be computed through it")
    check_count("density_bound", "draws", draws)
    if x.ndim < 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            f"density_bound: expected floating-point data of shape (B, *) with B >= 1 in the model's range, got "
            f"{x.dtype} {tuple(x.shape)}; dequantise and scale it first (sde.likelihood.dequantisation.states)"
        )
    process, dims, noise = denoiser.process, event_dims(x), Noise(seed)
    with recording(differentiable), evaluating(denoiser):
        x, index = recordable(working(x)), sample_index(x, index)
        nfe = torch.zeros_like(index)
        conditioned = Conditioned(denoiser, condition, nfe)
        low, high = (float64(t) for t in (process.t_min, process.t_max))
        log_alpha, var = process.transition(low, high)
        mean = expand(log_alpha.exp(), x) * x
        if prior is None:
            v, square = process.prior_var(high).item(), sum_event(mean.double().square()) + dims * var.item()
            ends = [-0.5 * (square / v + dims * math.log(2.0 * math.pi * v))]
        else:
            normals = (normal_like(x, noise, index, repeat_key(_PRIOR + k, repeat)) for k in range(draws))
            ends = [prior.log_prob(mean + expand(var.sqrt(), x) * z).double() for z in normals]
        end = torch.stack(ends, 1)
        rows = []
        for k, (t, weight) in enumerate(_times(process, times, noise, index, repeat, draws, stratified)):
            z = normal_like(x, noise, index, repeat_key(k, repeat))
            log_scale, var = process.transition(low, t)
            centre, away = expand(log_scale.exp(), x) * x, expand(var.sqrt(), x) * z
            plus, minus = conditioned.score(centre + away, t).double(), conditioned.score(centre - away, t).double()
            squares = 0.25 * sum_event(plus.square() + minus.square())
            slope = 0.5 * sum_event((plus - minus) * z) / var.sqrt()
            v_t = process.var(t)
            rows.append(torch.stack([-weight * process.g2(t) / v_t, var / v_t, v_t * squares, v_t * slope, _excess(z)]))
        scale, rise, squares, slopes, excess = torch.stack(rows, 2)
        # A score of slope -h/v in every direction has the multiple (h^2 rise/2 - h) of |z|^2 in its integrand.
        h = _neighbours(-slopes.detach() / (excess + dims)).clamp(0.0, 1.0)
        path = scale * (squares + slopes - (0.5 * h.square() * rise - h) * excess)
        error = mean_error(path * draws, stratified)
        if prior is not None:
            error = (error.square() + mean_error(end, False).square()).sqrt()
        start, diffusion = end.mean(1) + dims * log_alpha.item(), path.sum(1)
        bits = (Scaling.identity() if scaling is None else scaling).bits_per_dim(start + diffusion, dims)
        return Bound(start + diffusion, start, diffusion, torch.zeros_like(start), path, error, nfe, bits)


def assemble(
    scaling: Scaling, dims: int, prior: Tensor, parts: Tensor, data: Tensor, error: Tensor, nfe: Tensor
) -> Bound:
    """The bound on the likelihood of data with these terms."""
    diffusion = parts.sum(1)
    nats = prior + diffusion + data
    # Probabilities of levels do not depend on the scale.
    bits = scaling.bits_per_dim(nats, dims) if scaling.levels is None else nats_to_bits(nats, dims)
    return Bound(nats, prior, diffusion, data, parts, error, nfe, bits)


def mean_error(draws: Tensor, stratified: bool) -> Tensor:
    r"""The standard error of the mean of draws along the second axis, with shape (B,); NaN for a single draw.

    For stratified draws, one from each stratum, it comes from the differences of neighbours. The difference between two
    strata counts as noise, so that on average the error is not underestimated.
    """
    n, draws = draws.shape[1], draws.detach()
    if n == 1:
        return torch.full_like(draws[:, 0], math.nan)
    var = 0.5 * draws.diff(dim=1).square().mean(1) if stratified else draws.var(1)
    return (var / n).sqrt()


def _excess(z: Tensor) -> Tensor:
    r""":math:`\|z\|^2 - D`, which is 0 on average, float64 with shape (B,)."""
    return sum_event(z.double().square()) - event_dims(z)


def _neighbours(values: Tensor) -> Tensor:
    """The mean of the draws before and after each, along the second axis; 0 for a single draw.

    The value for a draw is independent of that draw's noise: times a quantity of mean 0 it does not change the mean.
    """
    n = values.shape[1]
    if n == 1:
        return torch.zeros_like(values)
    before, after = values[:, :-1], values[:, 1:]
    return torch.cat([after[:, :1], 0.5 * (before[:, :-1] + after[:, 1:]), before[:, -1:]], dim=1)


def _times(
    process: SDE, times: Times | None, noise: Noise, index: Tensor, repeat: int, draws: int, stratified: bool
) -> list[tuple[Tensor, Tensor]]:
    """The times of each draw, float64 with shape (B,), and the weights of the integrand there."""
    u = noise.uniform(Stream.TIME, index, torch.full_like(index, repeat_key(0, repeat)), (draws,), torch.float64)
    if stratified:
        u = (torch.arange(draws, device=u.device) + u) / draws
    rule, span = UniformLogSNR() if times is None else times, process.t_max - process.t_min
    return [(t, factor * span / draws) for t, factor in (rule(process, one) for one in u.unbind(1))]


def normal_like(x: Tensor, noise: Noise, index: Tensor, counter: int) -> Tensor:
    """Standard normals in the shape of x, from the stream PERTURB."""
    return noise.normal(Stream.PERTURB, index, torch.full_like(index, counter), x.shape[1:], x.dtype)


def check_std(std: float | None) -> None:
    """Refuses a standard deviation of the decoder that is not positive."""
    if std is not None and not (math.isfinite(std) and std > 0.0):
        raise ValueError(f"expected a finite standard deviation > 0 of the decoder, got std={std}")
