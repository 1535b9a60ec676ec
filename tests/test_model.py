"""Models on the data's own terms: values in, values and bits/dim out."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde.data import Scaling
from sde.exact import ExactDenoiser
from sde.likelihood import TruncatedNormal, discrete_log_prob
from sde.model import Model, from_checkpoint
from sde.noise import Noise, Stream
from sde.storage.checkpoint import load_checkpoint, save_checkpoint
from sde.training.ema import EMA

SHAPE = (1, 2, 3)
SOLVER = sde.solvers.Heun(4, grid=sde.grids.LogSNR())


def uniform(levels: int, low: float, high: float, process: sde.SDE) -> Model:
    """The model whose density is uniform on the model's range: it gives every level the probability 1 / levels."""
    corner = torch.full(SHAPE, 1.0, dtype=torch.float64)
    denoiser = sde.exact.Uniform(low * corner, high * corner).denoiser(process)
    return Model(denoiser, Scaling.interval(levels, low, high), SHAPE)


def values(levels: int, n: int = 8) -> Tensor:
    return torch.randint(levels, (n, *SHAPE), generator=torch.Generator().manual_seed(0)).to(
        Scaling.interval(levels).dtype
    )


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("levels", [17, 256])
def test_uniform_noise_costs_log2_of_the_levels(levels: int, low: float, high: float) -> None:
    """Inner pixels cost log2 L, whatever the range: a level's cell has the same share of it.

    The density of the state at t_min falls off within some sigma(t_min) = 1e-3 of the edges only, where the cells of
    the first and the last levels lie.
    """
    model = uniform(levels, low, high, sde.VP())
    x = values(levels).clamp(2, levels - 3)
    solver, trace = sde.solvers.RungeKutta(rtol=1e-6, atol=1e-6), sde.Hutchinson(1)
    truth = torch.full((len(x),), math.log2(levels), dtype=torch.float64)
    bits = model.bits_per_dim(x, solver=solver, trace=trace)
    # The standard normal stands for the marginal at t_max, whose mean on [0, 1] is alpha / 2 = 3e-3.
    torch.testing.assert_close(bits, truth, rtol=0, atol=5e-3)
    assert isinstance(model.denoiser, ExactDenoiser)
    prior = model.denoiser.target.at(model.process, model.process.t_max)
    bits = model.bits_per_dim(x, solver=solver, trace=trace, prior=prior)
    # alpha(t_min) is 5e-7 below 1, and shrinks the box by as much.
    torch.testing.assert_close(bits, truth, rtol=0, atol=2e-5)


def test_a_scale_of_the_model_does_not_change_bits_per_dim() -> None:
    """A Gaussian model on [-1, 1], and the same laid on [0, 1] under half the noise: the same code length."""
    x = values(17)
    results = []
    for low, high, width in ((-1.0, 1.0, 1.0), (0.0, 1.0, 0.5)):
        middle = torch.full((6,), (low + high) / 2, dtype=torch.float64)
        process = sde.VE(sigma_min=0.01 * width, sigma_max=80.0 * width)
        denoiser = sde.exact.Gaussian(middle, (0.4 * width) ** 2 * torch.eye(6, dtype=torch.float64)).denoiser(process)
        model = Model(denoiser, Scaling.interval(17, low, high), SHAPE)
        solver = sde.solvers.RungeKutta(rtol=1e-8, atol=1e-8)
        prior = sde.exact.Gaussian(middle, (0.4 * width) ** 2 * torch.eye(6, dtype=torch.float64)).at(process, 1.0)
        results.append(model.bits_per_dim(x, solver=solver, trace=sde.ExactTrace(), prior=prior))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=0)


def gaussian(scaling: Scaling, mean: float = 0.2, std: float = 0.3, shape: tuple[int, ...] = SHAPE) -> Model:
    d = math.prod(shape)
    target = sde.exact.Gaussian(torch.full((d,), mean), std**2 * torch.eye(d))
    return Model(target.denoiser(sde.VP()), scaling, shape)


