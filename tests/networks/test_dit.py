"""The diffusion transformer: published sizes, the paper's equations, patches and places, derivatives, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sde.networks.dit import DiT, _patchify, _position_embedding, _unpatchify


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def awake(net: DiT, seed: int = 0, scale: float = 0.2) -> DiT:
    """The network in float64 and evaluation mode, with no weight left at its initial zero."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return net


def small(**settings: object) -> DiT:
    return DiT(**{"channels": 2, "width": 16, "depth": 2, "heads": 2, **settings})  # type: ignore[arg-type]


# The published network


@pytest.mark.parametrize(
    ("width", "depth", "heads", "published"),
    [(384, 12, 6, 33.0), (768, 12, 12, 130.5), (1024, 24, 16, 458.1), (1152, 28, 16, 675.1)],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_parameter_counts_are_the_published_ones(width: int, depth: int, heads: int, published: float) -> None:
    with torch.device("meta"):
        net = DiT(4, width, depth, heads, patch=2, classes=1000, out_channels=8)
    # The published counts include the embedding of the 16 x 16 places, which is not trained and is no parameter here.
    count = sum(parameter.numel() for parameter in net.parameters()) + 16 * 16 * width
    assert round(count / 1e6, 1) == published
    if width == 1152:
        assert count == 675_129_632


def reference(w: dict[str, Tensor], x: Tensor, c: Tensor, label: Tensor, depth: int, heads: int, p: int) -> Tensor:
    """The DiT of Peebles and Xie (2023) for square images, one token and one head at a time."""

    def affine(name: str, u: Tensor) -> Tensor:
        return u @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(u: Tensor) -> Tensor:
        mean = u.mean(-1, keepdim=True)
        return (u - mean) / ((u - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def gelu(u: Tensor) -> Tensor:
        return 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))

    def attention(name: str, u: Tensor) -> Tensor:
        q, k, v = affine(f"{name}.qkv", u).chunk(3, dim=-1)
        parts = []
        for head in range(heads):
            a, b, z = (s.chunk(heads, dim=-1)[head] for s in (q, k, v))
            parts.append(torch.softmax(a @ b.mT / math.sqrt(a.shape[-1]), -1) @ z)
        return affine(f"{name}.out", torch.cat(parts, -1))

    angles = c[:, None] * torch.exp(-math.log(1e4) / 128 * torch.arange(128, dtype=torch.float64))
    t = affine("context.inner", torch.cat([angles.cos(), angles.sin()], 1))
    h = F.silu(affine("context.outer", F.silu(t)) + w["context.table.weight"][label])[:, None]
    rows, columns, width = x.shape[2] // p, x.shape[3] // p, h.shape[-1]
    omega = 1e4 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    tokens = []
    for i in range(rows):
        for j in range(columns):
            place = torch.cat([(j * omega).sin(), (j * omega).cos(), (i * omega).sin(), (i * omega).cos()])
            patch = x[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p].reshape(len(x), -1)
            tokens.append(affine("inlet", patch) + place)
    u = torch.stack(tokens, 1)
    for block in range(depth):
        name = f"blocks.{block}"
        shift1, scale1, gate1, shift2, scale2, gate2 = affine(f"{name}.modulation", h).chunk(6, -1)
        u = u + gate1 * attention(name, norm(u) * (1 + scale1) + shift1)
        u = u + gate2 * affine(f"{name}.outer", gelu(affine(f"{name}.inner", norm(u) * (1 + scale2) + shift2)))
    shift, scale = affine("outlet.modulation", h).chunk(2, -1)
    out = affine("outlet.outer", norm(u) * (1 + scale) + shift)
    y = torch.empty(len(x), out.shape[-1] // p**2, *x.shape[2:], dtype=x.dtype)
    for n in range(rows * columns):
        i, j = divmod(n, columns)
        y[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p] = out[:, n].reshape(len(x), -1, p, p)
    return y


@pytest.mark.parametrize(("heads", "patch"), [(1, 2), (4, 1), (2, 3)])
def test_it_is_the_network_of_peebles_and_xie(heads: int, patch: int) -> None:
    net = awake(DiT(3, width=32, depth=3, heads=heads, patch=patch, classes=4, out_channels=6))
    x, c, label = normal(3, 3, 6, 12), torch.tensor([3.0, 712.5, 0.0], dtype=torch.float64), torch.tensor([0, 3, 4])
    with torch.no_grad():
        expected = reference(net.state_dict(), x, c, label, depth=3, heads=heads, p=patch)
        y = net(x, c, label=label)
    assert expected.shape == (3, 6, 6, 12)
    assert expected.std() > 0.1
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)


def test_a_fresh_network_returns_zero_and_its_blocks_are_the_identity() -> None:
    net = small(classes=3)
    x, label = normal(3, 2, 5, 7, dtype=torch.float32), torch.tensor([0, 1, 3])
    assert torch.equal(net(x, torch.tensor(0.3), label=label), torch.zeros(3, 2, 5, 7))
    u, h = normal(3, 9, 16, dtype=torch.float32), normal(3, 16, dtype=torch.float32)
    for block in net.blocks:
        assert torch.equal(block(u, h), u)


def test_fresh_weights_have_the_variance_of_glorot() -> None:
    torch.manual_seed(0)
    net = DiT(3, width=96, depth=1, heads=2, patch=4)
    block = net.blocks[0]
    for layer, fans in [
        (block.qkv, 96 + 96),  # three maps, each for itself
        (block.out, 96 + 96),
        (block.inner, 96 + 384),
        (block.outer, 384 + 96),
        (net.inlet, 48 + 96),
    ]:
        assert layer.weight.var().item() == pytest.approx(2 / fans, rel=0.05)
        assert not layer.bias.any()


# Patches and places


@pytest.mark.parametrize(
    "size",
    [(17,), (16,), (1,), (8, 8), (7, 9), (1, 2), (5, 6, 7), (1, 1, 3)],
    ids=lambda size: "x".join(map(str, size)),
)
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_every_spatial_size_comes_back(size: tuple[int, ...], patch: int) -> None:
    net = awake(small(rank=len(size), patch=patch, out_channels=3))
    x, c = normal(2, 2, *size), normal(2, seed=1)
    y = net(x, c)
    assert y.shape == (2, 3, *size)
    assert y.dtype == x.dtype
    assert y.isfinite().all()
    assert (net(x + 1e-3 * normal(*x.shape, seed=2), c) != y).all()


def test_a_size_between_multiples_is_filled_up_with_zeros() -> None:
    net, x, c = awake(small(patch=4)), normal(2, 2, 6, 9), normal(2, seed=1)
    filled = torch.zeros(2, 2, 8, 12, dtype=torch.float64)
    filled[:, :, :6, :9] = x
    torch.testing.assert_close(net(x, c), net(filled, c)[:, :, :6, :9], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("grid", "p"), [((3,), 2), ((2, 3), 2), ((3, 2), 3), ((2, 3, 2), 2)])
def test_tokens_are_patches_row_by_row(grid: tuple[int, ...], p: int) -> None:
    x = normal(2, 3, *(m * p for m in grid))
    u = _patchify(x, p)
    assert u.shape == (2, math.prod(grid), 3 * p ** len(grid))
    for n, place in enumerate(np.ndindex(grid)):
        patch = x[(slice(None), slice(None), *(slice(i * p, (i + 1) * p) for i in place))]
        assert torch.equal(u[:, n], patch.reshape(2, -1))
    assert torch.equal(_unpatchify(u, grid, p), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("grid", "width"), [((5,), 8), ((3, 4), 16), ((2, 3, 4), 24), ((2, 3), 10), ((2, 2, 2), 4), ((3,), 1)]
)
def test_places_are_the_closed_form(grid: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
    found = _position_embedding(grid, width, torch.zeros((), dtype=dtype))
    n = width // (2 * len(grid))  # frequencies of an axis
    for row, place in zip(found, np.ndindex(grid), strict=True):
        values: list[float] = []
        for i in reversed(place):
            angles = [i / 1e4 ** (k / n) for k in range(n)]
            values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        expected = torch.tensor(values + [0.0] * (width - len(values)), dtype=dtype)
        torch.testing.assert_close(row, expected, rtol=0.0, atol=4 * torch.finfo(dtype).eps)


def test_places_do_not_depend_on_the_size_of_the_grid() -> None:
    """So that a network trained on one size of image runs on another."""
    like = torch.zeros((), dtype=torch.float64)
    large = _position_embedding((6, 5), 32, like).reshape(6, 5, 32)
    assert torch.equal(_position_embedding((3, 4), 32, like).reshape(3, 4, 32), large[:3, :4])
    assert torch.pdist(large.reshape(30, 32)).min() > 0.1
    low = _position_embedding((6, 5), 32, like.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, large.reshape(30, 32).bfloat16())


# Noise level and label


def test_a_scalar_noise_level_is_embedded_once_for_one_row() -> None:
    net, x = awake(small()), normal(3, 2, 4, 4)
    rows: list[int] = []
    net.context.embedding.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    one = net(x, torch.tensor(0.7, dtype=torch.float64))
    each = net(x, torch.full((3,), 0.7, dtype=torch.float64))
    assert rows == [1, 3]
    torch.testing.assert_close(one, each, rtol=1e-12, atol=1e-12)


def test_the_noise_level_reaches_every_block() -> None:
    net, x = awake(small()), normal(2, 2, 4, 4)
    a, b = (net(x, torch.tensor(c, dtype=torch.float64)) for c in (1.0, 2.0))
    assert (a - b).abs().min() > 1e-9
    a.square().sum().backward()
    readers = [p for name, p in net.named_parameters() if "modulation.weight" in name]
    assert len(readers) == 3
    for parameter in [*readers, *net.context.parameters()]:
        assert parameter.grad is not None
        for part in parameter.grad.flatten(1).chunk(6) if parameter.ndim > 1 else [parameter.grad]:
            assert part.abs().max() > 0


def test_labels_choose_rows_of_the_table() -> None:
    net, x, c = awake(small(classes=3)), normal(1, 2, 4, 6).expand(4, 2, 4, 6), normal(1, seed=1).expand(4)
    label = torch.tensor([0, 1, 2, 3])  # 3: no label
    y = net(x, c, label=label)
    assert net.classes == 3
    assert min((y[i] - y[j]).abs().max() for i in range(4) for j in range(i)) > 1e-6
    for i in range(4):
        torch.testing.assert_close(net(x, c, label=label[i])[0], y[i], rtol=1e-12, atol=1e-12)
    assert small().classes is None


def test_a_sample_does_not_depend_on_its_batch_mates() -> None:
    net = awake(small(classes=3))
    x, c, label = normal(5, 2, 5, 4), normal(5, seed=1), torch.tensor([0, 3, 1, 2, 2])
    together = net(x, c, label=label)
    alone = torch.cat([net(x[i : i + 1], c[i : i + 1], label=label[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert net(x[:0], c[:0], label=label[:0]).shape == (0, 2, 5, 4)


def test_it_runs_in_half_precision() -> None:
    net, x, c = awake(small(), scale=0.1), normal(2, 2, 8, 8), torch.tensor([11.0, 700.5], dtype=torch.float64)
    y = net(x, c)
    low = net.bfloat16()(x.bfloat16(), c)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), y, rtol=0.1, atol=0.1 * y.std().item())


# Derivatives


def tiny() -> DiT:
    return awake(DiT(1, width=4, depth=1, heads=2, ratio=2), scale=0.4)


def test_first_derivatives_in_both_modes() -> None:
    inputs = (normal(2, 1, 3, 4).requires_grad_(), normal(2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(tiny(), inputs, check_forward_ad=True)


def test_second_derivatives() -> None:
    inputs = (normal(2, 1, 3, 4).requires_grad_(), normal(2, seed=1).requires_grad_())
    assert torch.autograd.gradgradcheck(tiny(), inputs, fast_mode=True)


def test_weights_have_second_derivatives() -> None:
    """The gradient of |J^T v|^2, as in score matching through the divergence, against a difference quotient."""
    net, c = tiny(), torch.tensor(0.4, dtype=torch.float64)
    x, v = normal(1, 1, 4, 2).requires_grad_(), normal(1, 1, 4, 2, seed=1)
    weights = list(net.parameters())
    directions = [normal(*w.shape, seed=i + 2) for i, w in enumerate(weights)]

    def energy() -> Tensor:
        (product,) = torch.autograd.grad((net(x, c) * v).sum(), x, create_graph=True)
        return product.square().sum()

    # The last bias shifts the output by a constant and has no part in J.
    gradients = torch.autograd.grad(energy(), weights, materialize_grads=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    values = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w.add_(h * d)
        values.append(energy())
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w.sub_(h * d)
    assert slope.item() == pytest.approx(((values[0] - values[1]) / 2e-5).item(), rel=1e-6)  # type: ignore[union-attr]


def test_function_transforms_agree() -> None:
    net, c = tiny(), torch.tensor(0.4, dtype=torch.float64)
    x, u, v = normal(1, 1, 3, 2), normal(1, 1, 3, 2, seed=1), normal(1, 1, 3, 2, seed=2)

    def f(x: Tensor) -> Tensor:
        return net(x, c)

    jvp = torch.func.jvp(f, (x,), (u,))[1]
    (vjp,) = torch.func.vjp(f, x)[1](v)
    assert (v * jvp).sum().item() == pytest.approx((u * vjp).sum().item(), rel=1e-10)
    torch.testing.assert_close(torch.func.jacfwd(f)(x), torch.func.jacrev(f)(x), rtol=1e-10, atol=1e-12)


def test_compiles_into_one_graph() -> None:
    net, x, c, label = awake(small(classes=3)), normal(2, 2, 5, 4), normal(2, seed=1), torch.tensor([1, 3])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c, label=label), net(x, c, label=label), rtol=1e-12, atol=1e-12)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels=0"),
        ({"width": 0}, "width=0"),
        ({"depth": 0}, "depth=0"),
        ({"heads": 0}, "heads=0"),
        ({"patch": 0}, "patch=0"),
        ({"ratio": -1}, "ratio=-1"),
        ({"out_channels": 0}, "out_channels=0"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 4}, "rank=4"),
        ({"heads": 3}, "heads=3 .*width=16"),
        ({"classes": 0}, "classes=0"),
    ],
)
def test_it_refuses_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**settings)


@pytest.mark.parametrize(
    ("shape", "rank"), [((2, 2, 5), 2), ((2, 2, 5, 5, 5), 2), ((2, 3, 5, 5), 2), ((2, 2, 5, 5), 1), ((), 3)]
)
def test_it_refuses_data_of_another_shape(shape: tuple[int, ...], rank: int) -> None:
    with pytest.raises(ValueError, match=r"\(B, 2, n_1.*channels= and rank="):
        small(rank=rank)(torch.zeros(shape), torch.tensor(0.5))


def test_it_refuses_empty_data() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 5, 0\)"):
        small()(torch.zeros(2, 2, 5, 0), torch.tensor(0.5))


def test_it_refuses_a_noise_level_or_label_that_does_not_fit() -> None:
    net, labelled, x, c = small(), small(classes=3), torch.zeros(2, 2, 4, 4), torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"noise_level .*\(\) or \(2,\)"):
        net(x, torch.zeros(3))
    with pytest.raises(ValueError, match="classes="):
        net(x, c, label=torch.tensor(0))
    with pytest.raises(ValueError, match=r"label=.* 0 \.\.\. 2, or 3 "):
        labelled(x, c)
    with pytest.raises(ValueError, match=r"label.* 0 \.\.\. 2, or 3 "):
        labelled(x, c, label=torch.tensor(4))
