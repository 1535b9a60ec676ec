"""Weightings and times against their published forms, the network's own error, and quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from support.fixtures import DIGITS_MIXTURE
from torch import Tensor

import sde
from sde.denoisers import Denoiser, Prediction
from sde.objective import (
    DenoisingScoreMatching,
    EDMWeighting,
    FlowMatching,
    Likelihood,
    LogNormalTimes,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    UniformLogSNR,
    UniformTimes,
    Weighting,
)
from sde.shapes import expand

F64 = torch.float64
PROCESSES = [sde.VP(t_min=0.02), sde.SubVP(t_min=0.02), sde.VE(t_min=0.02), sde.RectifiedFlow(), sde.LearnedVP()]
WEIGHTINGS = [Likelihood(), EDMWeighting(), MinSNR(), SoftMinSNR(), Sigmoid(), FlowMatching()]


class Wavy(Denoiser):
    def __init__(self, process: sde.SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return torch.tanh(1.3 * x_t + expand(t, x_t))


def draws(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x0, z = (torch.randn(n, 2, 3, generator=g, dtype=F64) for _ in range(2))
    return x0, torch.rand(n, generator=g, dtype=F64), z


@pytest.mark.parametrize("compare", list(Prediction))
def test_simple_is_the_error_of_what_is_compared(compare: Prediction) -> None:
    x0, u, z = draws()
    process = sde.SubVP(t_min=0.02)
    t, _ = UniformTimes()(process, u)
    alpha, sigma = expand(process.alpha(t), x0), expand(process.sigma(t), x0)
    truth = {"noise": z, "x0": x0, "score": -z / sigma, "velocity": alpha * z - sigma * x0}[compare.value]
    error = Wavy(process).predict(compare, alpha * x0 + sigma * z, t) - truth
    for name in (compare, compare.value):
        loss = DenoisingScoreMatching(compare=name)(Wavy(process), x0, u, z)
        torch.testing.assert_close(loss, error.square().flatten(1).mean(1), rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="epsilon"):
        DenoisingScoreMatching(compare="epsilon")


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: type(w).__name__)
def test_what_is_compared_does_not_change_the_quantity(weighting: Weighting) -> None:
    x0, u, z = draws()
    for process in PROCESSES:
        losses = [
            DenoisingScoreMatching(weighting, mean=False, compare=what)(Wavy(process), x0, u, z) for what in Prediction
        ]
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], rtol=1e-8, atol=0)


def test_published_weightings() -> None:
    """Of the noise's error, as functions of sigma/alpha = s; the error of x0 is s^2 times it."""
    for process in PROCESSES:
        t = torch.linspace(process.t_min, process.t_max, 9, dtype=F64)[1:]
        s2 = process.var(t) / process.alpha(t).square()
        slope = process.g2(t) / process.var(t)
        published = {
            Likelihood(): slope,
            EDMWeighting(0.7): (s2 + 0.49) / (s2 * 0.49) * s2,  # Karras et al. 2022, table 1
            MinSNR(3.0): torch.minimum(1.0 / s2, torch.tensor(3.0)) * s2,  # Hang et al. 2023
            SoftMinSNR(4.0): s2 / (s2 + 0.25),
            Sigmoid(1.0): slope / (1.0 + (process.log_snr(t) - 1.0).exp()),  # Kingma and Gao 2023
        }
        for weighting, expected in published.items():
            torch.testing.assert_close(weighting.weight(Prediction.NOISE, process, t), expected, rtol=1e-8, atol=0)


