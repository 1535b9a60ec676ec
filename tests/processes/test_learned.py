"""The learned schedule: monotone between its ends, part of its denoiser, and no matter to a likelihood."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sde
from sde.data import Scaling
from sde.likelihood.truncation import truncated_at
from sde.objective import LearnedSchedule

F64 = torch.float64


def moved(process: sde.LearnedVP, seed: int, size: float = 1.0) -> sde.LearnedVP:
    """The schedule with other parameters between its ends."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in process.interior.values():
            p.add_(size * torch.randn(p.shape, generator=g))
    return process


@pytest.mark.parametrize("seed", range(4))
def test_it_is_monotone_between_its_ends_whatever_its_parameters(seed: int) -> None:
    process = moved(sde.LearnedVP(9.0, -7.0, units=8), seed)
    t = torch.linspace(0.0, 1.0, 401, dtype=F64)
    log_snr = process.log_snr(t).detach()
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(log_snr[[0, -1]], torch.tensor([9.0, -7.0], dtype=F64))
    torch.testing.assert_close((process.alpha(t).square() + process.var(t)).detach(), torch.ones_like(t))
    process.check_schedule()


def test_it_begins_almost_linear_in_the_log_snr() -> None:
    t = torch.linspace(0.0, 1.0, 101, dtype=F64)
    assert (sde.LearnedVP().log_snr(t) - (13.3 - 18.3 * t)).abs().max() < 0.4


def test_ends_that_are_learned_move() -> None:
    process = sde.LearnedVP(learn_ends=True)
    with torch.no_grad():
        process.ends.copy_(torch.tensor([10.0, -8.0]))
    t = torch.tensor([0.0, 1.0], dtype=F64)
    torch.testing.assert_close(process.log_snr(t).detach(), torch.tensor([10.0, -8.0], dtype=F64))
    assert {name for name, _ in process.named_parameters()} > {"ends"}
    assert "ends" not in dict(sde.LearnedVP().named_parameters())
    for settings, message in (({"units": 0}, "units"), ({"log_snr_max": -6.0}, "log_snr_min < log_snr_max")):
        with pytest.raises(ValueError, match=message):
            sde.LearnedVP(**settings)


def test_a_likelihood_depends_on_the_ends_alone() -> None:
    """The exact oracle under two schedules: on a grid in log-SNR the log-density at t = 0 and the samples are the same,
    and the log-density is the exact one up to the error of the steps."""
    target = sde.exact.Gaussian(torch.tensor([0.3, -0.5], dtype=F64), torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=F64))
    x = target.sample(6, generator=torch.Generator().manual_seed(0))
    solver = sde.solvers.UniPC(60, order=3)
    nats, draws = [], []
    for seed in (1, 2):
        process = moved(sde.LearnedVP(12.0, -12.0), seed, 0.7)
        d = target.denoiser(process)
        settings = {"solver": solver, "trace": sde.ExactTrace(), "prior": target.at(process, 1.0)}
        nats.append(sde.log_prob(d, x, **settings).nats)
        torch.testing.assert_close(nats[-1], target.log_prob(x, process, 0.0).detach(), rtol=0, atol=3e-3)
        draws.append(sde.sample(d, (5, 2), dtype=F64).x)
        (gradient,) = torch.autograd.grad(sde.sample(d, (5, 2), differentiable=True).x.sum(), process.interior["rates"])
        assert bool(gradient.isfinite().all())
    torch.testing.assert_close(nats[0], nats[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-6, atol=1e-6)


def trained() -> sde.Training:
    torch.manual_seed(0)
    d = sde.NetworkDenoiser(sde.networks.MLP(2, width=8, depth=1), sde.LearnedVP(units=4), level=sde.LogSNRLevel())
    x0 = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    training = sde.Training(d, sde.Batches(x0, 32), objective=LearnedSchedule(), ema=0.5, warmup=0)
    for group in training.optimizer.param_groups:
        group["lr"] = 1e-2
    training._rates = [1e-2]
    for _ in training.run(3):
        pass
    return training


def test_its_parameters_are_those_of_the_denoiser(tmp_path: Path) -> None:
    """Training moves them, averages and files contain them, and a process in their place has its own."""
    training = trained()
    start, now = sde.LearnedVP(units=4).state_dict(), training.denoiser.process.state_dict()
    average = training.ema["default"].weights
    for name, value in now.items():
        assert not torch.equal(start[name], value)
        assert not torch.equal(average[f"process.{name}"], value)
    model = training.model()
    t = torch.linspace(0.0, 1.0, 9, dtype=F64)
    expected = model.process.log_snr(t)
    assert torch.equal(model.process.interior["rates"], average["process.interior.rates"])
    assert not expected.requires_grad
    sde.save(tmp_path / "a.pt", model)
    loaded = sde.load(tmp_path / "a.pt")
    assert torch.equal(loaded.process.log_snr(t), expected)
    assert torch.equal(loaded.sample(3), model.sample(3))
    other = moved(sde.LearnedVP(units=6), 3)
    for process in (sde.VP(), other):
        replaced = sde.load(tmp_path / "a.pt", process=process)
        assert replaced.process is process
        assert torch.equal(replaced.process.log_snr(t[1:]), process.log_snr(t[1:]))
        assert torch.equal(replaced.denoiser.network.inlet.weight, model.denoiser.network.inlet.weight)


def test_another_process_may_take_its_place() -> None:
    """As in the bounds on discrete data, which end where the noise is half a bin wide."""
    d = sde.NetworkDenoiser(sde.networks.MLP(2, width=8, depth=1), sde.LearnedVP(), level=sde.LogSNRLevel())
    truncated = truncated_at(d, Scaling.interval(17), 0.5)
    assert 0.0 < truncated.process.t_min < 1.0
    for process in (sde.VP(), sde.LearnedVP(), sde.VE()):
        d.process = process
        assert d.process is process
        assert any(name.startswith("process.") for name in d.state_dict()) == isinstance(process, sde.LearnedVP)


def test_a_training_of_a_learned_schedule_goes_on_from_its_state() -> None:
    straight, stopped = trained(), trained()
    again = trained()
    again.restore(stopped.state())
    for training in (straight, again):
        list(training.run(5))
    for name, value in straight.denoiser.state_dict().items():
        assert torch.equal(value, again.denoiser.state_dict()[name]), name
