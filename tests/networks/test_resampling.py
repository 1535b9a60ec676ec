"""Between the levels of a U-Net: filters and layers that halve and double, against their definitions."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde.networks import FIR, Box, Filter, Filtered, FilteredConv, InResidual, Resampling, StridedConv
from sde.networks.residual import BlockConfig, Residual

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FILTERS: list[Filter] = [Box(), FIR((1, 1)), FIR(), FIR((-1, 3, 4, 4, 3, -1))]
RESAMPLINGS: list[Resampling] = [
    StridedConv(),
    StridedConv(symmetric=True),
    Filtered(),
    Filtered(FIR()),
    FilteredConv(),
    FilteredConv((1, 1)),
    InResidual(),
    InResidual(FIR(), projection=True),
]
each_resampling = pytest.mark.parametrize("resampling", RESAMPLINGS, ids=repr)
SIZES = [(8,), (7,), (1,), (4, 6), (5, 3), (2, 1), (3, 4, 2), (1, 3, 5)]
CONTEXT = torch.zeros(1, 4, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def awake(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for seed, parameter in enumerate(layer.double().parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=seed))
    return layer


def smoothed(x: Tensor, taps: tuple[float, ...]) -> dict[int, Tensor]:
    """The sum over i of taps[i] x[m - i], at every m where it is not zero."""
    full: dict[int, Tensor] = {}
    for n, i in itertools.product(range(x.shape[-1]), range(len(taps))):
        full[n + i] = full.get(n + i, torch.zeros(())) + taps[i] / sum(taps) * x[..., n]
    return full


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (-1, 3, 4, 4, 3, -1)])
@pytest.mark.parametrize("n", [1, 4, 5])
def test_a_filter_along_one_axis_is_its_definition(taps: tuple[float, ...], n: int) -> None:
    """Position j of the coarse data lies between 2 j and 2 j + 1 of the fine data."""
    x, half = normal(2, 3, n), len(taps) // 2
    even = torch.cat([x, x[..., -1:]], -1) if n % 2 else x
    full = smoothed(even, taps)
    down = torch.stack([full[2 * j + half] for j in range(math.ceil(n / 2))], -1)
    torch.testing.assert_close(FIR(taps).down(x), down, rtol=1e-12, atol=1e-12)

    stuffed = torch.stack([x, torch.zeros_like(x)], -1).flatten(-2)
    full = smoothed(stuffed, taps)
    up = torch.stack([2 * full[m + half - 1] for m in range(2 * n)], -1)
    for size in (2 * n - 1, 2 * n):
        torch.testing.assert_close(FIR(taps).up(x, (size,)), up[..., :size], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (3, 4, 2)])
def test_a_filter_acts_along_each_axis_by_itself(size: tuple[int, ...]) -> None:
    x, taps, rank = normal(2, 3, *size), (1.0, 3.0, 3.0, 1.0), len(size)
    down = up = x
    target = [2 * n - 1 for n in size]
    for axis in range(2, 2 + rank):
        moved = down.movedim(axis, -1)
        down = FIR(taps).down(moved.reshape(1, -1, size[axis - 2])).reshape(*moved.shape[:-1], -1).movedim(-1, axis)
        moved = up.movedim(axis, -1)
        n = target[axis - 2]
        up = FIR(taps).up(moved.reshape(1, -1, size[axis - 2]), (n,)).reshape(*moved.shape[:-1], n).movedim(-1, axis)
    torch.testing.assert_close(FIR(taps).down(x), down, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(FIR(taps).up(x, target), up, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_box_is_the_filter_of_two_equal_taps(size: tuple[int, ...]) -> None:
    x, box, fir = normal(2, 3, *size), Box(), FIR((2, 2))
    torch.testing.assert_close(box.down(x), fir.down(x), rtol=1e-12, atol=1e-12)
    for target in ([2 * n for n in size], [2 * n - 1 for n in size]):
        torch.testing.assert_close(box.up(x, target), fir.up(x, target), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
def test_a_filter_keeps_what_is_constant_away_from_the_border(filter: Filter) -> None:
    x = torch.ones(1, 2, 20, 20, dtype=torch.float64)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(filter.down(x)[inner], x[..., :4, :4], rtol=1e-12, atol=0)
    torch.testing.assert_close(filter.up(x, (40, 40))[inner], torch.ones(1, 2, 34, 34).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
def test_a_filter_has_derivatives_of_every_kind(filter: Filter) -> None:
    x = normal(1, 2, 3, 4).requires_grad_()
    for f in (filter.down, lambda x: filter.up(x, (5, 8))):
        assert torch.autograd.gradcheck(lambda x, f=f: f(x.sin()), x, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(lambda x, f=f: f(x.sin()), x)


@pytest.mark.parametrize("taps", [(), (1, 2, 1), (1, 2, 3, 1), (1, -1, -1, 1)])
def test_a_filter_refuses_taps(taps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=rf"taps={re.escape(str(taps))}"):
        FIR(taps)


# Layers


@each_resampling
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_is_halved_and_doubled(resampling: Resampling, size: tuple[int, ...]) -> None:
    config = BlockConfig(rank=len(size), context=4)
    down, up = awake(resampling.down(config, 4, 4)), awake(resampling.up(config, 4, 4))
    x = normal(2, 4, *size)
    coarse = down(x, CONTEXT)
    assert coarse.shape == (2, 4, *(math.ceil(n / 2) for n in size))
    fine = up(coarse, CONTEXT, size)
    assert fine.shape == x.shape
    assert fine.isfinite().all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n", [6, 5, 1])
def test_a_strided_convolution_puts_its_zeros_where_it_should(symmetric: bool, n: int) -> None:
    down = StridedConv(symmetric).down(BlockConfig(rank=1, context=4), 1, 1).double()
    x = torch.arange(1.0, n + 1, dtype=torch.float64)
    with torch.no_grad():
        down.conv.weight.copy_(torch.tensor([100.0, 10.0, 1.0]))
    padded = F.pad(x, (1, 1)) if symmetric or n % 2 else F.pad(x, (0, 1))
    expected = [100 * padded[i] + 10 * padded[i + 1] + padded[i + 2] for i in range(0, len(padded) - 2, 2)]
    assert down(x[None, None], CONTEXT).flatten().tolist() == expected


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_filter_and_convolution_see_zeros_outside_of_the_data_only(taps: tuple[float, ...]) -> None:
    """Far away from the border nothing changes where zeros are put around the data, on a grid of even places."""
    config, margin = BlockConfig(rank=2, context=4), 8
    x = normal(2, 3, 6, 4)
    down, up = (awake(make(config, 3, 5)) for make in (FilteredConv(taps).down, FilteredConv(taps).up))
    fir = FIR(taps)
    around = F.pad(x, [margin] * 4)
    expected = F.conv2d(fir.smooth(around, len(taps) // 2), down.conv.weight, down.conv.bias, stride=2)
    inner = (slice(None), slice(None), *(slice(margin // 2, -margin // 2) for _ in range(2)))
    torch.testing.assert_close(down(x, CONTEXT), expected[inner], rtol=1e-12, atol=1e-12)
    fine = fir.up(around, [2 * n for n in around.shape[2:]])
    expected = F.conv2d(fine, up.conv.weight, up.conv.bias, padding=1)
    inner = (slice(None), slice(None), *(slice(2 * margin, -2 * margin) for _ in range(2)))
    torch.testing.assert_close(up(x, CONTEXT, (12, 8)), expected[inner], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_a_residual_block_resamples_inside(projection: bool, scale_shift: bool) -> None:
    config = BlockConfig(rank=2, context=4, scale_shift=scale_shift, skip_scale=0.7)
    filter, h = FIR(), normal(2, 4, seed=7)
    for up in (False, True):
        maker = InResidual(filter, projection)
        layer = awake((maker.up if up else maker.down)(config, 8, 8))
        block = layer.residual
        assert isinstance(block, Residual)
        x = normal(2, 8, 4, 6)
        size = (8, 12) if up else (2, 3)

        def resample(x: Tensor, up: bool = up, size: tuple[int, int] = size) -> Tensor:
            return filter.up(x, size) if up else filter.down(x)

        m = (h @ block.shift.weight.T + block.shift.bias)[..., None, None]
        u = block.conv1(resample(F.silu(block.norm1(x))))
        w = block.norm2(u) * (1 + m[:, :8]) + m[:, 8:] if scale_shift else block.norm2(u + m)
        shortcut = resample(x)
        if projection:
            shortcut = F.conv2d(shortcut, block.shortcut.weight, block.shortcut.bias)
        expected = 0.7 * (shortcut + block.conv2(F.silu(w)))
        found = layer(x, h, size) if up else layer(x, h)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_filter_without_weights_refuses_to_change_the_channels() -> None:
    config = BlockConfig(rank=2, context=4)
    for make in (Filtered().down, Filtered().up):
        with pytest.raises(ValueError, match=r"channels.* 3.* 4"):
            make(config, 3, 4)
