"""Restoration in data units: the same posterior whatever the scaling, and measurements as the user means them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import sde
from sde import Denoiser, Model
from sde.data import Scaling
from sde.exact import Gaussian
from sde.measurement import (
    DPS,
    Compose,
    Downsample,
    Grayscale,
    Identity,
    Linear,
    LinearOperator,
    Mask,
    Matrix,
    NormalVariance,
    Operator,
    PiGDM,
    Unguided,
)
from sde.processes import VP
from sde.solvers import Ancestral, Heun, Particles, Polish

SHAPE = (3, 2, 2)


class Reshaped(Denoiser):
    """The exact denoiser of a Gaussian of images."""

    def __init__(self) -> None:
        super().__init__()
        root = torch.randn(12, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64) / 5
        self.process = VP()
        cov = root @ root.mT + 0.05 * torch.eye(12, dtype=torch.float64)
        self.target = Gaussian(torch.linspace(-0.3, 0.3, 12, dtype=torch.float64), cov)
        self.flat = self.target.denoiser(self.process)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.flat(x_t.flatten(1), t).reshape(x_t.shape)


# Three units of the same data: v = (x - b) / a with the model's range x.
SCALINGS = {
    "[0, 1]": Scaling(2.0, -1.0),
    "[-1, 1]": Scaling.identity(),
    "standardised": Scaling(0.02, -2.3),
}
VARIANCE = NormalVariance(0.5)


def model(scaling: Scaling) -> Model:
    return Model(Reshaped(), scaling, SHAPE)


class Cubes(Operator):
    """A nonlinear operator on the model's range, in the units of a scaling."""

    def __init__(self, scaling: Scaling) -> None:
        self.scaling = scaling

    def __call__(self, x: Tensor) -> Tensor:
        return (self.scaling.scale * x + self.scaling.shift) ** 3


@pytest.mark.parametrize("kind", ["particles", "PiGDM", "DPS", "several scales"])
def test_the_posterior_is_the_same_whatever_the_scaling(kind: str, generator: torch.Generator) -> None:
    truth = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    how = {
        "particles": {"solver": Particles(6, 4)},
        "PiGDM": {"method": partial(PiGDM, variance=VARIANCE), "solver": sde.solvers.Euler(6)},
        "DPS": {"method": partial(DPS, scale=0.01), "solver": sde.solvers.Euler(6)},
        "several scales": {"method": partial(PiGDM, variance=VARIANCE), "solver": sde.solvers.Euler(6)},
    }[kind]
    drawn = []
    for name, scaling in SCALINGS.items():
        if kind == "several scales" and name == "standardised":
            scaling = Scaling([0.02, 1.0, 7.0], [-2.3, 0.0, 1.0])
        factor = torch.as_tensor(scaling.scale, dtype=torch.float64).reshape(-1, 1, 1)
        x = (truth - torch.as_tensor(scaling.shift, dtype=torch.float64).reshape(-1, 1, 1)) / factor
        mask = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)) < 0.5
        if kind == "DPS":
            operator: Operator = Cubes(scaling)
            y, noise = operator(x), 0.1
        elif kind == "several scales":
            # The same measurement: the sum of each pixel's channels in the model's range.
            own = torch.as_tensor(scaling.scale, dtype=torch.float64).expand(3)
            operator = Grayscale(own.tolist())
            shift = (torch.as_tensor(scaling.shift, dtype=torch.float64).expand(3)).sum()
            y, noise = truth.sum(1, keepdim=True) - shift, 0.1
        else:
            operator = Mask(mask)
            y, noise = torch.where(mask, x, math.nan), 0.1 / float(factor.flatten()[0])
        r = model(scaling).restore(y, operator, noise, n=2, variance=VARIANCE, seed=3, **how)
        drawn.append(r.x * factor + torch.as_tensor(scaling.shift, dtype=torch.float64).reshape(-1, 1, 1))
        if kind in ("particles", "PiGDM"):
            assert 0.3 < float(r.misfit.mean()) < 3.0
    for other in drawn[1:]:
        torch.testing.assert_close(other, drawn[0], rtol=0, atol=1e-5)


