"""The cost of a training step: `python benchmarks/training.py [toy|step|memory|device]`, all by default; and what
importance-sampled times save: `python benchmarks/training.py times RUN_DIR`.

toy: 2-D training at batch 1024 with an MLP of 128 x 4, against a bare loop of the same operations.
step: a step of DDPM++ (width 64, 32 x 32, batch 32, float32), everything included, as a multiple of the forward pass
    of its network.
memory: the peak memory of that step with and without activation checkpointing, each in a process of its own.
device: DDPM++ as for CIFAR-10 (width 128, batch 128; on a CPU width 32, batch 8) in float32, TF32 and bfloat16, eager
    and compiled, with the fraction of the measured rate of matrix products.
times: the variance of the likelihood's loss of a digits model, with uniform times as a multiple of that with
    importance-sampled ones.

Times are medians over interleaved repeats, so that other work on the machine affects both sides of a ratio; on a CPU
with one thread.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sde
from sde.networks import InResidual, UNet
from sde.objective import DenoisingScoreMatching, Likelihood, UniformLogSNR
from sde.runtime import keep_memory
from sde.training import Execution


def ddpmpp(width: int = 64, **settings: Any) -> UNet:
    """DDPM++ for colour images of 32 x 32."""
    multipliers = settings.pop("multipliers", (1, 2, 2, 2))
    options = {"attention": (1,), "attention_last": True, "skip_scale": 0.5**0.5}
    resampling = InResidual(projection=True)
    return UNet(3, width=width, multipliers=multipliers, blocks=2, resampling=resampling, **options, **settings)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def medians(*functions: Callable[[], object], repeats: int, device: torch.device | None = None) -> list[float]:
    """The median time of each function in seconds, run in turn; the first round is not counted."""
    device = torch.device("cpu") if device is None else device
    rounds = [[seconds(function, device) for function in functions] for _ in range(repeats + 1)][1:]
    return [statistics.median(times) for times in zip(*rounds)]


def training_of(network: nn.Module, size: int, device: torch.device, **settings: Any) -> sde.Training:
    """A training on images of 8 bits: data, loss, backward pass, clipping, Adam and EMA."""
    x = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    denoiser = sde.NetworkDenoiser(network, sde.VP()).to(device)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-4)
    return sde.Training(denoiser, sde.Batches(x, size), sde.data.Scaling.interval(256), optimizer=optimizer, **settings)


def step() -> None:
    network, x, t = ddpmpp(), torch.randn(32, 3, 32, 32), 1000.0 * torch.rand(32)
    training = training_of(network, 32, torch.device("cpu"))

    def forward() -> None:
        network.train()
        network(x, t)

    def plain() -> None:
        network.train()
        network(x, t).square().mean().backward()

    one, both, whole = medians(forward, plain, training.advance, repeats=5)
    print(
        f"DDPM++ of width 64, 32 x 32, batch 32, float32, one thread: forward pass {one:.2f} s, with backward pass "
        f"{both / one:.2f} times that, training step {whole / one:.2f} times that"
    )


def toy() -> None:
    """The same draws, loss, clipping, optimiser and average, written out."""
    torch.manual_seed(0)
    data, process, size = sde.data.moons(n_train=100_000).train.values, sde.VP(), 1024
    networks = [sde.networks.MLP(2, width=128, depth=4) for _ in range(2)]
    denoisers = [sde.NetworkDenoiser(network, process) for network in networks]
    training = sde.Training(denoisers[0], sde.Batches(data, size), optimizer=torch.optim.Adam(networks[0].parameters()))
    optimizer = torch.optim.Adam(networks[1].parameters())
    parameters = list(networks[1].parameters())
    average = [p.detach().clone() for p in parameters]

    def bare() -> None:
        x0 = data[torch.randint(len(data), (size,))]
        t = process.t_min + (process.t_max - process.t_min) * torch.rand(size)
        z = torch.randn_like(x0)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        loss = (networks[1](alpha * x0 + sigma * z, 1000.0 * t) - z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-3)
        loss.item()

    def several(function: Callable[[], object]) -> Callable[[], object]:
        return lambda: [function() for _ in range(20)]

    bare_time, ours = medians(several(bare), several(training.advance), repeats=15)
    print(
        f"2-D, batch 1024, MLP of 128 x 4: {1e3 * ours / 20:.2f} ms a step, bare loop {1e3 * bare_time / 20:.2f} ms: "
        f"{100 * bare_time / ours:.0f} % of its speed"
    )


def _peak(checkpointing: bool, told: Any) -> None:
    torch.set_num_threads(1)
    training = training_of(ddpmpp(), 32, torch.device("cpu"), execution=Execution(checkpointing=checkpointing))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    training.advance()
    told.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def memory() -> None:
    context = multiprocessing.get_context("spawn")
    for checkpointing in (False, True):
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_peak, args=(checkpointing, send))
        child.start()
        peak = receive.recv()
        child.join()
        print(
            f"peak memory of the step above what it begins with, checkpointing={checkpointing}: {peak / 2**20:.2f} GiB"
        )


@torch.no_grad()
def times(folder: str, repeats: int = 16) -> None:
    """Both from importance-sampled draws of the test set: uniform ones meet the largest terms too seldom."""
    model, x = sde.load(folder), sde.data.digits().test.values
    objective, factors = DenoisingScoreMatching(Likelihood(), UniformLogSNR()), []
    for repeat in range(repeats):
        g = torch.Generator().manual_seed(repeat)
        x0 = model.scaling.to_model(x, torch.rand(x.shape, generator=g, dtype=torch.float64))
        u = (torch.randperm(len(x), generator=g) + torch.rand(len(x), generator=g)) / len(x)
        _, ratio, error = objective.weighted_error(model.denoiser, x0, u, torch.randn(x0.shape, generator=g))
        ratio, error = ratio.double(), error.double()  # the ratio of the densities of times
        uniform = (ratio * error.square()).mean() - (ratio * error).mean().square()
        factors.append(float(uniform / (ratio * error).var(correction=0)))
    mean, error = statistics.mean(factors), statistics.stdev(factors) / repeats**0.5
    print(f"{model.denoiser.process}: the variance of the likelihood's loss over samples, times and noise is")
    print(f"  {mean:.0f} +- {error:.0f} times as large with uniform times, {repeats} x {len(x)} draws")


def device() -> None:
    gpu = torch.cuda.is_available()
    place = torch.device("cuda" if gpu else "cpu")
    width, size, multipliers, side = (128, 128, (1, 2, 2, 2), 8192) if gpu else (32, 8, (1, 2), 1024)
    name = torch.cuda.get_device_name() if gpu else "CPU, one thread"
    print(f"DDPM++ of width {width}, batch {size}, on {name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    with FlopCounterMode(display=False) as counter:
        training_of(ddpmpp(width, multipliers=multipliers), size, place).advance()
    work = counter.get_total_flops()
    for precision in ("float32", "TF32", "bf16") if gpu else ("float32", "bf16"):
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "TF32" else "ieee"
        torch.backends.cudnn.conv.fp32_precision = "tf32" if precision == "TF32" else "ieee"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = torch.randn(2, side, side, device=place).to(dtype)
        for backend in (None, "inductor"):
            execution = Execution("bf16" if precision == "bf16" else None, backend, channels_last=gpu)
            training = training_of(ddpmpp(width, multipliers=multipliers), size, place, execution=execution)
            taken, product = medians(training.advance, lambda: a @ b, repeats=10 if gpu else 5, device=place)  # noqa: B023
            rate = 2.0 * side**3 / product
            print(
                f"  {precision}, {'compiled' if backend else 'eager'}: {1e3 * taken:.0f} ms a step, "
                f"{100 * work / taken / rate:.0f} % of the rate of matrix products, {rate / 1e12:.3f} TFLOP/s"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_memory()
    known = {"toy": toy, "step": step, "memory": memory, "device": device}
    if sys.argv[1:2] == ["times"]:
        times(sys.argv[2])
    else:
        for name in sys.argv[1:] or known:
            known[name]()
