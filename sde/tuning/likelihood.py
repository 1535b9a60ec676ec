r"""The cheapest solver that holds a likelihood to a stated error, chosen by a short pilot.

The errors are those of the integration, in bits/dim: of the mean over the data, and the root mean square of those of
single samples. The spread of the probes is not part of them; it is the standard error of each result.

Some rows are solved by a reference, UniPC of order 3 with 128 steps. On the rows of the pilot it has to agree with half
of its steps: the root mean square of the differences is at most three quarters of the error of a sample, and their mean
half of the error of the mean, within its standard error. Else the steps of the reference are doubled, up to 512. On a
trained network 192 such steps have less than half of the error of an adaptive solver with 260 calls, and all rows stay
in one batch. On a ladder of step counts the path of UniPC of order 2 is then run for the rows of the pilot, and the
weights of its divergences are fitted: with the contributions :math:`A_{bk} = q_k \nabla \cdot D(x_{bk}) / d` of call k
to the density of row b and the errors :math:`e_b`, the weights change by the factors :math:`1 + \delta_k` that minimise

.. math:: \sum_b \Big(e_b - \sum_k A_{bk} \delta_k\Big)^2 + \mu \lVert \delta \rVert^2 ,

which takes no more calls. The errors left over are those of leave-one-out, which have a closed form, and they choose
:math:`\mu`. The first step count that meets both errors has to be confirmed by rows that were not fitted: their root
mean square error has to be as stated. The weights are then fitted to all of these rows, and the mean of the errors that
leave-one-out leaves on the unseen ones has to be as stated within its standard error; if only that fails, larger step
counts are tried. Else the adaptive solver is taken. It is not run by the pilot: on models that meet such errors it took
47 calls at least, and the demo's 196, where 20 and 44 were chosen.

**The times.** The times of the first rung are even in :math:`s = \log(\sigma/\alpha)`; on the others half of the steps
are, and the other half follow the rate :math:`|d \log p / ds|` that the first rung finds. A trained network is rough in
time: the sines by which it is conditioned on the noise level have periods below any step. Each call then has a random
error in proportion to the rate, and for given calls the sum of such errors is smallest with steps in proportion to it.
For the same reason the order is 2: extrapolation of higher order multiplies the roughness, and some rows, which pass
close to the border between two modes, multiply it again.
"""

from __future__ import annotations

__all__ = ["Choice", "PilotRows", "choose_solver", "pilot_rows"]

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..grids import LogSNR
from ..likelihood.flow import OF_THE_FLOW, DensityFlow, check_states, check_unguided, default_solver, step_error
from ..processes import SDE
from ..sampling import evaluating
from ..shapes import event_dims, float64, recording
from ..solvers import Arcsinh, Designed, Solver, UniPC
from ..trace import Trace
from .design import Design
from .equal_error import equal_mass, interpolate
from .gauss_newton import run

# The step counts that are tried, those of the reference, and the strengths of the ridge.
LADDER, REFERENCES, RIDGES = (20, 32, 44, 60, 84, 120), (128, 256, 512), (math.inf, 1.0, 1e-1, 1e-2)
# Why no fixed number of calls is taken.
FAILED = "because the pilot failed on most of its rows"
INACCURATE = "because no fixed number of calls was accurate enough in the pilot"
#: The rows that are fitted, the rows that confirm, and the number of rows below which no pilot pays.
PILOT, CONFIRMED, FEW = 10, 24, 64


@dataclass(frozen=True)
class PilotRows:
    r"""States whose densities are wanted.

    Attributes:
        x: the states, with shape (B, \*).
        index: the keys of their probes, int64 with shape (B,).
        condition: as in :func:`sde.log_prob`.
    """

    x: Tensor
    index: Tensor
    condition: Mapping[str, Tensor]

    def select(self, places: Tensor) -> PilotRows:
        """Some of the rows."""
        condition = {
            name: value[places] if isinstance(value, Tensor) and value.ndim else value
            for name, value in self.condition.items()
        }
        return PilotRows(self.x[places], self.index[places], condition)

    def joined(self, other: PilotRows) -> PilotRows:
        """These rows and others."""
        condition = {
            name: torch.cat([value, other.condition[name]]) if isinstance(value, Tensor) and value.ndim else value
            for name, value in self.condition.items()
        }
        return PilotRows(torch.cat([self.x, other.x]), torch.cat([self.index, other.index]), condition)


