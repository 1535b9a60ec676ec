"""A sample does not depend on its batch: alone, among 7 and among 64 it is the same sample.

The solvers are those of the contract's table, so that a new one joins by itself. Those that say of themselves that they
solve a batch as one (`alone=False`) are held to their noise alone, and where the error decides for all, to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from test_contract import SERVED, SOLVERS, Rational, carried, keyed
from torch import Tensor

from sde.dynamics import Reverse, Semilinear, State
from sde.noise import Noise, StepNoise, Stream
from sde.processes import VP

N = 64
X_T = math.sqrt(VP().prior_var(torch.tensor(1.0, dtype=torch.float64)).item()) * torch.randn(
    N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
)

DRAWING = [
    (name, eta)
    for name, eta in SERVED
    if (eta > 0.0 or SOLVERS[name].solver.draws) and (SOLVERS[name].alone or SOLVERS[name].calls is not None)
    if eta != 0.5 or SOLVERS[name].calls is not None  # where the error decides, half of the noise tells nothing new
]
ALONE = [
    pytest.param(name, eta, log_density, id=f"{name}-{eta}{'-log-density' * log_density}")
    for name, eta in SERVED
    for log_density in (False, True)
    if SOLVERS[name].alone and (not log_density or (SOLVERS[name].log_density and eta == 0.0))
    if eta != 0.5 or SOLVERS[name].calls is not None
]

Draws = dict[tuple[Stream, int, int], Tensor]


class Recorded(StepNoise):
    """Noise that writes down what it answered, by stream, sample and number of the draw."""

    def __init__(self, inner: StepNoise, rows: Tensor, draws: Draws) -> None:
        self.inner, self.rows, self.draws = inner, rows, draws
        self.one_path = inner.one_path  # type: ignore[misc]

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        z = self.inner.normal(stream, k, start, stop)
        n = len(self.rows)
        numbers = torch.as_tensor(k).reshape(-1, 1) if torch.as_tensor(k).ndim < 2 else torch.as_tensor(k)
        numbers = numbers.expand(n, -1)
        for row, number, value in zip(self.rows.tolist(), numbers.tolist(), z.reshape(*numbers.shape, -1)):
            self.draws |= {(stream, row, i): v.clone() for i, v in zip(number, value)}
        return z

    def select(self, index: Tensor) -> Recorded:
        return Recorded(self.inner.select(index), self.rows[index], self.draws)


def in_batches(run: Callable[[int, int], State], size: int, n: int = N) -> State:
    parts = [run(first, min(size, n - first)) for first in range(0, n, size)]
    return tuple(torch.cat(entries) for entries in zip(*parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stream", list(Stream))
def test_keyed_noise_is_the_same_bit_for_bit(stream: Stream, dtype: torch.dtype) -> None:
    def run(first: int, n: int) -> State:
        noise = Noise(3).batch(torch.arange(first, first + n), (5,), dtype)
        return tuple(noise.normal(stream, k, 1.0, 0.5) for k in (0, 1, 70))

    whole = run(0, N)
    for size in (1, 7):
        assert all(torch.equal(a, b) for a, b in zip(in_batches(run, size), whole))


@pytest.mark.parametrize(("name", "eta"), DRAWING)
def test_solvers_draw_the_same_noise_bit_for_bit(name: str, eta: float) -> None:
    """In number and in value, whatever the batch."""
    recorded: list[Draws] = []
    total, sizes = (21, (1, 7, 21)) if SOLVERS[name].calls is not None else (3, (1, 3))
    for size in sizes:
        draws: Draws = {}

        def run(first: int, n: int, draws: Draws = draws) -> State:
            dynamics = Reverse(Rational(VP()), eta)
            noise = Recorded(keyed(n, first), torch.arange(first, first + n), draws)
            return SOLVERS[name].solver(dynamics, (X_T[first : first + n],), noise)

        with torch.no_grad():
            in_batches(run, size, total)
        recorded.append(draws)
    assert recorded[0]
    for other in recorded[1:]:
        assert other.keys() == recorded[0].keys()
        assert all(torch.equal(value, recorded[0][key]) for key, value in other.items())


def results(name: str, eta: float, log_density: bool) -> Callable[[int, int], State]:
    """What becomes of `n` samples from the one numbered `first` on."""

    def run(first: int, n: int) -> State:
        state: State = (X_T[first : first + n],)
        dynamics: Semilinear = Reverse(Rational(VP()), eta)
        if log_density:
            dynamics, state = carried(dynamics, n), (*state, torch.zeros(n, 1, dtype=torch.float64))
        with torch.no_grad():
            return SOLVERS[name].solver(dynamics, state, keyed(n, first))

    return run


def agree(one: State, other: State) -> None:
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "eta", "log_density"), ALONE)
def test_results_are_the_same_to_1e_10(name: str, eta: float, log_density: bool) -> None:
    """Some of 64 on a fixed grid; of 4 where the error decides, which takes a hundred times longer."""
    run = results(name, eta, log_density)
    total, parts = (N, ((0, 7), (57, 7), (30, 1))) if SOLVERS[name].calls is not None else (4, ((0, 3), (3, 1)))
    whole = run(0, total)
    for first, n in parts:
        agree(run(first, n), tuple(entry[first : first + n] for entry in whole))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eta", "log_density"), [p for p in ALONE if SOLVERS[str(p.values[0])].calls is None])
def test_results_of_64_are_the_same_to_1e_10(name: str, eta: float, log_density: bool) -> None:
    run = results(name, eta, log_density)
    whole = run(0, N)
    for size in (1, 7):
        agree(in_batches(run, size), whole)
