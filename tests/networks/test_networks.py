"""The networks: published sizes and wiring, embeddings in closed form, derivatives, and every refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde.networks import MLP, Fourier, LevelEmbedding, Normalisation, Positional, StridedConv, UNet
from sde.networks.embedding import split
from sde.networks.layers import zero_init
from sde.networks.residual import Attention, BlockConfig, Residual

# torch's first use of forward-mode differentiation loads a module of its own that still calls torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

Network = UNet | MLP
CONFIG, LINE = BlockConfig(rank=2, context=4), BlockConfig(rank=1, context=4)
CONTEXT = torch.zeros(1, 4)  # for layers that do not read it
AnyNetwork = TypeVar("AnyNetwork", UNet, MLP, Network)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def awake(net: AnyNetwork, seed: int = 0, scale: float = 0.2) -> AnyNetwork:
    """The network in float64 and evaluation mode, with no weight left at its initial zero."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return net


def small_unet(**settings: object) -> UNet:
    return UNet(**{"channels": 2, "width": 8, "blocks": 1, **settings})  # type: ignore[arg-type]


def small_mlp(**settings: object) -> MLP:
    return MLP(**{"features": 6, "width": 8, "depth": 2, **settings})  # type: ignore[arg-type]


NETWORKS: dict[str, tuple[Callable[..., Network], tuple[int, ...]]] = {
    "unet": (small_unet, (2, 5, 7)),
    "mlp": (small_mlp, (6,)),
}
each_network = pytest.mark.parametrize(("build", "event"), NETWORKS.values(), ids=NETWORKS.keys())


# The published network


@pytest.mark.parametrize(
    ("multipliers", "attention", "count"),
    [((1, 2, 2, 2), (1,), 35_746_307), ((1, 1, 2, 2, 4, 4), (4,), 113_673_219)],
    ids=["CIFAR-10", "LSUN and CelebA-HQ"],
)
def test_parameter_counts_are_those_of_ho_et_al(
    multipliers: tuple[int, ...], attention: tuple[int, ...], count: int
) -> None:
    with torch.device("meta"):
        net = UNet(3, width=128, multipliers=multipliers, blocks=2, attention=attention)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


def ddpm(
    w: dict[str, Tensor], x: Tensor, c: Tensor, multipliers: int, blocks: int, attention: tuple[int, ...]
) -> Tensor:
    """The U-Net of Ho et al. (2020) for even sizes, 128 channels or more and one head, as their code states it."""

    def affine(name: str, u: Tensor) -> Tensor:
        return u @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def conv(name: str, u: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(u, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)

    def norm(name: str, u: Tensor) -> Tensor:
        return F.group_norm(u, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def resnet(name: str, u: Tensor) -> Tensor:
        h = (
            conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", u)))
            + affine(f"{name}.shift", F.silu(temb))[..., None, None]
        )
        h = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)))
        return h + (conv(f"{name}.shortcut", u, padding=0) if f"{name}.shortcut.weight" in w else u)

    def attend(name: str, u: Tensor) -> Tensor:
        q, k, v = affine(f"{name}.qkv", norm(f"{name}.norm", u).movedim(1, -1).flatten(1, 2)).chunk(3, dim=-1)
        h = torch.softmax(torch.einsum("bic,bjc->bij", q, k) / math.sqrt(q.shape[-1]), -1) @ v
        return u + affine(f"{name}.out", h).unflatten(1, u.shape[2:]).movedim(-1, 1)

    n = w["context.inner.weight"].shape[1] // 2
    angles = c[:, None] * torch.exp(-math.log(1e4) / (n - 1) * torch.arange(n, dtype=torch.float64))
    temb = affine("context.inner", torch.cat([angles.sin(), angles.cos()], 1))
    temb = affine("context.outer", F.silu(temb))
    hs = [conv("inlet", x)]
    for level in range(multipliers):
        for block in range(blocks):
            h = resnet(f"encoder.{level}.{block}.residual", hs[-1])
            hs.append(attend(f"encoder.{level}.{block}.attention", h) if level in attention else h)
        if level < multipliers - 1:
            hs.append(conv(f"downsample.{level}.conv", F.pad(hs[-1], (0, 1, 0, 1)), stride=2, padding=0))
    h = resnet("middle.0.residual", hs[-1])
    h = resnet("middle.1.residual", attend("middle.0.attention", h))
    for step in range(multipliers):
        level = multipliers - 1 - step
        for block in range(blocks + 1):
            h = resnet(f"decoder.{step}.{block}.residual", torch.cat([h, hs.pop()], 1))
            h = attend(f"decoder.{step}.{block}.attention", h) if level in attention else h
        if level > 0:
            h = conv(f"upsample.{step}.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert not hs
    return conv("outlet.2", F.silu(norm("outlet.0", h)))


def test_even_sizes_give_the_network_of_ho_et_al() -> None:
    net = awake(UNet(3, width=128, multipliers=(1, 2, 1), blocks=1, attention=(1,)), scale=0.05)
    x, c = normal(2, 3, 8, 4), torch.tensor([3.0, 712.5], dtype=torch.float64)
    with torch.no_grad():
        expected = ddpm(net.state_dict(), x, c, multipliers=3, blocks=1, attention=(1,))
        y = net(x, c)
    assert expected.std() > 0.01
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)


