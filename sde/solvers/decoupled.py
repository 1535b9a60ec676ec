r"""Decoupled: data is drawn given the state, then given y, and the next state is that data with new noise.

Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (DAPS), 2024,
https://arxiv.org/abs/2407.01521, algorithm 1, with the Gaussian draw of its linear case in closed form; Matheron's rule
for draws of a conditional Gaussian: Wilson et al., Pathwise Conditioning of Gaussian Processes, 2020,
https://arxiv.org/abs/2011.04026.
"""

from __future__ import annotations

__all__ = ["Decoupled"]

from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Reverse, State
from ..grids import Grid, Karras
from ..measurement import NormalVariance, Variance
from ..noise import StepNoise
from ..shapes import float64
from .base import FixedStep, GridSteps, SDESolver, Step, require_noise
from .measured import Renumbered, measurement_normals, why_not_measured


@dataclass(frozen=True)
class Decoupled(SDESolver, GridSteps):
    r"""Decoupled noise annealing: the chain over noise levels t, each followed by s,

    .. math::
        \hat x_0 \sim p(x_0 | x_t), \qquad
        x_0 = \hat x_0 + v_t A^T (v_t A A^T + \sigma^2 I)^{-1} (y + \sigma e - A \hat x_0), \qquad
        x_s = \alpha_s x_0 + \sigma_s z,

    with standard normals e and z. :math:`\hat x_0` is normal around :math:`E[x_0|x_t]` with the variance :math:`v_t`;
    with a deterministic `inner`, around the end of the flow from :math:`x_t`, as in DAPS; with a stochastic one, which
    samples :math:`p(x_0|x_t)`, it is its end. The next state does not remember the last one, so that an early error is
    undone later.

    The denoiser is :class:`sde.measurement.Unguided`; any linear operator.

    Bias: the draw given y is that of normal data with the covariance :math:`v_t I`. The weights of modes are wrong
    where the noise is small, while the draws fit y.

    Args:
        steps: the number of noise levels.
        grid: the rule for their times.
        inner: a fixed-step solver from each level down to the data; None for one prediction.
        variance: :math:`v_t` as :func:`sde.tune_particles` measures it; that of unit normal data by default.
    """

    grid: Grid = Karras()
    inner: FixedStep | None = None
    variance: Variance | None = None

    needs = Reverse
    imposes = True

    def incompatibility(self, dynamics: Any) -> str | None:
        reason = super().incompatibility(dynamics) or why_not_measured(dynamics, diagonal=False)
        if reason is None and self.inner is not None:
            return self.inner.incompatibility(Reverse(dynamics.denoiser, self.inner.eta))
        return reason

    def method(self, dynamics: Reverse, times: Tensor) -> Step:
        process, measurement, inner = dynamics.process, dynamics.denoiser.measured(), self.inner
        points, at, last = times.unbind(), times.tolist(), float64(process.t_min)
        alpha, sigma = process.alpha(times).tolist(), process.sigma(times).tolist()
        variances = (self.variance or NormalVariance())(process, times).tolist()
        runs = [] if inner is None else [inner.bind(Reverse(dynamics.denoiser, inner.eta), t) for t in at[:-1]]
        used = max((run.steps or 0 for run in runs), default=0)

        def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            source, v = require_noise(noise), variances[k]
            draws = Renumbered(source, k)
            if inner is None:
                (x,) = dynamics.predict(Prediction.X0, state, points[k])
            else:
                progress = deque(runs[k].walk(state, Renumbered(source, k * used)), maxlen=1).pop()
                x = progress.x[0] / process.alpha(last).item()
            if inner is None or not inner.eta:
                x = x + v**0.5 * draws.own(0, at[k])
            x = measurement.conditioned(x, v, measurement_normals(source, k, measurement, x))
            return (alpha[k + 1] * x + sigma[k + 1] * draws.own(1, at[k + 1]),), None

        return step
