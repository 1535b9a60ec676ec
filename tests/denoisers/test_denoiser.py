"""Denoisers: readings that agree with the oracle, one cast, and calls counted for each sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sde.denoisers import (
    EDM,
    Conditioned,
    DataPrediction,
    Denoiser,
    LogSNRLevel,
    NetworkDenoiser,
    NoisePrediction,
    Parametrisation,
    Prediction,
    ScorePrediction,
    VelocityPrediction,
    Wrapper,
)
from sde.exact import Gaussian
from sde.processes import SDE, VE, VP

READINGS = ["forward", "score", "noise", "velocity"]
PARAMETRISATIONS = [
    NoisePrediction(),
    NoisePrediction(data_std=None),
    DataPrediction(),
    ScorePrediction(),
    VelocityPrediction(),
    EDM(),
]


def f64(values: list | float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


TIMES = [f64(1e-3), f64(1.0), f64([0.01, 0.3, 0.9])]


class Only(Denoiser):
    """A denoiser that knows nothing but x0."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.process = inner, inner.process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.inner(x_t, t)


class ExactNetwork(nn.Module):
    """The output F of a parametrisation that makes the denoiser exact, from the scaled input and the log-SNR."""

    def __init__(self, gaussian: Gaussian, process: SDE, parametrisation: Parametrisation) -> None:
        super().__init__()
        self.exact, self.process, self.parametrisation = gaussian.denoiser(process), process, parametrisation

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        t = self.process.time(-8.0 * level)
        scale = self.parametrisation.input_scale(self.process, t)
        x_t = x if scale is None else x / scale.reshape(-1, 1)
        # x0 = a x + b F, solved for F.
        a, b = self.parametrisation.x0(self.process, t)
        rest = self.exact(x_t, t) if a is None else self.exact(x_t, t) - a.reshape(-1, 1) * x_t
        return rest / b.reshape(-1, 1)


class Recorder(nn.Module):
    """A network of one weight that answers weight * x + level + shift and remembers what it was given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=dtype))
        self.seen: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def forward(self, x: Tensor, level: Tensor, **condition: Tensor) -> Tensor:
        self.seen.append((x, level, condition))
        return (self.weight * x + 1e-3 * level.reshape(-1, *(1,) * (x.ndim - 1))).to(x.dtype)


class Labelled(Denoiser):
    """E[x0] = x + label + shift: answers that tell which condition reached which sample."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.process, self.calls = VP(), calls
        self.asked: list[str] = []

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.asked.append("forward")
        return x_t + condition["label"].reshape(-1, 1) + condition.get("shift", 0.0)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        if what is Prediction.X0:
            return self(x_t, t, **condition)
        self.asked.append(what.value)
        factor = {Prediction.SCORE: 2.0, Prediction.NOISE: 3.0, Prediction.VELOCITY: 4.0}[what]
        return factor * condition["label"].reshape(-1, 1) + 0.0 * x_t


