"""Models on the data's own terms: values in, values and bits/dim out."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tables import power, rows
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

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
    bits = model.bits_per_dim(x, solver=solver, trace=trace, atol=1e-6)
    # The standard normal stands for the marginal at t_max, whose mean on [0, 1] is alpha / 2 = 3e-3.
    torch.testing.assert_close(bits, truth, rtol=0, atol=5e-3)
    assert isinstance(model.denoiser, ExactDenoiser)
    prior = model.denoiser.target.at(model.process, model.process.t_max)
    bits = model.bits_per_dim(x, solver=solver, trace=trace, prior=prior, atol=1e-6)
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


def gaussian(
    scaling: Scaling,
    mean: float = 0.2,
    std: float = 0.3,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float64,
) -> Model:
    d = math.prod(shape)
    target = sde.exact.Gaussian(torch.full((d,), mean, dtype=dtype), std**2 * torch.eye(d, dtype=dtype))
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
    """A Gaussian table whose columns' spreads differ up to 3700-fold, each with its scale: log p(x), in closed form.

    The truth at `t_min` is the model's marginal there, whose variance is larger by 1e-6 of that of a column.
    """
    table, x = power(), rows(400).double()
    scaling = Scaling.standardise(x)
    a, b = (torch.tensor(value, dtype=torch.float64) for value in (scaling.scale, scaling.shift))
    target = sde.exact.Gaussian((a * table.mean + b).to(dtype), (a[:, None] * table.covariance_matrix * a).to(dtype))
    model = Model(target.denoiser(sde.VP()), scaling, (8,))
    with pytest.raises(ValueError, match=r"8 columns.*\(2, 4\)"):
        Model(model.denoiser, scaling, (2, 4))
    x = x[:100]
    truth = table.log_prob(x)
    flow: dict[str, Any] = {"solver": sde.solvers.RungeKutta(rtol=1e-6, atol=1e-6), "trace": sde.ExactTrace()}
    flow["prior"] = target.at(model.process, model.process.t_max)
    r = model.log_prob(x, **flow)
    # In float32 the states are rounded, and so is every step of the solver.
    torch.testing.assert_close(r.nats.double(), truth, rtol=0, atol=1e-4 if dtype == torch.float64 else 1e-2)
    states = scaling.to_model(x, dtype=dtype)
    raw = sde.log_prob(model.denoiser, states, **flow)
    assert raw.log_weight == 0.0
    torch.testing.assert_close(r.nats - raw.nats, a.log().sum().to(r.nats).expand(100))
    bits = model.bits_per_dim(x, **flow)
    torch.testing.assert_close(bits, -r.nats / (8.0 * math.log(2.0)))
    samples = model.sample(1000, seed=1, solver=sde.solvers.Heun(16, grid=sde.grids.LogSNR())).double()
    z = (samples - table.mean) / table.stddev  # means and variances within 5 standard errors
    assert z.mean(0).abs().max() < 5.0 / math.sqrt(1000)
    assert (z.var(0) - 1.0).abs().max() < 5.0 * math.sqrt(2.0 / 1000)


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
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-9)
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
    fine = model.log_prob(x, index=index, **{**call, "solver": SOLVER.finer(0)}).nats
    seen = ((draws[0] - fine).abs() * 2.0)[one.rows]
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
    model = gaussian(Scaling(scale=0.5, shift=-1.0), mean=0.2, std=0.3, shape=(2,), dtype=torch.float32)
    x = model.sample(2000, solver=sde.solvers.Heun(40))
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


def test_a_number_of_samples_is_all_it_takes() -> None:
    """The default solver is that of `sde.sample`: 18 calls of UniPC, one more for the denoising at the end."""
    model = gaussian(Scaling.identity())
    x = model.sample(3, seed=2)
    assert torch.equal(x, sde.sample(model.denoiser, (3, *SHAPE), seed=2, denoise=True).x)
    assert int(sde.sample(model.denoiser, (3, *SHAPE), seed=2, denoise=True).nfe[0]) == 19


class Labelled(sde.Denoiser):
    """A point at the label, a vector for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.process = sde.VP()

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return condition["label"].to(x_t).reshape(-1, 1).expand_as(x_t) + condition["shift"]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10])
def test_batches_give_the_same_samples(batch_size: int) -> None:
    model = gaussian(Scaling.identity())
    settings: dict[str, Any] = {"solver": sde.solvers.EulerMaruyama(5), "seed": 3, "first": 11}
    whole = model.sample(7, **settings)
    torch.testing.assert_close(model.sample(7, batch_size=batch_size, **settings), whole)