def test_edm_gives_the_error_of_the_network_s_output_the_weight_one() -> None:
    for process, std in itertools.product(PROCESSES, (0.5, 1.3)):
        t = torch.linspace(process.t_min, process.t_max, 9, dtype=F64)
        for what in Prediction:
            _, b = sde.EDM(std).coefficients(what, process, t)
            weight = EDMWeighting(std).weight(what, process, t) * b.square()
            torch.testing.assert_close(weight, torch.ones_like(t), rtol=1e-8, atol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_flow_matching_is_the_velocity_of_the_interpolant(process: sde.SDE) -> None:
    """|| u - d/dt (alpha x0 + sigma z) ||^2, the derivative by jvp, u the drift of the probability flow."""
    x0, u, z = draws()
    denoiser = Wavy(process)
    loss = DenoisingScoreMatching(FlowMatching(), compare="velocity")(denoiser, x0, u, z)
    t, _ = UniformTimes()(process, u)

    def interpolant(time: Tensor) -> Tensor:
        return expand(process.alpha(time), x0) * x0 + expand(process.sigma(time), x0) * z

    x_t, rate = torch.func.jvp(interpolant, (t,), (torch.ones_like(t),))
    (flow,) = sde.Reverse(denoiser, eta=0.0).drift((x_t,), t)
    torch.testing.assert_close(loss, (flow - rate).square().flatten(1).mean(1), rtol=1e-7, atol=0)
    if isinstance(process, sde.RectifiedFlow):
        torch.testing.assert_close(rate, z - x0)


def test_log_normal_times_are_normal_in_the_logarithm_of_the_noise() -> None:
    rule, x = LogNormalTimes(-0.5, 0.8), torch.linspace(-3.0, 3.0, 25, dtype=F64)
    u = torch.special.ndtr(x)
    # Ends at 14 standard deviations and more: Karras et al. 2022, table 1, and Esser et al. 2024, where it is logit t.
    t, factor = rule(sde.KarrasVE(1e-6, 1e6), u)
    torch.testing.assert_close(t.log(), -0.5 + 0.8 * x, rtol=1e-7, atol=1e-7)
    assert factor.unique().tolist() == [1.0]
    torch.testing.assert_close(rule(sde.RectifiedFlow(1e-6, 1.0 - 1e-6), u)[0].logit(), -0.5 + 0.8 * x)


def test_log_normal_times_are_truncated_at_the_ends() -> None:
    """The mean of a loss over u is its mean under the truncated normal, by quadrature of both."""
    process, rule = sde.VP(t_min=0.02), LogNormalTimes(-0.5, 2.0)
    ends = -0.5 * process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=F64))
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    t, _ = rule(process, (nodes + 1.0) / 2.0)
    found = (0.5 * weights * torch.tanh(process.log_snr(t))).sum()
    level = ends.mean() + 0.5 * (ends[1] - ends[0]) * nodes
    density = weights * torch.exp(-0.5 * ((level + 0.5) / 2.0).square())
    expected = (density * torch.tanh(-2.0 * level)).sum() / density.sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    for dtype in (torch.float32, F64):
        edge = rule(process, torch.tensor([0.0, 1.0 - 2.0**-24], dtype=dtype))[0]
        assert edge.dtype == dtype
        torch.testing.assert_close(edge.double(), torch.tensor([0.02, 1.0], dtype=F64), rtol=1e-4, atol=0)


def test_settings_without_meaning_are_refused() -> None:
    for weighting in (lambda: EDMWeighting(0.0), lambda: MinSNR(-1.0), lambda: SoftMinSNR(math.inf)):
        with pytest.raises(ValueError, match=r"> 0, got \w+="):
            weighting()
    with pytest.raises(ValueError, match="bias=nan"):
        Sigmoid(math.nan)
    with pytest.raises(ValueError, match="std=0"):
        LogNormalTimes(std=0.0)
    with pytest.raises(ValueError, match="no mass"):
        LogNormalTimes(mean=200.0, std=0.1)(sde.VP(), torch.zeros(1))


def test_importance_sampled_times_cut_the_variance_of_the_likelihood_s_loss() -> None:
    """By far more than five times for the exact denoiser of a mixture that resembles digits. The second moment under
    uniform times comes from the importance-sampled draws too: uniform ones meet its largest terms too seldom."""
    with np.load(DIGITS_MIXTURE) as a:
        target = sde.exact.Mixture(*(torch.from_numpy(a[name]) for name in ("weights", "means", "covs")))
    g, n = torch.Generator().manual_seed(0), 512
    x0 = target.sample(n, generator=g)
    u, z = (torch.arange(n, dtype=F64) + 0.5) / n, torch.randn(n, 64, generator=g, dtype=F64)
    objective = DenoisingScoreMatching(Likelihood(), UniformLogSNR())
    _, factor, error = objective.weighted_error(target.denoiser(sde.VP()), x0, u, z)
    mean, sampled = (factor * error).mean(), (factor * error).square().mean()
    uniform = (factor * error.square()).mean()  # factor is the ratio of the two densities of times
    assert float((uniform - mean.square()) / (sampled - mean.square())) > 100.0