def oracle(gaussian: Gaussian, process: SDE, x: Tensor, t: Tensor) -> dict[str, Tensor]:
    d = gaussian.denoiser(process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha, sigma = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
    noise = -sigma * d.score(x, t)
    return {
        "forward": d(x, t),
        "score": d.score(x, t),
        "noise": noise,
        "velocity": alpha * noise - sigma * d(x, t),
    }


def test_defaults_follow_from_forward(gaussian: Gaussian, process: SDE) -> None:
    d = Only(gaussian.denoiser(process))
    x = gaussian.at(process, 0.3).sample(3, generator=torch.Generator().manual_seed(0))
    for time in TIMES:
        for reading, expected in oracle(gaussian, process, x, time).items():
            torch.testing.assert_close(getattr(d, reading)(x, time), expected, rtol=1e-6, atol=1e-6)
    assert d.calls == 1
    assert d.select(torch.tensor([0, 2])) is d


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS, ids=repr)
def test_a_network_that_is_exact(gaussian: Gaussian, process: SDE, parametrisation: Parametrisation) -> None:
    network = ExactNetwork(gaussian, process, parametrisation)
    d = NetworkDenoiser(network, process, parametrisation, LogSNRLevel())
    x = gaussian.at(process, 0.3).sample(3, generator=torch.Generator().manual_seed(0))
    for time in TIMES:
        for reading, expected in oracle(gaussian, process, x, time).items():
            scale = max(1.0, expected.abs().max().item())
            torch.testing.assert_close(getattr(d, reading)(x, time), expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("reading", READINGS)
def test_one_cast(reading: str) -> None:
    network, process = Recorder(torch.float32), VE()
    d = NetworkDenoiser(network, process)
    x, t = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), f64([0.1, 0.2, 0.5, 1.0])
    value = getattr(d, reading)(x, t, shift=f64([1.0, 2.0, 3.0, 4.0]), label=torch.arange(4))
    assert value.dtype == torch.float64
    ((seen, level, condition),) = network.seen
    assert seen.dtype == level.dtype == condition["shift"].dtype == torch.float32
    assert condition["label"].dtype == torch.int64
    # Scaled in float64 before the cast, and read in float64 after it.
    scale = (1.0 + process.var(t)).rsqrt()[:, None]
    assert torch.equal(seen, (scale * x).float())
    torch.testing.assert_close(level, (1000.0 * t).float(), rtol=0.0, atol=0.0)
    out = (network.weight * seen + 1e-3 * level[:, None]).double()
    a, b = getattr(NoisePrediction(), {"forward": "x0"}.get(reading, reading))(process, t)
    expected = b[:, None] * out if a is None else b[:, None] * out + a[:, None] * x
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("reading", READINGS)
def test_a_wide_network_does_not_widen_the_state(reading: str) -> None:
    network = Recorder(torch.float64)
    d = NetworkDenoiser(network, VP())
    assert getattr(d, reading)(torch.ones(2, 3), f64(0.5)).dtype == torch.float32
    assert network.seen[0][0].dtype == network.seen[0][1].dtype == torch.float64


