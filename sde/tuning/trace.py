r"""The control variate of a trace, measured by a pilot run.

Along the paths of some data, with few steps, the Jacobians :math:`\partial D / \partial x` of the denoised data are
summed with the weights that a likelihood gives to their traces: :math:`B_i` for row i. With the parts off the diagonal
and the means of all other rows, :math:`M_{-i}`, the matrix is :math:`K = b M` with

.. math:: b = \frac{\sum_i \langle B_i, M_{-i} \rangle}{\sum_i \lVert M_{-i} \rVert^2}, \qquad
    \text{variance ratio} = \frac{\sum_i \lVert B_i - b M_{-i} \rVert^2}{\sum_i \lVert B_i \rVert^2} ,

which shrinks a mean of few rows. No estimate is biased by it, however few they are: use rows that are not scored.
"""

from __future__ import annotations

__all__ = ["tune_trace"]

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..denoisers import Conditioned, Denoiser, Prediction
from ..dynamics import Reverse
from ..grids import LogSNR
from ..sampling import evaluating
from ..shapes import check_count, event_dims, expand, float64, recording
from ..solvers import Arcsinh, UniPC
from ..trace import Controlled
from ..trace.base import vjp
from .design import Design
from .gauss_newton import run
from .reference import frozen


def tune_trace(
    denoiser: Denoiser,
    data: Tensor,
    *,
    steps: int = 32,
    probes: int = 1,
    condition: Mapping[str, Tensor] | None = None,
    chunk: int = 8,
    progress: Callable[[float], object] | None = None,
) -> Controlled:
    r"""A trace whose estimates spread less, for the likelihoods of a model; see :mod:`sde.trace.controlled`.

    The pilot takes `steps` network calls and `steps` times D vector-Jacobian products for each row. Likelihoods with
    the trace take no more calls than with :class:`sde.Hutchinson`, and have the same mean.

    Args:
        denoiser: the model.
        data: rows in the model's range, with shape (B, \*), which are not to be scored, such as training data; 16 are
            good, and fewer than 3 are refused.
        steps: the steps of their paths.
        probes: the probes of the trace.
        condition: as in :func:`sde.log_prob`.
        chunk: how many products run at once.
        progress: called with the fraction of the work that is done.
    """
    check_count("tune_trace", "steps", steps, 1)
    if len(data) < 3 or not data.is_floating_point() or not bool(data.isfinite().all()):
        raise ValueError(
            f"tune_trace needs 3 or more finite rows in the model's range, got {len(data)} of {data.dtype}"
        )
    process, dims = denoiser.process, event_dims(data)
    times = LogSNR().times(process, steps, process.t_min, process.t_max)
    std = float(data.double().std() / process.alpha(float64(process.t_min)))
    design = Design(UniPC(steps, 3, variable=Arcsinh(std)), process, times, std, density=True)
    with recording(False), evaluating(denoiser), frozen(denoiser):
        conditioned = Conditioned(denoiser, condition, torch.zeros(len(data), dtype=torch.int64, device=data.device))
        numbers = design.numbers(design.start())[2]
        states, _ = run(Reverse(conditioned, eta=0.0), (data,), numbers)
        total = torch.zeros(len(data), dims, dims, dtype=torch.float64, device="cpu")
        unit = torch.eye(dims, dtype=data.dtype, device=data.device).reshape(dims, 1, *data.shape[1:])
        for k, t in enumerate(numbers.inputs.unbind()):
            with torch.enable_grad():
                x = (expand(numbers.factors[k], data) * states[k][0]).requires_grad_()
                value = conditioned.predict(Prediction.X0, x, t)
            products = vjp(value, x, unit.expand(-1, *x.shape), chunk, keep=False, differentiable=False)
            total += float(numbers.density[k]) * products.flatten(2).transpose(0, 1).double().cpu()
            if progress is not None:
                progress((k + 1) / steps)
    total = 0.5 * (total + total.mT)
    total -= torch.diag_embed(total.diagonal(dim1=1, dim2=2))
    others = (total.sum(0) - total) / (len(total) - 1)
    b = float((total * others).sum() / others.square().sum().clamp(min=torch.finfo(torch.float64).tiny))
    ratio = float((total - b * others).square().sum() / total.square().sum().clamp(min=torch.finfo(torch.float64).tiny))
    if not math.isfinite(ratio):
        raise FloatingPointError("the Jacobians along the pilot's paths are not finite: check the denoiser")
    return Controlled(b * total.mean(0), probes, chunk, ratio)
