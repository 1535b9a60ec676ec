"""Scaling: the round trip is exact, the log-determinant is that of the Jacobian, uniform data costs log2 L bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.tables import rows

from sde.data import Scaling
from sde.data.scaling import nats_to_bits

RANGES = [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.3, 7.1)]
LEVELS = [2, 17, 256, 65536]


def edge_noise(dtype: torch.dtype) -> list[float]:
    """Noise at, next to and far from both edges of the bin, in that dtype."""
    eps = torch.finfo(dtype).eps
    return [0.0, torch.finfo(dtype).tiny, eps, 1e-3, 0.5, 1 - 1e-3, 1 - eps / 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("levels", LEVELS)
def test_round_trip_is_exact(levels: int, low: float, high: float, dtype: torch.dtype) -> None:
    scaling = Scaling.interval(levels, low, high)
    v = torch.arange(levels, dtype=torch.int32).to(scaling.dtype)
    assert torch.equal(scaling.to_data(scaling.to_model(v, dtype=dtype)), v)
    for noise in edge_noise(dtype):
        u = torch.full((levels,), noise, dtype=dtype)
        y = scaling.to_model(v, u, dtype=dtype)
        assert y.dtype == dtype
        assert torch.equal(scaling.to_data(y), v), noise
    u = torch.rand(levels, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert torch.equal(scaling.to_data(scaling.to_model(v, u, dtype=dtype)), v)


def test_plain_rounding_would_leave_the_bin() -> None:
    """The reason why the noise is kept off the edges: the nearest float32 of y belongs to the next level."""
    scaling = Scaling.interval(256)
    v, u = torch.tensor([200.0], dtype=torch.float64), 1 - 2**-24
    nearest = (scaling.scale * (v + u) + scaling.shift).to(torch.float32)
    assert scaling.to_data(nearest).item() == 201


def test_noise_is_moved_by_no_more_than_documented() -> None:
    for levels, delta in [(256, 8e-6), (65536, 2e-3)]:
        scaling = Scaling.interval(levels)
        v = torch.arange(levels, dtype=torch.int32)
        for noise in [0.0, 0.3, 1 - 2**-24]:
            y = scaling.to_model(v, torch.full((levels,), noise)).to(torch.float64)
            moved = (y - scaling.shift) / scaling.scale - v - noise
            assert moved.abs().max() <= 2 * delta  # the margin, and as much again by rounding
        in_bin = 2**-23 / scaling.scale
        assert in_bin <= 1 / 256


def test_levels_fill_the_interval() -> None:
    scaling = Scaling.interval(4, low=-1.0, high=1.0)
    v = torch.arange(4, dtype=torch.uint8)
    assert scaling.to_model(v).tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert scaling.to_model(v).dtype == torch.float32
    quarter = scaling.to_model(v, torch.full((4,), 0.25, dtype=torch.float64), dtype=torch.float64)
    assert quarter.tolist() == [-0.875, -0.375, 0.125, 0.625]


def test_model_values_beyond_the_range_go_to_the_nearest_level() -> None:
    scaling = Scaling.interval(17)
    y = torch.tensor([-math.inf, -3.0, -1.0, 1.0, 3.0, math.inf])
    assert scaling.to_data(y).tolist() == [0, 0, 0, 16, 16, 16]


@pytest.mark.parametrize(
    ("levels", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int32), (None, torch.float32)]
)
def test_dtype_of_data_values(levels: int | None, dtype: torch.dtype) -> None:
    scaling = Scaling(0.01, -1.0, levels)
    assert scaling.dtype == dtype
    assert scaling.to_data(torch.zeros(3)).dtype == dtype


def test_continuous_round_trip() -> None:
    v = torch.linspace(-5.0, 9.0, 101, dtype=torch.float64).reshape(1, -1)
    scaling = Scaling(scale=0.3, shift=-2.0)
    y = scaling.to_model(v, dtype=torch.float64)
    torch.testing.assert_close(y, 0.3 * v - 2.0, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(scaling.to_data(y), v, rtol=1e-14, atol=1e-14)
    assert torch.equal(Scaling.identity().to_model(v, dtype=torch.float64), v)
    assert torch.equal(Scaling.identity().to_data(y), y)


def test_standardise() -> None:
    x = 3.0 + 0.1 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaling = Scaling.standardise(x)
    y = scaling.to_model(x, dtype=torch.float64)
    assert abs(y.mean().item()) < 1e-12
    assert abs(y.std(correction=0).item() - 1.0) < 1e-12
    assert scaling.levels is None


def test_every_column_and_channel_has_its_own_scale() -> None:
    """With one scale, the table's columns had standard deviations from 0.0004 to 1.5 in the model's range."""
    table = rows(400).double()
    signals = torch.stack([table[:, 2:4], 3.0 * table[:, 2:4]], -1)  # (N, C, L)
    for x, axes in ((table, (0,)), (signals, (0, 2))):
        scaling = Scaling.standardise(x)
        y = scaling.to_model(x, dtype=torch.float64)
        assert y.mean(axes).abs().max() < 1e-12
        torch.testing.assert_close(y.std(axes, correction=0), torch.ones_like(y.mean(axes)))
        torch.testing.assert_close(scaling.to_data(y), x)
        assert scaling.to_data(y.float()).dtype == torch.float32
        assert Scaling(**json.loads(json.dumps(asdict(scaling)))) == scaling
    spreads = Scaling.standardise(table, one_scale=True).to_model(table).std(0)
    assert spreads.max() / spreads.min() > 3000
    one = Scaling.standardise(table[:, :1])
    assert one == Scaling.standardise(table[:, 0]) == Scaling.standardise(table[:, :1], one_scale=True)
    assert isinstance(one.scale, float)
    levelled = table.clone()
    levelled[:, 3] = 0.1  # a constant column is centred in its own unit
    y = Scaling.standardise(levelled).to_model(levelled, dtype=torch.float64)
    assert y[:, 3].abs().max() < 1e-12
    torch.testing.assert_close(y.std(0, correction=0), (torch.arange(8) != 3).double())


def test_columns_that_differ_tenfold_are_warned_of() -> None:
    x = rows(400)
    with pytest.warns(UserWarning, match=r"number 1 is 0\.00\d+, that of number 7 1\.\d"):
        Scaling.standardise(x, one_scale=True).warn_of_spreads(x)
    constant = x.clone()
    constant[:, 3] = 0.1
    with pytest.warns(UserWarning, match=r"number 3 is 0, that of number \d 1\."):
        Scaling.standardise(constant).warn_of_spreads(constant)
    Scaling.standardise(x).warn_of_spreads(x)  # no warning, which would be an error
    Scaling.standardise(x).warn_of_spreads(constant, whole=False)  # the column may vary in other samples
    Scaling.identity().warn_of_spreads(x[:, [0, 3, 4, 5, 6]])
    Scaling.interval(256).warn_of_spreads(torch.tensor([[0, 7], [1, 200]], dtype=torch.uint8))


@pytest.mark.parametrize(
    "scaling",
    [Scaling.interval(17), Scaling.interval(256, 0, 3), Scaling(2.5, 1.0), Scaling((2.5, 0.1, 7.0), (1, 0, -3))],
)
def test_log_det_is_that_of_the_jacobian(scaling: Scaling) -> None:
    g = torch.Generator().manual_seed(0)
    if scaling.levels is None:
        point = torch.randn(6, generator=g, dtype=torch.float64)

        def forward(x: torch.Tensor) -> torch.Tensor:
            return scaling.to_model(x.reshape(1, 3, 2), dtype=torch.float64).flatten()
    else:
        v = torch.randint(scaling.levels, (6,), generator=g)
        point = torch.rand(6, generator=g, dtype=torch.float64)  # dv = du within a bin

        def forward(x: torch.Tensor) -> torch.Tensor:
            return scaling.to_model(v, x, dtype=torch.float64)

    jacobian = torch.autograd.functional.jacobian(forward, point)
    expected = torch.linalg.slogdet(jacobian).logabsdet.item()
    assert math.isclose(scaling.log_det(6), expected, rel_tol=1e-12)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("levels", LEVELS)
def test_uniform_density_scores_log2_levels(levels: int, low: float, high: float) -> None:
    dims = 3072
    nats = torch.full((5,), -dims * math.log(high - low), dtype=torch.float64)
    bits = Scaling.interval(levels, low, high).bits_per_dim(nats, dims)
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(levels)), rtol=1e-14, atol=0)


def test_bits_per_dim_does_not_depend_on_the_range() -> None:
    """A density of the data, carried to two ranges by the change of variables, scores the same."""
    dims, data_nats = 64, torch.tensor([-130.0, -95.5], dtype=torch.float64)
    for scaling in [Scaling.interval(17), Scaling.interval(17, 0.0, 1.0), Scaling(4.0, 0.5, 17)]:
        bits = scaling.bits_per_dim(data_nats - scaling.log_det(dims), dims)
        torch.testing.assert_close(bits, -data_nats / (64 * math.log(2.0)))


def test_constructor_is_the_config_schema() -> None:
    scaling = Scaling.interval(17, 0.0, 2.0)
    assert asdict(scaling) == {"scale": 2.0 / 17, "shift": 0.0, "levels": 17}
    assert Scaling(**asdict(scaling)) == scaling


def test_noise_carries_gradients() -> None:
    v, u = torch.tensor([[3, 4]], dtype=torch.uint8), torch.tensor([[0.2, 0.8]], requires_grad=True)
    Scaling.interval(8).to_model(v, u).sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == [[0.25, 0.25]]


@pytest.mark.parametrize(
    ("values", "levels", "message"),
    [
        (torch.tensor([[0, 16], [17, 18]], dtype=torch.uint8), 17, r"pixel\[1, 0\] .*17.*16"),
        (torch.tensor([[0, 3], [2, -1]], dtype=torch.int8), 256, r"pixel\[1, 1\] .*-1.*255"),
        (torch.tensor([5, 256], dtype=torch.int32), 256, r"pixel\[1\] .*256"),
        (torch.tensor([1.0, 2.5]), 17, r"pixel\[1\] .*2\.5.*integer"),
        (torch.tensor([17.0, 1.0]), 17, r"pixel\[0\] .*17\.0"),
        (torch.tensor([1.0, 0.0, math.nan]), 17, r"pixel\[2\] .*nan"),
        (
            torch.tensor([[1.0, 0.0], [math.inf, 1.0]]),
            None,
            r"pixel\[1, 0\] .*inf.*finite",
        ),
        (torch.empty(0, 3), None, r"pixel.*\(0, 3\)"),
    ],
)
def test_wrong_values_are_named(values: torch.Tensor, levels: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scaling(0.1, 0.0, levels).check(values, "pixel")


@pytest.mark.parametrize("levels", [256, 257, 300, 65536])
def test_small_integers_fit_into_many_levels(levels: int) -> None:
    """As uint8, 256 compares as 0 in torch."""
    Scaling(0.1, 0.0, levels).check(torch.tensor([0, 127, 255], dtype=torch.uint8))
    Scaling(0.1, 0.0, levels).check(torch.tensor([0, 127], dtype=torch.int8))


def test_to_model_refuses() -> None:
    scaling, v = Scaling.interval(17), torch.tensor([[1, 16]], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"value\[0, 1\] .*17"):
        scaling.to_model(v + 1)
    with pytest.raises(ValueError, match=r"u .*\(1, 2\).*\(2,\)"):
        scaling.to_model(v, torch.zeros(2))
    with pytest.raises(ValueError, match=r"u\[0, 1\] .*1\.5"):
        scaling.to_model(v, torch.tensor([[0.0, 1.5]]))
    with pytest.raises(ValueError, match=r"u\[0, 0\] .*nan"):
        scaling.to_model(v, torch.tensor([[math.nan, 0.0]]))
    with pytest.raises(ValueError, match="u=None"):
        Scaling.identity().to_model(v.float(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"bfloat16.*256 levels.*\[-1, 1\]"):
        Scaling.interval(256).to_model(v, dtype=torch.bfloat16)


def test_to_data_refuses_nan_for_levels() -> None:
    y = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    with pytest.raises(ValueError, match=r"\[1, 0\].*nan"):
        Scaling.interval(17).to_data(y)
    assert Scaling.identity().to_data(y).isnan().tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scaling(0.0, 0.0), "scale=0.0"),
        (lambda: Scaling(-1.0, 0.0, 4), "scale=-1.0"),
        (lambda: Scaling(math.nan, 0.0), "scale=nan"),
        (lambda: Scaling(1.0, math.inf), "shift=inf"),
        (lambda: Scaling((1.0, 0.0), (0.0, 0.0)), r"scale=\(1\.0, 0\.0\)"),
        (lambda: Scaling((1.0, 2.0), 0.0), r"shift=0\.0"),
        (lambda: Scaling((), ()), r"scale=\(\)"),
        (lambda: Scaling((1.0, 2.0), (0.0, 0.0), 17), "levels=17"),
        (lambda: Scaling(1.0, 0.0, 1), "levels=1"),
        (lambda: Scaling(1.0, 0.0, 2**31 + 1), f"levels={2**31 + 1}"),
        (lambda: Scaling.interval(1), "levels=1"),
        (lambda: Scaling.interval(0), "levels=0"),
        (lambda: Scaling.interval(17, 1.0, 1.0), "low=1.0, high=1.0"),
        (lambda: Scaling.interval(17, 1.0, -1.0), "low=1.0, high=-1.0"),
        (lambda: Scaling.standardise(torch.full((10,), 0.1)), "mean 0.1"),
        (lambda: Scaling.standardise(torch.zeros(4)), "mean 0.0 and standard deviation 0.0"),
        (lambda: Scaling.standardise(torch.tensor([1.0, math.nan])), r"\[1\] .*nan"),
        (lambda: Scaling.standardise(torch.empty(0)), r"\(0,\)"),
    ],
)
def test_constructors_refuse(make: Callable[[], Scaling], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_event_has_the_columns_of_its_scaling() -> None:
    scaling = Scaling((1.0, 2.0), (0.0, 0.0))
    for call in (scaling.check, scaling.to_model, scaling.to_data):
        for wrong in (torch.zeros(4, 3), torch.zeros(2, 1, 2), torch.zeros(2)):
            with pytest.raises(ValueError, match=r"2 columns.*\(2, \.\.\.\), got"):
                call(wrong)
    with pytest.raises(ValueError, match=r"2 columns.*dims=5"):
        scaling.log_det(5)
    with pytest.raises(ValueError, match="bins"):
        scaling.bins  # noqa: B018


def test_levels_are_a_whole_number() -> None:
    with pytest.raises(TypeError):
        Scaling(1.0, 0.0, 17.5)  # type: ignore[arg-type]


def test_nats_as_bits_per_dim() -> None:
    """Numbers, arrays and tensors alike, in their own dtype; no bits are 0 and not -0."""
    nats = [-2.0 * math.log(2.0), 0.0, 6.0 * math.log(2.0)]
    assert [nats_to_bits(value, 2) for value in nats] == [1.0, 0.0, -3.0]
    assert math.copysign(1.0, nats_to_bits(0.0, 2)) == 1.0
    assert nats_to_bits(np.array(nats), 2).tolist() == [1.0, 0.0, -3.0]
    bits = nats_to_bits(torch.tensor(nats), 2)
    assert bits.dtype == torch.float32
    torch.testing.assert_close(bits, torch.tensor([1.0, 0.0, -3.0]))
