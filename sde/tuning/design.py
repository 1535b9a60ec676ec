r"""The free numbers of a designed solver, as a smooth function of unconstrained parameters.

The parameters, all 0 at the start, are

- N logarithms of the gaps in :math:`\lambda = \log(\alpha / \sigma)`, relative to those of the first grid;
- the differences of the coefficients to those of a plain method on the same times, for the last predictions of each
  row; the newest coefficient takes what keeps the sum 1;
- N shifts in lambda of the times on which the network is conditioned. The state is moved there as the flow of
  :math:`\mathcal N(0, s^2 I)` would, s being the standard deviation of the data,
  :math:`c_k = \sqrt{(\alpha_\tau^2 s^2 + \sigma_\tau^2) / (\alpha_t^2 s^2 + \sigma_t^2)}`, times a free factor;
- for likelihoods, N relative differences of the weights of the divergences to those of the path.

With all but the gaps at 0 the solver is the plain method on other times: the order conditions are the centre of a
quadratic prior.
"""

from __future__ import annotations

__all__ = ["Design", "Numbers"]

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..processes import SDE
from ..solvers import Designed, FixedStep
from ..solvers.designed import method_rows, step_numbers
from .pilot import within


class Numbers(NamedTuple):
    """The numbers that steps use; see :class:`sde.solvers.Designed`.

    Attributes:
        change: log sigma after each step less log sigma before it, with shape (N,).
        weights: the weights of the predictions, with shape (N, N), lower triangular.
        inputs: the times on which the network is conditioned, with shape (N,).
        factors: the factors of its states, with shape (N,).
        density: the weights of the divergences, with shape (N,).
    """

    change: Tensor
    weights: Tensor
    inputs: Tensor
    factors: Tensor
    density: Tensor


@dataclass(frozen=True)
class Design:
    """The map from parameters to a designed solver.

    Args:
        method: the plain method, of N steps.
        process: the process.
        times: the first grid, float64 with shape (N + 1,), increasing or decreasing.
        data_std: the standard deviation s of the data.
        history: how many of the last coefficients of a row are free.
        density: whether the weights of the divergences are free.
    """

    method: FixedStep
    process: SDE
    times: Tensor
    data_std: float
    history: int = 8
    density: bool = False

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.times) - 1

    @property
    def places(self) -> Tensor:
        """The rows and columns of the free coefficients, with shape (2, n)."""
        full = torch.ones(self.steps, self.steps, device="cpu").tril(-1).triu(1 - self.history)
        return full.nonzero().T

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of parameters of each kind."""
        n = self.steps
        return n, self.places.shape[1], n, n, n if self.density else 0

    def start(self) -> Tensor:
        """The parameters of the plain method on the first grid."""
        return torch.zeros(sum(self.sizes), dtype=torch.float64, device="cpu")

    def kinds(self) -> tuple[Tensor, ...]:
        """For each kind of parameters a mask of all of them."""
        labels = torch.arange(5, device="cpu").repeat_interleave(torch.tensor(self.sizes, device="cpu"))
        return tuple(labels == i for i in range(5))

    def grid(self, parameters: Tensor) -> Tensor:
        """The times of the steps."""
        ends = 0.5 * self.process.log_snr(self.times)
        gaps = (ends.diff() / (ends[-1] - ends[0])).log() + parameters[: self.steps]
        inner = ends[0] + (ends[-1] - ends[0]) * gaps.softmax(0).cumsum(0)[:-1]
        high, low = self.times[0].item(), self.times[-1].item()
        return within(torch.cat([self.times[:1], self.process.time(2.0 * inner), self.times[-1:]]), high, low)

    def numbers(self, parameters: Tensor) -> tuple[Tensor, Tensor, Numbers]:
        """The times, the rows of coefficients and the numbers of the steps; gradients flow to the parameters."""
        _, bend, shift, factor, tilt = parameters.split(self.sizes)
        times = self.grid(parameters)
        change, weight, log_sigma = step_numbers(self.process, times)
        rows = method_rows(self.method, self.process, times)
        added = torch.zeros_like(rows).index_put(tuple(self.places), bend)
        rows = rows + added - added.sum(1).diag()
        half = 0.5 * self.process.log_snr(times)
        low, high = half[[0, -1]].detach().sort().values
        inputs = self.process.time(2.0 * (half[:-1] + shift).clamp(low, high))
        inputs = inputs.clamp(self.process.t_min, self.process.t_max)
        factors = (self._log_std(inputs) - self._log_std(times[:-1]) + factor).exp()
        weights = weight[:, None] * rows
        # The divergence of a prediction moves the log-density at every step that uses it.
        ratio = (log_sigma[:-1] - log_sigma[1:, None]).exp().tril()
        density = (weights * ratio).sum(0) * factors
        if self.density:
            density = density * (1.0 + tilt)
        return times, rows, Numbers(change, weights, inputs, factors, density)

    def jacobian(self, parameters: Tensor) -> tuple[Numbers, Tensor]:
        """The numbers, and their derivatives by the parameters, with shape (K, P): all numbers in one row of K."""
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            numbers = self.numbers(leaf)[2]
            flat = torch.cat([entry.flatten() for entry in numbers])
            unit = torch.eye(len(flat), dtype=flat.dtype, device="cpu")
            (jacobian,) = torch.autograd.grad(flat, leaf, unit, is_grads_batched=True)
        return Numbers(*(entry.detach() for entry in numbers)), jacobian

    def solver(self, parameters: Tensor, origin: str) -> Designed:
        """The designed solver."""
        times, rows, numbers = self.numbers(parameters)
        return Designed(
            times.tolist(),
            [row[: k + 1].tolist() for k, row in enumerate(rows)],
            numbers.inputs.tolist(),
            numbers.factors.tolist(),
            numbers.density.tolist() if self.density else None,
            repr(self.process),
            origin,
        )

    def on(self, times: Tensor) -> Design:
        """The same from another first grid."""
        return replace(self, times=times)

    def _log_std(self, t: Tensor) -> Tensor:
        """The log of the standard deviation of Gaussian data at a time."""
        return 0.5 * (self.process.alpha(t).square() * self.data_std**2 + self.process.var(t)).log()
