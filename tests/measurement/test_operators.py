"""Operators: their matrix says what they are, and adjoints, solutions, determinants and draws agree with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sde.measurement import (
    Blur,
    Compose,
    Diagonalised,
    Downsample,
    Fourier,
    Grayscale,
    Identity,
    Linear,
    Mask,
    Matrix,
    Operator,
    ReflectingBlur,
    SeparableBlur,
    check_adjoint,
)


def f64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


RANDOM = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
KERNEL, SQUARE = f64([0.1, 0.6, 0.35]), f64([[0.0, 0.1, 0.2], [0.3, 0.2, 0.0], [0.1, 0.0, 0.1]])
TALL = torch.randn(7, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

# Operators, with the event shape of their data.
OPERATORS: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "mask": (Mask(RANDOM), (3, 4, 6)),
    "identity": (Identity(), (5,)),
    "grayscale": (Grayscale(), (3, 2, 4)),
    "box": (Downsample(2), (1, 4, 6)),
    "box1": (Downsample(3), (6,)),
    "bicubic": (Downsample(2, "bicubic"), (2, 6, 4)),
    "separable": (SeparableBlur(KERNEL), (1, 4, 5)),
    "blur": (Blur(SQUARE), (2, 4, 5)),
    "blur1": (Blur(KERNEL), (1, 4, 5)),
    "reflecting": (ReflectingBlur(SQUARE), (2, 4, 5)),
    "fourier": (Fourier(RANDOM), (3, 4, 6)),
    "wide": (Matrix.random(4, (2, 3), seed=3), (2, 3)),
    "tall": (Matrix(TALL), (4,)),
    "compose": (Compose(Blur(KERNEL), Downsample(2), Mask(RANDOM[:1, :2, :3])), (1, 4, 6)),
}
NAMES = pytest.mark.parametrize("name", OPERATORS)


def dense(operator: Operator, shape: Sequence[int]) -> Tensor:
    """The matrix of an operator on one sample, (M, D)."""
    size = math.prod(shape)
    return operator(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1).mT


def seen(operator: Operator, y: Tensor) -> Tensor:
    rows = operator.measured(y)
    return torch.ones_like(y, dtype=torch.bool) if rows is None else rows.expand_as(y)


@NAMES
def test_the_adjoint_is_the_transpose(name: str) -> None:
    operator, shape = OPERATORS[name]
    assert check_adjoint(operator, (3, *shape)) < 1e-14
    A = dense(operator, shape)
    y = operator(torch.zeros(1, *shape, dtype=torch.float64))
    units = torch.eye(len(A), dtype=torch.float64).reshape(-1, *y.shape[1:])
    torch.testing.assert_close(operator.adjoint(units).flatten(1), A, rtol=0, atol=1e-14)


@NAMES
def test_solutions_determinants_and_draws_are_those_of_the_matrix(name: str, generator: torch.Generator) -> None:
    operator, shape = OPERATORS[name]
    A, size = dense(operator, shape), math.prod(shape)
    variance, noise = f64([0.7, 0.01]), f64([0.3, 0.02])
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    y = operator(x)
    rows = seen(operator, y)
    r = torch.where(rows, torch.randn(y.shape, generator=generator, dtype=torch.float64), 0.0)
    solved, gram, eye = operator.solve(r, variance, noise), A @ A.mT, torch.eye(len(A), dtype=torch.float64)
    total = variance[:, None, None] * gram + noise.square()[:, None, None] * eye
    expected = torch.linalg.solve(total, r.flatten(1))
    torch.testing.assert_close(solved.flatten(1), expected, rtol=1e-9, atol=1e-9)
    if not isinstance(operator, Diagonalised):
        return
    kept = rows[0].flatten()
    log_det = torch.logdet(total[:, kept][:, :, kept])
    count = rows.flatten(1).sum(1).double()
    torch.testing.assert_close(operator.log_det(x, count, variance, noise).expand(2), log_det, rtol=1e-9, atol=1e-9)
    # The square root of the covariance, column by column, and its determinant.
    v, n = 0.7, 0.3
    V = v * torch.eye(size, dtype=torch.float64) - v * v * A.mT @ torch.linalg.solve(total[0], A)
    units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    columns, half = operator.spread(units, v, n, 0.2, 1.5)
    root = columns.flatten(1)
    covariance = 0.2 * torch.eye(size, dtype=torch.float64) + 1.5**2 * V
    torch.testing.assert_close(root.mT @ root, covariance, rtol=1e-9, atol=1e-9)
    relative = 0.5 * (torch.logdet(covariance) - size * math.log(0.2 + 1.5**2 * v))
    torch.testing.assert_close(torch.as_tensor(half).double().flatten()[0], relative, rtol=1e-9, atol=1e-9)


def test_downsampling_and_blurs_are_what_they_say(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 8, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(Downsample(2)(x), functional.avg_pool2d(x, 2))
    # Inside, bicubic downsampling is torch's antialiased one, which differs at the edges.
    long = torch.randn(1, 1, 24, 24, generator=generator, dtype=torch.float64)
    smaller = functional.interpolate(long, scale_factor=0.5, mode="bicubic", antialias=True)
    torch.testing.assert_close(Downsample(2, "bicubic")(long)[..., 3:-3, 3:-3], smaller[..., 3:-3, 3:-3])
    torch.testing.assert_close(Downsample(2, "bicubic")(torch.ones_like(x)), torch.ones_like(x[..., :4, :3]))
    padded = functional.pad(x, (1, 1, 1, 1), mode="circular").reshape(-1, 1, 10, 8)
    convolved = functional.conv2d(padded, SQUARE.flip(0, 1)[None, None]).reshape(x.shape)
    torch.testing.assert_close(Blur(SQUARE)(x), convolved)
    outer = torch.outer(KERNEL, KERNEL)
    torch.testing.assert_close(Blur(KERNEL)(x), Blur(outer)(x))
    torch.testing.assert_close(SeparableBlur(KERNEL)(x), ReflectingBlur(outer)(x))


def test_fourier_coefficients_are_unitary(generator: torch.Generator) -> None:
    x = torch.randn(2, 1, 4, 6, generator=generator, dtype=torch.float64)
    y = Fourier(torch.ones(1, 4, 6, dtype=torch.bool))(x)
    torch.testing.assert_close(torch.view_as_complex(y), torch.fft.fft2(x, norm="ortho"))


@pytest.mark.parametrize("kind", [Mask, Fourier])
def test_masks_of_one_sample_each_follow_their_samples(kind: type, generator: torch.Generator) -> None:
    masks = torch.rand(4, 1, 4, 6, generator=generator) < 0.5
    x = torch.randn(4, 1, 4, 6, generator=generator, dtype=torch.float64)
    each, index = kind(masks), torch.tensor([2, 0, 2])
    y = each(x)
    for i in range(4):
        torch.testing.assert_close(y[i : i + 1], kind(masks[i])(x[i : i + 1]), rtol=0, atol=1e-15)
    torch.testing.assert_close(each.select(index)(x[index]), y[index], rtol=0, atol=0)
    again = each.select(index).select(torch.tensor([1]))
    torch.testing.assert_close(again(x[:1]), y[:1], rtol=0, atol=0)


def test_matrices_of_one_sample_each_follow_their_samples(generator: torch.Generator) -> None:
    A = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    index = torch.tensor([2, 0])
    r = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    each = Matrix(A).select(index)
    torch.testing.assert_close(each(x[index]), (A @ x[..., None])[index, :, 0])
    total = 0.5 * A @ A.mT + 0.01 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(each.solve(r, 0.5, 0.1), torch.linalg.solve(total[index], r))


def test_a_sample_solved_by_conjugate_gradients_does_not_depend_on_others(generator: torch.Generator) -> None:
    """Each stops when its own residual is small: the sample beside it is far harder."""
    operator = ReflectingBlur(SQUARE)
    r = torch.randn(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    noise = f64([1e-4, 1.0])
    both = operator.solve(r, 1.0, noise)
    torch.testing.assert_close(both[1:], operator.solve(r[1:], 1.0, noise[1:]), rtol=0, atol=0)


def test_functions_of_another_library_are_an_operator() -> None:
    class Physics:
        def A(self, x: Tensor) -> Tensor:
            return x[..., ::2]

        def A_adjoint(self, y: Tensor) -> Tensor:
            return torch.stack([y, torch.zeros_like(y)], -1).flatten(-2)

    physics = Physics()
    operator = Linear(physics.A, physics.A_adjoint)
    assert check_adjoint(operator, (2, 6)) < 1e-14
    assert check_adjoint(Linear(physics.A, lambda y: 2 * physics.A_adjoint(y)), (2, 6)) > 0.01
    torch.testing.assert_close(Matrix.of(operator, (6,)).A, dense(operator, (6,)))


def test_a_composition_is_linear_if_all_its_parts_are() -> None:
    class Cube(Operator):
        def __call__(self, x: Tensor) -> Tensor:
            return x**3

    x, y = torch.full((2, 4), 2.0, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    both = Compose(Cube(), Downsample(2))
    assert not both.linear
    torch.testing.assert_close(both.pullback(x, y), torch.full((2, 4), 6.0, dtype=torch.float64))  # 3 x^2 / 2
    with pytest.raises(TypeError, match="linear"):
        both.adjoint(y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.ones(3)), "bool"),
        (lambda: Mask(torch.ones(3, dtype=torch.bool))(torch.zeros(2, 4)), r"\(B, 3\)"),
        (lambda: Mask(torch.ones(5, 4, dtype=torch.bool))(torch.zeros(2, 4)), "B = 5"),
        (lambda: Mask(torch.ones(1, 2, 4, dtype=torch.bool))(torch.zeros(2, 4)), "parameter"),
        (lambda: Downsample(2)(torch.zeros(1, 5)), "multiple of 2"),
        (lambda: Downsample(2, "cubic"), "box, bicubic"),
        (lambda: Blur(torch.ones(2)), "odd"),
        (lambda: Blur(torch.ones(5, 5))(torch.zeros(1, 1, 4, 4)), "fit"),
        (lambda: Matrix(torch.ones(2, 3), (2, 2)), "fit"),
        (lambda: Matrix(torch.ones(2, 3))(torch.zeros(1, 4)), r"\(B, 3\)"),
        (lambda: Matrix(torch.ones(5, 2, 3))(torch.zeros(1, 3)), "B = 5"),
        (lambda: Fourier(torch.ones(5, 1, 2, dtype=torch.bool))(torch.zeros(1, 1, 2)), "B = 5"),
        (lambda: Grayscale()(torch.zeros(1, 1, 2, 2)), r"\(B, 3"),
        (lambda: Grayscale((math.inf, 1.0)), "finite weights"),
        (lambda: Compose(), "at least one"),
    ],
)
def test_what_does_not_fit_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