def test_bits_per_dim_are_nats_on_the_scale_of_the_data() -> None:
    """-(log q(y) + D log scale) / (D log 2), with y the dequantised values and q the model's density at t_min."""
    scaling = Scaling.interval(17)
    model = gaussian(scaling)
    x, index = values(17), torch.arange(8) + 100
    prior = model.denoiser.target.at(model.process, model.process.t_max)  # type: ignore[union-attr, operator]
    settings: dict[str, Any] = {"seed": 5, "index": index, "repeat": 2, "prior": prior, "trace": sde.ExactTrace()}
    r = model.log_prob(x, **settings, solver=sde.solvers.RungeKutta(rtol=1e-5, atol=1e-5))
    u = Noise(5).uniform(Stream.DEQUANTISE, index, torch.full((8,), 2), SHAPE, torch.float64)
    y = 2.0 / 17.0 * (x.double() + u) - 1.0
    truth = torch.distributions.Normal(0.2, 0.3).log_prob(y).flatten(1).sum(1)
    torch.testing.assert_close((r.prior + r.divergence).double(), truth, rtol=0, atol=1e-3)
    torch.testing.assert_close(r.nats, r.prior + r.divergence + r.log_weight)
    torch.testing.assert_close(r.nats.double(), truth + 6 * math.log(2 / 17), rtol=0, atol=1e-3)
    bits = model.bits_per_dim(x, **settings, solver=sde.solvers.RungeKutta(rtol=1e-5, atol=1e-5))
    torch.testing.assert_close(bits.double(), -(truth + 6 * math.log(2 / 17)) / (6 * math.log(2)), rtol=0, atol=3e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_log_density_of_standardised_data_is_in_the_units_of_the_data(dtype: torch.dtype) -> None:
    """Gaussian data with a standard deviation of 5, which the model sees with 1: log p(x) of x itself, in closed form.

    The truth at `t_min` is the model's marginal there, whose variance is 1 up to 1e-5.
    """
    x = 3.0 + 5.0 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaling = Scaling.standardise(x)
    mean, std = -scaling.shift / scaling.scale, 1.0 / scaling.scale
    target = sde.exact.Gaussian(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    model = Model(target.denoiser(sde.VP()), scaling, (2,))
    truth = torch.distributions.Normal(mean, std).log_prob(x).sum(1)
    solver = sde.solvers.RungeKutta(rtol=1e-6, atol=1e-6)
    r = model.log_prob(x, solver=solver, trace=sde.ExactTrace())
    # In float32 the states are rounded, and so is every step of the solver.
    torch.testing.assert_close(r.nats.double(), truth, rtol=0, atol=1e-4 if dtype == torch.float64 else 2e-3)
    states = scaling.to_model(x, dtype=dtype)
    raw = sde.log_prob(model.denoiser, states, solver=solver, trace=sde.ExactTrace())
    assert raw.log_weight == 0.0
    torch.testing.assert_close(r.nats - raw.nats, torch.full_like(raw.nats, 2.0 * math.log(scaling.scale)))
    bits = model.bits_per_dim(x, solver=solver, trace=sde.ExactTrace())
    torch.testing.assert_close(bits, -r.nats / (2.0 * math.log(2.0)))


@pytest.mark.parametrize("solver", [SOLVER, sde.solvers.UniPC(4), sde.solvers.RungeKutta()], ids=repr)
def test_few_frames_lie_between_a_log_density_and_the_network(solver: sde.solvers.Solver) -> None:
    """Those of this package, from `Model.log_prob` to the network, which is not counted."""
    counts: list[int] = []

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            frame, files = sys._getframe(1), []
            while frame is not None:
                files.append(frame.f_globals.get("__name__", ""))
                frame = frame.f_back  # type: ignore[assignment]
            counts.append(sum(name.partition(".")[0] == "sde" for name in files))
            return 0.1 * x

    denoiser = sde.NetworkDenoiser(Network(), sde.VP(), level=sde.LogSNRLevel(1.0))
    Model(denoiser, Scaling.interval(17), SHAPE).log_prob(values(17, 1), solver=solver)
    assert 0 < max(counts) <= 14


def test_a_dequantiser_is_a_choice() -> None:
    """Bits/dim with its own weight; the density of the states is that of the flow."""
    model, x = gaussian(Scaling.interval(17)), values(17)
    rule = TruncatedNormal(0.3, alpha=0.9)
    settings: dict[str, Any] = {"solver": SOLVER, "trace": sde.ExactTrace(), "seed": 2}
    r = model.log_prob(x, dequantiser=rule, **settings)
    bound = discrete_log_prob(model.denoiser, x, model.scaling, dequantiser=rule, **settings)
    torch.testing.assert_close(r.nats.double(), bound.nats, rtol=1e-6, atol=1e-4)
    assert not torch.isclose(r.nats, model.log_prob(x, **settings).nats).any()
    with pytest.raises(ValueError, match="TruncatedNormal"):
        gaussian(Scaling.identity(), shape=(3,)).log_prob(torch.zeros(2, 3), dequantiser=rule)


def test_gradients_of_the_log_density_are_with_respect_to_data() -> None:
    """The score of the data: that of a Gaussian, in the units of the data."""
    model = gaussian(Scaling(scale=0.5, shift=-1.0), shape=(3,))
    x = torch.tensor([[2.0, 3.0, 2.5], [2.2, 1.9, 3.0]], requires_grad=True)
    solver = sde.solvers.Heun(40)
    nats = model.log_prob(x, solver=solver, trace=sde.ExactTrace(), differentiable=True).nats
    (score,) = torch.autograd.grad(nats.sum(), x)
    exact = -(x.detach() - 2.4) / 0.36  # mean (0.2 + 1)/0.5, standard deviation 0.3/0.5
    torch.testing.assert_close(score, exact, rtol=1e-2, atol=1e-2)
    assert not model.log_prob(x, solver=solver).nats.requires_grad


def test_dequantisation_is_keyed_by_index_and_repeat_and_not_by_the_batch() -> None:
    model = gaussian(Scaling.interval(17))
    x, index = values(17), torch.arange(8)
    settings: dict[str, Any] = {"solver": SOLVER, "trace": sde.Hutchinson(1), "seed": 1}
    whole = model.log_prob(x, **settings).nats
    parts = [model.log_prob(x[i], index=index[i], **settings).nats for i in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
    same = model.log_prob(x[:1].expand(2, *SHAPE), index=torch.tensor([4, 4]), **settings).nats
    assert same[0] == same[1]
    for other in ({"repeat": 1}, {"seed": 2}, {"index": index + 1}):
        assert not torch.isclose(model.log_prob(x, **{**settings, **other}).nats, whole).any()


def test_continuous_data_is_not_dequantised() -> None:
    scaling = Scaling(scale=0.5, shift=-1.0)
    model = gaussian(scaling, shape=(3,))
    x = torch.tensor([[2.0, 3.0, 2.5]])
    r = [model.log_prob(x, seed=s, solver=SOLVER, trace=sde.ExactTrace()).nats for s in (0, 1)]
    assert torch.equal(r[0], r[1])
    with pytest.raises(ValueError, match=r"\[0, 1\] is nan"):
        model.log_prob(torch.tensor([[2.0, math.nan, 2.5]]))


def test_the_error_budget_is_that_of_its_own_log_densities() -> None:
    model, x, index = uniform(17, -1.0, 1.0, sde.VP()), values(17, 4).clamp(2, 14), torch.tensor([3, 9, 4, 1])
    call: dict[str, Any] = {"seed": 2, "solver": SOLVER, "trace": sde.Hutchinson(3)}
    draws = torch.stack([model.log_prob(x, index=index, repeat=r, **call).nats for r in range(5)])
    one, five = (model.error_budget(x, index=index, repeats=r, rows=2, **call) for r in (1, 5))
    assert one.dequantisation is None
    assert (one.mean.value, five.mean.value) == pytest.approx((draws[0].mean().item(), draws.mean().item()), rel=1e-12)
    assert five.dequantisation is not None
    student = 4.604094871  # the 0.995 quantile with 4 degrees of freedom
    torch.testing.assert_close(five.dequantisation, student * draws.std(0) / math.sqrt(5), rtol=1e-8, atol=0)
    error = model.log_prob(x, index=index, **call).standard_error
    torch.testing.assert_close(one.probes, 9.924843201 * error, rtol=1e-8, atol=0)  # 2 degrees of freedom
    # The second solution is of the same states and probes: what is left is the error of four steps of Heun.
    fine = model.log_prob(x, index=index, **{**call, "solver": sde.solvers.RungeKutta(rtol=1e-8, atol=1e-8)}).nats
    seen = ((draws[0] - fine).abs() * 10.0 / 9.0)[one.rows]
    assert len(one.rows) == 2
    assert bool((one.solver[one.rows] >= 0.999 * seen).all())
    # The 0.995 quantile with 2 degrees of freedom is 9.925.
    pooled = seen.square().mean().sqrt()
    assert bool(((one.solver >= 9.9 * pooled) & (one.solver <= 9.95 * pooled)).all())
    assert torch.equal(one.solver, five.solver)
    with pytest.raises(ValueError, match="repeats=0"):
        model.error_budget(x, repeats=0, **call)


def test_every_repeat_has_probes_of_its_own() -> None:
    model, x = gaussian(Scaling.identity(), shape=(3,)), torch.zeros(4, 3)
    trace = sde.Hutchinson(1, gaussian=True)
    first, second = (model.log_prob(x, repeat=r, solver=SOLVER, trace=trace).divergence for r in (0, 1))
    assert not torch.isclose(first, second).any()


def test_values_of_another_shape_or_that_are_no_levels_are_refused() -> None:
    model = gaussian(Scaling.interval(17))
    with pytest.raises(ValueError, match=r"\(B, 1, 2, 3\).*\(8, 1, 3, 2\)"):
        model.log_prob(values(17).mT)
    with pytest.raises(ValueError, match="levels=17"):
        model.bits_per_dim(values(17) + 17)


# Samples


@pytest.mark.parametrize(
    ("levels", "dtype"), [(2, torch.uint8), (17, torch.uint8), (256, torch.uint8), (999, torch.int32)]
)
def test_samples_are_levels(levels: int, dtype: torch.dtype) -> None:
    """Of a Gaussian wider than the range, so that values beyond it have to go to the first or the last level."""
    x = gaussian(Scaling.interval(levels), mean=0.0, std=2.0).sample(64, solver=SOLVER)
    assert x.shape == (64, *SHAPE)
    assert x.dtype == dtype
    assert int(x.min()) == 0
    assert int(x.max()) == levels - 1


def test_samples_of_continuous_data_are_in_its_unit() -> None:
    x = gaussian(Scaling(scale=0.5, shift=-1.0), mean=0.2, std=0.3, shape=(2,)).sample(
        2000, solver=sde.solvers.Heun(40)
    )
    assert x.dtype == torch.float32
    assert float(x.mean()) == pytest.approx(2.4, abs=0.05)
    assert float(x.std()) == pytest.approx(0.6, abs=0.05)


def test_samples_do_not_depend_on_their_batch() -> None:
    model = gaussian(Scaling.identity())
    whole = model.sample(6, solver=SOLVER, seed=3)
    parts = [model.sample(2, solver=SOLVER, seed=3, first=first) for first in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.isclose(model.sample(6, solver=SOLVER, seed=4), whole).any()


def test_the_last_denoising_step_is_the_default_and_can_be_left_out() -> None:
    d = sde.exact.Gaussian(torch.zeros(2), 0.01 * torch.eye(2)).denoiser(sde.VE(sigma_min=0.3))
    model = Model(d, Scaling.identity(), (2,))
    noisy, clean = (model.sample(500, solver=SOLVER, denoise=denoise) for denoise in (False, True))
    assert torch.equal(model.sample(500, solver=SOLVER), clean)
    # x_t has variance 0.01 + 0.09 there, and its posterior mean is a tenth of it.
    torch.testing.assert_close(clean, 0.1 * noisy, rtol=1e-3, atol=1e-4)


# Loading

TREE: dict[str, Any] = {
    "process": {"_target_": "sde.VE", "sigma_max": 20.0},
    "network": {"_target_": "sde.networks.MLP", "features": 2, "width": 8, "depth": 1},
    "denoiser": {"_target_": "sde.NetworkDenoiser", "level": {"_target_": "sde.LogSNRLevel", "scale": 1.0}},
    "scaling": {"_target_": "sde.data.Scaling", "scale": 0.5, "shift": 0.1, "levels": None},
    "shape": [2],
}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(**changes: Any) -> Path:
        network = sde.networks.MLP(2, width=8, depth=1)
        denoiser = sde.NetworkDenoiser(network, sde.VE(sigma_max=20.0), level=sde.LogSNRLevel(1.0))
        ema = EMA(denoiser, 0.5)
        with torch.no_grad():
            for p in denoiser.parameters():
                p.fill_(0.25)
        content = {
            "step": 1,
            "model": json.dumps({**TREE, **changes}),
            "weights": denoiser.state_dict(),
            "ema": {"default": ema.weights, "slow": {k: torch.full_like(v, 0.5) for k, v in ema.weights.items()}},
        }
        save_checkpoint(tmp_path / "checkpoints", content)
        return tmp_path

    return save


def test_a_model_is_loaded_ready_for_use(saved: Callable[..., Path]) -> None:
    model = sde.load(saved())
    assert model.process == sde.VE(sigma_max=20.0)
    assert model.scaling == Scaling(0.5, 0.1)
    assert model.shape == (2,)
    assert not any(m.training for m in model.denoiser.modules())
    assert not any(p.requires_grad for p in model.denoiser.parameters())
    assert sde.load(saved(), process=sde.VE(sigma_max=9.0)).process == sde.VE(sigma_max=9.0)


def test_averages_by_name_or_the_raw_weights(saved: Callable[..., Path]) -> None:
    path = saved()
    bias = "denoiser.network.inlet.bias"
    found = {ema: sde.load(path, ema=ema).denoiser.get_parameter(bias[9:]).unique().tolist() for ema in ("slow", None)}
    assert found == {"slow": [0.5], None: [0.25]}
    assert sde.load(path).denoiser.get_parameter(bias[9:]).unique().tolist() not in found.values()
    with pytest.raises(ValueError, match="no EMA 'fast': it has default, slow; ema=None loads the raw weights"):
        sde.load(path, ema="fast")


@pytest.mark.parametrize("part", ["process", "network", "denoiser", "scaling"])
@pytest.mark.parametrize(
    "name", ["os.system", "sde.storage.files.write_atomically", "sde.storage.checkpoint.os.system", "torch.load"]
)
def test_a_checkpoint_that_names_what_it_must_not_is_refused(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, part: str, name: str
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("os.system", calls.append)
    path = saved(**{part: {"_target_": name, "command": "true", "path": "x"}})
    content = load_checkpoint(path)
    monkeypatch.setattr("torch.load", lambda *args, **kwargs: calls.append(args))
    with pytest.raises(ValueError, match=f"'{name}' is not known"):
        from_checkpoint(content)
    assert calls == []
    assert {p.name for p in path.rglob("*")} == {
        "checkpoints",
        "step_00000001.pt",
        "step_00000001.pt.sha256",
        "last.pt",
    }


def test_a_tuned_grid_is_kept_and_used_again(tmp_path: Path) -> None:
    """Designed once for a solver; the second time it is read, whatever the pilot; samples follow it."""
    model = Model(
        sde.exact.Gaussian(torch.zeros(6, dtype=torch.float64), 0.2 * torch.eye(6, dtype=torch.float64)).denoiser(
            sde.VP()
        ),
        Scaling.interval(17),
        SHAPE,
    )
    solver = sde.solvers.DEIS(3)
    tuned = model.tuned(solver, tmp_path, pilot=4, seconds=0.1)
    assert isinstance(tuned.grid, sde.grids.Explicit)
    assert [path.name for path in (tmp_path / "grids").iterdir()] == ["DEIS-3-sample.json"]
    assert model.tuned(solver, tmp_path, pilot=9, seed=3) == tuned
    assert model.tuned(solver, pilot=4, seed=3) != tuned
    assert model.sample(2, solver=tuned).shape == (2, *SHAPE)


def test_a_grid_for_likelihoods_is_tuned_on_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the states of the data, for this solver alone, and closer to the exact density than the default grid."""
    pilots: list[Tensor] = []

    def quick(denoiser: sde.Denoiser, **settings: Any) -> sde.grids.Explicit:
        pilots.append(settings["data"])
        return sde.tune_grid(denoiser, **settings, tuning=sde.tuning.EqualError())

    monkeypatch.setattr("sde.model.tune_grid", quick)
    model, x, solver = gaussian(Scaling.interval(17)), values(17, 4), sde.solvers.Heun(3)
    settings: dict[str, Any] = {"data": x, "trace": sde.ExactTrace(), "seed": 2}
    tuned = model.tuned(solver, tmp_path, **settings, save=False)
    assert list(tmp_path.iterdir()) == []
    assert model.tuned(solver, tmp_path, **settings) == tuned != solver
    assert model.tuned(solver, tmp_path, **settings) == tuned
    assert [path.name for path in (tmp_path / "grids").iterdir()] == ["Heun-3-likelihood.json"]
    assert len(pilots) == 2
    assert torch.equal(model.scaling.to_data(pilots[0]), x)
    exact, plain, on_grid = (
        model.log_prob(x, trace=sde.ExactTrace(), solver=s).nats
        for s in (sde.solvers.RungeKutta(rtol=1e-5, atol=1e-5), solver, tuned)
    )
    assert (on_grid - exact).abs().mean() < (plain - exact).abs().mean()
    with pytest.raises(ValueError, match="RungeKutta"):
        model.tuned(sde.solvers.RungeKutta(), data=x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(B, 1, 2, 3\)"):
        model.tuned(solver, data=x.mT)