def test_draws_do_not_depend_on_batches(generator: torch.Generator) -> None:
    y = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, *SHAPE, generator=generator) < 0.5
    restore = partial(model(Scaling.identity()).restore, variance=VARIANCE, solver=Particles(5, 4))
    whole = restore(y, Mask(mask), 0.1, n=2)
    assert whole.x.shape == (3, 2, *SHAPE)
    assert whole.nfe.tolist() == [[25, 25]] * 3  # 6 times 4 particles and the last denoising
    small = restore(y, Mask(mask), 0.1, n=2, batch_size=1)
    part = restore(y[1:], Mask(mask[1:]), 0.1, n=2, index=torch.tensor([1, 2]))
    torch.testing.assert_close(small.x, whole.x, rtol=0, atol=1e-10)
    torch.testing.assert_close(part.x, whole.x[1:], rtol=0, atol=1e-10)
    assert not torch.equal(whole.x[:, 0], whole.x[:, 1])
    assert whole.shift is not None
    assert whole.log_evidence is not None
    alone = sde.metrics.evidence_shift(whole.x[1:2], whole.log_evidence[1:2])
    torch.testing.assert_close(whole.shift.value[1:2], alone.value)
    assert restore(y, Mask(mask), 0.1).shift is None
    many = restore(y, Mask(mask), 0.1, solver=Particles(5, 4, draws=3))
    assert many.shift is None
    assert many.x.shape == (3, 3, *SHAPE)
    assert many.misfit.shape == (3, 3)


def test_known_pixels_are_put_back(generator: torch.Generator) -> None:
    levels = model(Scaling.interval(256))
    x = torch.randint(256, (2, *SHAPE), generator=generator, dtype=torch.uint8)
    mask = torch.tensor([[True, False], [False, True]])
    r = levels.inpaint(x, mask, variance=VARIANCE, solver=Particles(5, 4))
    assert r.x.dtype == torch.uint8
    assert torch.equal(r.x[:, 0, :, mask], x[:, :, mask])
    assert not torch.equal(r.x[:, 0], x)
    # Of continuous data every linear measurement is put back.
    operator = Downsample(2)
    y = torch.randn(2, 3, 1, 1, generator=generator, dtype=torch.float64)
    exact = model(Scaling(3.0, 0.5)).restore(y, operator, 0.0, variance=VARIANCE, solver=Particles(5, 4))
    torch.testing.assert_close(operator(exact.x[:, 0]), y, rtol=0, atol=1e-12)


def test_whole_numbers_add_their_rounding() -> None:
    """A Gaussian far wider than a level: its posterior variance is that of the noise and of rounding."""
    wide = Model(Reshaped(), Scaling.interval(256, -1.0, 1.0), SHAPE)
    y = torch.full((1, *SHAPE), 128, dtype=torch.uint8)
    for noise, rounding in ((2.0, 1 / 12), (0.0, 1 / 12)):
        r = wide.restore(y, Identity(), noise, n=1, variance=VARIANCE, solver=Particles(5, 4))
        residual = (y.double() - r.x[:, 0].double()).square().mean().sqrt()
        expected = residual / math.sqrt(noise**2 + rounding)
        torch.testing.assert_close(r.misfit.double().item(), expected.item(), rtol=1e-6, atol=1e-6)


def test_the_pilot_run_is_made_once_and_kept(tmp_path) -> None:
    one = model(Scaling.identity())
    first = one.pilot(tmp_path, n=4)
    assert one.pilot(n=4) is first
    again = model(Scaling.identity()).pilot(tmp_path, n=4)
    assert torch.equal(again.values, first.values)  # type: ignore[arg-type]
    assert again.covariance(one.process, torch.tensor(0.3)).shape == (1, 12, 12)  # type: ignore[union-attr]
    scalar = [model(Scaling.identity()).pilot(tmp_path / "scalar", n=4, covariance=False) for _ in range(2)]
    assert scalar[0] == scalar[1]
    (file,) = (tmp_path / "grids").iterdir()
    file.write_bytes(b"{}")
    with pytest.raises(ValueError, match="not a pilot run"):
        model(Scaling.identity()).pilot(tmp_path, n=4)


