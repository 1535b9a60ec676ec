r"""Comparison of posterior samplers: their draws against those of exact posteriors.

A problem is a mixture of five Gaussians in 8 or 16 dimensions, in units of its standard deviation, and a random
projection to half as many, with noise. Of 16 measurements it takes the one that leaves the most modes open. The
posterior is a mixture, so that its draws are exact, and so is the conditional score, with which a solver shows its own
error.

The error is the sliced Wasserstein distance of n draws from n exact ones, in prior standard deviations; that of a
second set of exact draws is the floor of the problem, which differs from problem to problem as mode counts do. The cost
is the number of network calls and of vector-Jacobian products for one independent draw; the pilot run, once for a
model, is not in it.
"""

from __future__ import annotations

__all__ = ["PosteriorProblem", "Way", "compare_posteriors", "posterior_problem", "posterior_report", "posterior_ways"]

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..exact import Mixture
from ..grids import Karras, LogSNR
from ..measurement import DPS, MMPS, DiffPIR, Matrix, Measurement, PiGDM, Unguided, Variance
from ..metrics import evidence_shift, sliced_wasserstein
from ..noise import Noise, Stream
from ..processes import VE, VP
from ..sampling import Samples, polish, sample
from ..solvers import Ancestral, Decoupled, DPMSolverPP, Euler, FixedStep, Particles, Replacement, Solver
from ..storage.files import write_atomically
from ..storage.store import Store, read
from ..tuning import tune_particles

COLUMNS = {
    **dict.fromkeys(("noise", "error", "misfit", "evidence_error", "shift", "shift_null"), np.float64),
    **dict.fromkeys(("calls", "vjps"), np.int64),
}


LOST = 3.0  # floors, above which a problem is taken to have lost a mode
SIGN = 0.2  # standard deviations beyond chance; draws that move by more say so


@dataclass(frozen=True)
class PosteriorProblem:
    """A prior, a measurement of it, and the exact posterior.

    Attributes:
        prior: the prior.
        A: the matrix, with shape (M, D).
        y: the measurement, with shape (M,).
        noise: the standard deviation of its noise.
        posterior: the posterior.
    """

    prior: Mixture
    A: Tensor
    y: Tensor
    noise: float
    posterior: Mixture


