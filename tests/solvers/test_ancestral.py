"""Ancestral sampling with a learned variance, and the chain's clean end."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sde.denoisers import Denoiser, LearnedVarianceDenoiser, NetworkDenoiser
from sde.dynamics import Reverse
from sde.exact import Gaussian
from sde.noise import Noise, StepNoise, Stream
from sde.processes import SDE, VE, VP, DiscreteChain, SubVP
from sde.sampling import sample
from sde.solvers import Ancestral

FRACTIONS = torch.tensor([0.0, 0.25, 0.5, 1.0, -0.1, 1.2], dtype=torch.float64)


class Learned(nn.Module):
    """A noise prediction, and a fraction of its own for each of six entries."""

    def __init__(self, wide: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.wide = wide

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        prediction = torch.tanh(self.weight * x)
        u = (2.0 * FRACTIONS - 1.0).expand_as(x)
        return torch.cat([prediction, u], 1) if self.wide else prediction


@dataclass(frozen=True)
class Given(StepNoise):
    z: Tensor

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        assert stream == Stream.STEP
        return self.z[k]

    def select(self, index: Tensor) -> StepNoise:
        raise AssertionError("a fixed-step solver keeps its batch")


def draws(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, 2, 6, generator=generator, dtype=torch.float64)


def run(solver: Ancestral, denoiser: Denoiser, x: Tensor, z: Tensor, start: float, stop: float) -> Tensor:
    with torch.no_grad():
        return solver(Reverse(denoiser), (x,), Given(z), start, stop)[0]


@pytest.mark.parametrize(
    "process", [VP(), VE(), SubVP(), DiscreteChain.cosine(50).sde()], ids=["VP", "VE", "SubVP", "ChainSDE"]
)
def test_each_entry_has_the_variance_of_its_own_fraction(process: SDE, generator: torch.Generator) -> None:
    """Entry j of a run with learned fractions is that of a run with v = fraction j, for all in [0, 1]."""
    x, z = draws(generator), draws(generator, 4)
    learned = run(Ancestral(4), LearnedVarianceDenoiser(Learned(), process), x, z, 0.8, 0.3)
    for j, v in enumerate(FRACTIONS.tolist()):
        if 0.0 <= v <= 1.0:
            fixed = run(Ancestral(4, v=v), NetworkDenoiser(Learned(wide=False), process), x, z, 0.8, 0.3)
            torch.testing.assert_close(learned[:, j], fixed[:, j], rtol=1e-11, atol=1e-11)


def test_a_step_is_equation_15(generator: torch.Generator) -> None:
    """Of Nichol and Dhariwal 2021, in the chain's own terms; fractions beyond [0, 1] go on."""
    chain = DiscreteChain.linear(100)
    d, x, z = LearnedVarianceDenoiser(Learned(), chain.sde()), draws(generator), draws(generator, 1)
    for i in (2, 3, 60, 100):
        with torch.no_grad():
            x0 = d(x, torch.tensor(i / 100, dtype=torch.float64))
        mean, variance = chain.posterior(x0, x, i)
        log_variance = FRACTIONS * chain.betas[i - 1].log() + (1.0 - FRACTIONS) * variance.log()
        step = run(Ancestral(1), d, x, z, i / 100, (i - 1) / 100)
        torch.testing.assert_close(step, mean + (0.5 * log_variance).exp() * z[0], rtol=1e-9, atol=1e-9)


def test_a_given_v_overrules_what_was_learned(generator: torch.Generator) -> None:
    x, z = draws(generator), draws(generator, 3)
    wide, plain = LearnedVarianceDenoiser(Learned(), VP()), NetworkDenoiser(Learned(wide=False), VP())
    for v in (0.0, 0.3, 1.0):
        assert torch.equal(run(Ancestral(3, v=v), wide, x, z, 0.9, 0.2), run(Ancestral(3, v=v), plain, x, z, 0.9, 0.2))


def test_without_a_learned_variance_it_is_the_posterior_s(generator: torch.Generator) -> None:
    x, z = draws(generator), draws(generator, 3)
    plain = NetworkDenoiser(Learned(wide=False), VP())
    assert torch.equal(run(Ancestral(3), plain, x, z, 0.9, 0.2), run(Ancestral(3, v=0.0), plain, x, z, 0.9, 0.2))


