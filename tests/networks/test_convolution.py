"""Convolutions with frozen weights: torch's values and derivatives of every kind, without keeping what they read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn.modules.conv import _ConvNd

from sde.networks import UNet
from sde.networks.convolution import Conv1d, Conv2d, Conv3d

OURS = {1: Conv1d, 2: Conv2d, 3: Conv3d}
TORCHS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def pair(rank: int, *sizes: int, dtype: torch.dtype = torch.float64, **options: int) -> tuple[_ConvNd, _ConvNd]:
    """One of ours with frozen weights, and torch's with the same."""
    torch.manual_seed(0)
    ours, theirs = (kinds[rank](*sizes, **options).to(dtype) for kinds in (OURS, TORCHS))
    theirs.load_state_dict(ours.state_dict())
    return ours.requires_grad_(False), theirs


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def kept(run: Callable[[], object]) -> list[Tensor]:
    """What is kept for derivatives."""
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return found


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("size", "padding"), [(1, 0), (3, 0), (3, 1), (3, 2), (4, 1)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_value_and_gradient_are_torchs(rank: int, size: int, padding: int, dtype: torch.dtype, rtol: float) -> None:
    ours, theirs = pair(rank, 3, 5, size, padding=padding, dtype=dtype)
    x = normal(2, 3, *(5, 6, 4)[:rank], dtype=dtype).requires_grad_()
    found, expected = ours(x), theirs(x)
    g = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)
    (one,), (other,) = (torch.autograd.grad(y, x, g) for y in (found, expected))
    torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("rank", [1, 2])
def test_derivatives_of_every_kind(rank: int) -> None:
    ours, _ = pair(rank, 2, 3, 3, padding=1)
    x = normal(2, 2, *(3, 4)[:rank]).requires_grad_()

    def f(x: Tensor) -> Tensor:
        return ours(x).sin()

    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(f, x, **modes)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_derivatives_of_functions() -> None:
    ours, theirs = pair(2, 2, 3, 3, padding=1)
    x = normal(4, 2, 3, 3)

    def energy(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: layer(x[None]).sin().sum()

    for derivative in (
        lambda f: vmap(grad(f)),
        lambda f: vmap(jacrev(grad(f))),
        lambda f: vmap(jacfwd(grad(f))),
        lambda f: vmap(jacfwd(jacfwd(f))),
    ):
        torch.testing.assert_close(derivative(energy(ours))(x), derivative(energy(theirs))(x), rtol=1e-12, atol=1e-12)


def test_weights_get_their_gradients_wherever_they_are_asked_for() -> None:
    """Unfrozen, or frozen and handed in as arguments of a function that is differentiated outside of one in x."""
    ours, theirs = pair(2, 2, 3, 3, padding=1)
    x = normal(2, 2, 4, 4)

    def slope(layer: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda named: grad(lambda x: functional_call(layer, named, (x,)).sin().sum())(x).square().sum()

    found, expected = (grad(slope(layer))(dict(theirs.named_parameters())) for layer in (ours, theirs))
    assert expected.keys() == found.keys() == {"weight", "bias"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)
    for part in ("weight", "bias"):
        getattr(ours.requires_grad_(False), part).requires_grad_()
        y = x.clone().requires_grad_()
        results = []
        for layer in (ours, theirs):
            results.append(torch.autograd.grad(layer(y).sin().sum(), [getattr(layer, part), y]))
        for one, other in zip(*results):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_it_reads_is_kept_only_with_a_stride(stride: int) -> None:
    ours, theirs = pair(2, 2, 3, 3, padding=1, stride=stride)
    x = normal(2, 2, 6, 6).requires_grad_()
    assert any(tensor is x for tensor in kept(lambda: theirs(x)))
    assert any(tensor is x for tensor in kept(lambda: ours(x))) == (stride == 2)
    torch.testing.assert_close(
        *(torch.autograd.grad(layer(x).sin().sum(), x)[0] for layer in (ours, theirs)), rtol=1e-12, atol=1e-12
    )


def test_a_network_keeps_a_third_less() -> None:
    """Each block keeps what its norm and its activation read, but not what its convolution reads."""
    net = UNet(2, width=8, multipliers=(1, 2), attention=(), dropout=0.0)
    x = normal(2, 2, 8, 8, dtype=torch.float32)

    def size() -> int:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept(run)}
        weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
        return sum(n for pointer, n in storages.items() if pointer not in weights)

    alive: list[Tensor] = []

    def run() -> None:  # what is kept lives on, or its place would be taken again
        alive.append(net(x.clone().requires_grad_(), torch.tensor(0.5)))

    trained = size()
    net.requires_grad_(False)
    assert size() < 0.7 * trained
