"""Long runs hold their memory: nothing grows with the number of steps."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sde.brownian import BrownianPath
from sde.dynamics import Reverse
from sde.exact import Gaussian
from sde.noise import Noise, NoiseSource
from sde.processes import VP
from sde.solvers import EulerMaruyama, Heun, Langevin, PredictorCorrector, Solver
from sde.solvers.adaptive_sde import AdaptiveSDE
from sde.solvers.stochastic_runge_kutta import StochasticRungeKutta
from sde.solvers.torch_sde import TorchSDE

PATH = BrownianPath(0, levels=4)
RUNS: dict[str, tuple[Solver, float, NoiseSource]] = {
    "predictor-corrector": (PredictorCorrector(EulerMaruyama(1000), Langevin(0.05)), 1.0, Noise(0)),
    "predictor-corrector along a path": (PredictorCorrector(EulerMaruyama(1000), Langevin(0.05)), 1.0, PATH),
    "stochastic Runge-Kutta": (StochasticRungeKutta(1000), 1.0, Noise(0)),
    "stochastic Runge-Kutta along a path": (StochasticRungeKutta(1000), 1.0, PATH),
    "adaptive": (AdaptiveSDE(2e-3, 2e-3), 1.0, BrownianPath(0, levels=12)),
    "torchsde": (TorchSDE("reversible_heun", 1000), 1.0, PATH),
    "Heun with churn": (Heun(1000, churn=100.0), 0.0, Noise(0)),
}


def alive() -> tuple[int, int]:
    """The tensors that are alive and the bytes they hold."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) is Tensor]
    return len(tensors), sum(o.untyped_storage().nbytes() for o in tensors)


@pytest.mark.parametrize(("solver", "eta", "noise"), RUNS.values(), ids=RUNS)
def test_as_many_tensors_are_alive_late_as_early(
    gaussian: Gaussian, solver: Solver, eta: float, noise: NoiseSource
) -> None:
    dynamics, x = Reverse(gaussian.denoiser(VP()), eta), torch.zeros(2, 2, dtype=torch.float64)
    draws = noise.batch(torch.arange(2), (2,), x.dtype)
    counts = []
    with torch.no_grad():
        for k, _ in enumerate(itertools.islice(solver.trajectory(dynamics, (x,), draws), 60)):
            if k in (20, 55):
                counts.append(alive())
    assert len(counts) == 2
    assert counts[0] == counts[1]


SCRIPT = """
import resource, sys, torch
from sde.brownian import BrownianPath
from sde.denoisers import Denoiser
from sde.dynamics import Reverse
from sde.noise import Noise
from sde.processes import VP
from sde.solvers import EulerMaruyama, Langevin, PredictorCorrector
from sde.solvers.stochastic_runge_kutta import StochasticRungeKutta

class Zero(Denoiser):
    def __init__(self):
        super().__init__()
        self.process = VP()
    def forward(self, x_t, t, **condition):
        return 0.0 * x_t

torch.set_num_threads(1)
x, peaks = torch.ones(2, 3, 32, 32, dtype=torch.float64), []
for solver, source in (
    (PredictorCorrector(EulerMaruyama(1000), Langevin(0.05)), Noise(0)),
    (PredictorCorrector(EulerMaruyama(1000), Langevin(0.05)), BrownianPath(0, levels=4)),
    (StochasticRungeKutta(1000), BrownianPath(0, levels=4)),
):
    noise = source.batch(torch.arange(2), (3, 32, 32), x.dtype)
    with torch.no_grad():
        for k, _ in enumerate(solver.trajectory(Reverse(Zero(), 1.0), (x,), noise)):
            if k in (200, 1000):
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""


@pytest.mark.slow
def test_the_resident_set_holds_over_a_thousand_steps() -> None:
    """One state of 48 KiB kept for each step would be 38 MiB over the last 800; 8 MiB are the allocator's."""
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=True).stdout
    peaks = [int(p) for p in out.split()]
    for early, late in zip(peaks[::2], peaks[1::2]):
        assert late - early < 8 * 1024, peaks