def test_the_level_keeps_its_digits_for_a_half_precision_network() -> None:
    network = Recorder(torch.bfloat16)
    d = NetworkDenoiser(network, VP())
    assert d(torch.zeros(2, 3), f64([0.1234, 0.777])).dtype == torch.float32
    ((seen, level, _),) = network.seen
    assert seen.dtype == torch.bfloat16
    assert level.dtype == torch.float32
    torch.testing.assert_close(level, torch.tensor([123.4, 777.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_without_weights_gets_the_state_as_it_is(dtype: torch.dtype) -> None:
    class Identity(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            assert x.dtype == dtype
            return x

    assert NetworkDenoiser(Identity(), VP()).score(torch.ones(2, 3, dtype=dtype), f64(0.5)).dtype == dtype


def test_input_is_scaled() -> None:
    process, t = VE(), f64([0.1, 0.6])
    x = (process.var(t) + 0.25).sqrt()[:, None] * torch.ones(2, 3, dtype=torch.float64)
    for parametrisation, expected in [
        (NoisePrediction(data_std=0.5), torch.ones_like(x)),
        (EDM(), torch.ones_like(x)),
        (NoisePrediction(data_std=None), x),
    ]:
        network = Recorder(torch.float64)
        NetworkDenoiser(network, process, parametrisation).score(x, t)
        torch.testing.assert_close(network.seen[0][0], expected)


@pytest.mark.parametrize("t", [0.3, [0.1, 0.3]])
def test_image_events_and_both_kinds_of_time(t: float | list[float]) -> None:
    network = Recorder(torch.float32)
    d = NetworkDenoiser(network, VP(), EDM())
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for reading in READINGS:
        value = getattr(d, reading)(x, f64(t))
        assert value.shape == x.shape
        assert value.dtype == torch.float32
        time = f64(t).expand(2)
        for i in range(2):
            torch.testing.assert_close(value[i : i + 1], getattr(d, reading)(x[i : i + 1], time[i]))


def test_a_network_of_another_shape_is_refused() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return torch.cat([x, x], 1)

    d = NetworkDenoiser(Wide(), VP())
    for reading in READINGS:
        with pytest.raises(ValueError, match=r"expected \(2, 3\), got \(2, 6\)"):
            getattr(d, reading)(torch.zeros(2, 3), torch.tensor(0.5))


@pytest.mark.parametrize("name", READINGS)
def test_a_wrapper_passes_each_reading_on(name: str) -> None:
    class Doubled(Wrapper):
        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return 2.0 * self.inner.predict(what, x_t, t, **condition)

    inner = Labelled(calls=3)
    wrapped = Doubled(inner)
    x, t, label = torch.ones(2, 1), torch.tensor(0.5), torch.tensor([1.0, 2.0])
    assert wrapped.process is inner.process
    assert wrapped.calls == 3
    assert torch.equal(getattr(wrapped, name)(x, t, label=label), 2.0 * getattr(inner, name)(x, t, label=label))
    assert inner.asked == [name, name]


@pytest.mark.parametrize("name", READINGS)
def test_conditioned_counts_each_reading_for_each_sample(name: str) -> None:
    inner, nfe = Labelled(calls=2), torch.zeros(3, dtype=torch.int64)
    label, x, t = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, 1), torch.tensor(0.5)
    d = Conditioned(inner, {"label": label}, nfe)
    assert d.process is inner.process
    assert d.calls == 2
    assert torch.equal(getattr(d, name)(x, t), getattr(inner, name)(x, t, label=label))
    assert nfe.tolist() == [2, 2, 2]
    some = d.select(torch.tensor([2, 0]))
    assert torch.equal(getattr(some, name)(x[:2], t), getattr(inner, name)(x[:2], t, label=label[[2, 0]]))
    assert nfe.tolist() == [4, 2, 4]
    # A choice within a choice: sample 0 alone.
    one = some.select(torch.tensor([1]))
    assert torch.equal(getattr(one, name)(x[:1], t), getattr(inner, name)(x[:1], t, label=label[:1]))
    assert nfe.tolist() == [6, 2, 4]
    getattr(d, name)(x, t)
    assert nfe.tolist() == [8, 4, 6]
    assert inner.asked == [name] * 7


def test_conditions_may_be_scalars_numbers_or_come_with_the_call() -> None:
    nfe = torch.zeros(2, dtype=torch.int64)
    d = Conditioned(Labelled(), {"label": torch.tensor([1.0, 2.0]), "shift": 10.0}, nfe)
    x, t = torch.zeros(2, 1), torch.tensor(0.5)
    assert d(x, t).tolist() == [[11.0], [12.0]]
    assert d.select(torch.tensor([1]))(x[:1], t).tolist() == [[12.0]]
    free = Conditioned(Labelled(), None, nfe)
    assert free(x, t, label=torch.tensor([5.0, 6.0])).tolist() == [[5.0], [6.0]]
    with pytest.raises(TypeError, match="multiple values"):
        d(x, t, label=torch.tensor([5.0, 6.0]))
    d = Conditioned(Labelled(), {"label": torch.tensor(4.0)}, nfe)
    assert d(x, t).tolist() == [[4.0], [4.0]]


def test_a_condition_has_one_entry_for_each_sample() -> None:
    nfe = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"'label': expected a scalar or leading size 3, .* got shape \(2,\)"):
        Conditioned(Labelled(), {"label": torch.zeros(2)}, nfe)
    with pytest.raises(ValueError, match=r"leading size 2, .* got shape \(3, 4\)"):
        Conditioned(Labelled(), {"label": torch.zeros(3, 4)}, nfe, rows=torch.tensor([0, 2]))


def test_counting_does_not_hide_the_gradient(gaussian: Gaussian) -> None:
    d = Conditioned(gaussian.denoiser(VP()), None, torch.zeros(1, dtype=torch.int64))
    x = f64([[0.3, 0.1]]).requires_grad_()
    (gradient,) = torch.autograd.grad(d.score(x, f64(0.5)).sum(), x)
    assert bool((gradient != 0).all())


class Scaled(Wrapper):
    """The prediction times a weight of each sample."""

    def __init__(self, inner: Denoiser, weight: Tensor) -> None:
        super().__init__(inner)
        self.weight = weight

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.weight[:, None] * self.inner.predict(what, x_t, t, **condition)

    def select(self, index: Tensor) -> Denoiser:
        return Scaled(self.inner.select(index), self.weight[index])


class Halved(Wrapper):
    """Half the prediction: a wrapper that knows nothing of samples."""

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return 0.5 * self.inner.predict(what, x_t, t, **condition)


@pytest.mark.parametrize("what", Prediction)
def test_select_passes_through_every_wrapper_and_repeats_rows(what: Prediction) -> None:
    """Weights within a wrapper within a condition stay with their samples; a repeated row is counted twice."""
    inner, x, t = Labelled(calls=2), torch.linspace(0.0, 1.0, 3)[:, None], torch.tensor(0.5)
    weight, label = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([1.0, 2.0, 3.0])
    nfe = torch.zeros(3, dtype=torch.int64)
    whole = Conditioned(Halved(Scaled(inner, weight)), {"label": label}, nfe)
    every = whole.predict(what, x, t)
    torch.testing.assert_close(every, 0.5 * weight[:, None] * inner.predict(what, x, t, label=label))
    index = torch.tensor([2, 0, 2])
    part = whole.select(index)
    assert torch.equal(part.predict(what, x[index], t), every[index])
    assert nfe.tolist() == [4, 2, 6]
    again = part.select(torch.tensor([0, 1]))
    assert torch.equal(again.predict(what, x[[2, 0]], t), every[[2, 0]])
    assert nfe.tolist() == [6, 2, 8]
    assert torch.equal(whole.predict(what, x, t), every)


def test_vector_jacobian_products_are_counted_with_the_calls() -> None:
    """A denoiser declares both; the counts of a selection go to its rows."""

    class Guided(Halved):
        def __init__(self, inner: Denoiser) -> None:
            super().__init__(inner)
            self.calls, self.vjps = 2 * inner.calls, 1 + inner.vjps

    nfe, vjps = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    d = Conditioned(Guided(Labelled(calls=2)), {"label": torch.ones(3)}, nfe, vjps=vjps)
    d.score(torch.zeros(3, 1), torch.tensor(0.5))
    d.select(torch.tensor([1, 1])).score(torch.zeros(2, 1), torch.tensor(0.5))
    assert nfe.tolist() == [4, 12, 4]
    assert vjps.tolist() == [1, 3, 1]


@pytest.mark.parametrize("name", ["score", "noise", "velocity", "posterior"])
def test_a_hook_of_version_0_1_0_is_refused_when_the_class_is_made(name: str) -> None:
    """Never silently computed from x0; also where a class in between defines it."""

    def hook(self: Denoiser, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    instead = "score_and_variance" if name == "posterior" else "predict"
    for bases in ((Denoiser,), (type("Between", (), {name: hook}), Denoiser), (Wrapper,), (NetworkDenoiser,)):
        body = {} if bases[0].__name__ == "Between" else {name: hook}
        with pytest.raises(TypeError, match=rf"Old defines {name}.*define {instead}\("):
            type("Old", bases, body)


def test_a_wrapper_of_version_0_1_0_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Old defines read.*predict"):
        type("Old", (Wrapper,), {"read": lambda self, reading, x_t, t, condition: x_t})