@pytest.mark.parametrize("learned", [True, False])
def test_a_step_to_clean_data_draws_nothing(learned: bool, generator: torch.Generator) -> None:
    process = VP(t_min=0.0)
    kind = LearnedVarianceDenoiser if learned else NetworkDenoiser
    d, x = kind(Learned(wide=learned), process), draws(generator)
    with torch.no_grad():
        (y,) = Reverse(d).x0((x,), torch.tensor(0.4, dtype=torch.float64))
    z = torch.full((1, 2, 6), torch.nan, dtype=torch.float64)
    torch.testing.assert_close(run(Ancestral(1), d, x, z, 0.4, 0.0), y, rtol=1e-12, atol=1e-12)


def test_the_whole_chain_down_to_its_clean_end() -> None:
    """N - 1 ancestral steps and the one that `denoise` adds are the loop of Ho et al., algorithm 2, i = N, ..., 1."""
    n, shape = 30, (3, 6)
    chain = DiscreteChain.linear(n)
    d = LearnedVarianceDenoiser(Learned(), chain.sde())
    drawn = sample(d, shape, solver=Ancestral(n - 1), seed=5, dtype=torch.float64, denoise=True)
    assert drawn.nfe.tolist() == [n] * 3
    noise, index = Noise(5), torch.arange(3)
    x = noise.normal(Stream.PRIOR, index, torch.zeros_like(index), shape[1:], torch.float64)
    steps = noise.batch(index, shape[1:], torch.float64)
    with torch.no_grad():
        for k, i in enumerate(range(n, 0, -1)):
            mean, variance = chain.posterior(d(x, torch.tensor(i / n, dtype=torch.float64)), x, i)
            log_variance = FRACTIONS * chain.betas[i - 1].log() + (1.0 - FRACTIONS) * variance.log()
            z = steps.normal(Stream.STEP, k, i / n, (i - 1) / n)
            x = mean + (0.5 * log_variance).exp() * z if i > 1 else mean
    torch.testing.assert_close(drawn.x, x, rtol=1e-8, atol=1e-8)


def test_the_true_variance_is_learnable() -> None:
    """For data N(0, s^2) the reverse step is a Gaussian of variance v_s var_{t|s} / v_t; with its fraction the samples
    of a coarse grid have the right variance, where neither extreme has."""

    class True_(nn.Module):
        def __init__(self, process: SDE, s2: float, grid: Tensor) -> None:
            super().__init__()
            self.process, self.s2, self.grid = process, s2, grid

        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            p, t = self.process, level.double() / 1000.0
            s = self.grid[(self.grid < t - 1e-9).nonzero().max()]
            v_t, v_s = (p.alpha(u).square() * self.s2 + p.var(u) for u in (t, s))
            true, low = v_s / v_t, p.var(s) / p.var(t)  # each over var_{t|s}
            v = 1.0 - true.log() / low.log()
            return torch.cat([p.sigma(t) * x / v_t, (2.0 * v - 1.0).expand_as(x)], 1)

    process, s2 = VP(), 0.3
    grid = torch.linspace(process.t_min, 1.0, 6, dtype=torch.float64)
    d = LearnedVarianceDenoiser(True_(process, s2, grid), process)
    x = torch.zeros(1, 1, dtype=torch.float64)
    variance = process.alpha(grid[-1]).square() * s2 + process.var(grid[-1])
    for t, s in zip(reversed(grid.tolist()), reversed(grid.tolist()[:-1])):
        step = [
            Ancestral(1)(Reverse(d), (x + shift,), Given(torch.full((1, 1, 1), z, dtype=torch.float64)), t, s)[0].item()
            for shift, z in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
        ]
        variance = (step[1] - step[0]) ** 2 * variance + (step[2] - step[0]) ** 2
    exact = process.alpha(grid[0]).square() * s2 + process.var(grid[0])
    torch.testing.assert_close(variance, exact, rtol=1e-6, atol=0.0)


def test_a_gaussian_knows_none(gaussian: Gaussian) -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    assert gaussian.denoiser(VP()).score_and_variance(x, torch.tensor(0.5))[1] is None
