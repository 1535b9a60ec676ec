r"""The variational bound of DDPM: the likelihood under the chain of ancestral sampling.

For times :math:`t_1 < \dots < t_N` from `t_min` to `t_max`, the chain q(x_1, ..., x_N | x_0) of a process and the
reverse chain p of its denoiser

.. math::
    \log p(v) \ge \underbrace{E \log p(v | x_1)}_{-L_0}
        - \sum_{i=2}^N \underbrace{E\, \mathrm{KL}\big(q(x_{i-1}|x_i, x_0) \,\|\, p(x_{i-1}|x_i)\big)}_{L_{i-1}}
        - \underbrace{\mathrm{KL}\big(q(x_N|x_0) \,\|\, \pi\big)}_{L_N}.

With s before t the two Gaussians of a step have the variances :math:`\beta = \sigma_s^2\sigma_{t|s}^2/\sigma_t^2`
and :math:`\tilde\beta = \beta^{1-v} (\sigma_{t|s}^2)^v` (:class:`sde.solvers.Ancestral`), and means that differ as
the noise does, so that in every dimension

.. math::
    L = \tfrac12 \Big[ \log\frac{\tilde\beta}{\beta} + \frac{\beta}{\tilde\beta} - 1
        + \frac{1}{\tilde\beta} \Big(\frac{\sigma_{t|s}^2}{\alpha_{t|s}\, \sigma_t}\Big)^2
          (\hat\varepsilon(x_t, t) - z)^2 \Big].

At the last step, to the clean end, :math:`\beta` is 0, which is no possible variance of a decoder. As in OpenAI's
programs, the decoder has the :math:`\beta` of the step before; with a learned variance it interpolates between that
:math:`\beta` and :math:`\sigma_1^2`.

Ho et al., Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239, equation 5; Nichol and
Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, https://arxiv.org/abs/2102.09672, section 3.
"""

from __future__ import annotations

__all__ = ["chain_bound"]

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data import Scaling
from ..denoisers import Conditioned, Denoiser
from ..noise import Noise, sample_index
from ..objective.bounds import decoder_variance, step_divergence
from ..sampling import evaluating, state_like
from ..shapes import check_count, event_dims, expand, sum_event
from ..solvers import Ancestral
from .bounds import Bound, assemble, check_std, mean_error, normal_like
from .decoder import log_decoder
from .flow import check_unguided


def chain_bound(
    denoiser: Denoiser,
    values: Tensor,
    scaling: Scaling,
    *,
    solver: Ancestral,
    start: float | None = None,
    draws: int = 1,
    std: float | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    repeat: int = 0,
    condition: Mapping[str, Tensor] | None = None,
) -> Bound:
    r"""The variational bound of the chain of an ancestral solver, with the last step to the clean end.

    For a :class:`sde.ChainSDE` of N steps, `Ancestral(N - 1)` is DDPM's chain. Other numbers of steps and grids give
    shorter chains, and chains of any other process.

    Args:
        denoiser: the model; it is run in evaluation mode.
        values: data values as the data set gives them, with shape (B, \*).
        scaling: the scaling of the values. For discrete data the bound is on the log-probability of the levels, for
            continuous data on the log-density in the model's range.
        solver: the steps, their grid and their variance; v=None is the learned variance of the denoiser.
        start: the time of the prior, at which the chain begins; `t_max` by default.
        draws: the number of draws of the whole chain, N calls each.
        std: the decoder's standard deviation. The default is the root of :func:`decoder_variance`, with the learned
            interpolation coefficient if there is one and `solver.v` is None, and with 0 otherwise. This is DDPM's
            decoder for DDPM's own steps. With finer steps it is much too narrow, and :math:`\sigma/\alpha` at `t_min`
            gives a tighter bound.
        seed: the seed of the noise.
        index: the positions of the samples in their data set, int64 with shape (B,); 0 to B - 1 by default.
        repeat: the number of the draw of all noise.
        condition: tensors of leading size B, or scalars, passed to the denoiser by name.

    Returns:
        The bound. Its `parts` are :math:`-L_1, \dots, -L_{N-1}`.

    Raises:
        ValueError: if the values are not data values of this scaling, or the number of draws or `std` is not positive.
    """
    check_std(std)
    check_unguided(denoiser)
    check_count("chain_bound", "draws", draws)
    reference, process = state_like(denoiser), denoiser.process
    x0 = scaling.to_model(values.cpu(), dtype=reference.dtype).to(reference.device)
    index, nfe = sample_index(x0, index), x0.new_zeros(len(x0), dtype=torch.int64)
    conditioned, noise = Conditioned(denoiser, condition, nfe), Noise(seed)
    high = process.t_max if start is None else start
    times = solver.grid.times(process, solver.steps, process.t_min, high)
    with torch.no_grad(), evaluating(denoiser):
        prior = -process.prior_divergence(x0, high)
        chains, ends = [], []
        for draw in range(repeat * draws, (repeat + 1) * draws):
            parts = []
            for i, t in enumerate(times):
                z = normal_like(x0, noise, index, draw * len(times) + i)
                mean, sigma = process.marginal(x0, t)
                x_t = mean + expand(sigma, x0) * z
                score, learned = conditioned.score_and_variance(x_t, t)
                v = solver.v if solver.v is not None else 0.0 if learned is None else learned.double()
                if i == 0:
                    clean = (x_t + expand(sigma.square(), x0) * score) / expand(process.alpha(t), x0)
                    width = decoder_variance(process, times, v if solver.v is None else 0.0).sqrt()
                    ends.append(log_decoder(scaling, values, clean, torch.full_like(width, std) if std else width))
                else:
                    error = (expand(sigma, x0) * score + z).double().square()
                    parts.append(-sum_event(step_divergence(process, times[i - 1], t, error, v)))
            chains.append(torch.stack(parts, 1))
    path, data = torch.stack(chains, 2), torch.stack(ends, 1)
    error = mean_error(path.sum(1) + data, False)
    return assemble(scaling, event_dims(x0), prior, path.mean(2), data.mean(1), error, nfe)
