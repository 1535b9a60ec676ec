"""Shapes: functions of time broadcast over data, in the dtype of the data."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sde.shapes import check_count, check_event, event_dims, expand, sum_event


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4, 5)])
def test_expand(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    product = expand(values, x) * x
    assert product.shape == shape
    assert product.dtype == torch.float32
    for i in range(3):
        assert bool((product[i] == i + 1).all())
        assert torch.equal(expand(values[i], x) * x, (i + 1) * x)
    assert expand(values[0], x).dtype == torch.float32
    assert expand(values.float(), x.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(2,), (4,), (1,), (3, 1)])
def test_expand_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"\(3,\).*{re.escape(str(shape))}"):
        expand(torch.ones(shape), torch.ones(3, 2))


def test_sum_event() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert sum_event(x).tolist() == [66.0, 210.0]
    assert sum_event(x[:, 0, 0]).tolist() == [0.0, 12.0]
    assert sum_event(torch.ones(0, 3)).shape == (0,)


def test_event_dims() -> None:
    assert event_dims(torch.ones(2, 3, 4)) == 12
    assert event_dims(torch.ones(5)) == 1
    assert event_dims(torch.ones(0, 7)) == 7


def test_another_event_shape_is_refused() -> None:
    check_event(torch.ones(5, 2, 3), (2, 3))
    check_event(torch.ones(0, 4), (4,))
    for x in (torch.ones(5, 3, 2), torch.ones(5, 6), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"solver.*\(B, 2, 3\)"):
            check_event(x, (2, 3), "this solver")


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "2", None])
def test_what_is_no_count_is_refused(value: Any) -> None:
    check_count("Heun", "steps", 1)
    check_count("Heun", "steps", 10**12)
    with pytest.raises(ValueError, match=re.escape(f"Heun needs a whole number steps >= 1, got steps={value!r}")):
        check_count("Heun", "steps", value)
    with pytest.raises(ValueError, match="steps >= 3, got steps=2"):
        check_count("Heun", "steps", 2, 3)
