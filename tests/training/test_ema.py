"""The moving average against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sde import EMA


class Module(nn.Module):
    """Three weights and a counter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), value, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(int(value)))


def with_value(value: float) -> Module:
    return Module(value)


@pytest.mark.parametrize(("decay", "first"), [(0.9, 1000), (0.9, 1), (0.9999, 1), (0.0, 1)])
def test_closed_form(decay: float, first: int) -> None:
    """After steps k = first..first+K-1: sum_k (1 - mu_k) prod_{j > k} mu_j theta_k, plus prod mu_k times the start."""
    values = [2.0, -1.0, 5.0, 0.5, 3.0]
    mu = [min(decay, (1 + k) / (10 + k)) for k in range(first, first + len(values))]
    expected, left = 0.0, 1.0
    for value, m in zip(reversed(values), reversed(mu)):
        expected += left * (1 - m) * value
        left *= m
    expected += left * 7.0

    module = with_value(7.0)
    average = EMA(module, decay)
    for step, value in enumerate(values, start=first):
        module.load_state_dict(with_value(value).state_dict())
        average.update(module, step)
    torch.testing.assert_close(
        average.weights["weight"], torch.full((3,), expected, dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert torch.equal(module.weight.detach(), torch.full((3,), 3.0, dtype=torch.float64))


def test_the_bound_of_early_steps_gives_way_to_the_decay() -> None:
    """(1 + k) / (10 + k) passes 0.9 at k = 80."""
    for step, expected in ((79, 80 / 89), (80, 0.9), (81, 0.9), (10**6, 0.9)):
        module = with_value(1.0)
        average = EMA(module, 0.9)
        module.load_state_dict(with_value(0.0).state_dict())
        average.update(module, step)
        assert average.weights["weight"][0].item() == pytest.approx(expected, rel=1e-12)


def test_buffers_are_copied_as_they_are() -> None:
    module = with_value(7.0)
    average = EMA(module, 0.9)
    module.load_state_dict(with_value(4.0).state_dict())
    average.update(module, 1)
    assert average.weights["count"].item() == 4
    assert average.weights["count"].dtype == torch.int64


def test_a_buffer_that_is_not_saved_is_not_averaged() -> None:
    module = with_value(1.0)
    module.register_buffer("cache", torch.zeros(2), persistent=False)
    average = EMA(module, 0.9)
    average.update(module, 1)
    assert sorted(average.weights) == ["count", "weight"]


def test_averages_are_copies() -> None:
    module = with_value(1.0)
    average = EMA(module, 0.9)
    with torch.no_grad():
        module.weight.zero_()
    assert average.weights["weight"].tolist() == [1.0, 1.0, 1.0]
    assert not average.weights["weight"].requires_grad


def test_a_parameter_of_two_names_is_averaged_under_both() -> None:
    module = nn.Module()
    module.one = nn.Linear(2, 2, bias=False)
    module.two = nn.Linear(2, 2, bias=False)
    module.two.weight = module.one.weight
    average = EMA(module, 0.0)
    with torch.no_grad():
        module.one.weight.fill_(5.0)
    average.update(module, 1)
    with average.applied_to(module):
        assert module.one.weight.detach().unique().tolist() == [5.0]


def test_applied_for_a_while() -> None:
    module = with_value(1.0)
    average = EMA(module, 0.5)
    module.load_state_dict(with_value(3.0).state_dict())
    weight = module.weight

    def interrupted() -> None:
        with average.applied_to(module):
            assert module.weight.tolist() == [1.0, 1.0, 1.0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert module.weight is weight
    assert module.weight.tolist() == [3.0, 3.0, 3.0]
    assert average.weights["weight"].tolist() == [1.0, 1.0, 1.0]


def test_load_takes_over_copies() -> None:
    average, other = EMA(with_value(1.0), 0.5), EMA(with_value(2.0), 0.5)
    average.load(other.weights)
    other.weights["weight"].zero_()
    assert average.weights["weight"].tolist() == [2.0, 2.0, 2.0]
    assert average.weights["count"].item() == 2


def test_averages_of_another_module_are_refused() -> None:
    average = EMA(with_value(1.0), 0.5)
    for odd in ({"weight": torch.zeros(3)}, {**average.weights, "head": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"'(count|head)'"):
            average.load(odd)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_lies_in_0_1(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay={decay}"):
        EMA(with_value(1.0), decay)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_of_half_precision_weights_move(dtype: torch.dtype) -> None:
    """From 0 to 1 - 0.999^3000 = 0.950 in 3000 steps; every step is far below the rounding of the weights."""
    module = nn.BatchNorm1d(2).to(dtype)
    with torch.no_grad():
        module.weight.zero_()
        average = EMA(module, 0.999)
        module.weight.fill_(1.0)
    for step in range(10**5, 10**5 + 3000):
        average.update(module, step)
    weights = average.weights["weight"]
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.full((2,), 1.0 - 0.999**3000), rtol=0.01, atol=0.0)
    assert average.weights["running_mean"].dtype == dtype  # a buffer, which is copied
    with average.applied_to(module):
        assert torch.equal(module.weight.detach(), weights.to(dtype))
        assert module.weight.dtype == dtype
    # Averages that were saved in half precision are continued in float32.
    average.load({name: value.to(dtype) if name == "weight" else value for name, value in average.weights.items()})
    assert torch.equal(average.weights["weight"], weights.to(dtype).float())


def test_saved_averages_fit_whatever_wrapped_their_module() -> None:
    net = nn.Linear(2, 1)
    saved = {name: torch.full_like(value, 7.0) for name, value in nn.DataParallel(net).state_dict().items()}
    for module, weights in ((net, saved), (nn.DataParallel(net), {"weight": torch.ones(1, 2), "bias": torch.ones(1)})):
        ema = EMA(module, 0.9)
        ema.load(weights)
        assert [value.unique().item() for value in ema.weights.values()] == [
            v.unique().item() for v in weights.values()
        ]
    with pytest.raises(ValueError, match="another module"):
        EMA(net, 0.9).load({"module.weight": torch.ones(1, 2)})
