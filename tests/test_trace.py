"""Traces: against the Jacobian by autograd, in closed form for the estimator's variance, and by counting calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde.noise import Noise, Stream
from sde.trace import Exact, Hutchinson, Trace

B, EVENT, D = 4, (1, 2, 3), 6

TRACES: list[Trace] = [
    Exact(),
    Exact(chunk=1),
    Exact(chunk=4),
    Hutchinson(),
    Hutchinson(3),
    Hutchinson(2, gaussian=True),
]


class Curved(torch.nn.Module):
    """A field h(x) = V tanh(W x + a), sample by sample, which counts forwards and backwards."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(8, D, generator=generator, dtype=torch.float64))
        self.v = torch.nn.Parameter(torch.randn(D, 8, generator=generator, dtype=torch.float64))
        self.forwards = self.backwards = 0

    def pure(self, x: Tensor) -> Tensor:
        return (torch.tanh(x.flatten(1) @ self.w.T + 0.3) @ self.v.T).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        value = self.pure(x)
        value.register_hook(self._count)
        return value

    def _count(self, grad: Tensor) -> None:
        self.backwards += 1

    def jacobian(self, x: Tensor) -> Tensor:
        """With shape (B, D, D), by reverse-mode autograd of each sample on its own."""
        one = torch.func.jacrev(lambda y: self.pure(y.reshape(1, *EVENT)).flatten())
        return torch.stack([one(sample) for sample in x.flatten(1)])


@pytest.fixture
def field(generator: torch.Generator) -> Curved:
    return Curved(generator)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(B, *EVENT, generator=generator, dtype=torch.float64)


def index() -> Tensor:
    return torch.tensor([5, 0, 11, 7])


def probes(trace: Hutchinson, seed: int) -> Tensor:
    """The probes (P, B, D), drawn from their address."""
    draw = Noise(seed).normal if trace.gaussian else Noise(seed).rademacher
    counter = torch.arange(trace.probes)[:, None]
    return draw(Stream.PROBE, index(), counter, EVENT, torch.float64).flatten(2)


@pytest.mark.parametrize("chunk", [1, 4, 6, 64])
@pytest.mark.parametrize("differentiable", [False, True])
def test_exact_is_the_trace_of_the_jacobian(field: Curved, x: Tensor, chunk: int, differentiable: bool) -> None:
    bound = Exact(chunk).bind(Noise(0), index(), x)
    with torch.set_grad_enabled(differentiable):
        value, divergence = bound(field, x)
    truth = field.jacobian(x).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(divergence, truth[:, None], rtol=1e-12, atol=1e-12)
    assert torch.equal(value, field.pure(x))
    assert (bound.estimates, bound.error_of_one) == (1, 0.0)


@pytest.mark.parametrize("trace", [Hutchinson(), Hutchinson(3), Hutchinson(2, gaussian=True)], ids=repr)
@pytest.mark.parametrize("differentiable", [False, True])
def test_hutchinson_is_the_quadratic_form_of_its_probes(
    field: Curved, x: Tensor, trace: Hutchinson, differentiable: bool
) -> None:
    bound = trace.bind(Noise(9), index(), x)
    with torch.set_grad_enabled(differentiable):
        value, divergence = bound(field, x)
    v = probes(trace, 9)
    truth = torch.einsum("pbi,bij,pbj->bp", v, field.jacobian(x), v)
    torch.testing.assert_close(divergence, truth, rtol=1e-12, atol=1e-12)
    assert torch.equal(value, field.pure(x))
    assert bound.estimates == trace.probes
    assert bound.error_of_one != bound.error_of_one


