"""Error for a budget of network calls, on the mixture fitted to digits of the published table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fixtures import DIGITS_MIXTURE, arrays
from torch import Tensor

from sde.exact import Mixture
from sde.processes import VE
from sde.sampling import sample
from sde.solvers import Arcsinh, GridSteps, UniPC
from sde.tuning import tune_grid

PROCESS = VE(sigma_min=0.0104, sigma_max=152.0)

# The lowest errors of k-diffusion, diffusers and azula, each on its best grid.
PEERS = {5: 0.204, 8: 0.111, 10: 0.081, 15: 0.050, 20: 0.021, 30: 0.0062, 50: 0.0021, 100: 0.0002}
# Those of a third-order exponential multistep method on a grid tuned by gradient.
TRIAL = {5: 0.114, 8: 0.055, 10: 0.044, 15: 0.0115, 20: 0.0057, 30: 0.0029}


@pytest.fixture(scope="module")
def problem() -> dict[str, Tensor]:
    return arrays(DIGITS_MIXTURE)


def mixture(problem: dict[str, Tensor]) -> Mixture:
    return Mixture(problem["weights"], problem["means"], problem["covs"])


def error(problem: dict[str, Tensor], solver: GridSteps) -> float:
    """The root mean square distance to the exact end, over the standard deviation of the data."""
    x = sample(mixture(problem).denoiser(PROCESS), x_T=problem["start"], solver=solver)
    assert x.nfe.tolist() == [solver.steps] * len(problem["start"])
    return float((x.x - problem["end"]).square().mean().sqrt() / problem["data_std"])


@pytest.mark.parametrize("calls", [5, 8, 10, 15, 20, 30, 50, 100])
def test_untuned_below_the_peers(problem: dict[str, Tensor], calls: int) -> None:
    assert error(problem, UniPC(calls, 3, variable=Arcsinh())) < PEERS[calls]


@pytest.mark.slow
@pytest.mark.parametrize("calls", list(TRIAL))
def test_tuned_below_the_trial(problem: dict[str, Tensor], calls: int) -> None:
    """The grid is designed on 128 other samples."""
    solver = UniPC(calls, 3, variable=Arcsinh())
    grid = tune_grid(mixture(problem).denoiser(PROCESS), (128, 64), solver)
    measured = error(problem, replace(solver, grid=grid))
    assert measured <= TRIAL[calls], measured