def test_the_progress_of_batches_is_that_of_all_samples() -> None:
    model, done, path = gaussian(Scaling.identity()), [], []
    model.sample(5, batch_size=2, solver=sde.solvers.Heun(3), progress=done.append, trajectory=path.append)
    assert [len(x) for _, x in path] == [2] * 5 + [2] * 5 + [1] * 5
    shares = [k / 4 for k in (1, 2, 3, 4)]
    assert done == pytest.approx(
        [*(s * 2 / 5 for s in shares), *(s * 2 / 5 + 0.4 for s in shares), *(s / 5 + 0.8 for s in shares)]
    )


def test_a_condition_is_cut_into_batches_with_the_samples() -> None:
    model = Model(Labelled(), Scaling.identity(), (2,), classes=5)
    settings: dict[str, Any] = {"solver": SOLVER, "batch_size": 3}
    label, shift = torch.tensor([4, 0, 2, 2, 9, 1, 3]), torch.tensor(0.5)
    x = model.sample(7, condition={"label": label, "shift": shift}, **settings)
    torch.testing.assert_close(x, (label + 0.5)[:, None].expand(7, 2), rtol=1e-3, atol=1e-3)
    x = model.sample(7, condition={"shift": shift}, first=3, **settings)  # the classes in turn, by the sample's index
    torch.testing.assert_close(x[:, 0], (torch.arange(3, 10) % 5) + 0.5, rtol=1e-3, atol=1e-3)
    for wrong in (label[:3], torch.arange(8)):
        with pytest.raises(ValueError, match=rf"'label'.*7.*\({len(wrong)},\)"):
            model.sample(7, condition={"label": wrong, "shift": shift}, **settings)