def pilot_rows(rows: PilotRows) -> tuple[PilotRows, PilotRows]:
    """The rows of a batch that a pilot fits and those that confirm it, evenly spread."""
    places = (
        torch.linspace(0, len(rows.x) - 1, min(PILOT + CONFIRMED, len(rows.x)), device=rows.x.device).round().long()
    )
    number = torch.arange(len(places), device=places.device)
    fitted = (number + 1) * PILOT // (PILOT + CONFIRMED) > number * PILOT // (PILOT + CONFIRMED)
    return rows.select(places[fitted]), rows.select(places[~fitted])


@dataclass(frozen=True)
class Choice:
    """A solver with what the pilot measured.

    Attributes:
        solver: the solver.
        atol: the absolute tolerance of the log-density in nats, of an adaptive one.
        reason: why it was taken, in words.
        calls: the network calls of the pilot, each for one sample.
        confirmation: those of the confirmation.
    """

    solver: Solver
    atol: float | None
    reason: str
    calls: int = 0
    confirmation: int = 0

    def __str__(self) -> str:
        solver = f"{self.solver.steps} calls" if isinstance(self.solver, Designed) else "the adaptive solver"
        spent = f"; {self.calls} calls for the pilot and {self.confirmation} for the confirmation" if self.calls else ""
        return f"chosen: {solver}, {self.reason}{spent}"

    def to_json(self) -> str:
        """The choice as text, for a file."""
        numbers = None
        if isinstance(self.solver, Designed):
            numbers = {name: getattr(self.solver, name) for name in self.solver.__dataclass_fields__}
        return json.dumps({**vars(self), "solver": numbers})

    @classmethod
    def from_json(cls, text: str) -> Choice:
        """The choice that :meth:`to_json` wrote."""
        content = json.loads(text)
        numbers = content.pop("solver")
        return cls(solver=Designed(**numbers) if numbers else default_solver(), **content)


def choose_solver(
    denoiser: Denoiser,
    pilot: PilotRows,
    unseen: PilotRows,
    rows: int,
    *,
    error: float | None = None,
    error_per_image: float | None = None,
    trace: Trace | None = None,
    seed: int = 0,
    guided: bool = False,
    progress: Callable[[float], object] | None = None,
) -> Choice:
    """The cheapest solver for a likelihood that meets an error; see :mod:`sde.tuning.likelihood`.

    Args:
        denoiser: the model.
        pilot: rows to fit, at least 4; 8 are good.
        unseen: rows that confirm, none of the pilot's.
        rows: the number of rows that will be scored. For fewer than 64 no pilot pays.
        error: the error of the mean to accept, in bits/dim; any by default.
        error_per_image: the root mean square error of a sample to accept, in bits/dim; by default four times `error`.
        trace, seed, guided: as in :func:`sde.log_prob`.
        progress: called with the fraction of the work that is done.

    Raises:
        ValueError: as :func:`sde.likelihood.flow.step_error`, if the rows are not finite, or if the denoiser is guided
            and `guided` is false.
    """
    step = step_error(error, error_per_image)
    for part in (pilot, unseen):
        if len(part.x):
            check_states(part.x)
    if not guided:
        check_unguided(denoiser, OF_THE_FLOW)
    error = math.inf if error is None else error
    each = 4.0 * error if error_per_image is None else error_per_image
    report = (lambda done: None) if progress is None else progress
    bits = event_dims(pilot.x) * math.log(2.0)
    fallback = Choice(default_solver(), step * bits, f"because no pilot pays for {rows} rows")
    if rows < FEW or len(pilot.x) < 4 or not len(unseen.x):
        return fallback
    job = _Pilot(denoiser, pilot, unseen, error, each, trace, seed)
    try:
        chosen, reason = job.chosen(job.reference(lambda done: report(0.8 * done)))
    except _NoneWillDo as none:
        return replace(fallback, reason=str(none), calls=job.calls, confirmation=job.confirmation)
    finally:
        report(1.0)
    return Choice(chosen, None, reason, job.calls, job.confirmation)


class _NoneWillDo(Exception):
    """The adaptive solver has to be taken; the message is the reason."""