@each_network
def test_a_fresh_network_returns_zero(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    y = build()(normal(3, *event, dtype=torch.float32), torch.tensor(0.3))
    assert torch.equal(y, torch.zeros(3, *event))


def test_a_fresh_block_is_its_shortcut() -> None:
    x, context = normal(2, 8, 3, 5, dtype=torch.float32), normal(2, 4, dtype=torch.float32)
    assert torch.equal(Residual(CONFIG, 8, 8)(x, context), x)
    assert torch.equal(Attention(CONFIG, 8, heads=2)(x), x)


def test_fresh_weights_have_the_variance_of_glorot() -> None:
    torch.manual_seed(0)
    config = BlockConfig(rank=2, context=96)
    block, attention = Residual(config, 64, 128), Attention(config, 64)
    for weight, fans in [
        (block.conv1.weight, 9 * (64 + 128)),
        (block.shift.weight, 96 + 128),
        (attention.qkv.weight, 64 + 64),
    ]:
        assert weight.var().item() == pytest.approx(2 / fans, rel=0.05)
    biases = [p for layer in (block, attention) for name, p in layer.named_parameters() if name.endswith("bias")]
    assert all(not bias.any() for bias in biases)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        (128, 32),
        (256, 32),
        (384, 32),
        (640, 32),
        (64, 16),
        (32, 8),
        (8, 2),
        (96, 24),
        (100, 25),
        (12, 3),
        (6, 1),
        (3, 1),
    ],
)
def test_group_norm_has_at_most_32_groups_of_at_least_4_channels(channels: int, groups: int) -> None:
    norm = Normalisation()(channels)
    assert norm.num_groups == groups
    assert norm.eps == 1e-6


# Shapes and sizes


