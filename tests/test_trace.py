"""Traces: against the Jacobian by autograd, in closed form for the estimator's variance, and by counting calls."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde.noise import Noise, Stream
from sde.trace import ExactTrace, Hutchinson, Orthogonal, Trace, XTrace

B, EVENT, D = 4, (1, 2, 3), 6

TRACES: list[Trace] = [
    ExactTrace(),
    ExactTrace(chunk=1),
    ExactTrace(chunk=4),
    Hutchinson(),
    Hutchinson(3),
    Hutchinson(2, gaussian=True),
    Hutchinson(5, chunk=2),
    Orthogonal(3),
    XTrace(3),
]
# The products of each, in chunks.
PRODUCTS = dict(zip(TRACES, (1, 6, 2, 1, 1, 1, 3, 1, 2)))


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


def normals(count: int, seed: int) -> Tensor:
    """The normal probes (P, B, D), drawn from their address."""
    counter = torch.arange(count)[:, None]
    return Noise(seed).normal(Stream.PROBE, index(), counter, EVENT, torch.float64).flatten(2)


def frames(trace: Orthogonal, seed: int) -> Tensor:
    """Gram and Schmidt on the normal probes, to the length of sqrt(D), with shape (P, B, D)."""
    done: list[Tensor] = []
    for v in normals(trace.probes, seed):
        for u in done:
            v = v - (u * v).sum(1, keepdim=True) * u / D
        done.append(D**0.5 * v / v.norm(dim=1, keepdim=True))
    return torch.stack(done)


def left_out(jacobian: Tensor, omega: Tensor) -> Tensor:
    """XTrace by its definition, one probe left out after the other, for omega of shape (P, B, D); (B, P)."""
    a = jacobian.mT
    estimates = []
    for i in range(len(omega)):
        others = torch.cat([omega[:i], omega[i + 1 :]]).permute(1, 2, 0)
        q = torch.linalg.qr(a @ others)[0]
        rest = omega[i][..., None] - q @ (q.mT @ omega[i][..., None])
        form = (rest * (a @ rest)).sum((1, 2)) / rest.square().sum((1, 2))
        known = (q * (a @ q)).sum((1, 2))
        estimates.append(known + (D - len(omega) + 1) * form)
    return torch.stack(estimates, 1)


@pytest.mark.parametrize("chunk", [1, 4, 6, 64])
@pytest.mark.parametrize("differentiable", [False, True])
def test_exact_is_the_trace_of_the_jacobian(field: Curved, x: Tensor, chunk: int, differentiable: bool) -> None:
    bound = ExactTrace(chunk).bind(Noise(0), index(), x)
    with torch.set_grad_enabled(differentiable):
        value, divergence = bound(field, x)
    truth = field.jacobian(x).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(divergence, truth[:, None], rtol=1e-12, atol=1e-12)
    assert torch.equal(value, field.pure(x))
    assert bound.estimates == 1
    assert torch.equal(bound.standard_error(divergence.detach()), torch.zeros(B, dtype=torch.float64))


@pytest.mark.parametrize(
    "trace", [Hutchinson(), Hutchinson(3), Hutchinson(2, gaussian=True), Hutchinson(5, chunk=2)], ids=repr
)
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
def test_one_forward_and_its_products_by_chunks(field: Curved, x: Tensor, trace: Trace) -> None:
    bound = trace.bind(Noise(0), index(), x)
    with torch.no_grad():
        bound(field, x)
    assert (field.forwards, field.backwards) == (1, PRODUCTS[trace])


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
    elif isinstance(trace, Orthogonal):
        v = frames(trace, 4)
        total = torch.einsum("pbi,bij,pbj->", v, jacobian, v)
    elif isinstance(trace, XTrace):
        total = left_out(jacobian, normals(trace.probes, 4)).sum()
    else:
        total = torch.einsum("bii->", jacobian)
    wanted = torch.autograd.grad(field.pure(x).sum() + total, (x, field.w, field.v))
    # The little of the probes in XTrace's sketch, 1.5e-8 of it, is not in the definition.
    tolerance = 1e-5 if isinstance(trace, XTrace) else 1e-11
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(), XTrace(2)], ids=repr)
@pytest.mark.parametrize(
    "h", [lambda y: y.detach() * 2.0, lambda y: torch.ones(B, *EVENT)], ids=["detached", "constant"]
)
def test_a_field_without_a_gradient_is_refused(x: Tensor, trace: Trace, h: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"gradient.*no_grad"):
        trace.bind(Noise(0), index(), x)(h, x)


# ---- frames and sketches


@pytest.mark.parametrize("count", [1, 3, 6])
def test_orthogonal_is_the_quadratic_form_of_a_frame(field: Curved, x: Tensor, count: int) -> None:
    trace = Orthogonal(count)
    _, divergence = trace.bind(Noise(9), index(), x)(field, x)
    v = frames(trace, 9)
    gram = torch.einsum("pbi,qbi->bpq", v, v)
    torch.testing.assert_close(gram, D * torch.eye(count, dtype=torch.float64).expand(B, -1, -1), rtol=0.0, atol=1e-12)
    truth = torch.einsum("pbi,bij,pbj->bp", v, field.jacobian(x), v)
    torch.testing.assert_close(divergence, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("differentiable", [False, True])
def test_xtrace_leaves_one_out(field: Curved, x: Tensor, count: int, differentiable: bool) -> None:
    bound = XTrace(count).bind(Noise(9), index(), x)
    with torch.set_grad_enabled(differentiable):
        value, divergence = bound(field, x)
    assert torch.equal(value, field.pure(x))
    assert bound.estimates == count
    torch.testing.assert_close(divergence, left_out(field.jacobian(x), normals(count, 9)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trace", [Orthogonal(D), XTrace(D)], ids=repr)
def test_a_whole_frame_is_exact(field: Curved, x: Tensor, trace: Trace) -> None:
    bound = trace.bind(Noise(3), index(), x)
    _, divergence = bound(field, x)
    truth = field.jacobian(x).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(divergence.mean(1), truth, rtol=1e-9, atol=1e-9)
    assert float(bound.standard_error(divergence.detach()).max()) < 1e-9


@pytest.mark.parametrize("trace", [Orthogonal(1), XTrace(2)], ids=repr)
def test_a_multiple_of_the_identity_costs_no_variance(x: Tensor, trace: Trace) -> None:
    _, divergence = trace.bind(Noise(3), index(), x)(lambda y: -3.0 * y, x)
    torch.testing.assert_close(divergence, torch.full_like(divergence, -3.0 * D), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_xtrace_is_exact_and_smooth_on_low_ranks(rank: int, generator: torch.Generator) -> None:
    """Its sketch is then of lower rank than there are probes, and the left-out ones still span it all."""
    u, w = torch.randn(2, D, rank, generator=generator, dtype=torch.float64)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64).requires_grad_()
    _, divergence = XTrace(4).bind(Noise(0), index(), x)(lambda y: torch.tanh(y @ w) @ u.T, x)
    truth = ((1.0 - torch.tanh(x @ w).square()) * (u * w).sum(0)).sum(1, keepdim=True)
    torch.testing.assert_close(divergence, truth.expand(B, 4), rtol=1e-6, atol=1e-6)
    got, wanted = (torch.autograd.grad(value.sum(), x)[0] for value in (divergence, 4.0 * truth))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


RANDOM: list[Trace] = [Hutchinson(4), Hutchinson(4, gaussian=True), Orthogonal(2), Orthogonal(4), XTrace(2), XTrace(3)]


@pytest.mark.parametrize("trace", RANDOM, ids=repr)
def test_unbiased_with_an_honest_standard_error(trace: Trace, generator: torch.Generator) -> None:
    """Over 10000 samples: the mean within 4 of its own standard errors, and the mean square of what `standard_error`
    says within 10 % of that of the errors, 15 % for XTrace, whose estimates depend on each other."""
    n = 10_000
    a = torch.randn(D, D, generator=generator, dtype=torch.float64)
    x = torch.zeros(n, D, dtype=torch.float64)
    bound = trace.bind(Noise(1), torch.arange(n), x)
    with torch.no_grad():
        _, divergence = bound(lambda y: y @ a.T, x)
    error = divergence.mean(1) - a.trace()
    assert abs(float(error.mean())) < 4.0 * float(error.std()) / math.sqrt(n)
    ratio = float(bound.standard_error(divergence).square().mean() / error.square().mean())
    assert abs(ratio - 1.0) < (0.15 if isinstance(trace, XTrace) else 0.1)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_variance_of_a_frame(count: int, generator: torch.Generator) -> None:
    """By the formula of the module, within 4 standard errors of a variance; the kurtosis is at most 15."""
    n = 20_000
    a = torch.randn(D, D, generator=generator, dtype=torch.float64)
    s = 0.5 * (a + a.T)
    x = torch.zeros(n, D, dtype=torch.float64)
    with torch.no_grad():
        _, divergence = Orthogonal(count).bind(Noise(1), torch.arange(n), x)(lambda y: y @ a.T, x)
    one = 2.0 * D / (D + 2.0) * (s.square().sum() - s.trace().square() / D)
    variance = one / count * (1.0 - (count - 1.0) / (D - 1.0))
    assert abs(float(divergence.mean(1).var() / variance) - 1.0) < 4.0 * (14.0 / n) ** 0.5


def test_xtrace_beats_as_many_products_where_few_directions_hold_the_trace(generator: torch.Generator) -> None:
    """Singular values 4^-k in 12 dimensions: ten times less error than a sign probe for each of its products."""
    d, n = 12, 2000
    q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    a = q @ torch.diag(4.0 ** -torch.arange(d, dtype=torch.float64)) @ q.T
    x = torch.zeros(n, d, dtype=torch.float64)
    errors = []
    for trace in (XTrace(4), Hutchinson(8), Orthogonal(8)):
        with torch.no_grad():
            _, divergence = trace.bind(Noise(1), torch.arange(n), x)(lambda y: y @ a.T, x)
        errors.append(float((divergence.mean(1) - a.trace()).square().mean().sqrt()))
    assert 10.0 * errors[0] < min(errors[1:])


def test_a_single_estimate_cannot_tell_its_error() -> None:
    one, x = torch.ones(B, 1), torch.zeros(B, 2)
    assert bool(Hutchinson().bind(Noise(0), index(), x).standard_error(one).isnan().all())
    assert bool(Orthogonal(1).bind(Noise(0), index(), x).standard_error(one).isnan().all())
    # In one dimension a frame of one is the whole of it.
    assert Orthogonal(1).bind(Noise(0), index(), x[:, :1]).standard_error(one).tolist() == [0.0] * B


# ---- refusals


@pytest.mark.parametrize("n", [0, -1])
def test_too_few_probes_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"probes={n}"):
        Hutchinson(probes=n)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExactTrace(chunk=0), "ExactTrace.*chunk=0"),
        (lambda: Hutchinson(chunk=0), "chunk=0"),
        (lambda: Hutchinson(probes=2.0), r"probes=2\.0"),  # type: ignore[arg-type]
        (lambda: Orthogonal(0), "Orthogonal.*probes=0"),
        (lambda: Orthogonal(2, chunk=0), "chunk=0"),
        (lambda: XTrace(1), "XTrace.*probes=1"),
        (lambda: XTrace(2, chunk=0), "chunk=0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: Callable[[], Trace], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("trace", [Orthogonal(D + 1), XTrace(D + 1)], ids=repr)
def test_more_probes_than_dimensions_are_refused(x: Tensor, trace: Trace) -> None:
    with pytest.raises(ValueError, match=r"6, got probes=7.*ExactTrace"):
        trace.bind(Noise(0), index(), x)
