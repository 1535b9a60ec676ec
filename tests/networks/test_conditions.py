"""Conditions of networks: what they do to a sample, and to no other; their nulls; what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.networks import MLP, Conditions, DiT, UNet
from sde.networks.attention import cross_attention
from sde.networks.network import Network

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

B, L = 3, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def awake(net: Network) -> Network:
    """The network in float64 and evaluation mode, with no weight left at its initial zero."""
    net = net.double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=i))
    return net


SIZES: dict[str, Any] = {"classes": 5, "conditions": Conditions(embedding=2, tokens=3, image=1)}
NETWORKS: dict[str, tuple[Network, tuple[int, ...], tuple[int, ...]]] = {
    "unet": (UNet(2, width=8, blocks=1, **SIZES), (2, 5, 6), (1, 5, 6)),
    "signal": (UNet(2, width=8, blocks=1, rank=1, **SIZES), (2, 9), (1, 9)),
    "dit": (DiT(2, width=8, depth=2, heads=2, **SIZES), (2, 5, 6), (1, 5, 6)),
    "mlp": (MLP(6, width=8, depth=2, classes=5, conditions=Conditions(2, 3, 4)), (6,), (4,)),
}
each = pytest.mark.parametrize("name", NETWORKS)
LEVEL = torch.tensor(0.7, dtype=torch.float64)


def case(name: str) -> tuple[Network, Tensor, dict[str, Tensor]]:
    net, event, image = NETWORKS[name]
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False, True, False, True]])
    given = {"embedding": normal(B, 2, seed=2), "tokens": normal(B, L, 3, seed=3), "tokens_mask": mask}
    given |= {"image": normal(B, *image, seed=4), "label": torch.tensor([0, 4, 2])}
    return awake(net), normal(B, *event, seed=1), given


@each
def test_every_condition_reaches_its_own_sample_and_no_other(name: str) -> None:
    net, x, given = case(name)
    y = net(x, LEVEL, **given)
    assert y.shape == x.shape
    for key in ("embedding", "tokens", "image", "label"):
        changed = given[key].clone()
        changed[1] = changed[1] * 2.0 if changed.is_floating_point() else 1
        other = net(x, LEVEL, **{**given, key: changed})
        assert torch.allclose(other[[0, 2]], y[[0, 2]], atol=1e-12)
        assert (other[1] - y[1]).abs().max() > 1e-6, key
    one = net(x[1:2], LEVEL, **{key: value[1:2] for key, value in given.items()})
    assert torch.allclose(one, y[1:2], atol=1e-12)


@each
def test_what_is_not_known_is_the_learned_null(name: str) -> None:
    """A condition that is left out, NaN, or masked; and the nulls are learned."""
    net, x, given = case(name)
    nan = {key: torch.full_like(given[key], math.nan) for key in ("embedding", "image")}
    gone = {"embedding": nan["embedding"], "image": nan["image"]}
    for key in ("embedding", "image"):
        rest = {k: v for k, v in given.items() if k != key}
        assert torch.allclose(net(x, LEVEL, **rest), net(x, LEVEL, **rest, **{key: gone[key]}), atol=1e-12)
    rest = {k: v for k, v in given.items() if not k.startswith("tokens")}
    masked = {"tokens": given["tokens"], "tokens_mask": torch.zeros(B, L, dtype=torch.bool)}
    assert torch.allclose(net(x, LEVEL, **rest), net(x, LEVEL, **rest, **masked), atol=1e-12)
    nulls = [p for key, p in net.named_parameters() if key.endswith("null")]
    assert len(nulls) == 3
    loss = net(x, LEVEL, label=given["label"], embedding=nan["embedding"]).square().sum()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, nulls))
    # One unknown entry of an embedding leaves the other.
    partly = given["embedding"].clone()
    partly[:, 0] = math.nan
    whole, part, none = (
        net(x, LEVEL, **{**given, "embedding": e}) for e in (given["embedding"], partly, nan["embedding"])
    )
    assert min((part - whole).abs().max(), (part - none).abs().max()) > 1e-6


@each
def test_masked_tokens_do_not_matter_and_the_mask_is_all_by_default(name: str) -> None:
    net, x, given = case(name)
    other = given["tokens"].masked_fill(~given["tokens_mask"][..., None], math.nan)
    assert torch.equal(net(x, LEVEL, **{**given, "tokens": other}), net(x, LEVEL, **given))
    rest = {k: v for k, v in given.items() if k != "tokens_mask"}
    assert torch.equal(net(x, LEVEL, **rest), net(x, LEVEL, **rest, tokens_mask=torch.ones(B, L, dtype=torch.bool)))


def test_cross_attention_is_that_of_torch() -> None:
    attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    q, k, v = (normal(B, n, 8, seed=n) for n in (5, L, L))
    v = normal(B, L, 8, seed=9)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False, True, False, True]])
    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    ours = cross_attention(q @ w_q.T, k @ w_k.T, v @ w_v.T, mask, 2) @ attention.out_proj.weight.T
    theirs = attention(q, k, v, key_padding_mask=~mask, need_weights=False)[0]
    assert torch.allclose(ours, theirs, atol=1e-12)


@each
def test_derivatives_in_both_modes_and_of_second_order(name: str) -> None:
    net, x, given = case(name)

    def f(x: Tensor) -> Tensor:
        return net(x, LEVEL, **given)

    v = normal(*x.shape, seed=7)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(y), y, v, create_graph=True)
    forward = torch.func.jvp(f, (x,), (v,))[1]
    h = 1e-6
    assert torch.allclose(forward, (f(x + h * v) - f(x - h * v)) / (2 * h), rtol=1e-4, atol=1e-6)
    assert torch.allclose((gradient * v).sum(), (forward * v).sum(), rtol=1e-8)
    assert torch.autograd.grad(gradient.square().sum(), y)[0].isfinite().all()


@pytest.mark.parametrize("size", [(5, 6), (2, 3), (10, 13)])
def test_images_of_any_size_are_resized(size: tuple[int, int]) -> None:
    """A constant stays one, and an image of twice the size is averaged over its quarters."""
    net, x, given = case("unet")
    flat = net(x, LEVEL, **{**given, "image": torch.full((B, 1, 5, 6), 0.7).double()})
    assert torch.allclose(net(x, LEVEL, **{**given, "image": torch.full((B, 1, *size), 0.7).double()}), flat)
    twice = normal(B, 1, 10, 12)
    mean = twice.unflatten(3, (6, 2)).unflatten(2, (5, 2)).mean((3, 5))
    assert torch.allclose(net(x, LEVEL, **{**given, "image": twice}), net(x, LEVEL, **{**given, "image": mean}))


def test_a_network_without_conditions_has_the_weights_of_before() -> None:
    for net in (UNet(1, width=8), DiT(1, width=8, depth=1, heads=1), MLP(2, width=8)):
        assert not [key for key in net.state_dict() if "null" in key or "cross" in key or "vector" in key]
        assert net.takes == {}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"text": torch.zeros(B)}, "unknown condition 'text'"),
        ({"label": torch.tensor([0, 1, 6])}, "0 ... 4, or 5 for none, got labels from 0 to 6"),
        ({"embedding": torch.zeros(B, 3)}, r"expected shape \(B, 2\), got \(3, 3\)"),
        ({"tokens": torch.zeros(B, L)}, r"expected shape \(B, any, 3\)"),
        ({"image": torch.zeros(B, 2, 5, 6)}, r"expected shape \(B, 1, any, any\)"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused_before_the_first_call(
    condition: dict[str, Tensor], message: str
) -> None:
    """By samplers and likelihoods, with the list of what the model takes."""
    net = UNet(2, width=8, blocks=1, **SIZES)
    net.register_forward_pre_hook(lambda *_: pytest.fail("called"))
    denoiser = sde.NetworkDenoiser(net, sde.VP())
    x = torch.zeros(B, 2, 5, 6)
    runs = (lambda c: sde.sample(denoiser, x.shape, condition=c), lambda c: sde.log_prob(denoiser, x, condition=c))
    for run in runs:
        with pytest.raises(ValueError, match=message) as error:
            run({"label": torch.tensor(0), **condition})
        if len(condition) == 1 and "label" not in condition:
            assert "embedding: (B, 2); tokens: (B, any, 3)" in str(error.value)


@each
def test_networks_refuse_what_they_were_not_built_for(name: str) -> None:
    net, x, given = case(name)
    bare = awake(
        {"unet": UNet(2, width=8), "signal": UNet(2, width=8, rank=1), "dit": DiT(2, 8, 1, 1), "mlp": MLP(6)}[name]
    )
    for key in ("embedding", "tokens", "image"):
        with pytest.raises(ValueError, match=rf"Conditions\({key}="):
            bare(x, LEVEL, **{key: given[key]})
        with pytest.raises(ValueError, match=f"{key} with shape"):
            net(x, LEVEL, label=given["label"], **{key: given[key][:1]})
    with pytest.raises(ValueError, match="tokens_mask"):
        net(x, LEVEL, label=given["label"], tokens=given["tokens"], tokens_mask=given["tokens"][..., 0])
    with pytest.raises(ValueError, match="tokens="):
        net(x, LEVEL, label=given["label"], tokens_mask=given["tokens_mask"])


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding=0"):
        Conditions(embedding=0)
    with pytest.raises(ValueError, match="beside self-attention"):
        UNet(1, width=8, attention=(), middle=sde.networks.Middle(attention=False), conditions=Conditions(tokens=3))


def test_a_file_holds_the_conditions(tmp_path: Any) -> None:
    net, _, given = case("unet")
    model = sde.Model(sde.NetworkDenoiser(net, sde.VP()), sde.data.Scaling.identity(), (2, 5, 6), 5)
    sde.save(tmp_path / "a.pt", model)
    again = sde.load(tmp_path / "a.pt")
    assert again.denoiser.takes == net.takes
    assert again.denoiser.takes["embedding"] == sde.networks.Taken((2,))
    drawn = [m.sample(B, condition=given, solver=sde.solvers.Euler(2)) for m in (model, again)]
    torch.testing.assert_close(*drawn)