@pytest.mark.parametrize(
    "size",
    [(17,), (16,), (1,), (8, 8), (7, 9), (5, 13), (1, 2), (5, 6, 7), (1, 1, 3)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_every_spatial_size_comes_back(size: tuple[int, ...]) -> None:
    net = awake(small_unet(rank=len(size), multipliers=(1, 2, 2), attention=(0, 2), heads=2, out_channels=3))
    x, c = normal(2, 2, *size), normal(2, seed=1)
    y = net(x, c)
    assert y.shape == (2, 3, *size)
    assert y.dtype == x.dtype
    assert y.isfinite().all()
    assert (net(x + 1e-3 * normal(*x.shape, seed=2), c) != y).all()


@pytest.mark.parametrize(("n", "left"), [(8, 0), (7, 1), (1, 1)])
def test_downsampling_reads_every_second_position(n: int, left: int) -> None:
    down = StridedConv().down(LINE, 1, 1).double()
    with torch.no_grad():
        zero_init(down).conv.weight.copy_(torch.tensor([100.0, 10.0, 1.0]))
    x = torch.arange(1.0, n + 1, dtype=torch.float64)
    padded = [0.0] * left + x.tolist() + [0.0]
    expected = [100 * padded[i] + 10 * padded[i + 1] + padded[i + 2] for i in range(0, 2 * math.ceil(n / 2), 2)]
    assert down(x[None, None], CONTEXT).flatten().tolist() == expected


@pytest.mark.parametrize(("size", "expected"), [(6, [1, 1, 2, 2, 3, 3]), (5, [1, 1, 2, 2, 3])])
def test_upsampling_repeats_positions(size: int, expected: list[int]) -> None:
    up = StridedConv().up(LINE, 1, 1)
    with torch.no_grad():
        zero_init(up).conv.weight.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert up(torch.tensor([[[1.0, 2.0, 3.0]]]), CONTEXT, (size,)).flatten().tolist() == expected


def test_attention_stands_at_the_levels_named() -> None:
    net = small_unet(multipliers=(1, 1, 1), blocks=2, attention=(0, 2))
    found = {name.removesuffix(".attention") for name, module in net.named_modules() if isinstance(module, Attention)}
    encoder = {f"encoder.{level}.{block}" for level in (0, 2) for block in range(2)}
    decoder = {f"decoder.{step}.{block}" for step in (0, 2) for block in range(3)}
    assert found == encoder | decoder | {"middle.0"}


@pytest.mark.parametrize("event", [(6,), (2, 3), (1, 6, 1)])
def test_the_perceptron_flattens_any_event(event: tuple[int, ...]) -> None:
    net, x, c = awake(small_mlp()), normal(4, 6), normal(4, seed=1)
    assert torch.equal(net(x.reshape(4, *event), c), net(x, c).reshape(4, *event))


def test_the_perceptron_takes_scalar_events() -> None:
    net, x, c = awake(small_mlp(features=1)), normal(4), normal(4, seed=1)
    assert torch.equal(net(x, c), net(x[:, None], c)[:, 0])


def test_channels_last_gives_the_same_and_stays_so() -> None:
    net, x, c = awake(small_unet(channels=4)), normal(2, 4, 6, 5), normal(2, seed=1)
    expected = net(x, c)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    y = net(x.to(memory_format=torch.channels_last), c)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


# Attention


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 2)], ids=["1-D", "2-D", "3-D"])
def test_attention_is_the_softmax_of_scaled_products(size: tuple[int, ...], heads: int) -> None:
    channels, d = 8, 8 // heads
    block = Attention(CONFIG, channels, heads).double()
    with torch.no_grad():
        for seed, parameter in enumerate(block.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
        x = normal(2, channels, *size, seed=9)
        weight, bias = block.qkv.weight.reshape(3, heads, d, channels), block.qkv.bias.reshape(3, heads, d)
        tokens = block.norm(x).reshape(2, channels, -1)
        q, k, v = torch.einsum("phdc,bcn->pbhnd", weight, tokens) + bias[:, None, :, None]
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(d)
        exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
        mixed = torch.einsum("bhij,bhjd->bhid", exponentials / exponentials.sum(-1, keepdim=True), v)
        joined = torch.cat([mixed[:, head] for head in range(heads)], dim=-1)  # (B, N, C)
        expected = x + (joined @ block.out.weight.T + block.out.bias).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


# Embeddings

LEVELS = [0.0, 1e-5, 0.37, -2.5, 17.25, 999.0, 1000.0]


def closed_form(level: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    angles = np.outer(level.astype(np.longdouble), frequencies.astype(np.longdouble))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def error(embedding: LevelEmbedding, level: Tensor, frequencies: np.ndarray) -> float:
    """The largest error in units of the precision's epsilon times 1 + the largest phase."""
    expected = closed_form(level.numpy(), frequencies)
    found = embedding(level)
    phase = np.abs(np.outer(level.numpy(), frequencies)).max()
    return float(np.abs(found.numpy() - expected).max()) / (torch.finfo(found.dtype).eps * (1 + phase))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("dim", "scale", "period"), [(2, 1.0, 1e4), (4, 1.0, 1e4), (128, 1.0, 1e4), (32, 30.0, 50.0)])
def test_positional_embedding_is_the_closed_form(dim: int, scale: float, period: float, dtype: torch.dtype) -> None:
    n = dim // 2
    frequencies = scale * np.longdouble(period) ** (-np.arange(n, dtype=np.longdouble) / max(n - 1, 1))
    assert error(Positional(dim, scale, period), torch.tensor(LEVELS, dtype=dtype), frequencies) < 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fourier_embedding_is_the_closed_form(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = Fourier(64, scale=4.0)
    frequencies = 2 * np.pi * embedding.parts.numpy().astype(np.longdouble).sum(0)
    assert error(embedding, torch.tensor(LEVELS[:5], dtype=dtype), frequencies) < 2.0


def test_fourier_frequencies_are_normal_and_come_from_the_global_generator() -> None:
    torch.manual_seed(5)
    embedding = Fourier(20_000, scale=3.0)
    torch.manual_seed(5)
    w = 3.0 * torch.randn(10_000)
    assert torch.equal(embedding.parts.sum(0), w)
    assert not list(embedding.parameters())


def test_fourier_frequencies_are_saved() -> None:
    torch.manual_seed(0)
    one, other, level = Fourier(16), Fourier(16), torch.tensor([0.3, -1.2])
    assert not torch.equal(one(level), other(level))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(level), other(level))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_keeps_its_embedding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    level = torch.tensor([0.3, 7.7, -2.1])
    for embedding in (Positional(32), Fourier(32)):
        before = embedding(level)
        after = embedding.to(dtype)(level)
        assert after.dtype == torch.float32
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
        assert embedding(level.to(dtype)).dtype == torch.float32
    w = 16 * normal(1000, dtype=torch.float32)
    parts = split(w)
    assert torch.equal(parts.bfloat16().float(), parts)
    assert torch.equal(parts[0] + parts[1] + parts[2], w)


@each_network
def test_a_network_in_half_precision_runs(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net, x, c = awake(build(), scale=0.1), normal(2, *event), torch.tensor([11.0, 700.5], dtype=torch.float64)
    y = net(x, c)
    low = net.bfloat16()(x.bfloat16(), c)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), y, rtol=0.1, atol=0.1 * y.std().item())