def test_noise_and_masks_are_those_of_each_sample(generator: torch.Generator) -> None:
    """Without noise a sample is put back, and the one beside it, with noise, is not; masks may be arrays."""
    x, mask = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64), torch.eye(2, dtype=torch.bool)
    restore = partial(model(Scaling.identity()).restore, variance=VARIANCE, solver=Particles(5, 4))
    one = Linear(lambda x: 1.0 * x, lambda y: 1.0 * y)
    operator = Compose(one, Mask(torch.stack([mask.expand(SHAPE), ~mask.expand(SHAPE)])))
    r = restore(operator(x), operator, torch.tensor([0.0, 0.3]))
    left = (operator(r.x[:, 0]) - operator(x)).abs().flatten(1).amax(1)
    assert left[0] < 1e-12
    assert left[1] > 0.01
    inpaint = partial(model(Scaling.identity()).inpaint, x, variance=VARIANCE, solver=Particles(5, 4))
    for same in (mask.numpy(), mask.tolist()):
        assert torch.equal(inpaint(same).x, inpaint(mask).x)  # type: ignore[arg-type]


class Diverging(Reshaped):
    """A denoiser that is not a number for every second sample."""

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        odd = torch.arange(len(x_t)).reshape(-1, 1, 1, 1) % 2 > 0
        return torch.where(odd, math.nan, super().forward(x_t, t))


def test_a_draw_that_diverged_says_so_and_leaves_the_others() -> None:
    y, how = torch.full((2, *SHAPE), 128, dtype=torch.uint8), {"method": PiGDM, "solver": Ancestral(3)}
    r = Model(Diverging(), Scaling.interval(256), SHAPE).restore(y, Identity(), 9.0, **how)  # type: ignore[arg-type]
    expected = model(Scaling.interval(256)).restore(y, Identity(), 9.0, **how)  # type: ignore[arg-type]
    assert torch.equal(r.x[0], expected.x[0])
    assert r.misfit[0] == expected.misfit[0]
    assert r.misfit[1] == math.inf
    assert r.x[1].unique().tolist() == [128]


class Doubled(LinearOperator):
    """An operator of the user's whose adjoint is none."""

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


class Changed(Operator):
    """A nonlinear operator that changes what it is told."""

    def __init__(self, change) -> None:
        self.change = change

    def __call__(self, x: Tensor) -> Tensor:
        return self.change(x)