@pytest.mark.parametrize(("n", "batch_size", "name"), [(0, None, "n=0"), (3, 0, "batch_size=0"), (-1, 2, "n=-1")])
def test_numbers_of_samples_are_positive(n: int, batch_size: int | None, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        gaussian(Scaling.identity()).sample(n, batch_size=batch_size)


# Other dtypes, and latents


def small(process: sde.SDE | None = None, scaling: Scaling | None = None) -> Model:
    """A network with random weights, clipped."""
    torch.manual_seed(0)
    net = sde.networks.MLP(6, width=8, depth=1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    denoiser = sde.NetworkDenoiser(net, sde.VP() if process is None else process, level=sde.LogSNRLevel())
    return Model(sde.Clip(denoiser, -1.5, 1.5), Scaling.interval(17) if scaling is None else scaling, SHAPE)


def test_a_model_in_another_dtype_is_a_copy() -> None:
    model = small()
    for wide in (model.to(torch.float64), model.to(dtype=torch.float64), model.to("cpu", torch.float64)):
        assert {p.dtype for p in wide.denoiser.parameters()} == {torch.float64}
        assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
        assert (wide.process, wide.scaling, wide.shape) == (model.process, model.scaling, model.shape)
    x, t = torch.randn(2, *SHAPE), torch.tensor(0.3)
    torch.testing.assert_close(model.to(torch.float64).denoiser(x.double(), t).float(), model.denoiser(x, t))
    assert model.to("meta").denoiser.get_parameter("inner.network.inlet.weight").device.type == "meta"


def test_samples_of_a_network_in_half_precision_are_integrated_in_float32() -> None:
    model = small(scaling=Scaling.identity()).to(torch.bfloat16)
    assert model.sample(2, solver=SOLVER).dtype == torch.float32
    assert model.encode(torch.zeros(2, *SHAPE), solver=SOLVER).dtype == torch.float32


def test_levels_are_encoded_at_the_centres_of_their_bins_and_decoded_again() -> None:
    model = gaussian(Scaling.interval(17))
    x, solver = values(17), sde.solvers.RungeKutta(rtol=1e-5, atol=1e-5)
    latent = model.encode(x, solver=solver)
    centres = (2.0 / 17.0 * (x + 0.5) - 1.0).to(latent.dtype)
    torch.testing.assert_close(latent, sde.encode(model.denoiser, centres, solver=solver), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.scaling.to_data(sde.sample(model.denoiser, x_T=latent, solver=solver).x), x)
    with pytest.raises(ValueError, match=r"\(B, 1, 2, 3\).*\(8, 1, 3, 2\)"):
        model.encode(x.mT)


def test_continuous_values_are_encoded_with_their_condition() -> None:
    """By default with the solver of `sde.encode`."""
    model = Model(Labelled(), Scaling(scale=0.5, shift=-1.0), (2,))
    x, condition = torch.tensor([[2.0, 3.0]]), {"label": torch.tensor([1]), "shift": torch.tensor(0.0)}
    latent = model.encode(x, condition=condition)
    assert torch.equal(latent, sde.encode(model.denoiser, 0.5 * x - 1.0, condition=condition))
    # Conditions go to the model's device, so numbers and lists will do.
    plain = {name: value.tolist() for name, value in condition.items()}
    assert torch.equal(latent, model.encode(x, condition=plain))  # type: ignore[arg-type]
    settings: dict[str, Any] = {"solver": sde.solvers.Heun(2), "trace": sde.ExactTrace()}
    scored = [model.log_prob(x, condition=c, **settings).nats for c in (condition, plain)]  # type: ignore[arg-type]
    assert torch.equal(*scored)


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


def test_a_path_is_asked_for() -> None:
    with pytest.raises(ValueError, match="the path of a file or of a run directory, got 5"):
        sde.load(5)  # type: ignore[arg-type]


def test_averages_by_name_or_the_raw_weights(saved: Callable[..., Path]) -> None:
    path = saved()
    bias = "denoiser.network.inlet.bias"
    found = {ema: sde.load(path, ema=ema).denoiser.get_parameter(bias[9:]).unique().tolist() for ema in ("slow", None)}
    assert found == {"slow": [0.5], None: [0.25]}
    assert sde.load(path).denoiser.get_parameter(bias[9:]).unique().tolist() not in found.values()
    with pytest.raises(ValueError, match=r"'fast'.*default, slow.*ema=None"):
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
    with pytest.raises(ValueError, match=f"'{name}'"):
        from_checkpoint(content)
    assert calls == []
    assert {p.name for p in path.rglob("*")} == {
        "checkpoints",
        "step_00000001.pt",
        "step_00000001.pt.sha256",
        "last.pt",
    }


def test_a_tuned_grid_is_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Designed once for a solver; the second time it is read, whatever the pilot; samples follow it."""
    model = Model(
        sde.exact.Gaussian(torch.zeros(6, dtype=torch.float64), 0.2 * torch.eye(6, dtype=torch.float64)).denoiser(
            sde.VP()
        ),
        Scaling.interval(17),
        SHAPE,
    )
    # A rule without a clock: how much is tuned within some seconds depends on the machine.
    quick = functools.partial(sde.tune_grid, tuning=sde.tuning.EqualError())
    monkeypatch.setattr("sde.model.model.tune_grid", quick)
    solver = sde.solvers.DEIS(3)
    tuned = model.tuned(solver, tmp_path, pilot=4)
    assert isinstance(tuned.grid, sde.grids.Explicit)
    assert (
        len(list((tmp_path / "grids").glob("DEIS-3-sample-*.json"))) == len(list((tmp_path / "grids").iterdir())) == 1
    )
    assert model.tuned(solver, tmp_path, pilot=9, seed=3) == tuned
    assert model.tuned(solver, pilot=4, seed=3) != tuned
    assert model.sample(2, solver=tuned).shape == (2, *SHAPE)


def test_a_grid_for_likelihoods_is_tuned_on_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the states of the data, for this solver alone, and closer to the exact density than the default grid."""
    pilots: list[Tensor] = []

    def quick(denoiser: sde.Denoiser, **settings: Any) -> sde.grids.Explicit:
        pilots.append(settings["data"])
        return sde.tune_grid(denoiser, **settings, tuning=sde.tuning.EqualError())

    monkeypatch.setattr("sde.model.model.tune_grid", quick)
    model, x, solver = gaussian(Scaling.interval(17)), values(17, 4), sde.solvers.Heun(3)
    settings: dict[str, Any] = {"data": x, "trace": sde.ExactTrace(), "seed": 2}
    tuned = model.tuned(solver, tmp_path, **settings, save=False)
    assert list(tmp_path.iterdir()) == []
    assert model.tuned(solver, tmp_path, **settings) == tuned != solver
    assert model.tuned(solver, tmp_path, **settings) == tuned
    assert (
        len(list((tmp_path / "grids").glob("Heun-3-likelihood-*.json")))
        == len(list((tmp_path / "grids").iterdir()))
        == 1
    )
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


# Saving


def assert_same_answers(one: Model, other: Model) -> None:
    x, t = torch.randn(3, *one.shape, dtype=torch.float64), torch.tensor(0.3)
    assert torch.equal(one.denoiser.score(x, t), other.denoiser.score(x, t))
    assert (one.scaling, one.shape, one.classes) == (other.scaling, other.shape, other.classes)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ema", ["default", None])
@pytest.mark.parametrize("process", [sde.VP(0.2, 11.0), sde.DiscreteChain.cosine(9).sde()], ids=["VP", "chain"])
def test_a_saved_model_is_loaded_again(tmp_path: Path, process: sde.SDE, ema: str | None) -> None:
    """With its wrappers in their order and in its own dtype; from a file that torch opens without running anything."""
    model = small(process)
    model = Model(sde.DynamicThreshold(model.denoiser, 0.9, maximum=2.0), model.scaling, model.shape, classes=3)
    for each in (model, model.to(torch.float64)):
        sde.save(tmp_path / "new" / "a.pt", each)
        again = sde.load(tmp_path / "new" / "a.pt", ema=ema)
        assert_same_answers(again, each)
        assert {p.dtype for p in again.denoiser.parameters()} == {p.dtype for p in each.denoiser.parameters()}
        assert again.denoiser.quantile == 0.9  # type: ignore[union-attr]
        assert again.denoiser.inner.low == -1.5  # type: ignore[union-attr]
        assert not any(p.requires_grad for p in again.denoiser.parameters())
    assert sorted(files(tmp_path / "new")) == ["a.pt", "a.pt.sha256"]
    content = torch.load(tmp_path / "new" / "a.pt", weights_only=True)
    tree = json.loads(content["model"])
    assert tree["wrappers"][1]["_target_"] == "sde.DynamicThreshold"
    assert tree["network"]["_target_"] == "sde.networks.MLP"
    assert tree["denoiser"]["_target_"] == "sde.NetworkDenoiser"
    assert content["version"] == sde.__version__


def test_a_loaded_model_is_saved_again(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = sde.load(saved(), ema="slow")
    sde.save(tmp_path / "slow.pt", model)
    assert_same_answers(sde.load(tmp_path / "slow.pt"), model)


def test_a_trained_model_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = sde.data.moons(100, 10)
    denoiser = sde.NetworkDenoiser(sde.networks.MLP(2, width=8, depth=1), sde.SubVP())
    training = sde.Training(denoiser, sde.Batches(data.train.values, 16), data.scaling, ema=0.5)
    list(training.run(3))
    sde.save(tmp_path / "a.pt", training.model())
    model = sde.load(tmp_path / "a.pt")
    assert model.shape == (2,)
    assert torch.equal(model.sample(4, solver=SOLVER), training.model().sample(4, solver=SOLVER))


class OwnNet(torch.nn.Module):
    """A network of one's own."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, width)
        self.outer = torch.nn.Linear(width, 6)

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        return self.outer(self.inner(x.flatten(1)).sin()).reshape(x.shape)


class OwnVP(sde.VP):
    """A process of one's own."""


def own(process: sde.SDE | None = None) -> Model:
    torch.manual_seed(0)
    denoiser = sde.NetworkDenoiser(OwnNet(), sde.VP() if process is None else process)
    return Model(sde.Clip(denoiser), Scaling.interval(17), SHAPE)


def test_a_network_of_ones_own_is_given(tmp_path: Path) -> None:
    """The file names its class and no more; the object is the one that was given."""
    path, model = tmp_path / "a.pt", own()
    sde.save(path, model)
    net = OwnNet()
    again = sde.load(path, network=net)
    assert again.denoiser.get_submodule("inner.network") is net
    assert_same_answers(again, model)
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"test_model\.OwnNet.*network="):
        sde.load(path)


def wrapped(model: Model, wrap: Callable[[nn.Module], nn.Module]) -> Model:
    leaf: Any = model.denoiser.get_submodule("inner")
    leaf.network = wrap(leaf.network)
    return model


class Compiled(nn.Module):
    """As `torch.compile` wraps a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


WRAPPERS = [
    Compiled,
    nn.DataParallel,
    lambda net: AveragedModel(nn.DataParallel(Compiled(net))),
    pytest.param(torch.compile, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_network_is_saved_without_its_wrappers(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """One of this library is loaded alone; of one of one's own, the plain one is asked for."""
    path = tmp_path / "a.pt"
    sde.save(path, wrapped(small(), wrap))
    again = sde.load(path)
    assert type(again.denoiser.get_submodule("inner.network")) is sde.networks.MLP
    assert_same_answers(again, small())
    mine = sde.NetworkDenoiser(wrap(OwnNet()), sde.VP())
    sde.save(path, Model(mine, Scaling.interval(17), SHAPE))
    with pytest.raises(ValueError, match=r"test_model\.OwnNet.*network="):
        sde.load(path)
    for network in (OwnNet(), wrap(OwnNet())):
        loaded = sde.load(path, network=network).denoiser
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), mine.parameters(), strict=True))


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: AveragedModel(Compiled(net))])
def test_a_denoiser_knows_the_conditions_of_its_network(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = sde.networks.MLP(6, width=8, depth=1, classes=3)
    for denoiser in (sde.NetworkDenoiser(wrap(net), sde.VP()), sde.QuantisedDenoiser(wrap(net), sde.VP(), levels=17)):
        assert denoiser.classes == 3
        assert denoiser.takes == net.takes
        model = Model(denoiser, Scaling.interval(17), SHAPE, 3)
        assert model.condition(2, label=1)["label"].tolist() == [1, 1]


def test_a_network_of_data_parallel_ranks_is_saved_without_its_wrapper(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        sde.save(tmp_path / "a.pt", wrapped(small(), DistributedDataParallel))
    finally:
        torch.distributed.destroy_process_group()
    assert_same_answers(sde.load(tmp_path / "a.pt"), small())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": OwnNet(5)}, r"inner\.weight \(4, 6\) instead of \(5, 6\)"),
        ({"network": torch.nn.Linear(6, 6)}, r"missing.*network\.weight.*network\.inner\.weight"),
        ({"network": OwnNet(), "ema": "fast"}, "'fast'"),
    ],
    ids=["shape", "names", "average"],
)
def test_a_network_that_does_not_fit_is_refused_and_unchanged(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    sde.save(tmp_path / "a.pt", own())
    net = arguments["network"]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        sde.load(tmp_path / "a.pt", **arguments)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_network_in_place_of_one_of_this_library(tmp_path: Path) -> None:
    """It keeps its own dtype."""
    sde.save(tmp_path / "a.pt", small())
    net = sde.networks.MLP(6, width=8, depth=1).double()
    model = sde.load(tmp_path / "a.pt", network=net)
    x, t = torch.randn(2, *SHAPE, dtype=torch.float64), torch.tensor(0.4)
    torch.testing.assert_close(model.denoiser(x, t), small().denoiser(x, t), rtol=1e-5, atol=1e-5)
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_a_process_of_ones_own_is_given(tmp_path: Path) -> None:
    path, model = tmp_path / "a.pt", small(OwnVP(0.2, 9.0))
    sde.save(path, model)
    assert_same_answers(sde.load(path, process=OwnVP(0.2, 9.0)), model)
    with pytest.raises(ValueError, match=r"test_model\.OwnVP.*process="):
        sde.load(path)


class Halved(sde.Wrapper):
    """A wrapper of one's own, with a weight."""

    def __init__(self, inner: sde.Denoiser) -> None:
        super().__init__(inner)
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def predict(self, what: sde.Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.factor * self.inner.predict(what, x_t, t, **condition)


def test_a_denoiser_of_ones_own_is_given_whole(tmp_path: Path) -> None:
    """With a wrapper of this library around it, and all weights inside it."""
    path = tmp_path / "a.pt"

    def inner() -> Halved:
        return Halved(sde.NetworkDenoiser(OwnNet(), sde.VE()))

    model = Model(sde.Clip(inner(), -0.7, 0.7), Scaling.identity(), SHAPE)
    with torch.no_grad():
        model.denoiser.get_parameter("inner.factor").fill_(0.3)
    sde.save(path, model)
    assert_same_answers(sde.load(path, network=inner()), model)
    for arguments in ({}, {"network": OwnNet()}, {"network": inner(), "process": sde.VE()}):
        with pytest.raises(ValueError, match=r"test_model\.Halved.*network="):
            sde.load(path, **arguments)


def test_only_models_are_replaced(tmp_path: Path, saved: Callable[..., Path]) -> None:
    """A directory, another file, another project's weights and the checkpoint of a run stay."""
    run = save_checkpoint(tmp_path / "checkpoints", {"step": 1, "model": "{}", "weights": {}, "optimizer": {}})
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "folder").mkdir()
    torch.save({"w": torch.zeros(2)}, tmp_path / "net.pt")
    (tmp_path / "dangling.pt").symlink_to("nowhere")
    before = files(tmp_path)
    for name in ("thesis.tex", "folder", "net.pt", run, tmp_path / "checkpoints" / "last.pt"):
        with pytest.raises(ValueError, match="is not replaced"):
            sde.save(tmp_path / name, small())
    with pytest.raises(ValueError, match=r"NetworkDenoiser.*sde\.Model"):
        sde.save(tmp_path / "thesis.tex", small().denoiser.inner)  # type: ignore[arg-type]
    assert files(tmp_path) == before
    sde.save(tmp_path / "dangling.pt", small())
    assert sde.load(tmp_path / "dangling.pt").shape == SHAPE
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [(torch, "save", 1), *((os, "replace", i) for i in (1, 2, 3)), *((os, "fsync", i) for i in (1, 2, 3, 4))],
)
def test_an_interrupted_save_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int
) -> None:
    path, old, new = tmp_path / "a.pt", small(), own()
    sde.save(path, old)
    real, calls = getattr(module, name), []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, fails)
    with pytest.raises(KeyboardInterrupt):
        sde.save(path, new)
    monkeypatch.undo()
    assert_same_answers(sde.load(path), old)
    sde.save(path, new)
    assert_same_answers(sde.load(path, network=OwnNet()), new)
    assert sorted(files(tmp_path)) == ["a.pt", "a.pt.sha256"]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    sde.save(tmp_path / "a.pt", small())
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        sde.load(tmp_path / "a.pt")
