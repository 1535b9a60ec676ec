"""The cost of a likelihood: `python benchmarks/likelihood.py runs/digits-vp`, for a model that `make demo` trained.

Evaluates 64 test digits, or as many as the third argument says, with two methods in turn, three times or as often as
the second argument says. The first is the default of `scripts/likelihood.py`. The second is that of score_sde_pytorch:
SciPy's RK45 at a tolerance of 1e-5 for the whole batch, with one forward pass for the drift and another one for its
divergence. Prints the ratio of their times, and the difference of the mean of the first method from a solution in
float64 at a tolerance of 1e-7 with the same dequantisation and probes, and that of the worst digit.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sde
from sde.dynamics import Reverse, State, WithLogDensity
from sde.likelihood import LogProb
from sde.noise import Noise, Stream
from sde.sampling import state_like
from sde.solvers import RungeKutta, ScipyODE


@dataclass(frozen=True)
class TwoForwards(WithLogDensity):
    """The drift from one call of the network, and its divergence from another one."""

    def drift(self, state: State, t: Tensor) -> State:
        (dx,) = self.flow.drift((state[0],), t)
        return dx, super().drift(state, t)[1]


def original(model: sde.Model, y: Tensor) -> Tensor:
    """bits/dim by the method of score_sde_pytorch."""
    flow = Reverse(model.denoiser, 0.0)
    index = torch.arange(len(y))
    dynamics = TwoForwards(flow, sde.Hutchinson().bind(Noise(0), index, y))
    p = model.process
    with torch.no_grad():
        state = (y, torch.zeros(len(y), 1, dtype=y.dtype))
        latent, change = ScipyODE("RK45", rtol=1e-5, atol=1e-5)(dynamics, state, None, p.t_min, p.t_max)
        return model.scaling.bits_per_dim(p.prior_log_prob(latent) - change[:, 0], y[0].numel())


def main(run: str, rounds: int = 3, n: int = 64) -> None:
    model = sde.load(run)
    x = sde.data.digits().test.values[:n]
    u = Noise(0).uniform(
        Stream.DEQUANTISE, torch.arange(n), torch.zeros(n, dtype=torch.int64), model.shape, torch.float64
    )
    y = model.scaling.to_model(x, u, dtype=state_like(model.denoiser).dtype)

    def ours() -> LogProb:
        return sde.log_prob(model.denoiser, y)

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for seconds, method in zip(times, (ours, lambda: original(model, y))):
            start = time.perf_counter()
            method()
            seconds.append(time.perf_counter() - start)
    a, b = (statistics.median(seconds) for seconds in times)
    result = ours()
    exact = sde.log_prob(
        model.denoiser.double(), y.double(), solver=RungeKutta(rtol=1e-7, atol=1e-7), trace=sde.Hutchinson()
    )
    bits: Callable[[Tensor], float] = lambda nats: float(model.scaling.bits_per_dim(nats.double(), 64).mean())  # noqa: E731
    print(
        f"{n} digits: {a:.1f} s by default ({result.nfe.double().mean():.0f} calls per digit), {b:.1f} s as in the "
        f"original, ratio {a / b:.2f}; mean {bits(result.nats):.5f} bits/dim, "
        f"{bits(result.nats) - bits(exact.nats):+.5f} relative to a solution in float64 at 1e-7, "
        f"worst digit {float((result.nats - exact.nats).abs().max()) / (64 * math.log(2.0)):.5f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], *map(int, sys.argv[2:]))
