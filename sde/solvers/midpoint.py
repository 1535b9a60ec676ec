r"""Midpoint methods: single steps with an intermediate time.

Runge's midpoint rule evaluates the drift halfway in time. DPM-Solver does so for the flow without its linear part: for
:math:`u = x / \alpha_t` as a function of :math:`\kappa = \sigma_t / \alpha_t` the flow is
:math:`du/d\kappa = E[z|x_t]`. An exponential integrator expands the noise in powers of half the log-SNR,
:math:`\ell = -\log \kappa`, in which the intermediate times are chosen.

Runge, Über die numerische Auflösung von Differentialgleichungen, 1895; Lu et al., DPM-Solver: A Fast ODE Solver for
Diffusion Probabilistic Model Sampling in Around 10 Steps, 2022, https://arxiv.org/abs/2206.00927.
"""

from __future__ import annotations

__all__ = ["DPMSolver2", "DPMSolver3", "Midpoint"]

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Dynamics, Semilinear, State
from ..noise import StepNoise
from .base import GridSteps, Step, intervals, linear_combination, scalars


@dataclass(frozen=True)
class Midpoint(GridSteps):
    r"""The explicit midpoint method, of order 2 with two calls per step.

    .. math::
        x_s = x_t + (s - t)\, \tilde f\Big(x_t + \tfrac{s - t}{2} \tilde f(x_t, t),\; \tfrac{t + s}{2}\Big)

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    def method(self, dynamics: Dynamics, times: Tensor) -> Step:
        t, s, h = intervals(times)
        points, middle, steps = t.unbind(), (0.5 * (t + s)).unbind(), scalars(h)

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            halfway = linear_combination((1.0, x), (0.5 * steps[k], dynamics.drift(x, points[k])))
            return linear_combination((1.0, x), (steps[k], dynamics.drift(halfway, middle[k]))), None

        return step


@dataclass(frozen=True)
class DPMSolver2(GridSteps):
    r"""DPM-Solver-2, the exponential midpoint method in noise prediction, of order 2 with two calls per step.

    .. math::
        u_1 = u_t + (\kappa_1 - \kappa_t)\, \epsilon(u_t, t), \qquad
        u_s = u_t + (\kappa_s - \kappa_t)\, \epsilon(u_1, t_1), \qquad
        \kappa_1 = \sqrt{\kappa_t \kappa_s}

    Algorithm 1 of Lu et al. 2022 with :math:`r_1 = 1/2`, the middle of a step of :math:`\ell`, in the coordinates
    :math:`u = x / \alpha_t`.

    Args:
        steps: the number of steps.
        grid: the rule for their times.

    Raises:
        ValueError: when it is bound, if the log-SNR is infinite at a time of the grid.
    """

    needs = Semilinear

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        nodes = _Nodes(dynamics, times, (0.0, 0.5))
        half, whole = scalars(nodes.change[:, 1]), scalars(nodes.change[:, 2])

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            u = dynamics.propagate(x, -nodes.log_alpha[k, 0])
            u_1 = linear_combination((1.0, u), (half[k], nodes.noise(k, 0, u)))
            u_s = linear_combination((1.0, u), (whole[k], nodes.noise(k, 1, u_1)))
            return dynamics.propagate(u_s, nodes.log_alpha[k, 2]), None

        return step


@dataclass(frozen=True)
class DPMSolver3(GridSteps):
    r"""DPM-Solver-3, of order 3 with three calls per step.

    With :math:`h = \ell_s - \ell_t`, the intermediate times at :math:`\ell_t + h/3` and :math:`\ell_t + 2h/3`, and
    :math:`\psi(z) = (e^z - 1)/z - 1`,

    .. math::
        u_1 &= u_t + (\kappa_1 - \kappa_t)\, \epsilon_t \\
        u_2 &= u_t + (\kappa_2 - \kappa_t)\, \epsilon_t - 2 \kappa_2\, \psi(2h/3)\, (\epsilon_1 - \epsilon_t) \\
        u_s &= u_t + (\kappa_s - \kappa_t)\, \epsilon_t - \tfrac32 \kappa_s\, \psi(h)\, (\epsilon_2 - \epsilon_t)

    Algorithm 2 of Lu et al. 2022 in the coordinates :math:`u = x / \alpha_t`.

    Args:
        steps: the number of steps.
        grid: the rule for their times.

    Raises:
        ValueError: when it is bound, if the log-SNR is infinite at a time of the grid.
    """

    needs = Semilinear

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        nodes = _Nodes(dynamics, times, (0.0, 1 / 3, 2 / 3))
        third, two_thirds, whole = (scalars(nodes.change[:, i]) for i in (1, 2, 3))
        c_2 = scalars(-2.0 * nodes.kappa[:, 2] * _psi(2.0 * nodes.h / 3.0))
        c_s = scalars(-1.5 * nodes.kappa[:, 3] * _psi(nodes.h))

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            u = dynamics.propagate(x, -nodes.log_alpha[k, 0])
            first = nodes.noise(k, 0, u)
            second = nodes.noise(k, 1, linear_combination((1.0, u), (third[k], first)))
            u_2 = linear_combination((1.0, u), (two_thirds[k] - c_2[k], first), (c_2[k], second))
            u_s = linear_combination((1.0, u), (whole[k] - c_s[k], first), (c_s[k], nodes.noise(k, 2, u_2)))
            return dynamics.propagate(u_s, nodes.log_alpha[k, 3]), None

        return step


class _Nodes:
    r"""The nodes of all steps with shape (steps, nodes); the last node of a step is its end.

    Args:
        dynamics: the flow.
        times: the grid.
        fractions: the positions of the nodes before the end, as fractions of the step of :math:`\ell`, from 0.

    Attributes:
        log_alpha: :math:`\log\alpha` at the nodes.
        kappa: :math:`\sigma/\alpha` there.
        change: the change of :math:`\kappa` from the beginning of the step.
        h: the steps of :math:`\ell`, with shape (steps,).
    """

    def __init__(self, dynamics: Semilinear, times: Tensor, fractions: tuple[float, ...]) -> None:
        process = dynamics.process
        ell = 0.5 * process.log_snr(times)
        if not bool(ell.isfinite().all()):
            at = times[int((~ell.isfinite()).nonzero()[0])].item()
            raise ValueError(
                f"steps in log-SNR cannot begin or end at t={at:.6g}, where this process has no noise or no signal; "
                "use times with both, or a solver that steps in t, such as Midpoint"
            )
        start, _, self.h = intervals(ell)
        between = [process.time(2.0 * (start + fraction * self.h)) for fraction in fractions[1:]]
        t = torch.stack([times[:-1], *between, times[1:]], 1)
        self.kappa = torch.exp(-0.5 * process.log_snr(t))
        self.log_alpha = process.log_alpha(t)
        self.change = self.kappa - self.kappa[:, :1]
        self._dynamics, self._t, self._alpha = dynamics, t, self.log_alpha.exp()

    def noise(self, k: int, i: int, u: State) -> State:
        """The noise at node i of step k, as the derivative of u with respect to kappa."""
        x = self._dynamics.propagate(u, self.log_alpha[k, i])
        return self._dynamics.rate(self._dynamics.predict(Prediction.NOISE, x, self._t[k, i]), self._alpha[k, i])


def _psi(z: Tensor) -> Tensor:
    return torch.expm1(z) / z - 1.0
