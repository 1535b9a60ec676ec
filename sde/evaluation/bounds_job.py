r"""The job of several measures of the likelihood on the same images: the probability flow beside variational bounds.

What is measured stands in :mod:`sde.evaluation.bounds_table`. As in :mod:`sde.evaluation.likelihood_job`, batches are
fixed by index, and the rows do not depend on when they were computed.
"""

from __future__ import annotations

__all__ = ["decoder_std", "default_chain", "measure"]

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Split
from ..grids import LogSNR, Uniform
from ..likelihood.bounds import Bound, continuous_bound, density_bound
from ..likelihood.chain_bound import chain_bound
from ..likelihood.dequantisation import Dequantiser
from ..likelihood.truncation import ending_at
from ..model import Model
from ..processes import SDE, ChainSDE
from ..runtime import exact_float32
from ..solvers import Ancestral, Solver
from ..trace import Trace
from .bounds_table import MEASURES, columns_of
from .likelihood_job import Rows, score, states
from .sharding import WHOLE, Done, Share, nothing_done


def default_chain(process: SDE, steps: int | None = None) -> Ancestral:
    """The chain whose bound is taken, with the variance that the denoiser has learned where it has.

    Args:
        process: the process.
        steps: how many before the last one, to the clean end; by default N - 1 of a :class:`sde.processes.ChainSDE` of
            N, which is DDPM's own chain, on its own times, and 250 of any other process, evenly in the log-SNR. The
            more, the closer the bound is to the one in continuous time.
    """
    own = len(process.chain) - 1 if isinstance(process, ChainSDE) else None
    steps = (own or 250) if steps is None else steps
    return Ancestral(steps) if steps == own else Ancestral(steps, LogSNR())


def decoder_std(process: SDE, chain: Ancestral) -> float | None:
    r"""The standard deviation of the decoder of a chain: None, which is DDPM's, for DDPM's own chain, and else
    :math:`\sigma/\alpha` at `t_min`, as in continuous time. DDPM's is the :math:`\tilde\beta` of one step, which for
    fine steps is far less than what is left to decode.
    """
    if isinstance(process, ChainSDE) and chain.steps == len(process.chain) - 1 and chain.grid == Uniform():
        return None
    low = torch.tensor(process.t_min, dtype=torch.float64)
    return (process.sigma(low) / process.alpha(low)).item()


