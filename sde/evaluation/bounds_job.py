r"""The bounds job: the likelihood along the probability flow and variational bounds for the same samples.

:mod:`sde.evaluation.bounds_table` describes the measures and their columns. As in
:mod:`sde.evaluation.likelihood_job`, batches are fixed by index, and the rows do not depend on when they are computed.
"""

from __future__ import annotations

__all__ = ["BoundsScorer", "bounds_job", "decoder_std", "default_chain"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import DTypeLike
from torch import Tensor

from ..data.scaling import nats_to_bits
from ..denoisers import Denoiser
from ..grids import LogSNR, Uniform
from ..likelihood import chain_bound, continuous_bound, density_bound
from ..likelihood.truncation import default_end, truncated_at
from ..processes import SDE, ChainSDE
from ..runtime import exact_float32
from ..shapes import check_count, float64
from ..solvers import Ancestral, Solver
from ..storage.results import Plain
from .bounds_table import MEASURES, columns_of
from .job import Job, Scorer
from .job_setup import JobSetup
from .likelihood_job import FlowScorer, flow_scorer, pinned
from .summary import Rows


def default_chain(process: SDE, steps: int | None = None) -> Ancestral:
    """The chain of a bound, with the learned variance if the denoiser has one.

    Args:
        process: the process.
        steps: the number of steps before the last one, to the clean end. The default is N - 1 for a
            :class:`sde.ChainSDE` of N steps, which is DDPM's own chain on its own times, and 250 evenly in the log-SNR
            for other processes. With more steps the bound is closer to the one in continuous time.
    """
    native = len(process.chain) - 1 if isinstance(process, ChainSDE) else None
    steps = (native or 250) if steps is None else steps
    return Ancestral(steps) if steps == native else Ancestral(steps, LogSNR())


def decoder_std(process: SDE, chain: Ancestral) -> float | None:
    r"""The standard deviation of the decoder of a chain.

    It is :math:`\sigma/\alpha` at `t_min`, as in continuous time, or None, DDPM's decoder, for DDPM's own chain. DDPM's
    variance is the :math:`\tilde\beta` of one step, which is much too small for finer steps.
    """
    if isinstance(process, ChainSDE) and chain.steps == len(process.chain) - 1 and chain.grid == Uniform():
        return None
    low = float64(process.t_min)
    return (process.sigma(low) / process.alpha(low)).item()


@dataclass(frozen=True)
class BoundsScorer(Scorer):
    """Several measures of the likelihood of samples.

    Args:
        flow: the model, the data, the seed and the dequantisation; its solver, trace and tolerance are for `flow`.
        measures: some of those in :mod:`sde.evaluation.bounds_table`.
        draws: times for each sample, in `density` with two calls each and in `continuous` with one.
        data_draws: states at the end of the path for each sample, in `continuous`.
        end: the noise at the end of the path in `continuous` and `chain`, in widths of a quantisation bin
            (:mod:`sde.likelihood.truncation`); None is `t_min`.
        chain: the steps of `chain`, an :class:`sde.solvers.Ancestral`; :func:`default_chain` by default.
        chain_draws: the number of draws of the whole chain.

    Raises:
        ValueError: if a measure is unknown, a number of draws is not positive, or the chain or its end is not possible.
            No network call is made.
    """

    flow: FlowScorer
    measures: Sequence[str] = tuple(MEASURES)
    draws: int = 100
    data_draws: int = 8
    end: float | None = None
    chain: Solver | None = None
    chain_draws: int = 1

    def __post_init__(self) -> None:
        columns_of(self.measures)
        for name in ("draws", "data_draws", "chain_draws"):
            check_count("a bound", name, getattr(self, name))
        process, steps = self.truncated.process, self.steps
        if "chain" in self.measures:  # the grid may refuse the number of steps
            steps.grid.times(process, steps.steps, process.t_min, process.t_max)

    @cached_property
    def truncated(self) -> Denoiser:
        """The model with its process truncated at `end`."""
        return truncated_at(self.flow.model.denoiser, self.flow.model.scaling, self.end)

    @cached_property
    def steps(self) -> Ancestral:
        """The chain."""
        chain = default_chain(self.flow.model.process) if self.chain is None else self.chain
        if not isinstance(chain, Ancestral):
            raise ValueError(f"the chain is one of ancestral sampling: expected chain=Ancestral(...), got {chain}")
        return chain

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        return columns_of(self.measures)

    @property
    def shown(self) -> Sequence[str]:
        return self.measures

    def rows(self, index: Tensor, repeat: int) -> Rows:
        model, seed, values = self.flow.model, self.flow.seed, self.flow.split[index][0]
        batch, condition = self.flow.batch(index, repeat)
        scaling, dims = model.scaling, math.prod(model.shape)
        draw: dict[str, Any] = {"seed": seed, "index": index, "repeat": repeat, "condition": condition}
        # Levels have probabilities; continuous data has a density in its own units.
        volume = scaling.log_det(dims) if scaling.levels is None else 0.0
        rows: Rows = {}
        for name in self.measures:
            if name == "flow":
                r = self.flow.log_prob(batch, condition)
                # Not the divergence itself: in float32 prior + divergence is rounded, and the terms have to add up.
                terms = [r.prior.double(), r.nats.double() - r.prior.double(), batch.log_weight]
                rows |= _columns(name, terms, r.standard_error, r.nfe, dims)
                rows[name] = batch.bits_per_dim(r.nats).numpy()  # digit for digit that of the likelihood job
                continue
            with exact_float32():
                if name == "density":
                    bound = density_bound(model.denoiser, batch.x, draws=self.draws, **draw)
                elif name == "continuous":
                    how: dict[str, Any] = {"draws": self.draws, "data_draws": self.data_draws}
                    bound = continuous_bound(self.truncated, values, scaling, **how, **draw)
                else:
                    how = {"draws": self.chain_draws, "std": decoder_std(self.truncated.process, self.steps)}
                    bound = chain_bound(self.truncated, values, scaling, solver=self.steps, **how, **draw)
            end = batch.log_weight if name == "density" else bound.data + volume
            rows |= _columns(name, [bound.prior, bound.diffusion, end], bound.standard_error, bound.nfe, dims)
        return rows


def _columns(name: str, terms: Sequence[Tensor], error: Tensor, nfe: Tensor, dims: int) -> Rows:
    """The columns of a measure from its three terms and its standard error in nats."""
    first, second, third = (nats.double().cpu() for nats in terms)
    bits = {f"{name}_{term}": nats_to_bits(nats, dims) for term, nats in zip(MEASURES[name], (first, second, third))}
    bits[f"{name}_standard_error"] = nats_to_bits(-error.double().cpu(), dims)
    columns = {name: nats_to_bits(first + second + third, dims), **bits, f"{name}_nfe": nfe.cpu()}
    return {column: values.numpy() for column, values in columns.items()}


def bounds_job(setup: JobSetup) -> Job[BoundsScorer]:
    """The job of a config."""
    config, model = setup.config, setup.model
    if config["chain"] and config["steps"]:
        raise ValueError(f"expected steps or chain, got both: give chain.steps={config['steps']} alone")
    chain = setup.build("chain") if config["chain"] else default_chain(model.process, config["steps"])
    end = default_end(model.process, model.scaling) if config["end"] == "auto" else config["end"]
    columns_of(config["measures"])
    split = setup.split(config["split"])
    plan, out, measured = setup.plan(split, config["n"]), setup.output("-bounds.h5"), "flow" in config["measures"]
    flow, atol = flow_scorer(setup, split, solved=measured), dict[str, Plain]()
    if measured:
        flow, atol = pinned(setup, flow, out)
    draws = {key: config[key] for key in ("draws", "data_draws", "chain_draws")}
    scorer = BoundsScorer(flow, config["measures"], end=end, chain=chain, **draws)
    terms = {"chain": repr(chain), "data": split.fingerprint, "end": "t_min" if end is None else end}
    job = Job(setup.name, scorer, plan, out, {**setup.key(), **terms, **atol}, setup.metadata)
    job.check()
    return job