@dataclass
class _Pilot:
    """The runs of a pilot.

    Attributes:
        denoiser, fitted, unseen, trace, seed: as in :func:`choose_solver`.
        error, each: the errors to accept, of the mean and of a sample.
        calls: the network calls for the fitted rows so far.
        confirmation: those for the unseen rows.
    """

    denoiser: Denoiser
    fitted: PilotRows
    unseen: PilotRows
    error: float
    each: float
    trace: Trace | None
    seed: int
    calls: int = 0
    confirmation: int = 0

    def __post_init__(self) -> None:
        process = self.denoiser.process
        self.data_std = float(self.fitted.x.double().std() / process.alpha(float64(process.t_min)))
        self.rates: tuple[Tensor, Tensor] | None = None
        self.first = self.design(LADDER[0]), self.run(self.design(LADDER[0]))
        self.rates = self.first[1].rates

    def design(self, steps: int, order: int = 2) -> Design:
        """UniPC; its times follow the rates of the first rung, once they are known."""
        process = self.denoiser.process
        method = UniPC(steps, order, variable=Arcsinh(self.data_std))
        return Design(method, process, _times(process, steps, self.rates), self.data_std, density=True)

    def run(self, plan: Design, *, fitted: bool = True, unseen: bool = False) -> _Runs:
        """The runs of the rows to fit, of the unseen ones, or of both in one batch; their calls are counted."""
        self.calls += fitted * plan.steps * len(self.fitted.x)
        self.confirmation += unseen * plan.steps * len(self.unseen.x)
        rows = self.fitted.joined(self.unseen) if fitted and unseen else self.fitted if fitted else self.unseen
        return _runs(self.denoiser, plan, rows, self.trace, self.seed)

    def reference(self, report: Callable[[float], object]) -> Tensor:
        """The accurate log-densities in bits/dim, of the fitted rows and then of the unseen ones."""
        first = len(self.fitted.x)
        if int(self.first[1].bits.isfinite().sum()) < 4:
            raise _NoneWillDo(FAILED)
        coarse = self.run(self.design(REFERENCES[0] // 2, 3)).bits
        for k, steps in enumerate(REFERENCES):
            # Both parts together, because small batches are slow.
            bits = self.run(self.design(steps, 3), unseen=True).bits
            report((k + 1) / len(REFERENCES))
            change, coarse = bits[:first] - coarse, bits[:first]
            change = change[change.isfinite()]
            if len(change) < 4:
                raise _NoneWillDo(FAILED)
            doubt = float(change.std()) / math.sqrt(len(change))
            agree = float(change.square().mean().sqrt()) <= 0.75 * self.each
            if agree and abs(float(change.mean())) <= 0.5 * self.error + doubt:
                return bits
        raise _NoneWillDo(f"{INACCURATE}, not even {REFERENCES[-1]}")

    def chosen(self, reference: Tensor) -> tuple[Designed, str]:
        """The first solver on the ladder that meets both errors, and how it was confirmed."""
        first, reason = len(self.fitted.x), INACCURATE
        rows = len(reference)
        plan, fitted = self.first
        for steps in LADDER:
            if steps != plan.steps:
                plan = self.design(steps)
                fitted = self.run(plan)
            tilt, left = fitted.fit(reference[:first])
            size = float(left.square().mean().sqrt())
            # With margins for a root mean square and a mean that a few rows estimate. The weights will be fitted to
            # all of the rows, which leaves less than is left here.
            if not (1.2 * size <= self.each and size / math.sqrt(rows) <= 0.6 * self.error):
                continue
            fresh = self.run(plan, fitted=False, unseen=True)
            errors, contributions = fresh.against(reference[first:])
            left = errors - contributions @ tilt
            spread, count = float(left.square().mean().sqrt()), len(left)
            if spread <= self.each:
                tilt, left = fitted.joined(fresh).fit(reference)
                left = left[-count:]
            mean = float(left.mean())
            shown = f"with errors of {spread:.2g} bits/dim in a sample and {mean:+.2g} in the mean of {count} rows"
            if spread <= self.each and abs(mean) - float(left.std()) / math.sqrt(count) <= self.error:
                parameters = plan.start()
                parameters[plan.kinds()[4]] = tilt
                origin = f"likelihoods of {type(self.denoiser).__name__}, from {rows} pilot rows"
                return plan.solver(parameters, origin), f"confirmed on unseen rows, {shown}"
            reason = f"because {steps} calls were not confirmed on unseen rows, {shown}"
            if not spread <= self.each:
                break  # these rows are unlike those of the pilot
        raise _NoneWillDo(reason)


@dataclass(frozen=True)
class _Runs:
    """Log-densities by a design, and what its calls contribute to them.

    Attributes:
        bits: the log-densities in bits/dim, float64 with shape (B,).
        contributions: A, of the calls to minus the log-density, in bits/dim, with shape (B, N).
        rates: the places s of the times and the mean rate of the log-density there, each with shape (N + 1,).
    """

    bits: Tensor
    contributions: Tensor
    rates: tuple[Tensor, Tensor]

    def joined(self, other: _Runs) -> _Runs:
        """These runs and others of the same design."""
        contributions = torch.cat([self.contributions, other.contributions])
        return replace(self, bits=torch.cat([self.bits, other.bits]), contributions=contributions)

    def against(self, exact: Tensor) -> tuple[Tensor, Tensor]:
        """The errors e against other log-densities in bits/dim, and A, of the rows where the others are finite."""
        finite = exact.isfinite()
        return (self.bits - exact)[finite], self.contributions[finite]

    def fit(self, exact: Tensor) -> tuple[Tensor, Tensor]:
        """The relative changes of weights, and the errors of leave-one-out in bits/dim; infinite after a failure."""
        fits = []
        error, a = self.against(exact)
        if not bool(error.isfinite().all() and a.isfinite().all()):
            return torch.zeros_like(a[0]), torch.full_like(error, math.inf)
        kernel, one = a @ a.T, torch.eye(len(a), dtype=torch.float64, device="cpu")
        for ridge in RIDGES:
            inverse = one if math.isinf(ridge) else torch.linalg.inv(kernel + ridge * kernel.diagonal().mean() * one)
            hat = 0.0 * kernel if math.isinf(ridge) else kernel @ inverse
            left = (error - hat @ error) / (1.0 - hat.diagonal())
            tilt = 0.0 * a[0] if math.isinf(ridge) else a.T @ (inverse @ error)
            fits.append((float(left.square().mean()), tilt, left))
        return min(fits, key=lambda fit: fit[0])[1:]


def _runs(denoiser: Denoiser, design: Design, rows: PilotRows, trace: Trace | None, seed: int) -> _Runs:
    process, unit = denoiser.process, event_dims(rows.x) * math.log(2.0)
    times, _, numbers = design.numbers(design.start())
    with recording(False), evaluating(denoiser):
        flow = DensityFlow(denoiser, rows.x, trace, seed=seed, index=rows.index, condition=rows.condition)
        states, predictions = run(flow.dynamics, flow.start, numbers)
    latent, change = states[-1]
    nats = process.prior_log_prob(latent) - change.mean(1)
    divergences = torch.stack([p[1].double().mean(1) for p in predictions], 1).cpu()
    s = -0.5 * process.log_snr(times)
    # d log p / ds = -D d log sigma / ds + alpha div x0, and the predictions have minus the divergence.
    (linear,) = torch.gradient(0.5 * process.var(times).log(), spacing=(s,))
    rate = event_dims(rows.x) * linear[:-1] + process.alpha(times[:-1]) * divergences
    rate = rate[rate.isfinite().all(1)].abs().mean(0)
    rate = torch.cat([rate, rate[-1:]])
    return _Runs(nats.double().cpu() / unit, divergences * numbers.density / unit, (s, rate))


def _times(process: SDE, steps: int, rates: tuple[Tensor, Tensor] | None) -> Tensor:
    """Times even in s; with rates half of the steps are, and the other half are in proportion to the rate."""
    even = LogSNR().times(process, steps, process.t_min, process.t_max)
    if rates is None:
        return even
    s, rate = rates
    fine = torch.linspace(float(s[0]), float(s[-1]), 50 * len(s), dtype=torch.float64, device="cpu")
    share = interpolate(fine, s, rate)
    density = 1.0 / (s[-1] - s[0]) + share / torch.trapezoid(share, fine)
    return torch.cat([even[:1], process.time(-2.0 * equal_mass(fine, density, steps))[1:-1], even[-1:]])
