"""Denoisers of a posterior: exact where their approximation holds, the gradients of their definitions elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import sde
from sde import Conditioned, Denoiser, Measurement, Prediction, Wrapper
from sde.exact import Gaussian, Mixture
from sde.measurement import (
    DPS,
    MMPS,
    DiffPIR,
    Identity,
    Linear,
    Mask,
    Matrix,
    NormalVariance,
    Operator,
    PiGDM,
    PilotCovariance,
    PilotVariance,
    PosteriorDenoiser,
)
from sde.processes import VE, VP

A = torch.tensor([[1.0, -0.5], [0.4, 0.8]], dtype=torch.float64)[:1]
Y = torch.tensor([[0.4], [-1.1], [0.9]], dtype=torch.float64)
NOISE = 0.3
TIMES = (0.01, 0.3, 0.9)
METHODS: dict[str, Callable[..., PosteriorDenoiser]] = {
    "PiGDM": PiGDM,
    "MMPS": MMPS,
    "MMPS with its gradient": lambda d, y: MMPS(d, y, covariance_gradient=True),
    "DPS": DPS,
    "DiffPIR": DiffPIR,
}


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def measurement() -> Measurement:
    return Measurement(Matrix(A), Y, NOISE)


def states(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 2, generator=generator, dtype=torch.float64)


def covariance(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """The covariance of x_0 given one state x (D,), sigma^2/alpha times the Jacobian of the denoiser."""
    jacobian = torch.func.jacrev(lambda state: denoiser.predict(Prediction.X0, state[None], t)[0])(x)
    return denoiser.process.var(t) / denoiser.process.alpha(t) * jacobian


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
@pytest.mark.parametrize("what", Prediction)
def test_moment_matching_is_exact_for_a_gaussian(
    what: Prediction, process: sde.SDE, t: float, gaussian: Gaussian, generator: torch.Generator
) -> None:
    x = states(generator)
    for gradient in (False, True):
        method = MMPS(gaussian.denoiser(process), measurement(), covariance_gradient=gradient)
        got = method.predict(what, x, at(t))
        for i, y in enumerate(Y):
            exact = gaussian.posterior(A=A, y=y, noise=NOISE).denoiser(process).predict(what, x[i : i + 1], at(t))
            torch.testing.assert_close(got[i : i + 1], exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", TIMES)
def test_pigdm_and_diffpir_are_exact_where_the_covariance_is_theirs(t: float, generator: torch.Generator) -> None:
    """For data of one variance in all directions DiffPIR is exact too: there is nothing to differentiate."""
    std, x, process = 1.7, states(generator), VP()
    prior = Gaussian(torch.tensor([0.7, -0.3], dtype=torch.float64), std**2 * torch.eye(2, dtype=torch.float64))
    for kind in (PiGDM, DiffPIR):
        got = kind(prior.denoiser(process), measurement(), NormalVariance(std)).score(x, at(t))
        for i, y in enumerate(Y):
            exact = prior.posterior(A=A, y=y, noise=NOISE).denoiser(process).score(x[i : i + 1], at(t))
            torch.testing.assert_close(got[i : i + 1], exact, rtol=1e-10, atol=1e-10)


def known(prior: Gaussian, process: sde.SDE) -> PilotCovariance:
    """The covariance of data given the state, which is the same in all states, at three levels: those are exact."""
    t, cov, eye = torch.tensor([0.8, 0.4, 0.1], dtype=torch.float64), prior._covs()[0], torch.eye(2).double()
    snr = process.log_snr(t).exp()
    values = torch.stack([torch.linalg.inv(torch.linalg.inv(cov) + r * eye) for r in snr])
    return PilotCovariance(process.log_snr(t).tolist(), values)


@pytest.mark.parametrize("kind", [PiGDM, DiffPIR])
def test_with_its_covariance_every_method_is_exact_for_a_gaussian(
    kind: type, gaussian: Gaussian, generator: torch.Generator
) -> None:
    """Masks and noises of their own for each sample, a state in float32 too, and the density of y in all of them."""
    process, x, t = VP(), states(generator), at(0.4)
    masks = torch.tensor([[True, False], [False, True], [True, True]])
    y, noise = states(generator), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    method = kind(gaussian.denoiser(process), Measurement(Mask(masks), y, noise), known(gaussian, process))
    got, weight = method.predict(Prediction.X0, x, t), method.log_potential(x, t)
    cov = torch.linalg.inv(torch.linalg.inv(gaussian._covs()[0]) + process.log_snr(t).exp() * torch.eye(2).double())
    for i, mask in enumerate(masks):
        rows = torch.eye(2, dtype=torch.float64)[mask]
        exact = gaussian.posterior(A=rows, y=y[i][mask], noise=float(noise[i])).denoiser(process)
        torch.testing.assert_close(got[i : i + 1], exact.predict(Prediction.X0, x[i : i + 1], t), rtol=1e-9, atol=1e-9)
        d = gaussian.denoiser(process).predict(Prediction.X0, x[i : i + 1], t)[0]
        given = MultivariateNormal(rows @ d, rows @ cov @ rows.T + noise[i] ** 2 * torch.eye(len(rows)).double())
        torch.testing.assert_close(weight[i], given.log_prob(y[i][mask]), rtol=1e-9, atol=1e-9)
    index = torch.tensor([2, 0, 2, 1])
    chosen = method.select(index)
    torch.testing.assert_close(chosen.predict(Prediction.X0, x[index], t), got[index], rtol=1e-12, atol=1e-12)
    mixed = method.predict(Prediction.X0, x, torch.tensor([0.4, 0.1, 0.8], dtype=torch.float64))
    torch.testing.assert_close(mixed[:1], got[:1], rtol=1e-9, atol=1e-9)
    assert method.select(torch.tensor([1])).predict(Prediction.X0, x[1:2].float(), t).dtype == torch.float32


@pytest.mark.parametrize("one_for_all", [True, False])
def test_kernels_of_a_covariance_are_the_gaussians_that_they_say(
    one_for_all: bool, gaussian: Gaussian, generator: torch.Generator
) -> None:
    """The proposal's covariance from the images of unit normals, and the ratio of the two densities at its points."""
    process, t, b, c = VP(), at(0.4), 0.03, 0.7
    A2 = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=torch.float64)[:1]
    operator = Matrix(A2 if one_for_all else torch.stack([A2, 2.0 * A2]))
    y = torch.full((1 if one_for_all else 2, 1), 0.4, dtype=torch.float64)
    method = DiffPIR(gaussian.denoiser(process), Measurement(operator, y, NOISE), known(gaussian, process))
    n = 4
    method = method if one_for_all else method.select(torch.tensor([0, 0, 1, 1]))
    z = torch.cat([torch.eye(2), torch.eye(2)]).double()
    kernel = method.steer(torch.zeros(n, 2, dtype=torch.float64), t).kernel
    assert kernel is not None
    shift = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    e, log_ratio = kernel(z, shift, b, c)
    eye = torch.eye(2, dtype=torch.float64)
    C = torch.linalg.inv(torch.linalg.inv(gaussian._covs()[0]) + process.log_snr(t).exp() * eye)
    for i in range(n):
        a = A2 if one_for_all or i < 2 else 2.0 * A2
        V = C - C @ a.T @ torch.linalg.inv(a @ C @ a.T + NOISE**2) @ a @ C
        root = e[i // 2 * 2 : i // 2 * 2 + 2]
        torch.testing.assert_close(root.T @ root, b * eye + c**2 * V, rtol=1e-9, atol=1e-9)
        prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), b * eye + c**2 * C).log_prob(e[i] + shift[i])
        given = MultivariateNormal(torch.zeros(2, dtype=torch.float64), b * eye + c**2 * V).log_prob(e[i])
        torch.testing.assert_close(log_ratio[i], prior - given, rtol=1e-9, atol=1e-9)


