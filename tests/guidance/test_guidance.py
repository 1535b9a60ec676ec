"""Guidance against closed forms: mixtures whose components are classes, and products whose factors are conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.classes import Classes, components, guided_flow
from torch import Tensor

import sde
from sde.denoisers import Denoiser, Prediction, from_score
from sde.exact import Gaussian, Mixture
from sde.guidance import Autoguidance, Classifier, ClassifierFree, Composed
from sde.solvers import DDIM, EulerMaruyama, Heun, RungeKutta, Solver, UniPC

PROCESS = sde.VP()
TIGHT = RungeKutta(tableau=sde.solvers.Tableau.dormand_prince_8(), rtol=1e-8, atol=1e-8)


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def states(n: int, d: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def line() -> Mixture:
    """Two classes on a line."""
    return Mixture(f64([0.5, 0.5]), f64([[1.0], [-1.0]]), f64([[[1.0]], [[0.5]]]))


# Classifier-free guidance


@pytest.mark.parametrize("w", [0.5, 3.0])
def test_samples_follow_the_flow_of_the_closed_form_of_the_guided_score(mixture: Mixture, w: float) -> None:
    d, z, label = Classes(mixture, PROCESS), states(2), torch.tensor([0, 2])
    x = sde.sample(ClassifierFree(d, w), x_T=z, solver=TIGHT, condition={"label": label}).x
    expected = np.stack([guided_flow(mixture, row.tolist(), int(k), w, PROCESS) for row, k in zip(z, label)])
    assert (x - f64(expected)).abs().max() < 1e-6


@pytest.mark.parametrize(
    "solver", [EulerMaruyama(20), Heun(10), DDIM(10, eta=1.0), UniPC(10), RungeKutta()], ids=lambda s: type(s).__name__
)
def test_a_weight_of_1_is_the_conditional_model_and_of_0_the_unconditional_one(
    solver: Solver, mixture: Mixture
) -> None:
    d = Classes(mixture, PROCESS)
    call: dict[str, Any] = {"solver": solver, "dtype": torch.float64}
    for w, label in ((1.0, torch.tensor([0, 2])), (0.0, torch.tensor([3, 3]))):
        guided = sde.sample(ClassifierFree(d, w), (2, 2), condition={"label": torch.tensor([0, 2])}, **call)
        assert torch.equal(guided.x, sde.sample(d, (2, 2), condition={"label": label}, **call).x)


class Rational(Denoiser):
    """A denoiser without rounding that depends on the batch, which counts the samples that it is called for."""

    process, classes = PROCESS, 3

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.rows += len(x_t)
        label = condition.get("label", torch.tensor(3)).expand(len(x_t))[:, None]
        return (x_t + label - 1.5) / (1.0 + x_t.square() + x_t.flip(1).square())


def kinds(d: Denoiser, other: Denoiser, log_prob: Callable[..., Tensor], n: int) -> dict[str, Denoiser]:
    """Every kind of guidance with values of its own for each of n samples, the reference of one guided itself."""
    w, label = torch.linspace(0.0, 3.0, n, dtype=torch.float64), torch.arange(n) % 3
    return {
        "free": ClassifierFree(d, w, {"label": (label + 1) % 3}, low=0.3, high=3.0, rescale=0.5),
        "auto": Autoguidance(d, ClassifierFree(other, w, low=0.1), w, low=0.3, high=3.0),
        "composed": Composed(d, {"label": w}, {"label": 3}, terms=[({"label": label}, -0.2 * w)]),
        "classifier": Classifier(d, log_prob, w, names=["label"], shared=True),
    }


def log_class(m: Mixture, process: sde.SDE = PROCESS) -> Callable[..., Tensor]:
    """log p(k | x_t), exactly."""

    def log_prob(x_t: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        alpha, var = process.alpha(t).to(x_t), process.var(t).to(x_t)
        log_joint = m._components(x_t, alpha, var)[0]
        return log_joint.log_softmax(1).gather(1, label.expand(len(x_t))[:, None])[:, 0]

    return log_prob


@pytest.mark.parametrize("kind", ["free", "auto", "composed", "classifier"])
@pytest.mark.parametrize("solver", [Heun(4), RungeKutta(rtol=1e-2, atol=1e-2)], ids=["heun", "adaptive"])
def test_rows_are_the_same_in_batches_of_1_7_and_64(kind: str, solver: Solver, mixture: Mixture) -> None:
    """Weights, nulls and terms of their own, an interval, and samples that leave the batch; the counts too."""
    n = 64
    label = torch.arange(n) % 3

    def log_prob(x_t: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        return (1.0 + label) / (1.0 + x_t[:, 0].square() + x_t[:, 1].square())

    def run(size: int, rows: range) -> list[tuple[Tensor, Tensor, Tensor]]:
        d, other, z, results = Rational(), Rational(), states(n), []
        for start in range(rows.start, rows.stop, size):
            index = torch.arange(start, min(start + size, rows.stop))
            some = kinds(d, other, log_prob, n)[kind].select(index)
            r = sde.sample(some, x_T=z[index], solver=solver, condition={"label": label[index]})
            results += list(zip(r.x, r.nfe, r.vjps))
        assert d.rows + other.rows == sum(int(nfe) for _, nfe, _ in results)  # the calls that were counted were made
        return results

    whole = run(64, range(n))
    for some, first in ((run(7, range(14)), 0), (run(1, range(63, 64)), 63)):
        for (x, nfe, vjps), (y, same_nfe, same_vjps) in zip(some, whole[first:]):
            assert (x - y).abs().max() < 1e-10
            assert (nfe, vjps) == (same_nfe, same_vjps)


def test_calls_are_saved_outside_of_the_interval(mixture: Mixture) -> None:
    """sigma/alpha is 1 where the log-SNR is 0: half of a grid that is symmetric in it."""
    times = PROCESS.time(f64([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])).tolist()
    solver = sde.solvers.Euler(6, grid=sde.grids.Explicit((*times, PROCESS.t_min)))
    d = Classes(mixture, PROCESS)
    for low, high, inside in ((1.0, None, 3), (None, 1.0, 3), (1.0, torch.e**0.75, 1), (20.0, 30.0, 0)):
        d.rows = 0
        guided = ClassifierFree(d, 2.0, low=low, high=high)
        r = sde.sample(
            guided, x_start=states(2), start=times[0], solver=solver, condition={"label": torch.zeros(2).long()}
        )
        assert r.nfe.tolist() == [6 + inside] * 2
        assert d.rows == 2 * (6 + inside)


@pytest.mark.parametrize("what", list(Prediction))
def test_all_predictions_are_those_of_one_score(what: Prediction, mixture: Mixture) -> None:
    d, x, label = Classes(mixture, PROCESS), states(3), torch.tensor([0, 1, 2])
    for t in (f64(0.3), f64([0.1, 0.4, 0.9])):
        for name, guided in kinds(d, Classes(mixture, PROCESS), log_class(mixture), 3).items():
            score = guided.score(x, t, label=label)
            expected = from_score(what, PROCESS, score, x, t)
            assert torch.allclose(guided.predict(what, x, t, label=label), expected, atol=1e-10), name


def test_rescaling_sets_the_standard_deviation_back(mixture: Mixture) -> None:
    d, x, t, label = Classes(mixture, PROCESS), states(3), f64(0.4), torch.tensor([0, 1, 2])
    plain, free = d(x, t, label=label), ClassifierFree(d, 3.0)(x, t, label=label)
    full, half = (ClassifierFree(d, 3.0, rescale=phi)(x, t, label=label) for phi in (1.0, 0.5))
    assert torch.allclose(full.std(1), plain.std(1), rtol=1e-12)
    assert torch.allclose(half, (full + free) / 2.0, rtol=1e-12)


def test_a_negative_condition_takes_the_place_of_the_null(mixture: Mixture) -> None:
    d, x, t = Classes(mixture, PROCESS), states(2), f64(0.4)
    guided = ClassifierFree(d, 2.0, {"label": 1})(x, t, label=torch.tensor([0, 2]))
    expected = 2.0 * d(x, t, label=torch.tensor([0, 2])) - d(x, t, label=torch.tensor([1, 1]))
    assert torch.allclose(guided, expected, rtol=1e-12)


def test_the_learned_variance_is_that_of_the_conditional_prediction() -> None:
    class Learned(Classes):
        def score_and_variance(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
            score = self.predict(Prediction.SCORE, x_t, t, **condition)
            return score, torch.ones_like(score) * condition["label"].item()

    guided = ClassifierFree(Learned(line(), PROCESS), 2.0)
    score, v = guided.score_and_variance(states(2, 1), f64(0.5), label=torch.tensor(1))
    assert torch.equal(score, guided.score(states(2, 1), f64(0.5), label=torch.tensor(1)))
    assert v is not None
    assert v.eq(1.0).all()


# The other kinds


def test_autoguidance_of_gaussians_is_the_closed_form() -> None:
    """With N(m, s I) and a reference N(m', s' I), both scores are linear and the guided one is their combination."""
    a, b = (
        Gaussian(f64([1.0, 0.0]), 0.5 * torch.eye(2).double()),
        Gaussian(f64([0.0, 0.0]), 2.0 * torch.eye(2).double()),
    )
    guided = Autoguidance(a.denoiser(PROCESS), b.denoiser(sde.VP()), 2.5)
    x, t = states(4), f64([0.1, 0.3, 0.6, 1.0])
    alpha, var = PROCESS.alpha(t)[:, None], PROCESS.var(t)[:, None]
    own = -(x - alpha * f64([1.0, 0.0])) / (0.5 * alpha**2 + var)
    other = -x / (2.0 * alpha**2 + var)
    assert torch.allclose(guided.score(x, t), other + 2.5 * (own - other), rtol=1e-12)
    assert guided.cost(t) == (2, 0)


class Product(Denoiser):
    """The exact denoiser of two independent coordinates, each with two classes: `label` of one, `kind` of the other."""

    def __init__(self, process: sde.SDE) -> None:
        super().__init__()
        self.process = process
        m = Mixture(f64([0.3, 0.7]), f64([[-1.0], [2.0]]), f64([[[0.1]], [[0.4]]]))
        self.each = Classes(m, process)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        null = torch.tensor(2)
        labels = condition.get("label", null), condition.get("kind", null)
        return torch.cat([self.each(x_t[:, i : i + 1], t, label=label) for i, label in enumerate(labels)], 1)


def test_independent_conditions_compose_to_the_joint_one() -> None:
    d, x, t = Product(PROCESS), states(4), f64([0.1, 0.3, 0.6, 1.0])
    given = {"label": torch.tensor([0, 1, 0, 1]), "kind": torch.tensor([0, 0, 1, 1])}
    guided = Composed(d, {"label": 1.0, "kind": torch.ones(4)})
    assert torch.allclose(guided(x, t, **given), d(x, t, **given), rtol=1e-12)
    assert guided.calls == 3
    # A further term, and a condition without a weight, which stays.
    own, extra = d(x, t, label=given["label"]), d(x, t, label=given["label"], kind=torch.tensor(1))
    guided = Composed(d, {}, terms=[({"kind": 1}, -0.5)])
    assert torch.allclose(guided(x, t, label=given["label"]), own - 0.5 * (extra - own), rtol=1e-12)


@pytest.mark.parametrize("what", list(Prediction))
def test_the_exact_classifier_makes_the_conditional_model(what: Prediction, mixture: Mixture) -> None:
    d, x, label = Classes(mixture, PROCESS), states(3), torch.tensor([0, 1, 2])
    guided = Classifier(d, log_class(mixture), names=["label"])
    for t in (f64(0.05), f64([0.1, 0.4, 0.9])):
        expected = d.predict(what, x, t, label=label)
        assert torch.allclose(guided.predict(what, x, t, label=label), expected, atol=1e-9)
    assert torch.equal(guided.log_potential(x, t, label=label), log_class(mixture)(x, t, label=label))


def test_a_classifier_works_without_gradients_and_can_be_differentiated(mixture: Mixture) -> None:
    d, x, t, label = Classes(mixture, PROCESS), states(3), f64(0.3), torch.tensor([0, 1, 2])
    guided = Classifier(d, log_class(mixture), 2.0, names=["label"])
    expected = guided.score(x, t, label=label)
    with torch.no_grad():
        assert torch.equal(guided.score(x, t, label=label), expected)
    with torch.inference_mode():
        assert torch.equal(guided.score(x.clone(), t, label=label), expected)
        assert sde.sample(guided, x_T=x.clone(), solver=Heun(2), condition={"label": label}).vjps.tolist() == [4] * 3
    y = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: guided.score(y, t, label=label), y)


def test_wrapped_and_weighed_twice(mixture: Mixture) -> None:
    d, x, t, label = Classes(mixture, PROCESS), states(3), f64(0.3), torch.tensor([0, 1, 2])
    inner = Classifier(d, log_class(mixture), names=["label"])
    outer = sde.Clip(Classifier(inner, lambda x_t, t: -x_t.square().sum(1)), -9.0, 9.0)
    assert (outer.weighed, outer.guided, outer.cost(t)) == (True, True, (1, 2))
    expected = log_class(mixture)(x, t, label=label) - x.square().sum(1)
    assert torch.allclose(outer.log_potential(x, t, label=label), expected)


def test_a_weight_counts_the_calls_that_it_makes(mixture: Mixture) -> None:
    d, x, t = Classes(mixture, PROCESS), states(3), f64(0.3)
    y = sde.Measurement(sde.measurement.Identity(), states(3, seed=1), noise=0.5)
    own = Classifier(d, lambda x_t, t: -x_t.square().sum(1))
    measured = Classifier(sde.measurement.PiGDM(ClassifierFree(d, 2.0), y), lambda x_t, t: -x_t.square().sum(1))
    for guided, calls, rows in ((own, 0, 0), (ClassifierFree(own, 2.0), 0, 0), (measured, 2, 6)):
        nfe, d.rows = torch.zeros(3, dtype=torch.int64), 0
        counted = sde.denoisers.Conditioned(guided, {"label": torch.tensor([0, 1, 2])}, nfe)
        counted.log_potential(x, t)
        assert (nfe.tolist(), d.rows) == ([calls] * 3, rows)


# Likelihoods


def test_a_guided_likelihood_is_refused_unless_it_is_that_of_the_flow() -> None:
    d, x, label = Classes(line(), PROCESS), f64([[-0.6], [0.8]]), torch.tensor([1, 0])
    guided = ClassifierFree(d, f64([1.0, 2.0]))
    call: dict[str, Any] = {"condition": {"label": label}, "trace": sde.ExactTrace(), "solver": TIGHT}
    for refused in (
        lambda: sde.log_prob(guided, x, **call),
        lambda: sde.likelihood.density_bound(sde.Clip(guided), x, condition={"label": label}),
    ):
        with pytest.raises(ValueError, match="not the score of a density"):
            refused()
    assert d.rows == 0
    r = sde.log_prob(guided, x, guided=True, **call)
    plain = sde.log_prob(ClassifierFree(d, 1.0), x, **call)
    assert torch.allclose(r.nats[:1], plain.nats[:1], atol=1e-8)
    # The change of variables, by a difference of two latents.
    one = guided.select(torch.tensor([1, 1, 1]))
    y = x[1] + f64([[-1e-4], [0.0], [1e-4]])
    z = sde.encode(one, y, solver=TIGHT, condition={"label": torch.tensor([0, 0, 0])})
    expected = PROCESS.prior_log_prob(z[1:2]) + ((z[2] - z[0]) / 2e-4).log()
    assert torch.allclose(r.nats[1:], expected, atol=1e-5)


def test_a_guided_model_in_a_file_is_the_same_one(tmp_path: Any) -> None:
    net = sde.networks.MLP(2, width=8, depth=1, classes=3)
    torch.nn.init.normal_(net.outlet[2].weight, generator=torch.Generator().manual_seed(0))
    guided = ClassifierFree(sde.NetworkDenoiser(net, PROCESS), 2.1, {"label": 3}, low=0.2, rescale=0.5)
    model = sde.Model(guided.eval(), sde.data.Scaling.identity(), (2,), 3)
    sde.save(tmp_path / "a.pt", model)
    again = sde.load(tmp_path / "a.pt")
    assert again.denoiser.guided
    assert torch.equal(again.sample(4, solver=Heun(3)), model.sample(4, solver=Heun(3)))
    # Weights of each sample stay with their rows in the batches of a model.
    model = sde.Model(ClassifierFree(guided.inner, torch.linspace(0, 3, 5)), model.scaling, (2,), 3)
    assert torch.allclose(model.sample(5, solver=Heun(3), batch_size=2), model.sample(5, solver=Heun(3)), atol=1e-5)


# Refusals


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda d: ClassifierFree(d, torch.ones(3)), "leading size 2"),
        (lambda d: ClassifierFree(d, torch.ones(2, 1)), "finite number"),
        (lambda d: ClassifierFree(d, torch.nan), "finite number"),
        (lambda d: ClassifierFree(d, low=2.0, high=1.0), "low < high"),
        (lambda d: ClassifierFree(d, rescale=2.0), r"\[0, 1\]"),
        (lambda d: ClassifierFree(d, null={"text": None}), "needs the condition 'text': the conditions are label"),
        (lambda d: ClassifierFree(d, null={"label": torch.ones(3)}), "leading size 2"),
        (lambda d: Autoguidance(d, d.mixture.denoiser(sde.VE())), "same process"),
        (lambda d: Composed(d, {}), "one condition"),
        (lambda d: Composed(d, {"label": 1.0}, {"text": 1}), "null of 'text'"),
        (lambda d: Composed(d, {"text": 1.0}), "needs the condition 'text'"),
        (lambda d: Composed(d, {}, terms=[({"label": torch.ones(3)}, 1.0)]), "leading size 2"),
        (lambda d: Classifier(d, lambda x, t: x, 1.0), "one number for each sample"),
        (lambda d: Classifier(d, lambda x, t: x[:, 0], names=["text"]), "needs the condition 'text'"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_call(
    make: Callable[[Classes], Denoiser], word: str, mixture: Mixture
) -> None:
    d = Classes(mixture, PROCESS)
    with pytest.raises(ValueError, match=word):
        sde.sample(make(d), (2, 2), solver=Heun(2), condition={"label": torch.tensor([0, 1])})
    assert d.rows == 0


def test_no_condition_and_a_single_number_are_refused(mixture: Mixture) -> None:
    d = Classes(mixture, PROCESS)
    with pytest.raises(ValueError, match="needs the condition 'label': the conditions are none"):
        ClassifierFree(d)(states(2), f64(0.5))
    with pytest.raises(ValueError, match="no standard deviation"):
        ClassifierFree(Classes(line(), PROCESS), rescale=0.5)(states(2, 1), f64(0.5), label=torch.tensor(0))


# Statistics


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        sde.solvers.EulerMaruyama(1000),
        sde.solvers.Ancestral(1000),
        sde.solvers.ReverseDiffusion(1000),
        sde.solvers.PredictorCorrector(sde.solvers.ReverseDiffusion(300), sde.solvers.Langevin(0.1)),
        sde.solvers.Euler(1000),
        sde.solvers.Heun(50),
        sde.solvers.DDIM(500, eta=1.0),
        sde.solvers.DPMSolverPP(60),
        sde.solvers.UniPC(60),
        sde.solvers.DEIS(60),
        sde.solvers.AdamsBashforth(100),
        sde.solvers.RungeKutta(),
        sde.solvers.ScipyODE(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_weight_of_1_samples_the_class(solver: Solver, mixture: Mixture) -> None:
    """Mean and covariance to 5 standard errors, beside the bias of a fixed number of steps (2 % of the spread)."""
    n, k = 4000, 1
    guided = ClassifierFree(Classes(mixture, PROCESS), 1.0)
    x = sde.sample(guided, (n, 2), solver=solver, condition={"label": torch.tensor(k)}, denoise=True).x.double()
    _, mean, cov = components(mixture)[k]
    spread = cov.diagonal().sqrt()
    assert ((x.mean(0) - mean).abs() < 5.0 * spread / n**0.5 + 0.02 * spread).all()
    assert ((x.T.cov() - cov).abs() < (5.0 * (2.0 / n) ** 0.5 + 0.04) * torch.outer(spread, spread)).all()