def posterior_problem(dims: int, noise: float, seed: int) -> PosteriorProblem:
    """A random problem.

    Args:
        dims: the number of dimensions D.
        noise: the standard deviation of the noise, in prior standard deviations.
        seed: the seed.
    """
    g = Noise(seed).generator(Stream.MEASUREMENT, dims)
    uniform = partial(torch.rand, generator=g, dtype=torch.float64, device="cpu")
    normal = partial(torch.randn, generator=g, dtype=torch.float64, device="cpu")
    weights = 0.5 + uniform(5)
    weights = weights / weights.sum()
    means, basis = normal(5, dims), torch.linalg.qr(normal(5, dims, dims))[0]
    eigenvalues = torch.exp(math.log(0.01) + math.log(60.0) * uniform(5, dims))  # from 0.01 to 0.6
    covs = (basis * eigenvalues[:, None]) @ basis.mT
    means = means - weights @ means
    variance = float((weights[:, None] * (means.square() + covs.diagonal(dim1=1, dim2=2))).sum(0).mean())
    prior = Mixture(weights, means / math.sqrt(variance), covs / variance)
    A = normal(dims // 2, dims) / math.sqrt(dims)
    best: tuple[float, Tensor, Mixture] | None = None
    for _ in range(16):
        y = A @ prior.sample(1, generator=g)[0] + noise * normal(len(A))
        posterior = prior.posterior(A=A, y=y, noise=noise)
        entropy = float(torch.special.entr(posterior.weights).sum())
        if best is None or entropy > best[0]:
            best = entropy, y, posterior
    assert best is not None
    return PosteriorProblem(prior, A, best[1], noise, best[2])


@dataclass(frozen=True)
class Way:
    """A way to sample a posterior.

    Attributes:
        method: makes the guided denoiser; None for the exact denoiser of the posterior.
        solver: makes the solver from the pilot's variance.
        chain: run it along VP with linear betas, for which the method is made, rather than along VE.
        polished: move the draws by :func:`sde.polish` afterwards.
    """

    method: Callable[[Denoiser, Measurement, Variance], Denoiser] | None
    solver: Callable[[Variance], Solver]
    chain: bool = False
    polished: bool = False


def _fixed(solver: Solver, variance: Variance) -> Solver:
    return solver


def posterior_ways(particles: int = 16, steps: int = 50) -> dict[str, Way]:
    """The methods of this library at the settings at which they are compared, by name: those of about 100 to 250 calls
    and products, and at the cost of the particles, 816; DPS of 2000 steps is where it is best."""
    karras = Karras()

    def chain(method: Any, solver: Solver, **keys: bool) -> Way:
        return Way(lambda d, y, v: method(d, y), partial(_fixed, solver), **keys)

    def ancestral(n: int) -> FixedStep:
        return Ancestral(n, grid=karras)

    many = partial(MMPS, iterations=8)
    gradient = partial(MMPS, covariance_gradient=True)
    ways = {
        "exact conditional score": Way(None, partial(_fixed, DPMSolverPP(25, 2, grid=karras))),
        f"Particles({steps}, {particles})": Way(DiffPIR, lambda v: Particles(steps, particles, variance=v)),
        "Particles(24, 32)": Way(DiffPIR, lambda v: Particles(24, 32, variance=v)),
        f"Particles({steps}, {particles}), polished": Way(
            DiffPIR, lambda v: Particles(steps, particles, variance=v), polished=True
        ),
        "PiGDM, 100 steps": chain(PiGDM, ancestral(100)),
        "PiGDM, 400 steps": chain(PiGDM, ancestral(400)),
        "MMPS, 8 iterations, 25 steps": chain(many, ancestral(25)),
        "MMPS, 8 iterations, 80 steps": chain(many, ancestral(80)),
        "MMPS, covariance gradient, 25 steps": chain(gradient, ancestral(25)),
        "DiffPIR, 100 steps": chain(DiffPIR, ancestral(100)),
        "DiffPIR, 800 steps": chain(DiffPIR, ancestral(800)),
        "Replacement, 20 steps of 10": chain(Unguided, Replacement(ancestral(20), 10)),
        "Replacement, 80 steps of 10": chain(Unguided, Replacement(ancestral(80), 10)),
        "Decoupled, 200 steps": Way(Unguided, lambda v: Decoupled(200, variance=v)),
        "Decoupled, 800 steps": Way(Unguided, lambda v: Decoupled(800, variance=v)),
        "Decoupled, flows of 5 at 160 levels": chain(Unguided, Decoupled(160, inner=Euler(5, grid=LogSNR()))),
    }
    for scale in (0.03, 0.1, 0.3):
        ways[f"DPS, scale {scale:g}, 400 steps"] = chain(partial(DPS, scale=scale), Ancestral(400), chain=True)
        ways[f"DPS, scale {scale:g}, 1000 steps"] = chain(partial(DPS, scale=scale), Ancestral(1000), chain=True)
    return ways


def compare_posteriors(
    path: Path,
    ways: Mapping[str, Way],
    *,
    noises: Sequence[float] = (0.01, 0.1, 1.0),
    problems: int = 4,
    draws: int = 1024,
    seed: int = 0,
) -> Iterator[tuple[int, int]]:
    """Measures the methods, and stores a row for each problem and method; it continues a file of the same settings.

    Args:
        path: the HDF5 file (:mod:`sde.storage.store`); its `index` is the problem, its `repeat` the method, 0 the
            floor.
        ways: the methods by name.
        noises: the noises.
        problems: the number of problems for each noise, of 8 and 16 dimensions in turn.
        draws: the number of draws.
        seed: the seed of the problems and of the draws.

    Yields:
        The number of rows so far and their total, before the first row and after every one.
    """
    key: dict[str, Any] = {"ways": "\n".join(["floor", *ways]), "noises": str([*noises]), "draws": draws, "seed": seed}
    total = len(noises) * problems * (len(ways) + 1)
    with Store.open(path, COLUMNS, key=key) as store:
        done = {repeat: store.done(repeat) for repeat in range(len(ways) + 1)}
        yield len(store), total
        for index in range(len(noises) * problems):
            place, noise = index // len(noises), noises[index % len(noises)]
            if all(index in known for known in done.values()):
                continue
            problem = posterior_problem((8, 16)[place % 2], noise, seed + place)
            g = Noise(seed).generator(Stream.PRIOR, index)
            truth, floor = (problem.posterior.sample(draws, generator=g) for _ in range(2))
            none = torch.zeros(1, dtype=torch.int64, device=floor.device)  # exact draws cost no call
            for repeat, way in enumerate([None, *ways.values()]):
                if index in done[repeat]:
                    continue
                r = Samples(floor, none, none) if way is None else _drawn(problem, way, draws, seed)
                residual = (problem.y - r.x @ problem.A.mT) / noise
                row = {"noise": noise, "error": _error(r.x, truth), "misfit": float(residual.square().mean().sqrt())}
                row |= {"calls": int(r.nfe.max()), "vjps": int(r.vjps.max()), "index": index, "repeat": repeat}
                row |= _evidence(problem, r)
                store.append({name: np.array([value]) for name, value in row.items()})
                yield len(store), total


def _error(x: Tensor, truth: Tensor) -> float:
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(x.shape[1], 128, generator=g, dtype=torch.float64, device="cpu")
    # A draw that diverged is as far as the data is wide.
    x = torch.where(x.isfinite().all(1, keepdim=True) & (x.abs() < 1e3).all(1, keepdim=True), x, 30.0)
    return sliced_wasserstein(x, truth, directions=directions / directions.norm(dim=0), permutations=0).value


def _evidence(problem: PosteriorProblem, r: Samples) -> dict[str, float]:
    """The error of the logarithm of the mean evidence, and how far the draws move when they are weighed by it."""
    if r.log_evidence is None:
        return dict.fromkeys(("evidence_error", "shift", "shift_null"), math.nan)
    exact = problem.prior.observed(A=problem.A, noise=problem.noise).log_prob(problem.y[None])
    error = r.log_evidence.logsumexp(0) - math.log(len(r.x)) - exact[0]
    shift = evidence_shift(r.x[None], r.log_evidence[None])
    return {"evidence_error": float(error), "shift": float(shift.value), "shift_null": float(shift.null)}


def _drawn(problem: PosteriorProblem, way: Way, draws: int, seed: int) -> Samples:
    """The draws of a method."""
    process = VP() if way.chain else VE(sigma_min=0.002, sigma_max=30.0)
    denoiser = problem.prior.denoiser(process)
    pilot = problem.prior.sample(512, generator=Noise(seed).generator(Stream.PERTURB, 0))
    variance = tune_particles(denoiser, data=pilot, covariance=True)
    measurement = Measurement(Matrix(problem.A), problem.y[None], problem.noise)
    guided = problem.posterior.denoiser(process) if way.method is None else way.method(denoiser, measurement, variance)
    shape = (draws, problem.A.shape[1])
    solver = way.solver(variance)
    # Particles end in draws; the others in the noise that is left at t_min.
    how: dict[str, Any] = {"solver": solver, "denoise": solver.population == 1}
    r = sample(guided, shape, seed=seed, dtype=torch.float64, **how)
    if not way.polished:
        return r
    moved = polish(denoiser, measurement, r.x, seed=seed + 1)
    return replace(r, x=moved.x, nfe=r.nfe + moved.nfe, vjps=r.vjps + moved.vjps)


def posterior_report(path: Path) -> str:
    """Writes the table (CSV, Markdown) and the plot (PNG) of a finished comparison beside its file.

    Returns:
        The table in Markdown: for each method its cost, and for each noise the mean error with its standard error over
        problems, the median of the error over the floor of the problem, and the number of problems above three floors.
        Below it, for methods with an evidence, its error, and how often the shift of the draws shows such a problem.
    """
    results = read(path)
    columns, names = results.columns, str(results.attributes["ways"]).splitlines()
    noises = sorted(set(columns["noise"].tolist()))
    head = ["method", "calls", "products", *(f"noise {noise:g}" for noise in noises)]
    lines, points, signs = [], [], []
    floor = dict(zip(columns["index"][columns["repeat"] == 0].tolist(), columns["error"][columns["repeat"] == 0]))
    for repeat, name in enumerate(names):
        own = {key: value[columns["repeat"] == repeat] for key, value in columns.items()}
        ratios = own["error"] / np.array([floor[i] for i in own["index"].tolist()])
        entries = [name, f"{own['calls'].mean():.0f}", f"{own['vjps'].mean():.0f}"]
        cost = float((own["calls"] + own["vjps"]).mean())
        for noise in noises:
            here = own["noise"] == noise
            values, above = own["error"][here], int((ratios[here] > LOST).sum())
            spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            entries.append(f"{values.mean():.3f} ± {spread:.3f} ({np.median(ratios[here]):.2f}, {above})")
            points.append((name, noise, cost, float(values.mean())))
        lines.append(entries)
        if np.isfinite(own["shift"]).all():
            lost, seen = ratios > LOST, own["shift"] ** 2 > SIGN**2 + own["shift_null"] ** 2
            error = own["evidence_error"]
            hits, alarms = (seen & lost).sum(), (seen & ~lost).sum()
            signs.append(
                f"{name}: log evidence off by {error.mean():+.3f} nats on average, {np.abs(error).mean():.3f} in "
                f"absolute value; draws weighed by it move by more than {SIGN} standard deviations in {hits} of "
                f"{lost.sum()} problems above {LOST:g} floors and in {alarms} of the {(~lost).sum()} others."
            )
    text = io.StringIO()
    csv.writer(text).writerows([head, *lines])
    rule = ["---"] * len(head)
    table = "\n".join(f"| {' | '.join(entries)} |" for entries in [head, rule, *lines])
    table = "\n\n".join([table, *signs])
    _write(path.with_suffix(".csv"), text.getvalue())
    _write(path.with_suffix(".md"), table + "\n")
    _plot(path.with_suffix(".png"), noises, points)
    return table


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _plot(path: Path, noises: Sequence[float], points: Sequence[tuple[str, float, float, float]]) -> None:
    from matplotlib.figure import Figure  # slow to import, and rarely needed

    families = {name: re.split(r"[,(]", name)[0] for name, _, cost, _ in points if cost}
    colours, marks, styles = list(dict.fromkeys(families.values())), Counter[str](), dict[str, tuple[str, str]]()
    for name, family in families.items():  # a colour for a method, a mark for its settings
        styles[name] = (f"C{colours.index(family)}", "osD^vP"[marks[family] % 6])
        marks[family] += 1
    figure = Figure(figsize=(4.0 * len(noises) + 3.0, 4.8), dpi=120, layout="constrained")
    for axes, noise in zip(np.atleast_1d(figure.subplots(1, len(noises), sharey=True)), noises):
        for name, at, cost, error in points:
            if at == noise and cost == 0.0:
                axes.axhline(error, color="0.6", linewidth=1.0, label=name)
            elif at == noise:
                colour, mark = styles[name]
                axes.loglog(cost, error, mark, color=colour, label=name)
        axes.set(title=f"noise {noise:g}", xlabel="calls and products for one draw")
    figure.axes[0].set_ylabel("error (prior standard deviations)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path)
