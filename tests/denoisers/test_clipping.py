"""Limited denoisers: every reading follows from the limited x0, by sample, and a chain with them takes DDPM's steps."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from sde.denoisers import Clip, Denoiser, DynamicThreshold, Limited, NetworkDenoiser, Prediction
from sde.processes import SDE, VP, DiscreteChain
from sde.sampling import sample
from sde.solvers import Ancestral


class Given(Denoiser):
    """A denoiser that answers what it was given, plus the condition, and counts its calls."""

    def __init__(self, x0: Tensor, process: SDE, calls: int = 1) -> None:
        super().__init__()
        self.x0, self.process, self.calls, self.asked = x0, process, calls, 0

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.asked += 1
        return self.x0.expand_as(x_t) + condition.get("shift", 0.0)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        assert what in (Prediction.X0, Prediction.SCORE), "a limited denoiser is computed from x0"
        return super().predict(what, x_t, t, **condition)

    def score_and_variance(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.score(x_t, t, **condition), 0.25 * torch.ones_like(x_t)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def imagen(x0: Tensor, quantile: float, bound: float, maximum: float) -> Tensor:
    """Section 2.3 of Saharia et al., one sample at a time, with the quantile by sorting."""
    out = []
    for one in x0:
        size = sorted(abs(v) for v in one.flatten().tolist())
        place = quantile * (len(size) - 1)
        low = math.floor(place)
        high = min(low + 1, len(size) - 1)
        s = size[low] + (place - low) * (size[high] - size[low])
        s = min(max(s, bound), maximum)
        out.append(one.clamp(-s, s) / s * bound)
    return torch.stack(out)


LIMITS = {
    "clip": (lambda d: Clip(d, -0.5, 0.75), lambda x0: x0.clamp(-0.5, 0.75)),
    "threshold": (lambda d: DynamicThreshold(d, 0.9), lambda x0: imagen(x0, 0.9, 1.0, math.inf)),
}
each_limit = pytest.mark.parametrize(("wrap", "limit"), LIMITS.values(), ids=LIMITS.keys())


@each_limit
@pytest.mark.parametrize("t", [0.05, [0.01, 0.3, 0.9]])
def test_every_reading_follows_from_the_limited_x0(wrap: type, limit: object, process: SDE, t: float | list) -> None:
    x0, x_t, time = 2.0 * normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1), torch.tensor(t, dtype=torch.float64)
    inner = Given(x0, process, calls=2)
    d = wrap(inner)
    alpha, sigma = (f(time).expand(3).reshape(3, 1, 1, 1) for f in (process.alpha, process.sigma))
    clean = limit(x0)
    noise = (x_t - alpha * clean) / sigma
    assert d.process is process
    assert d.calls == 2
    torch.testing.assert_close(d(x_t, time), clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(d.noise(x_t, time), noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d.score(x_t, time), -noise / sigma, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d.velocity(x_t, time), alpha * noise - sigma * clean, rtol=1e-9, atol=1e-9)
    score, fraction = d.score_and_variance(x_t, time)
    torch.testing.assert_close(score, -noise / sigma, rtol=1e-9, atol=1e-9)
    assert fraction is not None
    assert (fraction == 0.25).all()
    assert inner.asked == 5
    torch.testing.assert_close(d(x_t, time, shift=torch.tensor(0.25)), limit(x0 + 0.25), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("bound", "maximum"), [(1.0, None), (1.0, 1.5), (0.5, 0.8), (1.0, 1.0)])
@pytest.mark.parametrize("event", [(50,), (3, 4, 5), ()])
def test_dynamic_thresholding_is_imagens(bound: float, maximum: float | None, event: tuple[int, ...]) -> None:
    x0 = normal(4, *event) * torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64).reshape(-1, *(1,) * len(event))
    for quantile in (0.0, 0.25, 0.5, 0.9, 0.995, 1.0):
        d = DynamicThreshold(Given(x0, VP()), quantile, bound, maximum)
        found = d(torch.zeros_like(x0), torch.tensor(0.5))
        expected = imagen(x0, quantile, bound, math.inf if maximum is None else maximum)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert found.abs().max() <= bound * (1 + 1e-12)
        alone = DynamicThreshold(Given(x0[2:3], VP()), quantile, bound, maximum)
        assert torch.equal(alone(torch.zeros_like(x0[2:3]), torch.tensor(0.5)), found[2:3])


def test_inside_the_range_nothing_changes() -> None:
    x0 = normal(2, 3, 4).clamp(-1.0, 1.0)
    for d in (Clip(Given(x0, VP())), DynamicThreshold(Given(x0, VP()))):
        assert torch.equal(d(torch.zeros_like(x0), torch.tensor(0.5)), x0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_of_the_state_stays(dtype: torch.dtype) -> None:
    x0 = (3.0 * normal(2, 40)).to(dtype)
    found = DynamicThreshold(Given(x0, VP()), 0.9).limit(x0)
    assert found.dtype == Clip(Given(x0, VP())).limit(x0).dtype == dtype
    expected = imagen(x0.double(), 0.9, 1.0, math.inf)
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("v", [0.0, None])
@pytest.mark.parametrize("wrap", [Clip, DynamicThreshold])
def test_ancestral_steps_have_the_posterior_mean_of_the_limited_x0(wrap: type[Limited], v: float | None) -> None:
    chain = DiscreteChain.linear(50)
    x0 = 3.0 * normal(1, 2, 4)
    d = wrap(Given(x0, chain.sde()))
    x = normal(2, 2, 4, seed=1)

    class Silent:
        """No noise, so that a step is its mean."""

        def batch(self, index: Tensor, shape: object, dtype: torch.dtype) -> Silent:
            return self

        def normal(self, *address: object) -> Tensor:
            return torch.zeros_like(x)

    result = sample(d, x_T=x, solver=Ancestral(49, v=v), noise=Silent(), denoise=True)  # type: ignore[arg-type]
    clean = d.limit(x0.expand_as(x))
    for i in range(50, 0, -1):
        x = chain.posterior(clean, x, i)[0]
    torch.testing.assert_close(result.x, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result.x, clean, rtol=1e-10, atol=1e-10)
    assert result.nfe.tolist() == [50, 50]


@pytest.mark.parametrize("wrap", [Clip, DynamicThreshold])
def test_gradients_pass_where_nothing_is_cut(wrap: type[Limited]) -> None:
    class Linear(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return 0.5 * x + 0.1

    d = wrap(NetworkDenoiser(Linear(), VP()))
    t = torch.tensor(0.3, dtype=torch.float64)
    x = normal(2, 6)
    assert torch.autograd.gradcheck(lambda x: d(x, t), x.requires_grad_(), check_forward_ad=True)
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda x: d(x[None], t)[0]))(x.detach())
    reverse = torch.func.vmap(torch.func.jacrev(lambda x: d(x[None], t)[0]))(x.detach())
    torch.testing.assert_close(jacobian, reverse, rtol=1e-10, atol=1e-12)


def test_the_inner_weights_are_the_wrappers() -> None:
    network = nn.Linear(2, 2)
    d = Clip(NetworkDenoiser(network, VP()))
    assert {name for name, _ in d.named_parameters()} == {"inner.network.weight", "inner.network.bias"}
    assert "low=-1.0, high=1.0" in repr(d)
    assert "quantile=0.995, bound=1.0, maximum=None" in repr(DynamicThreshold(d))
    assert json.dumps(DynamicThreshold(d).maximum) == "null"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: Clip(d, 1.0, 1.0), "low < high.* got low=1.0, high=1.0"),
        (lambda d: Clip(d, math.nan, 1.0), "low < high"),
        (lambda d: DynamicThreshold(d, 1.5), r"a quantile in \[0, 1\], got quantile=1.5"),
        (lambda d: DynamicThreshold(d, bound=0.0), "bound > 0.* got 0.0"),
        (lambda d: DynamicThreshold(d, maximum=0.5), "maximum >= bound.* got maximum=0.5, bound=1.0"),
    ],
)
def test_refusals(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Given(torch.zeros(1), VP()))