@pytest.mark.parametrize("gaussian", [False, True])
def test_hutchinson_is_unbiased_with_the_known_variance(gaussian: bool, generator: torch.Generator) -> None:
    """For h(x) = A x, S = (A + A')/2: Var v'Av = 2 |S|^2 for normal v, without S's diagonal for signs."""
    a = torch.randn(D, D, generator=generator, dtype=torch.float64)
    s = 0.5 * (a + a.T)
    variance = 2.0 * (s.square().sum() - (0.0 if gaussian else s.diagonal().square().sum()))
    one, n = torch.zeros(200, D, dtype=torch.float64), 200 * 100
    bound = Hutchinson(100, gaussian).bind(Noise(1), torch.arange(200), one)
    _, divergence = bound(lambda y: y @ a.T, one)
    assert abs(divergence.mean() - a.trace()) < 4.0 * (variance / n).sqrt()
    # The kurtosis of a quadratic form in normals is at most 15 (one eigenvalue), of signs less: 4 SE of the variance.
    assert abs(divergence.var() / variance - 1.0) < 4.0 * (14.0 / n) ** 0.5


def test_signs_are_exact_on_a_diagonal_jacobian(generator: torch.Generator) -> None:
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    _, divergence = Hutchinson(3).bind(Noise(0), index(), x)(torch.sin, x)
    torch.testing.assert_close(divergence, x.cos().sum(1, keepdim=True).expand(-1, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trace", TRACES, ids=repr)
def test_one_forward_and_one_product_per_probe(field: Curved, x: Tensor, trace: Trace) -> None:
    bound = trace.bind(Noise(0), index(), x)
    with torch.no_grad():
        bound(field, x)
    chunks = -(-D // trace.chunk) if isinstance(trace, Exact) else bound.estimates
    assert (field.forwards, field.backwards) == (1, chunks)


@pytest.mark.parametrize("trace", TRACES, ids=repr)
def test_select_keeps_the_probes_of_the_chosen(field: Curved, x: Tensor, trace: Trace) -> None:
    bound = trace.bind(Noise(2), index(), x)
    some = torch.tensor([3, 1])
    _, whole = bound(field, x)
    _, part = bound.select(some)(field, x[some])
    torch.testing.assert_close(part, whole[some], rtol=1e-12, atol=1e-12)
    _, rebound = trace.bind(Noise(2), index()[some], x[some])(field, x[some])
    torch.testing.assert_close(rebound, whole[some], rtol=1e-12, atol=1e-12)


def test_seed_and_probe_number_change_the_probes(field: Curved, x: Tensor) -> None:
    _, a = Hutchinson(2, gaussian=True).bind(Noise(0), index(), x)(field, x)
    _, b = Hutchinson(2, gaussian=True).bind(Noise(1), index(), x)(field, x)
    assert not torch.isclose(a, b).any()
    assert not torch.isclose(a[:, 0], a[:, 1]).any()


@pytest.mark.parametrize("trace", TRACES, ids=repr)
def test_no_graph_without_grad_mode(field: Curved, x: Tensor, trace: Trace) -> None:
    bound = trace.bind(Noise(0), index(), x)
    with torch.no_grad():
        value, divergence = bound(field, x.requires_grad_())
        assert not torch.is_grad_enabled()
    assert not value.requires_grad
    assert not divergence.requires_grad


@pytest.mark.parametrize("trace", TRACES, ids=repr)
def test_gradients_flow_to_point_and_parameters(field: Curved, x: Tensor, trace: Trace) -> None:
    bound = trace.bind(Noise(4), index(), x)
    x.requires_grad_()
    value, divergence = bound(field, x)
    got = torch.autograd.grad(value.sum() + divergence.sum(), (x, field.w, field.v))
    jacobian = field.jacobian(x)
    if isinstance(trace, Hutchinson):
        v = probes(trace, 4)
        total = torch.einsum("pbi,bij,pbj->", v, jacobian, v)
    else:
        total = torch.einsum("bii->", jacobian)
    wanted = torch.autograd.grad(field.pure(x).sum() + total, (x, field.w, field.v))
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("trace", [Exact(), Hutchinson()], ids=repr)
@pytest.mark.parametrize(
    "h", [lambda y: y.detach() * 2.0, lambda y: torch.ones(B, *EVENT)], ids=["detached", "constant"]
)
def test_a_field_without_a_gradient_is_refused(x: Tensor, trace: Trace, h: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"differentiable in x.*no_grad or inference mode"):
        trace.bind(Noise(0), index(), x)(h, x)


@pytest.mark.parametrize("n", [0, -1])
def test_too_few_probes_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"probes >= 1, got probes={n}"):
        Hutchinson(probes=n)