ZEROS = torch.zeros(2, *SHAPE, dtype=torch.float64)
BAD = ZEROS.clone()
BAD[1, 0, 1, 0] = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.restore(BAD, Identity(), 0.1), r"y\[1, 0, 1, 0\] is nan"),
        (lambda m: m.restore(BAD[:, :2], Identity(), 0.1), "does not fit"),
        (lambda m: m.restore(BAD * 0, Identity(), -1.0), "noise"),
        (lambda m: m.restore(BAD[:1], Matrix(torch.ones(2, 3)), 0.1), r"\(B, 3\)"),
        (lambda m: m.restore(BAD[:1], Linear(lambda x: 2 * x, lambda y: y), 0.1), "differ by"),
        (lambda m: m.restore(BAD[:1], Identity(), 0.1, solver=Particles(5, 4), method=lambda d, y: d), "log_potential"),
        (lambda m: m.restore(BAD[:1], Identity(), 0.1, method=lambda d, y: d), "log_potential"),
        (lambda m: m.restore(BAD[:1].to(torch.uint8), Identity(), -1.0), r"noise = -1"),
        (lambda m: m.restore(BAD[:1], Identity(), torch.tensor([math.nan])), r"noise\[0\] = nan"),
        (lambda m: m.restore(BAD[:1] + 0j, Identity(), 0.1), "view_as_real"),
        (lambda m: m.restore(BAD[:1], Doubled(), 0.1), r"Doubled is none: .* differ by 0\.\d+"),
        (lambda m: m.restore(BAD[:1], Linear(lambda x: x + 1, lambda y: y), 0.1), "of a linear map"),
        (lambda m: m.restore(BAD[:1], Linear(lambda x: 1.0 * x, lambda y: y[..., :1]), 0.1), "does not fit: Linear"),
        (lambda m: m.restore(BAD[:1], Linear(lambda x: 1.0 * x, lambda y: y.sum()), 0.1), r"expected data \(1, ...\)"),
        (lambda m: m.restore(BAD[:1], Linear(lambda x: x @ torch.ones(3, 3), lambda y: y), 0.1), "not take data"),
        (lambda m: m.restore(BAD[:1], Changed(lambda x: x.half()), 0.1, method=DPS), "keeps torch.float"),
        (lambda m: m.restore(BAD[:1], Changed(lambda x: x.to("meta")), 0.1, method=DPS), "on meta"),
        (lambda m: m.restore(BAD[:1], Changed(lambda x: x.numpy()), 0.1, method=DPS), "got ndarray"),
        (lambda m: m.restore(ZEROS, Changed(lambda x: x.mean(0)[None]), 0.1, method=DPS), "does not fit"),
        (lambda m: m.restore(BAD[:1], Changed(torch.square), 0.1, method=PiGDM), "linear operator, got .*Changed"),
        (lambda m: m.restore(BAD[:1], Identity(), 0.1, method=Unguided, solver=Heun(5)), "y would not count"),
        (lambda m: m.restore(BAD[:1], Identity(), 0.1, polishing=Polish(Heun(2))), "Polish cannot serve"),
        (lambda m: m.pilot(n=1), "number of samples >= 2"),
        (lambda m: sde.tune_particles(m.denoiser, data=BAD), r"data\[1, 0, 1, 0\] is nan"),
        (lambda m: sde.polish(m.denoiser, sde.Measurement(Identity(), ZEROS, 0.1), BAD[:, :2]), "does not fit"),
        (lambda m: m.restore(BAD[:1], Identity(), 0.1, solver=Particles(5, 4, threshold=-1.0)), "threshold"),
        (lambda m: m.inpaint(BAD[:1], torch.ones(3, 2)), "bool"),
        (lambda m: m.inpaint(BAD[:1], torch.ones(3, 2, dtype=torch.bool)), "mask of shape"),
        (lambda m: m.inpaint(BAD[:1], torch.ones(4, 3, 2, 2, dtype=torch.bool)), "B = 4"),
        (lambda m: m.inpaint(BAD[:1, :1], torch.ones(2, 2, dtype=torch.bool)), r"\(B, 3, 2, 2\)"),
    ],
)
def test_what_is_no_measurement_is_refused_before_the_first_call(call, message: str) -> None:
    class Never(Reshaped):
        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            raise AssertionError("a network call")

    with pytest.raises(ValueError, match=message):
        call(Model(Never(), Scaling.identity(), SHAPE))


def test_a_polish_follows_any_method(generator: torch.Generator) -> None:
    y = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    one, polishing = model(Scaling.identity()), Polish(Ancestral(2), steps=3)
    for solver, draws in ((Particles(4, 4, draws=2), 2), (Particles(4, 4), 1)):
        restore = partial(one.restore, y, Identity(), 0.3, variance=VARIANCE, solver=solver)
        plain, moved = restore(), restore(polishing=polishing)
        assert moved.x.shape == (2, draws, *SHAPE)
        assert not torch.equal(moved.x, plain.x)
        assert (moved.nfe - plain.nfe).tolist() == [[draws * (1 + 2 * 3 + 2 + 1)]] * 2
        small = restore(polishing=polishing, batch_size=1)
        torch.testing.assert_close(small.x, moved.x, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="too accurate"):
        one.restore(y, Identity(), 1e-9, polishing=polishing)
