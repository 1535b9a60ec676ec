r"""Problems for the comparison of solvers: a denoiser, and the exact results at `t_min`.

A mixture of Gaussians has closed forms. For a trained network, the exact result is that of the probability flow of this
network, solved to a tight tolerance in float64 by a copy of the network in float64. The error of a solver does not
include the error of the network.
"""

from __future__ import annotations

__all__ = ["ExactProblem", "Problem", "TrainedProblem", "digits_mixture", "open_problem", "read_mixture"]

import copy
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import digits
from ..denoisers import Denoiser
from ..exact import Mixture
from ..instantiate import build, public
from ..model import Model, load
from ..noise import Noise, Stream
from ..processes import SDE, VP
from ..sampling import Samples, sample, state_like
from ..shapes import float64
from ..solvers import RungeKutta, Solver
from ..storage.checkpoint import resolve, run_directory
from ..storage.files import sha256
from ..version import __version__

_MAX_STEPS = 1_000_000
_BATCH = 32  # samples of an exact flow between two reports of its progress

Progress = Callable[[float], object]


class Problem(ABC):
    """A denoiser and the exact results of its dynamics.

    Attributes:
        denoiser: the denoiser that the solvers call.
        shape: the event shape (\\*).
        truth: one line that describes how the exact results are computed.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    truth: str

    @property
    def process(self) -> SDE:
        """The process of the denoiser."""
        return self.denoiser.process

    def sample(
        self,
        denoiser: Denoiser,
        n: int,
        *,
        solver: Solver | None,
        seed: int,
        first: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Samples:
        """Samples `first` to `first + n - 1` of a denoiser, with their conditions, by :func:`sde.sample`."""
        call: dict[str, Any] = {"solver": solver, "seed": seed, "first": first, "dtype": dtype}
        return sample(denoiser, (n, *self.shape), condition=self.condition(first, n), **call)

    def flow(
        self, denoiser: Denoiser, n: int, seed: int, tolerance: float, first: int = 0, progress: Progress | None = None
    ) -> Tensor:
        """The final states of the flow of a denoiser from prior samples `first` to `first + n - 1`, in float64."""
        solver, ends = RungeKutta(rtol=tolerance, atol=tolerance, max_steps=_MAX_STEPS), []
        for start in range(0, n, _BATCH):
            size = min(_BATCH, n - start)
            call: dict[str, Any] = {"solver": solver, "seed": seed, "dtype": torch.float64}
            ends.append(self.sample(denoiser, size, first=first + start, **call).x.cpu())
            if progress is not None:
                progress((start + size) / n)
        return torch.cat(ends)

    @abstractmethod
    def condition(self, first: int, n: int) -> dict[str, Tensor]:
        """The condition of the samples `first` to `first + n - 1`."""

    @abstractmethod
    def ends(self, n: int, seed: int, tolerance: float, progress: Progress | None = None) -> Tensor:
        """The final states of the exact flow from prior samples 0 to n - 1 of a seed, float64 with shape (n, \\*).

        Args:
            n: the number of samples.
            seed: the seed.
            tolerance: rtol and atol.
            progress: called with the fraction of the work that is done.
        """

    @abstractmethod
    def samples(self, n: int, seed: int, which: int, progress: Progress | None = None) -> Tensor:
        """The independent set number `which` of n exact samples at `t_min`, float64 with shape (n, \\*)."""

    @abstractmethod
    def moments(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The exact mean (D,) and covariance (D, D), estimated from exact `samples` if there is no formula."""

    @abstractmethod
    def scale(self, ends: Tensor) -> float:
        """The standard deviation over all coordinates, the unit of errors, from `ends` if there is no formula."""


