"""The overhead of solvers, and the cost of gradients of networks: `python benchmarks/overhead.py`.

Prints medians over interleaved repeats, so that other work on the machine affects both sides of a ratio.

1. Euler-Maruyama with a denoiser of negligible cost, for 1000 points in the plane in float32: microseconds per step
   without noise and with keyed noise.
2. The overhead of several solvers, with a denoiser of negligible cost at 32 x 32 and a batch size of 32, relative to
   the same number of calls of a U-Net of width 64.
3. Forward and backward pass of DDPM++ with width 64 relative to its forward pass without gradients, and a likelihood
   call (one forward pass and one vector-Jacobian product) relative to the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import sde
from sde.dynamics import Reverse, WithLogDensity
from sde.networks import InResidual, UNet
from sde.noise import Noise, StepNoise, Stream
from sde.runtime import keep_memory
from sde.solvers import DEIS, Arcsinh, EulerMaruyama, Heun, UniPC


class Free(sde.Denoiser):
    """A denoiser with negligible cost: all predictions are the state."""

    def __init__(self, process: sde.SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return x_t

    def predict(self, what: sde.Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return x_t


class NoNoise(StepNoise):
    """A source of noise that returns the same normals at every step."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        return self.z

    def select(self, index: Tensor) -> StepNoise:
        return NoNoise(self.z[index])


def ddpmpp() -> UNet:
    """DDPM++ with width 64 and two blocks per resolution, for colour images of 32 x 32.

    The weights are perturbed, because some weights of a new network are 0 and so are its gradients.
    """
    options = {
        "attention": (1,),
        "attention_last": True,
        "skip_scale": 0.5**0.5,
        "resampling": InResidual(projection=True),
    }
    network = UNet(3, width=64, multipliers=(1, 2, 2, 2), blocks=2, **options).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return network


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def medians(*functions: Callable[[], object], repeats: int = 5) -> list[float]:
    """The median time of each function in seconds, run in turn; the first round is not counted."""
    rounds = [[seconds(function) for function in functions] for _ in range(repeats + 1)][1:]
    return [statistics.median(times) for times in zip(*rounds)]


def euler_maruyama() -> None:
    steps, x = 1000, torch.randn(1000, 2)
    dynamics, solver = Reverse(Free(sde.VP()), 1.0), EulerMaruyama(1000)
    run = solver.bind(dynamics)
    quiet, keyed = medians(
        lambda: run((x,), NoNoise(torch.zeros_like(x))),
        lambda: run((x,), Noise(0).batch(torch.arange(1000), (2,), torch.float32)),
    )
    print(f"Euler-Maruyama: {quiet / steps * 1e6:.1f} us per step without noise, {keyed / steps * 1e6:.1f} with noise")


def overhead_of_solvers() -> None:
    network, x, t = ddpmpp(), torch.randn(32, 3, 32, 32), torch.tensor(0.5)
    free, c_noise = Free(sde.VP()), 1000.0 * t
    (call,) = medians(lambda: network(x, c_noise), repeats=3)
    for solver in (EulerMaruyama(20), Heun(10), DEIS(20), UniPC(20, variable=Arcsinh())):
        run = solver.bind(Reverse(free, solver.eta))
        noise = Noise(0).batch(torch.arange(32), (3, 32, 32), torch.float32)
        (overhead,) = medians(lambda run=run, noise=noise: run((x,), noise))  # type: ignore[misc]
        print(f"{type(solver).__name__}: {100.0 * overhead / (20 * call):.2f} % of 20 network calls of {call:.2f} s")


def networks() -> None:
    trained, frozen = ddpmpp(), ddpmpp().requires_grad_(False)
    x, t, v = torch.randn(32, 3, 32, 32), torch.rand(32), torch.randn(32, 3, 32, 32)

    def forward() -> None:
        with torch.no_grad():
            frozen(x, t)

    def both() -> None:
        trained.zero_grad()
        trained(x, t).square().sum().backward()

    probes = sde.Hutchinson().bind(Noise(0), torch.arange(32), x)
    dynamics = WithLogDensity(Reverse(sde.NetworkDenoiser(frozen, sde.VP()), 0.0), probes)

    def call() -> None:
        with torch.no_grad():
            dynamics.drift((v, torch.zeros(32, 1)), torch.tensor(0.5))

    plain, step, scored = medians(forward, both, call, repeats=9)
    print(
        f"DDPM++ with width 64: forward pass {plain:.2f} s; forward and backward pass {step / plain:.2f} times that, "
        f"likelihood call {scored / plain:.2f} times that"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_memory()
    with torch.no_grad():
        euler_maruyama()
    networks()
    with torch.no_grad():
        overhead_of_solvers()
