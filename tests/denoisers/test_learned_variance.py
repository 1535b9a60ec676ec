"""The learned variance: split off from the prediction, and passed on with the score of the same call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sde.denoisers import (
    EDM,
    Conditioned,
    DataPrediction,
    Denoiser,
    LearnedVarianceDenoiser,
    LogSNRLevel,
    NetworkDenoiser,
    NoisePrediction,
    Parametrisation,
    Prediction,
    TimeLevel,
    Wrapper,
)
from sde.dynamics import Reverse
from sde.exact import Gaussian
from sde.processes import VP

READINGS = ["forward", "score", "noise", "velocity"]


class Wide(nn.Module):
    """Twice the channels: a prediction, and u = label + 0.1 x; with `half` the prediction alone."""

    def __init__(self, half: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=dtype))
        self.half, self.calls = half, 0

    def forward(self, x: Tensor, level: Tensor, *, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        shift = torch.zeros(()) if label is None else label
        shift = shift.to(x.dtype).reshape(-1, 1, 1)
        prediction = torch.tanh(self.weight * x + 0.01 * level.to(x.dtype).reshape(-1, 1, 1) + shift)
        return prediction if self.half else torch.cat([prediction, shift + 0.1 * x], 1)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("parametrisation", [NoisePrediction(), DataPrediction(), EDM()], ids=str)
@pytest.mark.parametrize("reading", READINGS)
def test_readings_are_those_of_the_first_half(reading: str, parametrisation: Parametrisation, x: Tensor) -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    wide = LearnedVarianceDenoiser(Wide(), VP(), parametrisation, LogSNRLevel())
    plain = NetworkDenoiser(Wide(half=True), VP(), parametrisation, LogSNRLevel())
    assert torch.equal(getattr(wide, reading)(x, t), getattr(plain, reading)(x, t))


def test_one_call_answers_score_and_fraction(x: Tensor) -> None:
    d, t = LearnedVarianceDenoiser(Wide(), VP()), torch.tensor(0.4)
    assert d.level == TimeLevel()
    assert d.parametrisation == NoisePrediction()
    score, fraction = d.score_and_variance(x, t)
    assert d.network.calls == 1
    assert torch.equal(score, d.score(x, t))
    # u in [-1, 1] stands for v in [0, 1]; the network sees x as it stands, VP having unit variance.
    torch.testing.assert_close(fraction, (0.1 * x + 1.0) / 2.0, rtol=1e-12, atol=0.0)
    assert (score.dtype, fraction.dtype) == (torch.float64, torch.float64)


def test_the_state_keeps_its_dtype(x: Tensor) -> None:
    d = LearnedVarianceDenoiser(Wide(dtype=torch.float32), VP())
    score, fraction = d.score_and_variance(x, torch.tensor(0.4))
    assert (score.dtype, fraction.dtype) == (torch.float64, torch.float64)


def test_other_shapes_are_refused(x: Tensor) -> None:
    d = LearnedVarianceDenoiser(Wide(half=True), VP())
    with pytest.raises(ValueError, match=r"twice.* expected \(3, 4, 5\), got \(3, 2, 5\)"):
        d.score(x, torch.tensor(0.5))
    plain = NetworkDenoiser(Wide(), VP())
    with pytest.raises(ValueError, match=r"expected \(3, 2, 5\), got \(3, 4, 5\)"):
        plain.score_and_variance(x, torch.tensor(0.5))


def test_the_rest_have_learned_none(x: Tensor, gaussian: Gaussian) -> None:
    t = torch.tensor(0.5, dtype=torch.float64)
    for d, at in ((NetworkDenoiser(Wide(half=True), VP()), x), (gaussian.denoiser(VP()), x[:, :, 0])):
        score, fraction = d.score_and_variance(at, t)
        assert torch.equal(score, d.score(at, t))
        assert fraction is None


def test_conditions_and_counts_go_with_it(x: Tensor) -> None:
    nfe, t = torch.zeros(3, dtype=torch.int64), torch.tensor(0.4)
    label = torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64)
    inner = LearnedVarianceDenoiser(Wide(), VP())
    dynamics = Reverse(Conditioned(inner, {"label": label}, nfe))
    score, fraction = dynamics.denoiser.score_and_variance(x, t)
    assert nfe.tolist() == [1, 1, 1]
    assert torch.equal(score, inner.score(x, t, label=label))
    assert torch.equal(fraction, inner.score_and_variance(x, t, label=label)[1])
    rows = torch.tensor([2, 0])
    some, part = dynamics.select(rows).denoiser.score_and_variance(x[rows], t)
    assert nfe.tolist() == [2, 1, 2]
    assert torch.equal(some, score[rows])
    assert torch.equal(part, fraction[rows])


def test_guidance_keeps_the_variance_of_its_first_reading(x: Tensor) -> None:
    class Guided(Wrapper):
        def __init__(self, inner: Denoiser) -> None:
            super().__init__(inner)
            self.calls = 2 * inner.calls

        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            conditional = self.inner.predict(what, x_t, t, **condition)
            free = self.inner.predict(what, x_t, t, label=torch.zeros_like(condition["label"]))
            return free + 3.0 * (conditional - free)

    inner, t = LearnedVarianceDenoiser(Wide(), VP()), torch.tensor(0.4)
    label = torch.tensor([0.2, 0.3, 0.6], dtype=torch.float64)
    nfe = torch.zeros(3, dtype=torch.int64)
    score, fraction = Conditioned(Guided(inner), {"label": label}, nfe).score_and_variance(x, t)
    assert (inner.network.calls, nfe.tolist()) == (2, [2, 2, 2])
    assert torch.equal(fraction, inner.score_and_variance(x, t, label=label)[1])
    assert torch.equal(score, Guided(inner).score(x, t, label=label))
    assert Guided(NetworkDenoiser(Wide(half=True), VP())).score_and_variance(x, t, label=label)[1] is None
