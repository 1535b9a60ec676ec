"""Exact conditional denoisers: a mixture whose components are classes, and a guided score written out for SciPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde.denoisers import Denoiser, Prediction
from sde.exact import Gaussian, Mixture
from sde.processes import SDE, VP

Array = NDArray[np.float64]


def components(m: Mixture) -> list[tuple[float, Tensor, Tensor]]:
    """The weight, the mean and the covariance of each component."""
    covs = torch.einsum("kij,kj,klj->kil", m.basis, m.eigenvalues, m.basis)
    return [(w.item(), mean, cov) for w, mean, cov in zip(m.weights, m.means, covs)]


class Classes(Denoiser):
    """The denoiser of a mixture given its component as `label`; the label K, or none, stands for all of it.

    Attributes:
        rows: the number of samples that it was called for.
    """

    def __init__(self, mixture: Mixture, process: SDE) -> None:
        super().__init__()
        self.process, self.mixture = process, mixture
        each = [Gaussian(mean, cov).denoiser(process) for _, mean, cov in components(mixture)]
        self.each = torch.nn.ModuleList([*each, mixture.denoiser(process)])
        self.classes, self.rows = len(each), 0

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.predict(Prediction.X0, x_t, t, **condition)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.rows += len(x_t)
        label = condition.get("label", torch.tensor(self.classes)).expand(len(x_t))
        answers = torch.stack([d.predict(what, x_t, t) for d in self.each])  # type: ignore[operator]
        return answers[label, torch.arange(len(x_t))]


def log_classes(m: Mixture, x: Array, t: float, process: VP) -> Array:
    """log w_k N(x; alpha mu_k, alpha^2 S_k + sigma^2 I) and the scores of the components, in plain NumPy."""
    d = 0.5 * (process.beta_max - process.beta_min) * t**2 + process.beta_min * t
    alpha, var = np.exp(-0.5 * d), -np.expm1(-d)
    log, scores = [], []
    for w, mean, cov in components(m):
        c = alpha**2 * cov.numpy() + var * np.eye(len(mean))
        u = np.linalg.solve(c, x - alpha * mean.numpy())
        log.append(np.log(w) - 0.5 * ((x - alpha * mean.numpy()) @ u + np.linalg.slogdet(2 * np.pi * c)[1]))
        scores.append(-u)
    return np.column_stack([log, np.array(scores)])


def guided_flow(m: Mixture, x_T: Sequence[float], k: int, w: float, process: VP) -> Array:
    """The end of the probability flow of the guided score, by SciPy at a tolerance of 1e-9."""
    from scipy.integrate import solve_ivp

    def velocity(t: float, x: Array) -> Array:
        rows = log_classes(m, x, t, process)
        p = np.exp(rows[:, 0] - rows[:, 0].max())
        b = (p / p.sum()) @ rows[:, 1:]
        beta = process.beta_min + t * (process.beta_max - process.beta_min)
        return -0.5 * beta * (x + b + w * (rows[k, 1:] - b))

    way = process.t_max, process.t_min
    return np.asarray(solve_ivp(velocity, way, x_T, method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1])
