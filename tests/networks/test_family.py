"""The family of the U-Net: published sizes, every option against its definition, and what holds for all members."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from sde.instantiate import build
from sde.networks import (
    FIR,
    MLP,
    Box,
    FilteredConv,
    Fourier,
    InputResidual,
    InputSkip,
    InResidual,
    Middle,
    Normalisation,
    OutputResidual,
    OutputSkip,
    Positional,
    StridedConv,
    UNet,
)
from sde.networks.residual import Attention, BlockConfig, Residual

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "network"
HALF = math.sqrt(0.5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def awake(net: Any, scale: float = 0.2) -> Any:
    """The network in float64 and evaluation mode, with no weight left at its initial zero."""
    net = net.double().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(scale * normal(*parameter.shape, seed=seed))
    return net


def small(**settings: object) -> UNet:
    return UNet(**{"channels": 2, "width": 8, "blocks": 1, "multipliers": (1, 2), **settings})  # type: ignore[arg-type]


SONG: dict[str, Any] = {"attention_last": True, "skip_scale": HALF, "resampling": InResidual(Box(), projection=True)}
NCSN: dict[str, Any] = {**SONG, "resampling": InResidual(FIR(), projection=True)}
ADM: dict[str, Any] = {"scale_shift": True, "head_channels": 4, "norm": Normalisation(eps=1e-5), "null_class": False}
FAMILY: dict[str, dict[str, Any]] = {
    "DDPM": {},
    "DDPM++": SONG,
    "NCSN++": {**NCSN, "input_pyramid": InputResidual()},
    "NCSN++ 256": {**NCSN, "input_pyramid": InputSkip(), "output_pyramid": OutputSkip()},
    "NCSN++ cat": {**SONG, "input_pyramid": InputSkip(Box(), cat=True), "output_pyramid": OutputResidual()},
    "NCSN++ conv": {**SONG, "resampling": FilteredConv(), "output_pyramid": OutputResidual(StridedConv())},
    "ADM": {**ADM, "resampling": InResidual(), "embedding": Positional(8, shift=0, cosine_first=True)},
    "ADM conv": {**ADM, "resampling": StridedConv(symmetric=True), "upsampling": InResidual()},
}
each_member = pytest.mark.parametrize("name", FAMILY)


# Published sizes


def published(name: str, **changed: object) -> UNet:
    tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    with torch.device("meta"):
        return build({**tree, "channels": 3, "rank": 2, **changed})


@pytest.mark.parametrize(
    ("name", "changed", "drawn", "count"),
    [
        ("ddpm_cifar10", {}, 0, 35_746_307),
        ("ddpmpp", {}, 0, 61_804_419),
        ("ddpmpp_deep", {}, 0, 106_632_579),
        ("ncsnpp", {}, 128, 62_758_915),
        ("ncsnpp_deep", {}, 128, 107_587_075),
        ("ncsnpp_256", {}, 128, 65_574_549),
        ("adm_64", {"classes": 1000}, 0, 295_899_267),
        ("adm_256", {"classes": 1000, "out_channels": 6}, 0, 553_838_086),
        ("edm_ddpmpp", {"augment": 9}, 0, 55_733_891),
        ("edm_ncsnpp", {"augment": 9}, 0, 56_397_827),
        ("edm_adm", {"classes": 1000}, -768, 295_899_267),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, changed: dict[str, object], drawn: int, count: int) -> None:
    """In millions: DDPM 35.7; DDPM++ 61.8 and 106.6 (deep); NCSN++ 62.8, 107.6 (deep) and 65.6 (256 pixels); ADM 296
    and 554; those of EDM 55.7, 56.4 and 296. The original of NCSN++ counts its random frequencies among the parameters,
    and the form of ADM in EDM has no row for "no label"."""
    assert sum(parameter.numel() for parameter in published(name, **changed).parameters()) + drawn == count


def test_every_config_of_the_family_is_counted() -> None:
    [counted] = [mark.args[1] for mark in test_parameter_counts_are_the_published_ones.pytestmark]
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {name for name, *_ in counted} | {"unet", "mlp", "dit"}


# What holds for all members


@each_member
@pytest.mark.parametrize("size", [(17,), (1,), (8, 12), (7, 9), (1, 2), (5, 6, 3)], ids=str)
def test_every_spatial_size_comes_back(name: str, size: tuple[int, ...]) -> None:
    net = awake(small(rank=len(size), multipliers=(1, 2, 2), attention=(0, 2), out_channels=3, **FAMILY[name]))
    x, c = normal(2, 2, *size), normal(2, seed=1)
    y = net(x, c)
    assert y.shape == (2, 3, *size)
    assert y.isfinite().all()
    assert (net(x + 1e-3 * normal(*x.shape, seed=2), c) != y).all()


@each_member
def test_a_network_for_one_size_takes_another(name: str) -> None:
    """Attention stands at levels, whatever their sizes: nothing that a call sees changes the network."""
    net = small(multipliers=(1, 1, 2), attention=(1,), **FAMILY[name])
    calls: list[str] = []
    for key, module in net.named_modules():
        module.register_forward_hook(lambda module, inputs, output, key=key: calls.append(key))
    seen = []
    for size in ((32, 32), (48, 64), (20, 31)):
        calls.clear()
        assert net(torch.zeros(1, 2, *size), torch.tensor(0.5)).shape == (1, 2, *size)
        seen.append(list(calls))
    assert seen[0] == seen[1] == seen[2]


@each_member
def test_a_fresh_network_returns_zero(name: str) -> None:
    y = small(**FAMILY[name])(normal(3, 2, 6, 5).float(), torch.tensor(0.3))
    assert torch.equal(y, torch.zeros(3, 2, 6, 5))


@each_member
def test_every_weight_matters(name: str) -> None:
    net = awake(small(classes=3, augment=2, **FAMILY[name]))
    y = net(normal(3, 2, 6, 5), normal(3, seed=1), label=torch.tensor([0, 1, 2]), augment=normal(3, 2, seed=2))
    y.square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        # Keys are compared with one another only: a shift of all of them changes no weight of the softmax.
        rows = parameter.grad.flatten(1) if parameter.ndim > 1 and "table" not in key else parameter.grad[None]
        assert (rows.abs().amax(1) > 0).all(), key


@each_member
def test_a_sample_does_not_depend_on_its_batch_mates(name: str) -> None:
    net = awake(small(**FAMILY[name]))
    x, c = normal(4, 2, 6, 5), normal(4, seed=1)
    alone = torch.cat([net(x[i : i + 1], c[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x, c), alone, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(net(x, c[0])[0], alone[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["NCSN++ 256", "NCSN++ cat", "ADM"])  # every kind of layer is in one of them
def test_derivatives_in_both_modes(name: str) -> None:
    net = awake(UNet(1, width=4, blocks=1, **{**FAMILY[name], "head_channels": 2, "embedding": None}), scale=0.4)
    inputs = (normal(2, 1, 3, 2).requires_grad_(), normal(2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(net, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(net, inputs, fast_mode=True)
    f = partial(net, noise_level=inputs[1].detach())
    x, u, v = inputs[0].detach(), normal(2, 1, 3, 2, seed=2), normal(2, 1, 3, 2, seed=3)
    jvp, vjp = torch.func.jvp(f, (x,), (u,))[1], torch.func.vjp(f, x)[1](v)[0]
    assert (v * jvp).sum().item() == pytest.approx((u * vjp).sum().item(), rel=1e-10)


@each_member
def test_channels_last_gives_the_same_and_stays_so(name: str) -> None:
    net, x, c = awake(small(channels=4, **FAMILY[name])), normal(2, 4, 6, 5), normal(2, seed=1)
    expected = net(x, c)
    net.to(memory_format=torch.channels_last)
    y = net(x.to(memory_format=torch.channels_last), c)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)


def test_channels_last_data_is_taken_by_the_perceptron() -> None:
    net, x, c = awake(MLP(12, width=8, depth=1)), normal(2, 3, 2, 2), normal(2, seed=1)
    expected = net(x, c)
    y = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), c)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@each_member
def test_it_compiles_into_one_graph(name: str) -> None:
    net, x, c = awake(small(**FAMILY[name])), normal(2, 2, 6, 5), normal(2, seed=1)
    torch.compiler.reset()  # after so many networks torch compiles no more, and says nothing
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c), net(x, c), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and c++ is not there")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["MLP", "ADM"])
def test_compiled_it_gives_the_same_value_and_gradient(name: str) -> None:
    settings = {**FAMILY.get(name, {}), "embedding": None}
    net = MLP(6, width=8, depth=1) if name == "MLP" else UNet(1, width=4, blocks=1, **settings)
    net, x, c = awake(net), normal(2, 1, 2, 3).requires_grad_(), normal(2, seed=1)
    weights = [x, *net.parameters()]
    torch.compiler.reset()
    y, expected = torch.compile(net, fullgraph=True)(x, c), net(x, c)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    found, right = (torch.autograd.grad(output.square().sum(), weights) for output in (y, expected))
    torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-10)


# Options


def hooked(net: UNet, name: str, x: Tensor, **condition: Tensor) -> tuple[list[tuple[Tensor, ...]], list[Any]]:
    """What a module of the network is called with, and what it answers, in a call at noise level 0.3."""
    calls: list[tuple[Tensor, ...]] = []
    answers: list[Any] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        calls.append(inputs)
        answers.append(output)

    handle = net.get_submodule(name).register_forward_hook(keep)
    net(x, torch.tensor(0.3, dtype=torch.float64), **condition)
    handle.remove()
    return calls, answers


def stages_with_attention(net: UNet) -> set[str]:
    found = (name for name, module in net.named_modules() if isinstance(module, Attention))
    return {name.removesuffix(".attention") for name in found}


def test_attention_stands_where_it_should() -> None:
    many = partial(small, multipliers=(1, 1, 1), blocks=2)
    encoder = {"encoder.1.0", "encoder.1.1"}
    each = {"decoder.1.0", "decoder.1.1", "decoder.1.2"}
    assert stages_with_attention(many()) == encoder | each | {"middle.0"}
    assert stages_with_attention(many(attention_last=True)) == encoder | {"decoder.1.2", "middle.0"}
    assert stages_with_attention(many(middle=Middle(attention=False))) == encoder | each
    coarsest = {"decoder.0.0", "decoder.0.1", "decoder.0.2"}
    assert stages_with_attention(many(decoder_attention=(2,))) == encoder | coarsest | {"middle.0"}
    assert stages_with_attention(many(decoder_attention=())) == encoder | {"middle.0"}


def test_the_way_up_may_differ_from_the_way_down() -> None:
    net = small(upsampling=InResidual())
    assert {name.partition(".")[0] for name, _ in net.downsample[0].named_parameters()} == {"conv"}
    assert {name.partition(".")[0] for name, _ in net.upsample[0].named_parameters()} == {"residual"}


def test_the_attention_in_the_middle_may_have_no_norm() -> None:
    net = awake(small(attention=(), middle=Middle(norm=False)))
    assert not [name for name, _ in net.named_parameters() if "attention.norm" in name]
    [(x,)], _ = hooked(net, "middle.0.attention", normal(2, 2, 6, 4))
    [(tokens,)], _ = hooked(net, "middle.0.attention.qkv", normal(2, 2, 6, 4))
    assert torch.equal(tokens, x.flatten(2).mT)


def test_heads_by_number_or_by_their_channels() -> None:
    def heads(**settings: object) -> dict[str, int]:
        net = small(attention=(0, 1), **settings)
        return {name: module.heads for name, module in net.named_modules() if isinstance(module, Attention)}

    assert set(heads(heads=4).values()) == {4}
    found = heads(head_channels=4)
    assert found["encoder.0.0.attention"] == 2
    assert found["encoder.1.0.attention"] == found["middle.0.attention"] == 4


def test_sums_are_scaled() -> None:
    x = normal(2, 8, 3, 4)
    plain, scaled = (awake(Attention(BlockConfig(2, 4, skip_scale=scale), 8)) for scale in (1.0, 0.6))
    torch.testing.assert_close(scaled(x), 0.6 * plain(x), rtol=1e-12, atol=1e-12)
    bare = awake(Attention(BlockConfig(2, 4), 8, norm=False))
    bare.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(bare(plain.norm(x)) - plain.norm(x), plain(x) - x, rtol=1e-12, atol=1e-12)
    net = awake(small(skip_scale=0.6, middle=Middle(skip_scale=0.9)))
    blocks = {name: module for name, module in net.named_modules() if isinstance(module, Attention | Residual)}
    assert len(blocks) == 12
    assert all(block.skip_scale == (0.9 if name.startswith("middle") else 0.6) for name, block in blocks.items())
    [(x, context)], [y] = hooked(net, "middle.1.residual", normal(2, 2, 6, 4))
    block = net.middle[1].residual
    u = block.conv1(F.silu(block.norm1(x))) + block.shift(context)[..., None, None]
    torch.testing.assert_close(y, 0.9 * (x + block.conv2(F.silu(block.norm2(u)))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cat", [False, True])
@pytest.mark.parametrize("filter", [Box(), FIR()])
def test_the_input_stands_beside_the_features(cat: bool, filter: Any) -> None:
    net, x = awake(small(multipliers=(1, 1, 1), input_pyramid=InputSkip(filter, cat))), normal(2, 2, 6, 4)
    expected = x
    for level in range(2):
        [(p, h, _)], [(q, y)] = hooked(net, f"input_pyramid.{level}", x)
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
        expected = filter.down(expected)
        torch.testing.assert_close(q, expected, rtol=1e-12, atol=1e-12)
        layer = net.input_pyramid[level].conv
        u = F.conv2d(expected, layer.weight, layer.bias)
        torch.testing.assert_close(y, torch.cat([u, h], 1) if cat else u + h, rtol=1e-12, atol=1e-12)
        [(stage_input, _)], _ = hooked(net, f"encoder.{level + 1}.0", x)
        assert torch.equal(stage_input, y)


def test_the_input_may_be_joined_to_the_features_of_every_level() -> None:
    net, x = awake(small(multipliers=(1, 2, 2), input_pyramid=InputResidual(), skip_scale=0.7)), normal(2, 2, 6, 4)
    expected = x
    for level in range(2):
        [(p, h, context)], [(q, y)] = hooked(net, f"input_pyramid.{level}", x)
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
        expected = 0.7 * (net.input_pyramid[level].resample(expected, context) + h)
        torch.testing.assert_close(q, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(q, y)


def test_the_output_is_a_sum_over_the_levels() -> None:
    net, x, expected = awake(small(multipliers=(1, 2, 2), output_pyramid=OutputSkip())), normal(2, 2, 7, 4), None
    for step in range(3):
        [(_, h, _)], [(p, y)] = hooked(net, f"output_pyramid.{step}", x)
        norm, act, last = net.output_pyramid[step].head
        u = last(act(norm(h)))
        expected = u if expected is None else FIR().up(expected, h.shape[2:]) + u
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(y, h)
    assert torch.equal(net(x, torch.tensor(0.3, dtype=torch.float64)), p)


def test_features_may_be_summed_over_the_levels_of_the_decoder() -> None:
    net = awake(small(multipliers=(1, 2, 2), output_pyramid=OutputResidual(), skip_scale=0.7))
    x, expected = normal(2, 2, 7, 4), None
    for step in range(3):
        [(_, h, context)], [(p, y)] = hooked(net, f"output_pyramid.{step}", x)
        joint = net.output_pyramid[step]
        if expected is None:
            norm, act, last = joint.head
            expected = last(act(norm(h)))
            assert torch.equal(y, h)
        else:
            expected = 0.7 * (joint.resample(expected, context, h.shape[2:]) + h)
            assert torch.equal(y, p)
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net(x, torch.tensor(0.3, dtype=torch.float64)), net.outlet(expected))


@pytest.mark.parametrize("first", [False, True])
def test_what_the_context_is_made_of(first: bool) -> None:
    net, x = awake(small(classes=3, label_first=first, augment=2, features=12)), normal(3, 2, 4, 4)
    label, a, c = torch.tensor([0, 2, 3]), normal(3, 2, seed=1), net.context
    _, [h] = hooked(net, "context", x, label=label, augment=a)
    e = c.embedding(torch.tensor([0.3], dtype=torch.float64)) + a @ c.augment.weight.T
    row = c.table.weight[label]
    u = c.outer(F.silu(c.inner(e + row if first else e)))
    torch.testing.assert_close(h, F.silu(u if first else u + row), rtol=1e-12, atol=1e-12)
    assert h.shape == (3, 12)
    assert row.shape[1] == (8 if first else 12)
    # Augmentation vectors may be left out, and are zero then.
    _, [zero] = hooked(net, "context", x, label=label, augment=0 * a)
    _, [none] = hooked(net, "context", x, label=label)
    torch.testing.assert_close(none, zero, rtol=1e-12, atol=1e-12)


def test_a_network_says_how_many_classes_it_has() -> None:
    for make in (small, partial(MLP, 6, width=8, depth=1)):
        assert make().classes is None
        assert make(classes=3).classes == 3
        with pytest.raises(AttributeError):
            make().classes = 3


def test_a_network_without_a_null_class_refuses_its_label() -> None:
    net, x, c = small(classes=3, null_class=False), torch.zeros(2, 2, 4, 4), torch.tensor(0.5)
    assert net.context.table is not None
    assert net.context.table.num_embeddings == 3
    net(x, c, label=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"label.* 0 \.\.\. 2\b(?!, or)"):
        net(x, c, label=torch.tensor([0, 3]))


def test_data_may_be_centred_first() -> None:
    plain, centred = awake(small()), awake(small(centre=True, input_pyramid=InputSkip()))
    beside = awake(small(input_pyramid=InputSkip()))
    x, c = normal(2, 2, 6, 5), normal(2, seed=1)
    torch.testing.assert_close(awake(small(centre=True))(x, c), plain(2 * x - 1, c), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(centred(x, c), beside(2 * x - 1, c), rtol=1e-12, atol=1e-12)


def test_sines_and_cosines_of_the_data_are_more_channels() -> None:
    waved, wide = awake(small(frequencies=(1.5, 4.0))), awake(small(channels=10, out_channels=2))
    x, c = normal(2, 2, 6, 5), normal(2, seed=1)
    angles = [2.0 * torch.pi * f * x for f in (1.5, 4.0)]
    more = torch.cat([x, *map(torch.sin, angles), *map(torch.cos, angles)], 1)
    torch.testing.assert_close(waved(x, c), wide(more, c), rtol=1e-12, atol=1e-12)


def test_one_activation_stands_everywhere() -> None:
    net = small(activation=nn.Tanh(), output_pyramid=OutputResidual(), augment=2)
    assert not [module for module in net.modules() if isinstance(module, nn.SiLU)]
    assert [module for module in small().modules() if isinstance(module, nn.SiLU)]


def test_widths_may_be_fractions_and_the_first_convolution_narrower() -> None:
    net = awake(small(width=16, multipliers=(0.5, 1, 1.5), inlet=8, head_channels=8))
    assert net.inlet.out_channels == 8
    assert [net.encoder[level][0].residual.conv1.out_channels for level in range(3)] == [8, 16, 24]
    assert net(normal(2, 2, 6, 5), normal(2)).shape == (2, 2, 6, 5)


@pytest.mark.parametrize(("shift", "cosine_first"), [(0, False), (1, True), (0, True)])
def test_the_forms_of_the_positional_embedding(shift: int, cosine_first: bool) -> None:
    c = torch.tensor([0.0, 3.5, 999.0], dtype=torch.float64)
    phase = torch.stack([c * 1e4 ** (-i / (8 - shift)) for i in range(8)], 1)
    halves = (phase.cos(), phase.sin()) if cosine_first else (phase.sin(), phase.cos())
    expected = torch.cat(halves, 1)
    found = Positional(16, shift=shift, cosine_first=cosine_first)(c)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_fourier_features_of_the_logarithm() -> None:
    torch.manual_seed(0)
    plain, log = Fourier(16), Fourier(16, logarithm=True)
    log.load_state_dict(plain.state_dict())
    sigma = torch.tensor([0.01, 1.0, 50.0])
    assert torch.equal(log(sigma), plain(sigma.log()))


@pytest.mark.parametrize(
    ("channels", "norm", "groups"),
    [
        (32, Normalisation(least=1), 32),
        (64, Normalisation(8, 1), 8),
        (12, Normalisation(8, 1), 6),
        (12, Normalisation(8, 5), 2),
    ],
)
def test_the_number_of_groups_follows_its_rule(channels: int, norm: Normalisation, groups: int) -> None:
    assert norm(channels).num_groups == groups
    assert Normalisation(eps=1e-3)(channels).eps == 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inlet": 0}, "inlet=0"),
        ({"features": 0}, "features=0"),
        ({"augment": -1}, "augment=-1"),
        ({"decoder_attention": (2,)}, r"decoder_attention=\(2,\)"),
        ({"head_channels": 3}, "head_channels=3 .*16 channels"),
        ({"head_channels": 0}, "head_channels=0 .*16 channels"),
        ({"multipliers": (1, 0.05)}, r"multipliers=\(1, 0\.05\)"),
    ],
)
def test_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_parts_refuse_settings() -> None:
    for setting in ({"groups": 0}, {"least": 0}, {"eps": 0.0}):
        (name, value), *_ = setting.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            Normalisation(**setting)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shift=2"):
        Positional(8, shift=2)


def test_augmentation_vectors_that_do_not_fit_are_refused() -> None:
    x, c = torch.zeros(2, 2, 4, 4), torch.tensor(0.5)
    with pytest.raises(ValueError, match="augment="):
        small()(x, c, augment=torch.zeros(2, 3))
    for shape in [(2, 2), (1, 3), (3,)]:
        with pytest.raises(ValueError, match=r"augment .*\(2, 3\)"):
            small(augment=3)(x, c, augment=torch.zeros(shape))