def test_the_gradient_through_the_covariance_is_that_of_the_logarithm(
    mixture: Mixture, generator: torch.Generator
) -> None:
    denoiser, x, t = mixture.denoiser(VP()), states(generator), at(0.4)

    def log_likelihood(state: Tensor, y: Tensor) -> Tensor:
        mean = A @ denoiser.predict(Prediction.X0, state[None], t)[0]
        cov = A @ covariance(denoiser, state, t) @ A.mT + NOISE**2 * torch.eye(1, dtype=torch.float64)
        return -0.5 * (y - mean) @ torch.linalg.solve(cov, y - mean) - 0.5 * torch.logdet(cov)

    got = MMPS(denoiser, measurement(), covariance_gradient=True).score(x, t) - denoiser.score(x, t)
    expected = torch.stack([torch.func.grad(log_likelihood)(state, y) for state, y in zip(x, Y)])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


class Squares(Operator):
    """A nonlinear operator."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.square()[:, :1]


@pytest.mark.parametrize("operator", [Matrix(A), Squares()], ids=["linear", "nonlinear"])
def test_dps_takes_the_steps_of_its_chain(operator: Operator, mixture: Mixture, generator: torch.Generator) -> None:
    """In a thousandth of the time the score moves the state by -scale times the gradient of the norm."""
    process, x, t, scale = VP(), states(generator).requires_grad_(), at(0.4), 0.7
    denoiser = mixture.denoiser(process)
    norm = (Y - operator(denoiser.predict(Prediction.X0, x, t))).norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(norm, x)
    method = DPS(denoiser, Measurement(operator, Y, NOISE), scale=scale)
    with torch.no_grad():
        added = method.score(x, t) - denoiser.score(x, t)
        step = process.g2(t) * (process.t_max - process.t_min) / 1000 * added
        torch.testing.assert_close(step, -scale * gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_one_sample_does_not_depend_on_others_and_select_keeps_rows(
    method: Callable[..., PosteriorDenoiser], mixture: Mixture, generator: torch.Generator
) -> None:
    x, index, t = states(generator), torch.tensor([2, 0, 2]), at(0.3)
    masks = torch.tensor([[True, False], [False, True], [True, True]])
    y = Measurement(Mask(masks), states(generator), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    denoiser = method(mixture.denoiser(VP()), y)
    together = denoiser.score(x, t)
    torch.testing.assert_close(denoiser.select(index).score(x[index], t), together[index], rtol=1e-12, atol=1e-12)
    chosen = denoiser.select(index).select(torch.tensor([1]))
    torch.testing.assert_close(chosen.score(x[:1], t), together[:1], rtol=1e-12, atol=1e-12)
    weight = denoiser.log_potential(x, t)
    torch.testing.assert_close(denoiser.select(index).log_potential(x[index], t), weight[index], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_potential_is_a_likelihood_and_shares_its_evaluation(
    method: Callable[..., PosteriorDenoiser], mixture: Mixture, generator: torch.Generator
) -> None:
    process, x, t = VP(), states(generator), at(0.3)
    denoiser = mixture.denoiser(process)
    d = denoiser.predict(Prediction.X0, x, t)
    cov = NormalVariance()(process, t) * A @ A.mT + NOISE**2 * torch.eye(1, dtype=torch.float64)
    expected = MultivariateNormal(d @ A.mT, cov).log_prob(Y)
    counts = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    posterior = method(denoiser, measurement())
    conditioned = Conditioned(posterior, None, counts[0], vjps=counts[1])
    steering = conditioned.steer(x, t)
    assert [c.tolist() for c in counts] == [[1] * 3, [posterior.vjps] * 3]
    torch.testing.assert_close(steering.log_potential, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(posterior.log_potential(x, t), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(steering.x0, d)
    torch.testing.assert_close(steering.guided, posterior.predict(Prediction.X0, x, t))


def test_calls_and_products_are_counted(mixture: Mixture) -> None:
    class Counted(Wrapper):
        forwards = 0

        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            type(self).forwards += 1
            return self.inner.predict(what, x_t, t, **condition)

    inner = Counted(mixture.denoiser(VP()))
    expected = {"PiGDM": 1, "MMPS": 4, "MMPS with its gradient": 4, "DPS": 1, "DiffPIR": 0}
    for name, method in METHODS.items():
        Counted.forwards = 0
        r = sde.sample(method(inner, measurement()), (3, 2), solver=sde.solvers.Euler(3), dtype=torch.float64)
        assert Counted.forwards == 3
        assert r.nfe.tolist() == [3] * 3
        assert r.vjps.tolist() == [3 * expected[name]] * 3


def test_a_flow_samples_the_posterior_of_a_gaussian(gaussian: Gaussian) -> None:
    """The flow is affine: its mean is the image of 0 and its covariance that of the images of the unit vectors."""
    process, y = VE(sigma_max=200.0), Y[:1]
    method = MMPS(gaussian.denoiser(process), Measurement(Matrix(A), y, NOISE))
    start = process.sigma(at(process.t_max)) * torch.cat(
        [torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)]
    )
    solver = sde.solvers.Heun(60, grid=sde.grids.LogSNR())
    ends = sde.sample(method, x_T=start, solver=solver).x
    exact = gaussian.posterior(A=A, y=y[0], noise=NOISE)
    root = ends[1:] - ends[:1]
    torch.testing.assert_close(ends[0], exact.means[0], rtol=0, atol=2e-2)
    torch.testing.assert_close(root.mT @ root, exact._covs()[0], rtol=0, atol=2e-2)


@pytest.mark.parametrize("n", [3, 1])
def test_adaptive_solvers_that_drop_samples_keep_measurements_with_them(n: int, mixture: Mixture) -> None:
    generator = torch.Generator().manual_seed(5)
    y = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    masks = torch.rand(7, 2, generator=generator) < 0.5
    solver = sde.solvers.RungeKutta(rtol=1e-2, atol=1e-2)

    def draw(rows: slice, first: int) -> Tensor:
        method = PiGDM(mixture.denoiser(VP()), Measurement(Mask(masks[rows]), y[rows], 0.2))
        size = len(y[rows])
        return sde.sample(method, (size, 2), first=first, solver=solver, dtype=torch.float64).x

    together = draw(slice(0, 7), 0)
    for first in range(0, 3 * n, n):
        torch.testing.assert_close(
            draw(slice(first, first + n), first), together[first : first + n], rtol=0, atol=1e-10
        )


def test_a_wrapper_proposes_and_a_reward_weighs(mixture: Mixture, generator: torch.Generator) -> None:
    x, t, denoiser = states(generator), at(0.3), mixture.denoiser(VP())
    d = denoiser.predict(Prediction.X0, x, t)
    clipped = sde.Clip(PiGDM(denoiser, measurement()), -0.1, 0.1)
    steering, inside = clipped.steer(x, t), PiGDM(denoiser, measurement()).steer(x, t)
    torch.testing.assert_close(steering.guided, inside.guided.clamp(-0.1, 0.1))
    torch.testing.assert_close(steering.x0, d)
    torch.testing.assert_close(steering.log_potential, inside.log_potential)
    assert steering.kernel is not None

    class Reward(Wrapper):
        calls_made = 0

        def __init__(self, inner: Denoiser) -> None:
            super().__init__(inner)
            self.weighed = True

        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            type(self).calls_made += 1
            return self.inner.predict(what, x_t, t, **condition)

        def log_potential(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return self.inner.predict(Prediction.X0, x_t, t, **condition).sum(1)

    counts = Reward(mixture.denoiser(VP()))
    steering = Reward(counts).steer(x, t)
    torch.testing.assert_close(steering.log_potential, d.sum(1))
    torch.testing.assert_close(steering.guided, d)
    assert Reward.calls_made == 2  # one of each wrapper: the weight has the prediction's evaluation

    # Both weights of a measurement around a reward.
    both = PiGDM(Reward(denoiser), measurement()).steer(x, t)
    torch.testing.assert_close(both.log_potential, d.sum(1) + inside.log_potential)


def test_a_denoiser_without_a_weight_has_none(mixture: Mixture, generator: torch.Generator) -> None:
    denoiser = mixture.denoiser(VP())
    assert not denoiser.weighed
    assert denoiser.steer(states(generator), at(0.3)).log_potential.tolist() == [0.0] * 3
    with pytest.raises(TypeError, match="no log_potential"):
        denoiser.log_potential(states(generator), at(0.3))


def test_a_pilot_variance_goes_through_its_points_and_follows_the_rule_beyond(process: sde.SDE) -> None:
    ends = torch.tensor([process.t_max, 0.5, process.t_min], dtype=torch.float64)
    places = process.log_snr(ends)
    variance = PilotVariance(places.tolist(), [0.9, 0.2, 1e-6])
    torch.testing.assert_close(variance(process, ends), torch.tensor([0.9, 0.2, 1e-6], dtype=torch.float64))
    rule = NormalVariance()(process, ends)
    torch.testing.assert_close(PilotVariance(places.tolist(), rule.tolist())(process, at(0.3)).item(),
                               NormalVariance()(process, at(0.3)).item(), rtol=1e-9, atol=0)  # fmt: skip


def misfit_of(operator: Operator, y: Tensor, noise: float) -> Tensor:
    return Measurement(operator, y, noise).misfit(torch.zeros(len(y), 2, dtype=torch.float64))


def test_the_misfit_counts_what_is_measured() -> None:
    y = torch.tensor([[0.6, 100.0], [0.3, 0.4]], dtype=torch.float64)
    mask = torch.tensor([[True, False], [True, True]])
    torch.testing.assert_close(misfit_of(Mask(mask), y, 0.1), torch.tensor([6.0, math.sqrt(12.5)], dtype=torch.float64))


BROKEN = Y.clone()
BROKEN[1, 0] = math.nan


class Half(Operator):
    def __call__(self, x: Tensor) -> Tensor:
        return x.half()[:, :1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: Measurement(Matrix(A), BROKEN, 0.1), r"y\[1, 0\] is nan"),
        (lambda d: Measurement(Matrix(A), Y, -0.1), "noise >= 0"),
        (lambda d: Measurement(Matrix(A), Y, torch.ones(2)), r"shape \(3,\)"),
        (lambda d: Measurement(Matrix(A), Y.long(), 0.1), "real y"),
        (lambda d: Measurement(Mask(torch.ones(5, dtype=torch.bool)), Y, 0.1), "mask"),
        (lambda d: Measurement(Linear(lambda x: 2 * x, lambda y: y), Y, 0.1), r"differ by 0\.\d+"),
        (lambda d: Measurement(Linear(lambda x: x.float(), lambda y: y.float()), Y, 0.1), "keeps torch.float64"),
        (lambda d: PiGDM(d, Measurement(Squares(), Y, 0.1)), "linear operator, got Squares"),
        (lambda d: MMPS(d, measurement(), iterations=0), "iterations"),
        (lambda d: DPS(d, measurement(), scale=-1.0), "scale"),
        (lambda d: DiffPIR(d, measurement(), weight=0.0), "weight"),
        (lambda d: NormalVariance(0.0), "data_std"),
        (lambda d: PilotVariance([0.0, 1.0], [1.0, -1.0]), "variances > 0"),
    ],
)
def test_what_cannot_be_is_refused_at_once(make, message: str, mixture: Mixture) -> None:
    with pytest.raises(ValueError, match=message):
        make(mixture.denoiser(VP()))


@pytest.mark.parametrize(
    ("operator", "y", "message"),
    [
        (Matrix(A), Y.expand(3, 4), "does not fit"),
        (Identity(), Y, "does not fit"),
        (Matrix(A), Y[:2], "does not fit"),
        (Half(), Y, "keeps torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_network_call(operator: Operator, y: Tensor, message: str) -> None:
    class Never(Denoiser):
        process = VP()

        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            raise AssertionError("a network call")

    with pytest.raises(ValueError, match=message):
        sde.sample(DPS(Never(), Measurement(operator, y, 0.1)), (3, 2), dtype=torch.float64)
