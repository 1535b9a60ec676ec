"""The variance of the bound as a function of the schedule: its gradient, its minimum, and what it leaves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sde
from sde.objective import ContinuousBound, LearnedSchedule, UniformTimes

F64 = torch.float64
# Gauss and Legendre in u, Gauss and Hermite in x0 and z: three nodes are exact for L, of degree 2, five for its square.
_U, _WU = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(48))
_N, _WN = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(5))
_I, _J, _K = (m.flatten() for m in torch.meshgrid(torch.arange(48), torch.arange(5), torch.arange(5), indexing="ij"))
WEIGHTS = 0.5 * _WU[_I] * _WN[_J] * _WN[_K] / (2.0 * math.pi)
STD = 0.6


def draws() -> tuple[Tensor, Tensor, Tensor]:
    return STD * _N[_J, None], (_U[_I] + 1.0) / 2.0, _N[_K, None]


def oracle(process: sde.SDE) -> sde.Denoiser:
    return sde.exact.Gaussian(torch.zeros(1, dtype=F64), torch.full((1, 1), STD**2, dtype=F64)).denoiser(process)


def second_moment(denoiser: sde.Denoiser) -> Tensor:
    path, _ = ContinuousBound(UniformTimes()).terms(denoiser, *draws())
    return (WEIGHTS * path.square()).sum()


def schedule(learn_ends: bool = False) -> sde.LearnedVP:
    process, g = sde.LearnedVP(8.0, -5.0, units=6, learn_ends=learn_ends), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in process.interior.values():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return process.double()


def test_the_schedule_s_gradient_is_that_of_half_the_second_moment() -> None:
    """Of the expectation by quadrature, differentiated through the process, the denoiser and the weights."""
    process = schedule()
    parameters = list(process.interior.values())
    expected = torch.autograd.grad(0.5 * second_moment(oracle(process)), parameters)
    loss = (WEIGHTS * LearnedSchedule(weight=3.0)(oracle(process), *draws())).sum()
    for found, gradient in zip(torch.autograd.grad(loss, parameters), expected):
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(found, 3.0 * gradient, rtol=1e-4, atol=1e-5)
    # And nothing else: the gradient of the bound, which is 0 on average alone, is not in that of a sample.
    one, three = (LearnedSchedule(weight=w)(oracle(process), *(v[:1] for v in draws())).sum() for w in (1.0, 3.0))
    for a, b in zip(torch.autograd.grad(one, parameters), torch.autograd.grad(three, parameters)):
        torch.testing.assert_close(3.0 * a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mean", [True, False])
def test_the_value_and_all_other_gradients_are_those_of_the_bound(mean: bool) -> None:
    process = schedule(learn_ends=True)
    torch.manual_seed(0)
    d = sde.NetworkDenoiser(sde.networks.MLP(1, width=4, depth=1).double(), process, level=sde.LogSNRLevel())
    torch.nn.init.normal_(d.network.outlet[-1].weight)
    bound, loss = (f(d, *draws()) for f in (ContinuousBound(UniformTimes(), mean), LearnedSchedule(mean=mean)))
    torch.testing.assert_close(loss, bound, rtol=1e-12, atol=0)
    others = [process.ends, *d.network.parameters()]
    for found, expected in zip(*(torch.autograd.grad(f.sum(), others) for f in (loss, bound))):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_training_reaches_the_least_variance_and_leaves_the_bound() -> None:
    r"""The least second moment over schedules is (\int sqrt(E[h^2 | lambda]) d lambda)^2."""
    process = schedule()
    d = oracle(process)
    path = lambda: (WEIGHTS * ContinuousBound(UniformTimes()).terms(d, *draws())[0]).sum().detach()  # noqa: E731
    start, bound = second_moment(d).item(), path()
    level, over_level = 1.5 + 6.5 * _U, 6.5 * _WU
    t = process.time(level)
    x_t = process.alpha(t) * (STD * _N)[:, None, None] + process.sigma(t) * _N[:, None]
    h = 0.5 * (d.noise(x_t.reshape(-1, 1), t.expand(5, 5, 48).reshape(-1)).reshape(5, 5, 48) - _N[:, None]).square()
    moment = (_WN[:, None, None] * _WN[:, None] / (2.0 * math.pi) * h.square()).sum((0, 1))
    least = (over_level * moment.sqrt()).sum().square().item()
    optimizer = torch.optim.Adam(process.parameters(), lr=3e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (WEIGHTS * LearnedSchedule()(d, *draws())).sum().backward()
        optimizer.step()
    assert least < second_moment(d).item() < least + 0.1 * (start - least)
    torch.testing.assert_close(path(), bound, rtol=1e-4, atol=0)


def test_other_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LearnedVP, got VP"):
        LearnedSchedule()(oracle(sde.VP()), *draws())
    with pytest.raises(ValueError, match="weight=0"):
        LearnedSchedule(weight=0.0)
