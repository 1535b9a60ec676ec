r"""What a comparison is held to: a denoiser, the flow's exact ends, and samples of the truth at `t_min`.

For a mixture of Gaussians everything is known in closed form. For a trained network the truth of a *solver* is what
the network's own probability flow arrives at, solved to a tight tolerance in float64, by a copy of the network in
float64; what the network has not learned is no error of a solver.
"""

from __future__ import annotations

__all__ = ["ExactProblem", "Problem", "TrainedProblem", "digits_mixture", "open_problem", "read_mixture"]

import copy
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import digits
from ..denoisers import Denoiser
from ..exact import Mixture
from ..instantiate import build
from ..model import Model, load
from ..noise import Noise, Stream
from ..processes import SDE, VP
from ..sampling import sample, state_like
from ..solvers import RungeKutta
from ..storage.checkpoint import resolve, run_directory
from ..storage.files import sha256
from ..version import __version__

_MOST_STEPS = 1_000_000


class Problem(ABC):
    """A denoiser and the truth about the solutions of its dynamics.

    Attributes:
        denoiser: what the solvers are run on.
        shape: the event shape (\\*).
        truth: one line on where the truth comes from.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    truth: str

    @property
    def process(self) -> SDE:
        """The denoiser's process."""
        return self.denoiser.process

    @abstractmethod
    def condition(self, first: int, n: int) -> dict[str, Tensor]:
        """What the denoiser is told about the samples `first` to `first + n - 1`."""

    @abstractmethod
    def ends(self, n: int, seed: int, tolerance: float) -> Tensor:
        """Where the exact flow takes the prior's samples 0 to n - 1 of a seed, float64 with shape (n, \\*)."""

    @abstractmethod
    def samples(self, n: int, seed: int, which: int) -> Tensor:
        """The `which`-th independent set of n samples of the truth at `t_min`, float64 with shape (n, \\*)."""

    @abstractmethod
    def moments(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of the truth, from `samples` of it where there is no formula."""

    @abstractmethod
    def scale(self, ends: Tensor) -> float:
        """The standard deviation of all coordinates, the unit of errors, from `ends` where there is no formula."""


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

    def condition(self, first: int, n: int) -> dict[str, Tensor]:
        return {}

    def ends(self, n: int, seed: int, tolerance: float) -> Tensor:
        return _flow(self.denoiser, (n, *self.shape), seed, tolerance)

    def samples(self, n: int, seed: int, which: int) -> Tensor:
        source = Noise(seed).generator(Stream.PERTURB, which)
        return self.target.at(self.process, self.process.t_min).sample(n, generator=source)

    def moments(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        end = torch.tensor(self.process.t_min, dtype=torch.float64)
        mean, std = self.process.marginal(self._mean, end)
        noise = std.square() * torch.eye(len(mean), dtype=torch.float64)
        return mean, self.process.alpha(end).square() * self._cov + noise

    def scale(self, ends: Tensor) -> float:
        # Of all coordinates together: their means differ too.
        return float((self._cov.diagonal().mean() + self._mean.var(correction=0)).sqrt())

    @cached_property
    def _mean(self) -> Tensor:
        return self.target.weights @ self.target.means

    @cached_property
    def _cov(self) -> Tensor:
        basis, centred = self.target.basis, self.target.means - self._mean
        covs = (basis * self.target.eigenvalues[:, None]) @ basis.mT + centred[:, :, None] * centred[:, None]
        return torch.einsum("k,kij->ij", self.target.weights, covs)


class TrainedProblem(Problem):
    """A trained model.

    Args:
        model: the model; one that is told a class gets them in turn.
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

    def ends(self, n: int, seed: int, tolerance: float) -> Tensor:
        return _flow(self._exact, (n, *self.shape), seed, tolerance, condition=self.condition(0, n))

    def samples(self, n: int, seed: int, which: int) -> Tensor:
        # Of indices that no run draws from, 128 at a time, and as exactly as distances between samples can tell.
        begin = (which + 1) * 2**32
        parts = []
        for first in range(begin, begin + n, 128):
            size = min(128, begin + n - first)
            condition = self.condition(first, size)
            parts.append(_flow(self._exact, (size, *self.shape), seed, 1e-6, first=first, condition=condition))
        return torch.cat(parts)

    def moments(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        flat = samples.flatten(1)
        return flat.mean(0), flat.T.cov()

    def scale(self, ends: Tensor) -> float:
        return float(ends.std())

    @cached_property
    def _exact(self) -> Denoiser:
        return copy.deepcopy(self.denoiser).double()


def _flow(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    seed: int,
    tolerance: float,
    first: int = 0,
    condition: dict[str, Tensor] | None = None,
) -> Tensor:
    solver = RungeKutta(rtol=tolerance, atol=tolerance, max_steps=_MOST_STEPS)
    settings = {"seed": seed, "first": first, "condition": condition, "dtype": torch.float64}
    return sample(denoiser, shape, solver=solver, **settings).x.cpu()  # type: ignore[arg-type]


def digits_mixture(components: int = 20) -> Mixture:
    """A mixture of Gaussians with full covariances fitted to the training digits in [-1, 1], in 64 dimensions.

    Args:
        components: how many Gaussians.
    """
    # Slow to import, and only this target needs it.
    from sklearn.mixture import GaussianMixture

    data = digits()
    x = data.scaling.to_model(data.train.values, None, dtype=torch.float64).flatten(1)
    # What is added to the covariances keeps pixels that are always blank from having none.
    fitted = GaussianMixture(components, reg_covar=1e-3, max_iter=200, random_state=0).fit(x.numpy())
    return Mixture(*(torch.from_numpy(a) for a in (fitted.weights_, fitted.means_, fitted.covariances_)))


def read_mixture(path: str | os.PathLike[str]) -> Mixture:
    """The mixture of an `.npz` with the arrays `weights` (K,), `means` (K, D) and `covs` (K, D, D).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, lacks an array, or its arrays are no mixture's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected an .npz of a mixture at {path}, found none")
    names = ("weights", "means", "covs")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz, or was cut short: expected one with the arrays {', '.join(names)}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names if name in archive}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an .npz of a mixture: {error}") from error
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{path} is no mixture: expected the arrays {', '.join(names)}; it has no {missing[0]}")
    if bad := [name for name in names if arrays[name].dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all()]:
        raise ValueError(f"{path}: expected finite numbers, but the array {bad[0]} holds others")
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
    """The problem that paths and a config name.

    Args:
        target: an `.npz` of a mixture; the mixture fitted to the digits by default.
        ckpt: a checkpoint or a run directory instead.
        process: the tree of the process; by default VP, or the model's own.
        ema: as in :func:`sde.load`.
        device: where the solvers run.
        trust: packages of your own that the checkpoint or the process may name.

    Returns:
        The problem, its name, and a plain tree of all that decides what it is.

    Raises:
        ValueError: if both a target and a checkpoint are given, or one of them is not sound.
        FileNotFoundError: if there is none.
    """
    if target is not None and ckpt is not None:
        raise ValueError(f"expected target= or ckpt=, and not both, got target={target}, ckpt={ckpt}")
    own = None if process is None else build(process, trust=trust)
    problem: Problem
    if ckpt is not None:
        path = resolve(ckpt)
        problem = TrainedProblem(load(path, ema=ema, process=own, device=device, trust=trust))
        name, source = run_directory(path).name, f"checkpoint {sha256(path)}, EMA {ema}"
    elif target is not None:
        problem = ExactProblem(read_mixture(target), own or VP(), device)
        name, source = Path(target).stem, f"mixture {sha256(target)}"
    else:
        problem = ExactProblem(digits_mixture(), own or VP(), device)
        name, source = "digits", "a mixture fitted to the digits"
    facts = {"target": source, "process": process, "device": str(device), "sde": __version__}
    return problem, f"{name}-{type(problem.process).__name__}", facts | {"torch": str(torch.__version__)}
