"""What a likelihood costs: `python benchmarks/likelihood.py runs/demo`, for a model that `make demo` trained.

Scores 64 test digits in two ways, in turn, three times or as often as a second argument says: as
`scripts/likelihood.py` does by default, and with SciPy's RK45 at a tolerance of 1e-5 over the whole batch, one forward
for the drift and another one for its divergence, as score_sde_pytorch does. Prints the ratio of their seconds, and how
far the mean of the first is from that of a solve in float64 at a tolerance of 1e-7 with the same dequantisation and
probes.
"""

from __future__ import annotations

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
    """The drift by one call of the network, and its divergence by another."""

    def drift(self, state: State, t: Tensor) -> State:
        (dx,) = self.flow.drift((state[0],), t)
        return dx, super().drift(state, t)[1]


def original(model: sde.Model, y: Tensor) -> Tensor:
    """bits/dim by the whole-batch way."""
    flow = Reverse(model.denoiser, 0.0)
    index = torch.arange(len(y))
    dynamics = TwoForwards(flow, sde.Hutchinson().bind(Noise(0), index, y))
    p = model.process
    with torch.no_grad():
        state = (y, torch.zeros(len(y), 1, dtype=y.dtype))
        latent, change = ScipyODE("RK45", rtol=1e-5, atol=1e-5)(dynamics, state, None, p.t_min, p.t_max)
        return model.scaling.bits_per_dim(p.prior_log_prob(latent) - change[:, 0], y[0].numel())


def main(run: str, rounds: int = 3) -> None:
    model = sde.load(run)
    x = sde.data.digits().test.values[:64]
    u = Noise(0).uniform(
        Stream.DEQUANTISE, torch.arange(64), torch.zeros(64, dtype=torch.int64), model.shape, torch.float64
    )
    y = model.scaling.to_model(x, u, dtype=state_like(model.denoiser).dtype)
    default = {"solver": RungeKutta(rtol=1e-4, atol=1e-4), "trace": sde.Hutchinson(), "atol": 0.01}

    def ours() -> LogProb:
        return sde.log_prob(model.denoiser, y, **default)

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for kept, way in zip(times, (ours, lambda: original(model, y))):
            begun = time.perf_counter()
            way()
            kept.append(time.perf_counter() - begun)
    a, b = (statistics.median(kept) for kept in times)
    result = ours()
    exact = sde.log_prob(
        model.denoiser.double(), y.double(), solver=RungeKutta(rtol=1e-7, atol=1e-7), trace=sde.Hutchinson()
    )
    bits: Callable[[Tensor], float] = lambda nats: float(model.scaling.bits_per_dim(nats.double(), 64).mean())  # noqa: E731
    print(
        f"64 digits: {a:.1f} s by default ({result.nfe.double().mean():.0f} calls each), {b:.1f} s as in the original, "
        f"ratio {a / b:.2f}; mean {bits(result.nats):.5f} bits/dim, {bits(result.nats) - bits(exact.nats):+.5f} from a "
        "solve in float64 at 1e-7"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], *map(int, sys.argv[2:]))