def test_whole_steps_may_be_integers() -> None:
    net, x, steps = awake(small_mlp()), normal(2, 6), torch.tensor([1, 640])
    torch.testing.assert_close(net(x, steps), net(x, steps.double()), rtol=1e-4, atol=1e-5)


# Noise level and label


@each_network
def test_a_scalar_noise_level_is_embedded_once_for_one_row(
    build: Callable[..., Network], event: tuple[int, ...]
) -> None:
    net, x = awake(build()), normal(3, *event)
    rows: list[int] = []
    net.context.embedding.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    one = net(x, torch.tensor(0.7, dtype=torch.float64))
    each = net(x, torch.full((3,), 0.7, dtype=torch.float64))
    assert rows == [1, 3]
    torch.testing.assert_close(one, each, rtol=1e-12, atol=1e-12)


@each_network
def test_the_noise_level_reaches_every_block(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net, x = awake(build()), normal(2, *event)
    a, b = (net(x, torch.tensor(c, dtype=torch.float64)) for c in (1.0, 2.0))
    assert (a - b).abs().min() > 1e-9
    a.square().sum().backward()
    readers = [
        parameter for name, parameter in net.named_parameters() if "shift.weight" in name or "film.weight" in name
    ]
    assert len(readers) == (8 if isinstance(net, UNet) else 2)
    for parameter in [*readers, *net.context.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@each_network
def test_labels_choose_rows_of_the_table(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net, x, c = awake(build(classes=3)), normal(4, *event), normal(4, seed=1)
    x, c = x[:1].expand_as(x), c[:1].expand_as(c)
    label = torch.tensor([0, 1, 2, 3])  # 3: no label
    y = net(x, c, label=label)
    assert min((y[i] - y[j]).abs().max() for i in range(4) for j in range(i)) > 1e-6
    for i in range(4):
        torch.testing.assert_close(net(x, c, label=label[i])[0], y[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(net(x, c[0], label=label)[i], y[i], rtol=1e-12, atol=1e-12)
    assert net.context.table is not None
    with torch.no_grad():
        net.context.table.weight[3] += 1.0
    changed = net(x, c, label=label)
    assert torch.equal(changed[:3], y[:3])
    assert (changed[3] - y[3]).abs().max() > 1e-6


# Skips, dropout, batches


def test_each_skip_reaches_its_decoder_stage_and_matters() -> None:
    net = awake(small_unet(multipliers=(1, 2), blocks=2))
    x, c = normal(2, 2, 6, 5), normal(2, seed=1)
    kept: list[Tensor] = []
    sources = [net.inlet, *net.encoder[0].children(), net.downsample[0], *net.encoder[1].children()]
    for source in sources:
        source.register_forward_hook(lambda module, inputs, output: kept.append(output))
    read: list[Tensor] = []
    readers = [*net.decoder[0].children(), *net.decoder[1].children()]
    for reader in readers:
        reader.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    y = net(x, c)
    assert len(kept) == len(read) == 6
    gradients = torch.autograd.grad(y.square().sum(), read)
    for skip, joined, gradient in zip(reversed(kept), read, gradients, strict=True):
        channels = skip.shape[1]
        assert torch.equal(joined[:, -channels:], skip)
        assert (gradient[:, -channels:].abs().amax((0, 2, 3)) > 0).all()  # through every channel of the skip
        assert (gradient[:, :-channels].abs().amax((0, 2, 3)) > 0).all()


@each_network
def test_dropout_acts_in_training_only(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net, x, c = awake(build(dropout=0.5)), normal(2, *event), normal(2, seed=1)
    dropouts = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in dropouts] == [0.5] * (8 if isinstance(net, UNet) else 2)
    assert torch.equal(net(x, c), net(x, c))
    net.train()
    assert not torch.equal(net(x, c), net(x, c))
    still = awake(build(dropout=0.0)).train()
    assert torch.equal(still(x, c), still(x, c))


@each_network
def test_a_sample_does_not_depend_on_its_batch_mates(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net = awake(build(classes=3))
    x, c, label = normal(5, *event), normal(5, seed=1), torch.tensor([0, 3, 1, 2, 2])
    together = net(x, c, label=label)
    alone = torch.cat([net(x[i : i + 1], c[i : i + 1], label=label[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert net(x[:0], c[:0], label=label[:0]).shape == (0, *event)


# Derivatives


def tiny(build: Callable[..., Network]) -> tuple[Network, tuple[int, ...]]:
    if build is small_unet:
        return awake(UNet(1, width=4, blocks=1, heads=2), scale=0.4), (1, 3, 2)
    return awake(MLP(3, width=4, depth=2), scale=0.4), (3,)


@each_network
def test_first_derivatives_in_both_modes(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net, event = tiny(build)
    inputs = (normal(2, *event).requires_grad_(), normal(2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(net, inputs, check_forward_ad=True)


@each_network
def test_second_derivatives(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net, event = tiny(build)
    inputs = (normal(2, *event).requires_grad_(), normal(2, seed=1).requires_grad_())
    assert torch.autograd.gradgradcheck(net, inputs, fast_mode=True)


@each_network
def test_weights_have_second_derivatives(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    """The gradient of |J^T v|^2, as in score matching through the divergence, against a difference quotient."""
    net, event = tiny(build)
    x, c, v = normal(2, *event).requires_grad_(), normal(2, seed=1), normal(2, *event, seed=2)
    parameters = list(net.parameters())
    direction = [normal(*p.shape, seed=i) for i, p in enumerate(parameters)]

    def penalty() -> Tensor:
        (gradient,) = torch.autograd.grad((net(x, c) * v).sum(), x, create_graph=True)
        return gradient.square().sum()

    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    slope = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True) if g is not None)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
        values.append(penalty().item())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=step)
    assert abs(slope) > 1e-6
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


@each_network
def test_function_transforms_agree(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net, event = tiny(build)
    x, c, u, v = normal(2, *event), normal(2, seed=1), normal(2, *event, seed=2), normal(2, *event, seed=3)
    f = partial(net, noise_level=c)
    y, jvp = torch.func.jvp(f, (x,), (u,))[:2]
    vjp = torch.func.vjp(f, x)[1](v)[0]
    torch.testing.assert_close(y, f(x), rtol=1e-12, atol=1e-12)
    assert (v * jvp).sum().item() == pytest.approx((u * vjp).sum().item(), rel=1e-10)
    forward, reverse = torch.func.jacfwd(f)(x), torch.func.jacrev(f)(x)
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-12)

    def energy(x: Tensor) -> Tensor:
        return f(x).square().sum()

    forward_over_reverse = torch.func.jvp(torch.func.grad(energy), (x,), (u,))[1]
    a = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(a), a, create_graph=True)
    (double_backward,) = torch.autograd.grad((gradient * u).sum(), a)
    torch.testing.assert_close(forward_over_reverse, double_backward, rtol=1e-10, atol=1e-12)


@each_network
def test_compiles_into_one_graph(build: Callable[..., Network], event: tuple[int, ...]) -> None:
    net, x, c, label = awake(build(classes=3)), normal(2, *event), normal(2, seed=1), torch.tensor([1, 3])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c, label=label), net(x, c, label=label), rtol=1e-12, atol=1e-12)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels=0"),
        ({"width": 0}, "width=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"out_channels": 0}, "out_channels=0"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 4}, "rank=4"),
        ({"multipliers": (), "attention": ()}, r"multipliers=\(\)"),
        ({"multipliers": (1, 0)}, r"multipliers=\(1, 0\)"),
        ({"attention": (2,)}, r"0 .* 1 .*attention=\(2,\)"),
        ({"attention": (-1,)}, r"0 .* 1 .*attention=\(-1,\)"),
        ({"heads": 3}, "heads=3 .*16 channels"),
        ({"heads": 0}, "heads=0 .*16 channels"),
        ({"classes": 0}, "classes=0"),
        ({"width": 5}, "dim=5"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_unet_refuses_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_unet(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "features=0"),
        ({"width": -2}, "width=-2"),
        ({"depth": 0}, "depth=0"),
        ({"classes": -1}, "classes=-1"),
    ],
)
def test_mlp_refuses_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_mlp(**settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Positional(7), "dim=7"),
        (lambda: Positional(0), "dim=0"),
        (lambda: Positional(8, scale=0.0), "scale=0.0"),
        (lambda: Positional(8, max_period=-1.0), "max_period=-1.0"),
        (lambda: Fourier(7), "dim=7"),
        (lambda: Fourier(8, scale=math.nan), "scale=nan"),
    ],
)
def test_embeddings_refuse_settings(build: Callable[[], LevelEmbedding], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((2, 2, 5), 2), ((2, 2, 5, 5, 5), 2), ((2, 3, 5, 5), 2), ((2, 2, 5, 5), 1), ((2, 2), 1), ((), 3)],
)
def test_unet_refuses_data_of_another_shape(shape: tuple[int, ...], rank: int) -> None:
    with pytest.raises(ValueError, match=r"\(B, 2, n_1.*channels= and rank="):
        small_unet(rank=rank)(torch.zeros(shape), torch.tensor(0.5))


def test_unet_refuses_empty_data() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 5, 0\)"):
        small_unet()(torch.zeros(2, 2, 5, 0), torch.tensor(0.5))


@pytest.mark.parametrize("shape", [(2, 5), (2, 2, 2), (6,), ()])
def test_mlp_refuses_data_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, \*\).* 6 .*features="):
        small_mlp()(torch.zeros(shape), torch.tensor(0.5))


@each_network
def test_networks_refuse_a_noise_level_or_label_that_does_not_fit(
    build: Callable[..., Network], event: tuple[int, ...]
) -> None:
    net, labelled, x, c = build(), build(classes=3), torch.zeros(2, *event), torch.tensor(0.5)
    for shape in [(3,), (1,), (2, 1)]:
        with pytest.raises(ValueError, match=r"noise_level .*\(\) or \(2,\)"):
            net(x, torch.zeros(shape))
        with pytest.raises(ValueError, match=r"label .*\(\) or \(2,\)"):
            labelled(x, c, label=torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="classes="):
        net(x, c, label=torch.tensor(0))
    with pytest.raises(ValueError, match=r"label=.* 0 \.\.\. 2, or 3 "):
        labelled(x, c)
    for label in (torch.tensor(4), torch.tensor([0, -1])):
        with pytest.raises(ValueError, match=r"label.* 0 \.\.\. 2, or 3 "):
            labelled(x, c, label=label)
    with pytest.raises(TypeError, match=r"int64.*torch\.float32"):
        labelled(x, c, label=torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError, match="colour"):
        net(x, c, colour=torch.tensor(0))