def measure(
    model: Model,
    split: Split,
    *,
    measures: Sequence[str] = tuple(MEASURES),
    repeats: int = 1,
    batch_size: int = 128,
    n: int | None = None,
    seed: int = 0,
    draws: int = 100,
    data_draws: int = 8,
    end: float | None = None,
    chain: Solver | None = None,
    chain_draws: int = 1,
    solver: Solver | None = None,
    trace: Trace | None = None,
    atol: float | None = None,
    dequantiser: Dequantiser | None = None,
    share: Share = WHOLE,
    done: Done = nothing_done,
) -> Iterator[Rows]:
    """The rows of one batch after another: every sample once per repeat, by every measure.

    What does not fit is refused at once, before the first batch is asked for and the network is called.

    Args:
        model: the model.
        split: the data, raw values.
        measures: which, some of those in :mod:`sde.evaluation.bounds_table`.
        repeats: how many draws of all noise for each sample.
        batch_size: samples at a time.
        n: the first n samples only.
        seed: the seed of all noise.
        draws: times for each sample, of `density`, at two calls each, and of `continuous`, at one.
        data_draws: states at the data end for each sample, of `continuous`.
        end: the noise at the data end of `continuous` and `chain`, in cells (:mod:`sde.likelihood.truncation`); None is
            `t_min`.
        chain: the steps of `chain`, an :class:`sde.solvers.Ancestral`; :func:`default_chain` by default.
        chain_draws: how many times the whole chain is drawn.
        solver: of `flow`, as in :func:`sde.evaluation.likelihood_job.score`, like what follows.
        trace: as there.
        atol: as there.
        dequantiser: as there; `density` takes the same states.
        share: as there.
        done: as there.

    Returns:
        A generator of the rows of a batch, by column (:func:`sde.evaluation.bounds_table.columns_of`); `flow` is the
        `bits_per_dim` of :func:`sde.evaluation.likelihood_job.score`.

    Raises:
        ValueError: if the data is not the model's, a measure is not known, a number makes no sense, or a solver cannot
            serve.
    """
    columns_of(measures)
    how: dict[str, Any] = {"solver": solver, "trace": trace, "atol": atol} if "flow" in measures else {}
    which: dict[str, Any] = {"repeats": repeats, "batch_size": batch_size, "n": n, "share": share, "done": done}
    flows = score(model, split, seed=seed, dequantiser=dequantiser, **which, **how)
    for name, count in {"draws": draws, "data_draws": data_draws, "chain_draws": chain_draws}.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"a bound takes at least one draw of each kind, got {name}={count!r}")
    chain = default_chain(model.process) if chain is None else chain
    if not isinstance(chain, Ancestral):
        raise ValueError(
            f"the bound of a chain is that of ancestral sampling: expected chain=Ancestral(...), got {chain}"
        )
    decoded = ending_at(model.denoiser, model.scaling, end)
    process = decoded.process
    if "chain" in measures:  # refuses what makes no times
        chain.grid.times(process, chain.steps, process.t_min, process.t_max)
    every: dict[str, Callable[..., Bound]] = {
        "density": partial(density_bound, model.denoiser, draws=draws),
        "continuous": partial(continuous_bound, decoded, draws=draws, data_draws=data_draws),
        "chain": partial(chain_bound, decoded, solver=chain, draws=chain_draws, std=decoder_std(process, chain)),
    }
    dims, scaling = math.prod(model.shape), model.scaling
    # Levels have probabilities; what is continuous has a density on its own scale.
    volume = scaling.log_det(dims) if scaling.levels is None else 0.0

    def rows() -> Iterator[Rows]:
        for repeat, index, new in share.batches(len(split) if n is None else n, repeats, batch_size, done):
            made, condition = states(model, split, index, dequantiser=dequantiser, seed=seed, repeat=repeat)
            given: dict[str, Any] = {"seed": seed, "index": index, "repeat": repeat, "condition": condition}
            found: Rows = {"index": index.numpy(), "repeat": torch.full_like(index, repeat).numpy()}
            weight = made.log_weight.cpu()
            with exact_float32():
                for name in [name for name in measures if name in every]:
                    on = (made.x,) if name == "density" else (split.values[index], scaling)
                    bound = every[name](*on, **given)
                    end = weight if name == "density" else bound.data + volume
                    terms = [t.double().cpu().numpy() for t in (bound.prior, bound.diffusion, end)]
                    found |= {
                        name: _bits(terms[0] + terms[1] + terms[2], dims),
                        **_terms(name, terms, bound.standard_error, bound.nfe, dims),
                    }
            # Computed whole even where a part of it is done, as in `score`, whose rows come without what is done.
            found = {name: values[new.numpy()] for name, values in found.items()}
            yield found | (_flow(next(flows), weight[new].numpy(), dims) if "flow" in measures else {})

    return rows()


def _flow(rows: Rows, weight: NDArray[np.float64], dims: int) -> Rows:
    """The columns of the flow, from those of a likelihood file and the weights of the dequantisation in nats."""
    nats, prior = (rows[name].astype(np.float64) for name in ("log_prob", "prior_log_prob"))
    # Not the divergence itself: in float32 the sum of the two is rounded, and the terms are to add up.
    terms = [prior, nats - prior, weight]
    found = _terms("flow", terms, torch.from_numpy(rows["standard_error"]), torch.from_numpy(rows["nfe"]), dims)
    return {"flow": rows["bits_per_dim"], **found}


def _terms(name: str, terms: Sequence[NDArray[Any]], error: Tensor, nfe: Tensor, dims: int) -> Rows:
    """The other columns of a measure, from its terms and its standard error in nats."""
    bits = {f"{name}_{term}": _bits(nats, dims) for term, nats in zip(MEASURES[name], terms)}
    error = error.double().cpu() / (dims * math.log(2.0))
    return {**bits, f"{name}_standard_error": error.numpy(), f"{name}_nfe": nfe.cpu().numpy()}


def _bits(nats: NDArray[Any], dims: int) -> NDArray[Any]:
    """Nats as bits/dim, without a zero that is negative."""
    return (0.0 - nats) / (dims * math.log(2.0))
