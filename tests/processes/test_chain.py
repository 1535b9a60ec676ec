"""The chain: products, Bayes' rule, the published schedules, and the SDE that interpolates it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sde.processes import VP, DiscreteChain

SCHEDULES = {"linear": DiscreteChain.linear, "cosine": DiscreteChain.cosine, "quadratic": DiscreteChain.quadratic}


@pytest.fixture(params=list(SCHEDULES.values()), ids=list(SCHEDULES))
def chain(request: pytest.FixtureRequest) -> DiscreteChain:
    return request.param(60)


def test_alphas_bar_is_the_product(chain: DiscreteChain) -> None:
    expected = torch.from_numpy(np.cumprod(1.0 - chain.betas.numpy()))
    torch.testing.assert_close(chain.alphas_bar, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(chain.log_alphas_bar, expected.log(), rtol=1e-12, atol=0.0)
    assert len(chain) == len(chain.alphas_bar) == 60


def test_marginal_is_the_repeated_transition(chain: DiscreteChain) -> None:
    x0 = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    mean, var = x0, 0.0
    for i in range(1, len(chain) + 1):
        mean, beta = chain.transition(mean, i)
        # x_i = a x_{i-1} + sqrt(beta) z: the variance shrinks by a^2 and grows by beta.
        var = chain.transition(one, i)[0].item() ** 2 * var + beta.item()
        expected, std = chain.marginal(x0, i)
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0.0)
        assert std.item() ** 2 == pytest.approx(var, rel=1e-12)


def test_marginal_begins_clean(chain: DiscreteChain) -> None:
    x0 = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    mean, std = chain.marginal(x0, 0)
    assert torch.equal(mean, x0)
    assert std.item() == 0.0
    mean, std = chain.marginal(x0, torch.tensor([0, 7]))
    assert torch.equal(mean[0], x0[0])
    torch.testing.assert_close(mean[1:], chain.marginal(x0[1:], 7)[0])
    assert std.tolist() == [0.0, chain.marginal(x0, 7)[1].item()]
    assert mean.dtype == std.dtype == torch.float32


def test_posterior_is_bayes_rule(chain: DiscreteChain, generator: torch.Generator) -> None:
    # The product of N(x_{i-1}; sqrt(abar_{i-1}) x0, 1 - abar_{i-1}) and N(x_i; sqrt(1 - beta_i) x_{i-1}, beta_i).
    n = len(chain)
    x0 = torch.randn(n - 1, 3, generator=generator, dtype=torch.float64)
    x_t = torch.randn(n - 1, 3, generator=generator, dtype=torch.float64)
    i = torch.arange(2, n + 1)
    beta = chain.betas[1:, None]
    before = torch.from_numpy(np.cumprod(1.0 - chain.betas.numpy())[:-1])[:, None]
    precision = 1.0 / (1.0 - before) + (1.0 - beta) / beta
    expected = (before.sqrt() * x0 / (1.0 - before) + (1.0 - beta).sqrt() * x_t / beta) / precision
    mean, variance = chain.posterior(x0, x_t, i)
    torch.testing.assert_close(mean, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(variance, 1.0 / precision[:, 0], rtol=1e-11, atol=0.0)
    scalar = chain.posterior(x0[4:5], x_t[4:5], 6)
    torch.testing.assert_close(scalar[0], mean[4:5])
    assert scalar[1].shape == ()


def test_posterior_of_the_first_step_is_the_data(chain: DiscreteChain, generator: torch.Generator) -> None:
    x0 = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    x_1 = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    mean, variance = chain.posterior(x0, x_1, 1)
    torch.testing.assert_close(mean, x0, rtol=1e-14, atol=0.0)
    assert variance.item() == 0.0


def test_results_keep_the_dtype_of_the_data(chain: DiscreteChain) -> None:
    x = torch.ones(2, 3)
    for mean, spread in [chain.transition(x, 5), chain.marginal(x, 5), chain.posterior(x, x, 5)]:
        assert mean.dtype == spread.dtype == torch.float32
        assert mean.shape == (2, 3)


def test_linear_schedule() -> None:
    # Ho et al. 2020 have 1e-4 to 0.02 in 1000 steps.
    betas = DiscreteChain.linear(1000).betas
    np.testing.assert_allclose(betas.numpy(), 1e-4 + np.arange(1000) / 999 * (0.02 - 1e-4), rtol=1e-12)
    betas = DiscreteChain.linear(10, beta_min=0.5, beta_max=4.0).betas
    np.testing.assert_allclose(betas.numpy(), np.linspace(0.05, 0.4, 10), rtol=1e-12)


def test_quadratic_schedule() -> None:
    betas = DiscreteChain.quadratic(1000).betas
    np.testing.assert_allclose(betas[[0, -1]].numpy(), [1e-4, 0.02], rtol=1e-12)
    np.testing.assert_allclose(np.diff(betas.sqrt().numpy()), (math.sqrt(0.02) - 0.01) / 999, rtol=1e-9)


def test_cosine_schedule() -> None:
    # Nichol and Dhariwal 2021, equation 17, with beta cut at 0.999.
    n, s = 1000, 0.008
    chain = DiscreteChain.cosine(n)
    h = np.cos((np.arange(n + 1) / n + s) / (1.0 + s) * math.pi / 2.0) ** 2
    np.testing.assert_allclose(chain.alphas_bar[:-1].numpy(), h[1:-1] / h[0], rtol=1e-9)
    assert chain.betas[0].item() == pytest.approx(1.0 - h[1] / h[0], rel=1e-9)
    assert chain.betas[-1].item() == 0.999
    assert DiscreteChain.cosine(100, largest=0.5).betas.max().item() == 0.5


@pytest.mark.parametrize("schedule", [DiscreteChain.linear, DiscreteChain.quadratic])
def test_too_few_steps_are_refused_with_the_smallest_number_that_works(
    schedule: Callable[..., DiscreteChain],
) -> None:
    assert len(schedule(21)) == 21
    with pytest.raises(ValueError, match=r"n=20\b.*\b21$"):
        schedule(20)
    with pytest.raises(ValueError, match=r"n=3\b.*\b8$"):
        schedule(3, beta_max=7.5)
    assert len(schedule(8, beta_max=7.5)) == 8


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_no_steps_are_refused(schedule: Callable[..., DiscreteChain]) -> None:
    with pytest.raises(ValueError, match="n=0"):
        schedule(0)


def test_own_betas() -> None:
    chain = DiscreteChain(torch.tensor([0.5, 0.25], dtype=torch.float32))
    assert chain.betas.dtype == torch.float64
    torch.testing.assert_close(chain.alphas_bar, torch.tensor([0.5, 0.375], dtype=torch.float64))


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, 1.0], r"betas.* 1 at step 2 of 2"),
        ([0.0, 0.1], r"betas.* 0 at step 1 of 2"),
        ([0.1, -0.2, 0.3], r"betas.* -0\.2 at step 2 of 3"),
        ([0.1, math.nan], r"betas.* nan at step 2"),
        ([], r"betas.*\(0,\)"),
        ([[0.1, 0.2]], r"betas.*\(1, 2\)"),
    ],
)
def test_wrong_betas_are_refused(betas: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteChain(torch.tensor(betas))


@pytest.mark.parametrize("i", [-1, 61, torch.tensor([3, 61]), torch.tensor([-1, 3])])
def test_steps_outside_the_chain_are_refused(i: int | torch.Tensor) -> None:
    chain, x = DiscreteChain.linear(60), torch.zeros(2, 1)
    calls = (
        (1, lambda: chain.transition(x, i)),
        (0, lambda: chain.marginal(x, i)),
        (1, lambda: chain.posterior(x, x, i)),
    )
    for smallest, call in calls:
        with pytest.raises(ValueError, match=rf"\b{smallest} to 60\b.* (-1|61)\b"):
            call()


def test_the_clean_end_has_no_step_before_it() -> None:
    chain, x = DiscreteChain.linear(60), torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"\b1 to 60\b.*\b0 to 0\b"):
        chain.transition(x, 0)
    with pytest.raises(ValueError, match=r"\b1 to 60\b.*\b0 to 3\b"):
        chain.posterior(x, x, torch.tensor([0, 3]))


def test_a_step_is_an_integer() -> None:
    with pytest.raises(ValueError, match="float32"):
        DiscreteChain.linear(60).marginal(torch.zeros(2, 1), torch.tensor(3.0))


def test_linear_chain_approaches_vp_at_order_one() -> None:
    n = np.array([100, 200, 400, 800, 1600])
    errors = []
    for steps in n:
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        errors.append((DiscreteChain.linear(int(steps)).alphas_bar - VP().alpha(t).square()).abs().max().item())
    slope = np.polyfit(np.log(1.0 / n), np.log(errors), 1)[0]
    assert abs(slope - 1.0) < 0.1
    assert errors[-1] < 5e-3


def test_sde_passes_through_the_chain(chain: DiscreteChain) -> None:
    n, process = len(chain), chain.sde()
    assert process.chain is chain
    assert (process.t_min, process.t_max) == (1.0 / n, 1.0)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    torch.testing.assert_close(2.0 * process.log_alpha(t), chain.log_alphas_bar, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(process.alpha(t).square(), chain.alphas_bar, rtol=1e-12, atol=0.0)
    x = torch.ones(n, 2, dtype=torch.float64)
    (mean, std), (expected_mean, expected_std) = process.marginal(x, t), chain.marginal(x, torch.arange(1, n + 1))
    torch.testing.assert_close(mean, expected_mean, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(std, expected_std, rtol=1e-12, atol=0.0)
    assert process.log_alpha(torch.zeros((), dtype=torch.float64)).item() == 0.0


def test_sde_transition_of_one_step_is_the_chains(chain: DiscreteChain) -> None:
    n = len(chain)
    edges = torch.arange(1, n + 1, dtype=torch.float64) / n
    log_alpha, var = chain.sde().transition(edges[:-1], edges[1:])
    torch.testing.assert_close((2.0 * log_alpha).exp(), 1.0 - chain.betas[1:], rtol=1e-10, atol=0.0)
    torch.testing.assert_close(var, chain.betas[1:], rtol=1e-10, atol=0.0)


def test_sde_is_monotone_between_the_steps(chain: DiscreteChain) -> None:
    process = chain.sde()
    t = torch.linspace(0.0, 1.0, 60 * 50 + 1, dtype=torch.float64)
    assert bool((process.log_alpha(t).diff() < 0).all())
    assert bool((process.var(t).diff() > 0).all())
    inside = t[1:-1]
    assert bool((process.g2(inside) > 0).all())
    # One cubic meets the next with its slope.
    knots = torch.arange(1, 60, dtype=torch.float64) / 60
    torch.testing.assert_close(process.f(knots - 1e-12), process.f(knots + 1e-12), rtol=1e-8, atol=1e-8)


def test_sde_of_the_linear_chain_is_nearly_vp() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    process = DiscreteChain.linear(4000).sde()
    torch.testing.assert_close(process.g2(t), VP().g2(t), rtol=1e-2, atol=0.0)


def test_a_chain_of_one_step_has_no_sde() -> None:
    with pytest.raises(ValueError, match=r"n >= 2\b.*n=1\b"):
        DiscreteChain(torch.tensor([0.5])).sde()


def test_a_chain_is_printed_in_one_line_of_any_length() -> None:
    """The betas by number and range, in processes and whatever else contains a chain, too."""
    for n in (2, 1000, 4000):
        chain = DiscreteChain.linear(n, beta_max=1.0)
        assert repr(chain) == f"DiscreteChain({n} betas from {0.1 / n:.6g} to {1.0 / n:.6g})"
        assert repr(chain.sde()) == f"ChainSDE(chain={chain!r})"