class ExactProblem(Problem):
    """A mixture of Gaussians under a process.

    Args:
        target: the mixture, in float64.
        process: the process.
        device: where the solvers run.
    """

    def __init__(self, target: Mixture, process: SDE, device: torch.device | str = "cpu") -> None:
        self.target = target
        self.denoiser = target.denoiser(process).to(device)
        self.shape = tuple(target.means.shape[1:])
        self.truth = "closed forms of the mixture; its flow by Runge-Kutta in float64"
        self._mean = target.weights @ target.means
        centred = target.means - self._mean
        covs = (target.basis * target.eigenvalues[:, None]) @ target.basis.mT + centred[:, :, None] * centred[:, None]
        self._cov = torch.einsum("k,kij->ij", target.weights, covs)

    def condition(self, first: int, n: int) -> dict[str, Tensor]:
        return {}

    def ends(self, n: int, seed: int, tolerance: float, progress: Progress | None = None) -> Tensor:
        return self.flow(self.denoiser, n, seed, tolerance, progress=progress)

    def samples(self, n: int, seed: int, which: int, progress: Progress | None = None) -> Tensor:
        source = Noise(seed).generator(Stream.PERTURB, which)
        return self.target.at(self.process, self.process.t_min).sample(n, generator=source)

    def moments(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        end = float64(self.process.t_min)
        mean, std = self.process.marginal(self._mean, end)
        noise = std.square() * torch.eye(len(mean), dtype=torch.float64, device="cpu")
        return mean, self.process.alpha(end).square() * self._cov + noise

    def scale(self, ends: Tensor) -> float:
        # The variance over all coordinates includes that of their means.
        return float((self._cov.diagonal().mean() + self._mean.var(correction=0)).sqrt())


class TrainedProblem(Problem):
    """A trained model.

    Args:
        model: the model. The samples of a class-conditional model have the classes 0, 1, 2, ... in turn.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.denoiser, self.shape = model.denoiser, model.shape
        self.truth = "the network's own flow by Runge-Kutta, network and state in float64"

    def condition(self, first: int, n: int) -> dict[str, Tensor]:
        classes = self.model.classes
        if classes is None:
            return {}
        return {"label": torch.arange(first, first + n, device=state_like(self.denoiser).device) % classes}

    def ends(self, n: int, seed: int, tolerance: float, progress: Progress | None = None) -> Tensor:
        return self.flow(self._exact, n, seed, tolerance, progress=progress)

    def samples(self, n: int, seed: int, which: int, progress: Progress | None = None) -> Tensor:
        # The indices are beyond those of all runs. The tolerance is far below what distances of samples can resolve.
        return self.flow(self._exact, n, seed, 1e-6, (which + 1) * 2**32, progress)

    def moments(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        flat = samples.flatten(1)
        return flat.mean(0), flat.T.cov()

    def scale(self, ends: Tensor) -> float:
        return float(ends.std())

    @cached_property
    def _exact(self) -> Denoiser:
        return copy.deepcopy(self.denoiser).double()


def digits_mixture(components: int = 20) -> Mixture:
    """A mixture of Gaussians in 64 dimensions with full covariances, fitted to the training digits in [-1, 1].

    Args:
        components: the number of Gaussians.
    """
    # scikit-learn is slow to import, and only this target needs it.
    from sklearn.mixture import GaussianMixture

    data = digits()
    values, _ = data.train[torch.arange(len(data.train), device="cpu")]
    x = data.scaling.to_model(values, None, dtype=torch.float64).flatten(1)
    # reg_covar keeps the variance of pixels that are always blank above 0.
    fit = GaussianMixture(components, reg_covar=1e-3, max_iter=200, random_state=0).fit(x.numpy())
    return Mixture(*(torch.from_numpy(a) for a in (fit.weights_, fit.means_, fit.covariances_)))


def read_mixture(path: str | os.PathLike[str]) -> Mixture:
    """The mixture in an `.npz` file with the arrays `weights` (K,), `means` (K, D) and `covs` (K, D, D).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read, or its arrays do not define a mixture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected an .npz file with a mixture at {path}, but it does not exist")
    names = ("weights", "means", "covs")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is truncated or not an .npz file: expected one with the arrays {', '.join(names)}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names if name in archive}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an .npz file with a mixture: {error}") from error
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path}: expected the arrays {', '.join(names)}, but {missing[0]} is missing")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ValueError(f"{path}: expected finite numbers, but the array {name} has other values")
    return Mixture(*(torch.from_numpy(arrays[name].astype(np.float64)) for name in names))


def open_problem(
    target: str | None,
    ckpt: str | None,
    process: Mapping[str, Any] | None,
    *,
    ema: str | None = "default",
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> tuple[Problem, str, dict[str, Any]]:
    """The problem of a mixture or of a checkpoint.

    Args:
        target: an `.npz` file with a mixture; by default the mixture fitted to the digits.
        ckpt: a checkpoint or a run directory, in place of a mixture.
        process: the config of the process; by default VP, or that of the checkpoint.
        ema: as in :func:`sde.load`.
        device: where the solvers run.
        trust: packages that the checkpoint or the process may name.

    Returns:
        The problem, its name, and a plain tree of the settings that tell it from others.

    Raises:
        ValueError: if both a target and a checkpoint are set, or a file is invalid.
        FileNotFoundError: if a file does not exist.
    """
    if target is not None and ckpt is not None:
        raise ValueError(f"expected either target= or ckpt=, got target={target} and ckpt={ckpt}")
    chosen = None if process is None else build(process, trust=trust)
    problem: Problem
    if ckpt is not None:
        path = resolve(ckpt)
        problem = TrainedProblem(load(path, ema=ema, process=chosen, device=device, trust=trust))
        name, source = run_directory(path).name, f"checkpoint {sha256(path)}, EMA {ema}"
    elif target is not None:
        problem = ExactProblem(read_mixture(target), chosen or VP(), device)
        name, source = Path(target).stem, f"mixture {sha256(target)}"
    else:
        problem = ExactProblem(digits_mixture(), chosen or VP(), device)
        name, source = "digits", "a mixture fitted to the digits"
    settings = {"target": source, "process": public(process), "device": str(device)}
    settings |= {"sde": __version__, "torch": str(torch.__version__)}
    return problem, f"{name}-{type(problem.process).__name__}", settings
