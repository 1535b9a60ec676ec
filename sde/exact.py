r"""The exact oracle: distributions with closed-form marginals, scores and denoisers.

For each distribution, the marginal :math:`p_t(x_t) = \int p(x_0)\, \mathcal N(x_t; \alpha_t x_0, \sigma_t^2 I)\, dx_0`
of any process at any time, its score and the denoiser :math:`E[x_0|x_t]` have closed forms. Given a linear measurement
with Gaussian noise, the posterior of a mixture is a mixture again, and that of an empirical distribution is an
empirical one, so that its scores at every time are exact too. Tests and the comparison of solvers use them as the
reference. Log-densities are in nats.
"""

from __future__ import annotations

__all__ = ["Target", "Gaussian", "Mixture", "Empirical", "Uniform", "Marginal"]

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .denoisers import Denoiser, Prediction, from_score, from_x0
from .processes import SDE
from .shapes import event_dims, expand, float64, sum_event, working


class Target(ABC):
    """A distribution of clean data whose marginals under a process are known in closed form.

    Attributes:
        reference: a tensor with the dtype and the device of the parameters.
    """

    reference: Tensor

    @abstractmethod
    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Returns n clean samples, with shape (n, *)."""

    @abstractmethod
    def log_density(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        r"""The log-density of :math:`\alpha x_0 + \sqrt{\mathrm{var}}\, z` at `x`, in nats, with shape (B,).

        Args:
            x: the points, with shape (B, *).
            alpha: the signal scale, with shape () or (B,), in the dtype of `x`.
            var: the noise variance, with the same shape and dtype.
        """

    @abstractmethod
    def denoise_and_score(self, x: Tensor, alpha: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`E[x_0|x]` and the score at `x`, both with shape (B, *); neither is computed from the other."""

    def log_prob(self, x: Tensor, process: SDE | None = None, t: Tensor | float | None = None) -> Tensor:
        """The log-density in nats, with shape (B,), of clean data or of the marginal of `process` at time `t`."""
        if (process is None) != (t is None):
            raise ValueError(
                f"log_prob needs both process and t for a marginal, and neither for clean data, got {process=}, {t=}"
            )
        x = working(x)
        if process is None or t is None:
            one = torch.ones((), dtype=x.dtype, device=x.device)
            return self.log_density(x, one, torch.zeros_like(one))
        return self.log_density(x, *_alpha_and_var(process, float64(t), x))

    def denoiser(self, process: SDE) -> ExactDenoiser:
        """The exact denoiser of this distribution under a process."""
        return ExactDenoiser(self, process)

    def at(self, process: SDE, t: float) -> Marginal:
        """The marginal of `process` at time `t`: a prior for samplers, or the reference for samples at `t_min`."""
        return Marginal(self, process, t)


