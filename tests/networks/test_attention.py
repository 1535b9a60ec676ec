"""The fused attention: the formula, derivatives of every kind and order, and the memory it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from sde.networks.attention import attend

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Scalar = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhij,bhjd->bhid", torch.softmax(scores, -1), v)


def triple(dtype: torch.dtype = torch.float64, positions: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (normal(2, 3, positions, 4, seed=seed, dtype=dtype).requires_grad_() for seed in range(3))
    return q, k, v


def small() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (normal(1, 2, 3, 2, seed=seed).requires_grad_() for seed in range(3))
    return q, k, v


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_value_and_gradient_are_those_of_the_formula(dtype: torch.dtype, rtol: float) -> None:
    q, k, v = triple(dtype, positions=300)
    y, g = attend(q, k, v), normal(2, 3, 300, 4, seed=4, dtype=dtype)
    assert y.dtype == dtype
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in (q, k, v))
    expected = formula(*exact)
    found = [y, *torch.autograd.grad(y, (q, k, v), g)]
    for one, other in zip(found, [expected, *torch.autograd.grad(expected, exact, g.double())], strict=True):
        assert (one - other).abs().max() <= rtol * other.abs().max()


def test_first_derivatives_in_both_modes_and_mapped_over() -> None:
    checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(attend, small(), **checks)


def test_second_derivatives_in_both_modes() -> None:
    assert torch.autograd.gradgradcheck(attend, small(), check_fwd_over_rev=True, fast_mode=True)


def energy(attend: Attend) -> Scalar:
    q, k, v = (normal(2, 1, 3, 2, seed=seed) for seed in range(3))
    return lambda a: attend(a * q, a.sin() * k, a * v).square().sum()


def third(f: Scalar) -> Scalar:
    def derivative(a: Tensor) -> Tensor:
        a = a.clone().requires_grad_()
        y = f(a)
        for _ in range(3):
            (g,) = torch.autograd.grad(y, a, create_graph=True)
            y = g.sin().sum()
        return y

    return derivative


def pushed_forward(f: Scalar) -> Scalar:
    """The derivative of a pullback that was recorded before."""

    def derivative(a: Tensor) -> Tensor:
        y, pullback = vjp(f, a)
        return jvp(lambda u: pullback(u)[0], (y,), (y.cos(),))[1]

    return derivative


def dual_gradient(f: Scalar) -> Scalar:
    """The gradient along a dual number, of a graph that was recorded before."""

    def derivative(a: Tensor) -> Tensor:
        a = a.clone().requires_grad_()
        y = f(a)
        with forward_ad.dual_level():
            one = forward_ad.make_dual(torch.ones_like(y), 2 * torch.ones_like(y))
            (g,) = torch.autograd.grad(y, a, one, create_graph=True)
            return forward_ad.unpack_dual(g).tangent

    return derivative


TRANSFORMS: dict[str, Callable[[Scalar], Scalar]] = {
    "grad": grad,
    "jacfwd": jacfwd,
    "forward over reverse": hessian,
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "forward over forward over reverse": lambda f: jacfwd(jacfwd(grad(f))),
    "mapped gradient": lambda f: lambda a: vmap(grad(f))(torch.stack([a, 2 * a])),
    "forward over mapped gradient": lambda f: jacfwd(lambda a: vmap(grad(f))(torch.stack([a, 2 * a]))),
    "third by autograd": third,
    "pullback pushed forward": pushed_forward,
    "gradient along a dual number": dual_gradient,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_composition_of_derivatives_is_that_of_the_formula(name: str) -> None:
    a, transform = normal(3, 2, seed=9), TRANSFORMS[name]
    found, expected = transform(energy(attend))(a), transform(energy(formula))(a)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_mapping_over_some_of_the_inputs() -> None:
    q, k, v = (tensor.detach() for tensor in triple())
    many = normal(3, *k.shape, seed=5).movedim(0, 2)
    found = vmap(attend, in_dims=(None, 2, None), out_dims=1)(q, many, v)
    assert torch.equal(found, torch.stack([attend(q, many[:, :, i], v) for i in range(3)], dim=1))


class _Largest(TorchDispatchMode):
    """The most elements that a result of any operation has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_value_and_gradient_build_no_matrix_of_all_pairs() -> None:
    q, k, v = (normal(1, 2, 400, 4, seed=seed).requires_grad_() for seed in range(3))
    with _Largest() as fused:
        torch.autograd.grad(attend(q, k, v).sum(), (q, k, v))
    with _Largest() as plain:
        torch.autograd.grad(formula(q, k, v).sum(), (q, k, v))
    assert fused.elements <= 2 * 2 * 400 * 4
    assert plain.elements >= 2 * 400 * 400


class _Kernels(TorchDispatchMode):
    """The fused kernels that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            self.names.append("backward" if "backward" in str(func) else "forward")
        return func(*args, **(kwargs or {}))


def test_the_value_is_computed_once_for_one_gradient_and_again_for_a_second() -> None:
    q, k, v = triple(torch.float32, positions=16)
    with _Kernels() as kernels:
        y = attend(q, k, v)
        first = torch.autograd.grad(y.sum(), (q, k, v), retain_graph=True)
        assert kernels.names == ["forward", "backward"]
        second = torch.autograd.grad(y.sum(), (q, k, v))
        assert kernels.names == ["forward", "backward"] * 2
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad(), _Kernels() as kernels:
        assert torch.equal(attend(q, k, v), y)
    assert kernels.names == ["forward"]


def test_it_compiles_with_its_gradient_into_one_graph() -> None:
    q, k, v = triple()
    compiled = torch.compile(lambda q, k, v: attend(q, k, v).square().sum(), backend="aot_eager", fullgraph=True)
    y, expected = compiled(q, k, v), formula(q, k, v).square().sum()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad(y, (q, k, v))
    torch.testing.assert_close(found, torch.autograd.grad(expected, (q, k, v)), rtol=1e-10, atol=1e-12)
