"""Activations by name: torch's own, and their formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde.instantiate import MODEL_ROOMS, build, describe
from sde.networks import OutputSkip, UNet
from sde.networks.activations import ACTIVATIONS, named_activation

FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, lambda x: x / (1.0 + (-x).exp())),
    "gelu": (F.gelu, lambda x: 0.5 * x * (1.0 + torch.special.erf(x / 2.0**0.5))),
    "mish": (F.mish, lambda x: x * x.exp().log1p().tanh()),
    "elu": (F.elu, lambda x: torch.where(x > 0, x, x.exp() - 1.0)),
    "relu": (F.relu, lambda x: x.clamp(min=0.0)),
    "lrelu": (lambda x: F.leaky_relu(x, 0.2), lambda x: torch.where(x > 0, x, 0.2 * x)),
}


def test_values_are_torch_s_and_those_of_the_formulas() -> None:
    assert FORMULAS.keys() == ACTIVATIONS.keys()
    x = torch.linspace(-8.0, 8.0, 401, dtype=torch.float64)
    for name, (function, formula) in FORMULAS.items():
        y = named_activation(name)(x)
        assert torch.equal(y, function(x)), name
        torch.testing.assert_close(y, formula(x), rtol=1e-12, atol=1e-14)


def small(activation: str | nn.Module | None = None, outer: str | nn.Module | None = None) -> UNet:
    torch.manual_seed(0)
    net = UNet(
        1, 8, blocks=1, rank=1, output_pyramid=OutputSkip(), activation=activation, outer_activation=outer
    ).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    return net.eval()


def test_a_network_has_the_activation_everywhere_or_within_its_blocks() -> None:
    """Shown by names alone: a module of one's own in the same places computes the same."""

    def kinds(net: UNet) -> list[int]:
        return [sum(isinstance(m, kind) for m in net.modules()) for kind in (nn.SiLU, nn.ELU, nn.Tanh)]

    x, c = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(1, 1, 6), torch.tensor([3.0])
    default = small()(x, c)
    assert torch.equal(small("silu")(x, c), default)
    assert torch.equal(small("elu")(x, c), small(nn.ELU())(x, c))
    assert torch.equal(small("elu", "silu")(x, c), small(nn.ELU(), nn.SiLU())(x, c))
    assert torch.equal(small("silu", "silu")(x, c), default)
    results = [default, *(small(*names)(x, c) for names in (("elu",), ("elu", "silu"), ("silu", "elu")))]
    assert all(not torch.allclose(a, b, rtol=1e-3) for k, a in enumerate(results) for b in results[:k])
    # One object stands in all its places.
    assert [kinds(net) for net in (small("elu"), small(nn.Tanh(), "elu"))] == [[0, 1, 0], [0, 1, 1]]
    net = small("elu", "silu")
    outside = [net.context.inner_activation, *(joint.head[1] for joint in net.output_pyramid)]
    assert {type(module) for module in outside} == {nn.SiLU}
    assert type(net.context.activation) is type(net.encoder[0][0].residual.activation) is nn.ELU


def test_a_name_is_described_and_built_again() -> None:
    tree = describe(small("mish", "relu"))
    assert (tree["activation"], tree["outer_activation"]) == ("mish", "relu")
    assert isinstance(build(tree, rooms=MODEL_ROOMS).context.activation, nn.Mish)


@pytest.mark.parametrize("name", ["swish", "SiLU", "torch.nn.ELU"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"silu, gelu, mish, elu, relu, lrelu.*'{name}'"):
        UNet(1, 8, activation=name)