class ExactDenoiser(Denoiser):
    """The exact posterior mean and score of a target under a process."""

    def __init__(self, target: Target, process: SDE) -> None:
        super().__init__()
        self.target = target
        self.process = process
        # Samplers and likelihoods take their dtype and device from the tensors of a denoiser.
        self.register_buffer("reference", target.reference.new_empty(0), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.predict(Prediction.X0, x_t, t, **condition)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        if condition:
            raise TypeError(f"an exact denoiser takes no condition, got {', '.join(condition)}")
        state = working(x_t)
        x0, score = self.target.denoise_and_score(state, *_alpha_and_var(self.process, t, state))
        if what in (Prediction.X0, Prediction.VELOCITY):
            prediction = x0 if what is Prediction.X0 else from_x0(what, self.process, x0, state, t)
        else:
            prediction = from_score(what, self.process, score, state, t)
        return prediction.to(x_t.dtype)


class Marginal:
    """The exact marginal of a target at one time of a process; samplers and likelihoods accept it as `prior=`."""

    def __init__(self, target: Target, process: SDE, t: float) -> None:
        self.target = target
        self.process = process
        self.t = float64(t)

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Returns n samples, with shape (n, *)."""
        mean, std = self.process.marginal(self.target.sample(n, generator=generator), self.t)
        return mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=generator.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density in nats, with shape (B,)."""
        return self.target.log_prob(x, self.process, self.t)


class Mixture(Target):
    r"""A mixture of Gaussians :math:`\sum_k w_k \mathcal N(\mu_k, \Sigma_k)`.

    Its marginals are mixtures too, with means :math:`\alpha\mu_k` and covariances
    :math:`\alpha^2\Sigma_k + \sigma^2 I`, which are inverted in the eigenbasis of :math:`\Sigma_k`.

    Args:
        weights: the weights, with shape (K,), positive; they are normalised.
        means: the means, with shape (K, D).
        covs: the covariances, with shape (K, D, D), symmetric and positive semi-definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        k, d = means.shape if means.ndim == 2 else (0, 0)
        if means.ndim != 2 or weights.shape != (k,) or covs.shape != (k, d, d):
            raise ValueError(
                "Mixture: expected weights (K,), means (K, D), covs (K, D, D), got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(covs.shape)}"
            )
        weights, means, covs = working(weights), working(means), working(covs)
        if not bool((weights > 0).all()):
            raise ValueError(f"Mixture: weights must be positive, got {weights.tolist()}")
        eigenvalues, self.basis = torch.linalg.eigh(covs)
        tolerance = 1e-6 * eigenvalues.abs().max()
        if not bool((eigenvalues >= -tolerance).all()):
            raise ValueError(
                f"Mixture: covs must be positive semi-definite, got the eigenvalue {eigenvalues.min():.3g}"
            )
        self.reference = self.means = means
        self.weights = weights / weights.sum()
        self.eigenvalues = eigenvalues.clamp(min=0.0)

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype, device=generator.device)
        return self.means[k] + torch.einsum("nij,nj->ni", self.basis[k], self.eigenvalues[k].sqrt() * z)

    def observed(self, *, A: Tensor, noise: float | Tensor) -> Mixture:
        r"""The distribution of a measurement :math:`y = A x_0 + \mathrm{noise}\, z`; its density at y is the evidence.

        Args:
            A: the matrix, with shape (M, D).
            noise: the standard deviation of the noise, or a factor of its covariance, with shape (M, M).
        """
        A, factor = _measurement(A, noise, self.means)
        return self._with(self.weights, self.means @ A.mT, A @ self._covs() @ A.mT + factor @ factor.mT)

    def posterior(self, *, A: Tensor, y: Tensor, noise: float | Tensor) -> Mixture:
        r"""The posterior of a measurement :math:`y = A x_0 + \mathrm{noise}\, z`: another mixture.

        With :math:`S_k = A \Sigma_k A^T + N`, N being the covariance of the noise, and :math:`K_k = \Sigma_k A^T
        S_k^{-1}`,

        .. math::
            w'_k \propto w_k\, \mathcal N(y; A \mu_k, S_k), \qquad
            \mu'_k = \mu_k + K_k (y - A \mu_k), \qquad
            \Sigma'_k = (I - K_k A) \Sigma_k (I - K_k A)^T + K_k N K_k^T.

        Components whose weight is 0 in the dtype of the parameters are left out.

        Args:
            A: the matrix, with shape (M, D).
            y: the measurement, with shape (M,).
            noise: the standard deviation of the noise, or a factor of its covariance, with shape (M, M).

        Raises:
            ValueError: if the shapes do not fit, y is not finite or the noise is negative.
        """
        A, factor = _measurement(A, noise, self.means)
        y, covs = _checked(y, len(A)).to(self.means), self._covs()
        N = factor @ factor.mT
        observed, residual = self.observed(A=A, noise=noise), y - self.means @ A.mT
        one = y.new_ones(())
        weights = observed._components(y[None], one, torch.zeros_like(one))[0][0].softmax(0)
        positive = weights > 0
        gain = torch.linalg.solve(A @ covs @ A.mT + N, A @ covs).mT  # K_k, (K, D, M)
        rest = torch.eye(A.shape[1], dtype=A.dtype, device=A.device) - gain @ A
        covs = rest @ covs @ rest.mT + gain @ N @ gain.mT
        means = self.means + torch.einsum("kdm,km->kd", gain, residual)
        return self._with(weights[positive], means[positive], 0.5 * (covs + covs.mT)[positive])

    def _with(self, weights: Tensor, means: Tensor, covs: Tensor) -> Mixture:
        """Another distribution of this kind."""
        return Mixture(weights, means, covs)

    def _covs(self) -> Tensor:
        return (self.basis * self.eigenvalues[:, None]) @ self.basis.mT

    def log_density(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        return self._components(x, alpha, var)[0].logsumexp(1)

    def denoise_and_score(self, x: Tensor, alpha: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        log_joint, u, variance = self._components(x, alpha, var)
        weight = log_joint.softmax(1)[..., None]  # p(k | x), (B, K, 1)
        basis, means, eigenvalues = self.basis.to(x), self.means.to(x), self.eigenvalues.to(x)
        whitened = u / variance
        rows = basis.mT.flatten(0, 1)  # the eigenvectors of all components, (K D, D)
        score = -(weight * whitened).flatten(1) @ rows
        shift = (weight * eigenvalues * whitened).flatten(1) @ rows
        x0 = (weight * means).sum(1) + alpha.reshape(-1, 1) * shift
        return x0.reshape(x.shape), score.reshape(x.shape)

    def _components(self, x: Tensor, alpha: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; k), with shape (B, K), and the residuals in the eigenbases and their variances, (B, K, D)."""
        d = self.means.shape[1]
        if event_dims(x) != d:
            raise ValueError(f"expected samples with {d} dimensions, got samples of shape {tuple(x.shape[1:])}")
        basis, means, eigenvalues = self.basis.to(x), self.means.to(x), self.eigenvalues.to(x)
        alpha, var = alpha.reshape(-1, 1, 1), var.reshape(-1, 1, 1)
        u = torch.bmm((x.flatten(1)[:, None] - alpha * means).transpose(0, 1), basis).transpose(0, 1)
        variance = (alpha.square() * eigenvalues + var).expand(len(x), -1, -1)
        log_normal = -0.5 * (u.square() / variance + (2.0 * math.pi * variance).log()).sum(-1)
        return self.weights.to(x).log() + log_normal, u, variance


class Gaussian(Mixture):
    r"""A Gaussian :math:`\mathcal N(\mu, \Sigma)`: a mixture with one component.

    Args:
        mean: the mean, with shape (D,).
        cov: the covariance, with shape (D, D), symmetric and positive semi-definite.
    """

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        super().__init__(mean.new_ones(1), mean[None], cov[None])

    def _with(self, weights: Tensor, means: Tensor, covs: Tensor) -> Gaussian:
        return Gaussian(means[0], covs[0])


class Empirical(Target):
    r"""The empirical distribution of a set of points of any event shape.

    Its denoiser is a softmax average of the points, which a network with unlimited capacity would learn from them. The
    marginals with noise have a density; the clean distribution has none.

    Args:
        points: the points, with shape (K, *).
        weights: their probabilities, with shape (K,), not negative; they are normalised. Equal by default.
    """

    def __init__(self, points: Tensor, weights: Tensor | None = None) -> None:
        if points.ndim < 2 or len(points) == 0:
            raise ValueError(f"Empirical: expected points of shape (K, *) with K >= 1, got {tuple(points.shape)}")
        if weights is not None and not (
            weights.shape == points.shape[:1] and bool((weights >= 0).all()) and 0 < float(weights.sum()) < math.inf
        ):
            raise ValueError(
                f"Empirical: expected weights of shape ({len(points)},), not negative and not all 0, got {weights}"
            )
        self.reference = self.points = points
        self.weights = None if weights is None else working(weights) / working(weights).sum()

    def posterior(self, *, A: Tensor, y: Tensor, noise: float | Tensor) -> Empirical:
        r"""The posterior of a measurement of the flattened data: other weights of the same points.

        Args:
            A: the matrix, with shape (M, D).
            y: the measurement, with shape (M,).
            noise: the standard deviation of the noise, above 0, or a factor of its covariance, with shape (M, M).
        """
        points = working(self.points.flatten(1))
        A, factor = _measurement(A, noise, points)
        residual = torch.linalg.solve(factor, (_checked(y, len(A)).to(points) - points @ A.mT).mT)
        return Empirical(self.points, (self._log_weights(points) - 0.5 * residual.square().sum(0)).softmax(0))

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        if self.weights is not None:
            return self.points[torch.multinomial(self.weights, n, replacement=True, generator=generator)]
        return self.points[torch.randint(len(self.points), (n,), generator=generator, device=generator.device)]

    def log_density(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        if bool((var == 0).any()):
            raise ValueError(
                "Empirical: the clean distribution (var=0) has no density; use a process and a time with noise"
            )
        constant = 0.5 * event_dims(x) * (2.0 * math.pi * var).log()
        return self._log_kernels(x, alpha, var).logsumexp(1) - constant

    def denoise_and_score(self, x: Tensor, alpha: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        weight = self._log_kernels(x, alpha, var).softmax(1)
        x0 = (weight @ self.points.to(x).flatten(1)).reshape(x.shape)
        # All components have the same variance, so computing the score from x0 loses no accuracy.
        return x0, (expand(alpha, x) * x0 - x) / expand(var, x)

    def _log_kernels(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        r""":math:`\log w_k - \|x - \alpha x_k\|^2 / 2\sigma^2`, with shape (B, K)."""
        scaled = alpha.reshape(-1, 1, 1) * self.points.to(x).flatten(1)
        squares = (x.flatten(1)[:, None] - scaled).square().sum(-1)
        return self._log_weights(x) - 0.5 * squares / var.reshape(-1, 1)

    def _log_weights(self, x: Tensor) -> Tensor:
        """log w_k, of shape (K,) or (), in the dtype of `x`."""
        return x.new_tensor(-math.log(len(self.points))) if self.weights is None else self.weights.to(x).log()


class Uniform(Target):
    r"""The uniform distribution on a box: the exact distribution of dequantised images of uniform noise.

    The posterior of each coordinate is a normal truncated to [low, high]. With :math:`u = (x - \alpha l)/\sigma` and
    :math:`v = (x - \alpha h)/\sigma`

    .. math::
        p_t(x) = \frac{\Phi(u) - \Phi(v)}{\alpha (h - l)}, \qquad
        s = \frac{\phi(u) - \phi(v)}{\sigma (\Phi(u) - \Phi(v))}, \qquad
        E[x_0|x] = \frac{x + \sigma^2 s}{\alpha}.

    All computations are in float64, whatever the dtype of `x`, and in the log domain, so that the tails are accurate.

    Args:
        low: the lower corner, with the event shape (*).
        high: the upper corner, with the same shape.
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        if low.shape != high.shape or not bool((low < high).all()):
            raise ValueError(
                f"Uniform: expected low < high of the same shape, got shapes {tuple(low.shape)} and {tuple(high.shape)}"
            )
        self.reference = self.low = low
        self.high = high

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, *self.low.shape, generator=generator, dtype=self.low.dtype, device=generator.device)
        return self.low + (self.high - self.low) * u

    def log_density(self, x: Tensor, alpha: Tensor, var: Tensor) -> Tensor:
        low, high = self.low.to(x), self.high.to(x)
        if bool((var == 0).all()):
            a = expand(alpha, x)
            inside = ((x >= a * low) & (x <= a * high)).flatten(1).all(1)
            return torch.where(inside, -sum_event((a * (high - low)).log().expand_as(x)), -math.inf)
        log_mass, *_, width = self._interval(x, alpha, var)
        return sum_event(log_mass - width.log()).to(x.dtype)

    def denoise_and_score(self, x: Tensor, alpha: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        log_mass, u, v, _ = self._interval(x, alpha, var)
        a, s2, y = expand(alpha.double(), x.double()), expand(var.double(), x.double()), x.double()
        score = ((_log_phi(u) - log_mass).exp() - (_log_phi(v) - log_mass).exp()) / s2.sqrt()
        return ((y + s2 * score) / a).to(x.dtype), score.to(x.dtype)

    def _interval(self, x: Tensor, alpha: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log(Phi(u) - Phi(v)), u, v and the width of the scaled box, in float64."""
        y = x.double()
        a, sigma = expand(alpha.double(), y), expand(var.double(), y).sqrt()
        low, high = self.low.to(y), self.high.to(y)
        u, v = (y - a * low) / sigma, (y - a * high) / sigma
        # In the upper tail log Phi is inaccurate, so both values are reflected into the lower tail.
        flip = v > 0
        upper, lower = torch.where(flip, -v, u), torch.where(flip, -u, v)
        log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        return log_upper + torch.log(-torch.expm1(log_lower - log_upper)), u, v, a * (high - low)


def _log_phi(x: Tensor) -> Tensor:
    return -0.5 * x.square() - 0.5 * math.log(2.0 * math.pi)


def _alpha_and_var(process: SDE, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha(t) and var(t), computed in the dtype of `t` and cast to the dtype and device of `x`."""
    return process.alpha(t).to(x), process.var(t).to(x)


def _measurement(A: Tensor, noise: float | Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix (M, D) and the factor of the noise's covariance (M, M) of a measurement, in the dtype of `like`."""
    if A.ndim != 2 or A.shape[1] != reference.shape[1]:
        raise ValueError(f"expected a matrix A of shape (M, {reference.shape[1]}), got {tuple(A.shape)}")
    factor = torch.as_tensor(noise, dtype=reference.dtype, device=reference.device)
    if factor.ndim == 0:
        if not 0.0 <= float(factor) < math.inf:
            raise ValueError(f"expected a finite noise >= 0, a standard deviation, got {noise}")
        factor = factor * torch.eye(len(A), dtype=reference.dtype, device=reference.device)
    if factor.shape != (len(A), len(A)):
        raise ValueError(f"expected noise as a number or of shape ({len(A)}, {len(A)}), got {tuple(factor.shape)}")
    return A.to(reference), factor


def _checked(y: Tensor, rows: int) -> Tensor:
    """The measurement, which must be finite and of shape (M,)."""
    if y.shape != (rows,) or not bool(y.isfinite().all()):
        raise ValueError(f"expected a finite measurement y of shape ({rows},), got {tuple(y.shape)}: {y}")
    return y
