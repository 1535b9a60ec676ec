"""Parametrisations: every reading of an exact F is the oracle's, in both precisions."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from sde.denoisers import (
    EDM,
    DataPrediction,
    FlowPrediction,
    LogSNRLevel,
    MatchedLevel,
    NoisePrediction,
    Parametrisation,
    ScaledScorePrediction,
    ScorePrediction,
    TimeLevel,
    VelocityPrediction,
)
from sde.exact import Gaussian
from sde.processes import SDE, VE, VP, RectifiedFlow

PARAMETRISATIONS: dict[str, Parametrisation] = {
    "noise": NoisePrediction(),
    "data": DataPrediction(),
    "score": ScorePrediction(),
    "scaled": ScaledScorePrediction(),
    "velocity": VelocityPrediction(),
    "flow": FlowPrediction(),
    "edm": EDM(),
    "edm1.5": EDM(data_std=1.5),
}
READINGS = ["x0", "noise", "score", "velocity"]


def column(values: Tensor) -> Tensor:
    """Values of shape () or (B,), laid against states of shape (B, D)."""
    return values.reshape(-1, 1)


def oracle(gaussian: Gaussian, process: SDE, x: Tensor, t: Tensor) -> dict[str, Tensor]:
    """The four readings by the equations of the module's docstring, from the oracle's score and x0."""
    d = gaussian.denoiser(process)
    alpha, sigma, x0, score = column(process.alpha(t)), column(process.sigma(t)), d(x, t), d.score(x, t)
    noise = -sigma * score
    return {"x0": x0, "score": score, "noise": noise, "velocity": alpha * noise - sigma * x0}


def exact_output(name: str, process: SDE, x: Tensor, t: Tensor, exact: dict[str, Tensor]) -> Tensor:
    """The network output F that stands for the oracle."""
    if name == "scaled":
        return column(process.sigma(t)) * exact["score"]
    if name == "flow":
        return column(process.f(t)) * x - 0.5 * column(process.g2(t)) * exact["score"]
    if not name.startswith("edm"):
        return exact[{"data": "x0"}.get(name, name)]
    # Karras et al. 2022, table 1: D = c_skip x + c_out F, in the variables x/alpha and sigma/alpha.
    data = PARAMETRISATIONS[name].data_std
    alpha = column(process.alpha(t))
    sigma = column(process.sigma(t)) / alpha
    c_skip = data**2 / (sigma.square() + data**2)
    c_out = sigma * data / (sigma.square() + data**2).sqrt()
    return (exact["x0"] - c_skip * x / alpha) / c_out


def states(gaussian: Gaussian, process: SDE, t: float) -> Tensor:
    return gaussian.at(process, t).sample(50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_readings_of_the_exact_output(gaussian: Gaussian, process: SDE, name: str) -> None:
    times = [1e-3, 0.1, 0.5, 1.0]
    x = torch.cat([states(gaussian, process, t) for t in times])
    time = torch.tensor(times, dtype=torch.float64).repeat_interleave(50)
    exact = oracle(gaussian, process, x, time)
    out = exact_output(name, process, x, time, exact)
    for reading in READINGS:
        a, b = getattr(PARAMETRISATIONS[name], reading)(process, time)
        value = column(b) * out if a is None else column(a) * x + column(b) * out
        # A score out of x0 at sigma = 1e-4 (sub-VP) has lost half of float64's digits, and that is in its nature.
        torch.testing.assert_close(value, exact[reading], rtol=1e-6, atol=1e-6, msg=lambda m, r=reading: f"{r}: {m}")


@pytest.mark.parametrize("name", [n for n in PARAMETRISATIONS if n != "flow"])
def test_no_reading_loses_digits_in_float32(gaussian: Gaussian, process: SDE, name: str) -> None:
    for t, reading in itertools.product((1e-5, 1e-3, 1.0), READINGS):
        time = torch.tensor(t)  # float32
        x = states(gaussian, process, t).float()
        wide = x.double(), time.double()
        out = exact_output(name, process, *wide, oracle(gaussian, process, *wide)).float()
        results = []
        for dtype in (torch.float32, torch.float64):
            a, b = getattr(PARAMETRISATIONS[name], reading)(process, time.to(dtype))
            terms = [b * out.to(dtype)] if a is None else [a * x.to(dtype), b * out.to(dtype)]
            results.append(torch.stack(terms))
            assert results[-1].dtype == dtype
        single, double = results[0].double(), results[1]
        # Each term, and at the data end their sum too: except from x0, whose other readings are there a difference of
        # like terms whatever is done, as x0 is at the noise end.
        torch.testing.assert_close(single, double, rtol=1e-5, atol=0.0, msg=lambda m, w=(t, reading): f"{w}: {m}")
        if t < 1.0 and (name != "data" or reading == "x0"):
            error = (results[0].sum(0).double() - double.sum(0)).norm() / double.sum(0).norm()
            assert error < 1e-5, (t, reading)


def test_the_velocity_of_rectified_flow_keeps_the_digits_of_float32(gaussian: Gaussian) -> None:
    """The noise, the data and the velocity to 1e-6 of their scale; 1e-3 at the prior's end, whose distance of 1e-3 from
    1 a float32 time has to a relative 6e-5."""
    process = RectifiedFlow()
    for t, reading in itertools.product((1e-5, 0.5, 0.999), ("x0", "noise", "velocity")):
        time, x = torch.tensor(t).double(), states(gaussian, process, t)
        exact = oracle(gaussian, process, x, time)
        out = exact_output("flow", process, x, time, exact)
        a, b = getattr(FlowPrediction(), reading)(process, time.float())
        error = a * x.float() + b * out.float() - exact[reading]
        assert error.abs().max() < (1e-6 if t < 0.9 else 1e-3), (t, reading)
        torch.testing.assert_close(out, exact["noise"] - exact["x0"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_coefficients_have_the_shape_of_time(process: SDE, name: str) -> None:
    for t in (torch.tensor(0.3), torch.tensor([0.1, 0.3, 0.9], dtype=torch.float64)):
        for reading in READINGS:
            a, b = getattr(PARAMETRISATIONS[name], reading)(process, t)
            assert b.shape == t.shape
            assert b.dtype == t.dtype
            assert a is None or (a.shape == t.shape and a.dtype == t.dtype)


@pytest.mark.parametrize(
    "name", [n for n in PARAMETRISATIONS if n not in ("scaled", "flow") and not n.startswith("edm")]
)
def test_what_the_network_predicts_is_read_as_it_stands(name: str) -> None:
    t = torch.tensor([1e-5, 0.5, 1.0])
    a, b = getattr(PARAMETRISATIONS[name], {"data": "x0"}.get(name, name))(VP(), t)
    assert a is None
    assert b.tolist() == [1.0, 1.0, 1.0]


def test_edm_is_table_one() -> None:
    # Karras et al. 2022, table 1, for alpha = 1: c_skip, c_out and c_in with sigma_data = 0.5.
    process, t = VE(sigma_min=0.002, sigma_max=80.0), torch.linspace(0.1, 1.0, 7, dtype=torch.float64)
    sigma, data = 0.002 * 40000.0**t, 0.5
    c_skip, c_out = EDM().x0(process, t)
    torch.testing.assert_close(c_skip, data**2 / (sigma**2 + data**2))
    torch.testing.assert_close(c_out, sigma * data / (data**2 + sigma**2).sqrt())
    torch.testing.assert_close(EDM().input_scale(process, t), 1.0 / (sigma**2 + data**2).sqrt())


def test_edm_output_has_unit_variance(process: SDE) -> None:
    # For data N(0, data_std^2) the target F = (x0 - a x) / b has variance 1 at every time.
    data, t = 0.5, torch.logspace(-4, 0, 9, dtype=torch.float64)
    a, b = EDM(data).x0(process, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    signal, noise = (1.0 - a * alpha) * data / b, a * sigma / b
    torch.testing.assert_close(signal.square() + noise.square(), torch.ones_like(t), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", [n for n in PARAMETRISATIONS if n != "scaled"])
def test_input_has_unit_variance(process: SDE, name: str, generator: torch.Generator) -> None:
    # Of data of that standard deviation, counted on 20000 draws: five standard errors, 6e-7.
    n, t = 20_000, torch.tensor([1e-3, 0.1, 0.4, 1.0], dtype=torch.float64)
    for data_std in (0.5, 1.0, 2.0):
        parametrisation = dataclasses.replace(PARAMETRISATIONS[name], data_std=data_std)  # type: ignore[type-var]
        x0 = data_std * torch.randn(4, n, generator=generator, dtype=torch.float64)
        mean, std = process.marginal(x0, t)
        x_t = mean + std[:, None] * torch.randn(4, n, generator=generator, dtype=torch.float64)
        variance = (parametrisation.input_scale(process, t)[:, None] * x_t).square().mean(1)
        assert bool(((variance - 1.0).abs() < 5.0 * math.sqrt(2.0 / n)).all()), data_std


def test_input_as_it_stands() -> None:
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert NoisePrediction(data_std=None).input_scale(VE(), t) is None
    torch.testing.assert_close(NoisePrediction().input_scale(VP(), t), torch.ones_like(t))
    # Without the process's scale: what a network of a VE process saw.
    torch.testing.assert_close(ScaledScorePrediction().input_scale(VP(), t), 1.0 / VP().alpha(t))


def test_levels(process: SDE) -> None:
    t = torch.tensor([0.01, 0.5], dtype=torch.float64)
    torch.testing.assert_close(TimeLevel()(process, t), 1000.0 * t)
    torch.testing.assert_close(TimeLevel(scale=999.0, offset=2.0)(process, t), 999.0 * t + 2.0)
    # A quarter of log(sigma/alpha), as in EDM.
    torch.testing.assert_close(LogSNRLevel()(process, t), (process.sigma(t) / process.alpha(t)).log() / 4.0)
    torch.testing.assert_close(LogSNRLevel(0.5)(process, t[0]), -0.5 * process.log_snr(t[0]))


def test_the_label_of_a_chain_counts_its_steps(process: SDE) -> None:
    i = torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(TimeLevel()(process, i / 1000), i)


def test_a_log_snr_label_with_an_offset(process: SDE) -> None:
    t = torch.tensor([0.01, 0.5], dtype=torch.float64)
    sigma = process.sigma(t) / process.alpha(t)
    torch.testing.assert_close(LogSNRLevel(0.5, -math.log(2.0))(process, t), (sigma / 2.0).log())


def test_a_matched_label_is_that_of_the_training(process: SDE) -> None:
    trained = VE(sigma_min=1e-4, sigma_max=1e3)
    t = torch.tensor([0.01, 0.5, 0.9], dtype=torch.float64)
    log_ratio = (process.sigma(t) / process.alpha(t)).log()
    time = (log_ratio - math.log(1e-4)) / math.log(1e7)
    torch.testing.assert_close(MatchedLevel(trained, TimeLevel(999.0, 1.0))(process, t), 999.0 * time + 1.0)
    torch.testing.assert_close(MatchedLevel(process, TimeLevel())(process, t), 1000.0 * t)
