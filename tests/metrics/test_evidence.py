"""Draws weighed by their evidence: the distance in closed form, and what has nothing to do with the draws."""

from __future__ import annotations

import math

import pytest
import torch

from sde.metrics import evidence_shift


def test_the_distance_of_two_points_is_the_mass_that_moves() -> None:
    """Half of the mass at each of two points; of draws weighed by 1 and 3 a quarter moves over two deviations."""
    for event in ((1,), (2, 3)):
        x = torch.zeros(2, 4, *event)
        x[:, 2:] = 5.0  # a standard deviation is half of the distance
        log_evidence = torch.tensor([[0.0, 0.0, math.log(3.0), math.log(3.0)], [1.0, 1.0, 1.0, 1.0]])
        shift = evidence_shift(x, log_evidence)
        expected = torch.tensor([math.sqrt(0.25 * 4.0), 0.0], dtype=torch.float64)
        torch.testing.assert_close(shift.value, expected, rtol=1e-6, atol=1e-6)
    equal = evidence_shift(torch.ones(1, 3, 2), torch.tensor([[0.0, 1.0, 2.0]]))
    assert equal.value.tolist() == equal.null.tolist() == [0.0]


def test_evidence_that_has_nothing_to_do_with_the_draws_moves_them_by_the_null() -> None:
    """Of 40 sets the mean square is that of the null within 5 standard errors; of a lost mode it is far above."""
    g = torch.Generator().manual_seed(0)
    x, log_evidence = torch.randn(40, 30, 2, generator=g), torch.randn(40, 30, generator=g)
    shift = evidence_shift(x, log_evidence)
    difference = shift.value.square() - shift.null.square()
    assert abs(difference.mean()) < 5 * difference.std() / math.sqrt(40)
    assert shift.value.mean() > 0.1
    x[..., 0] += 3.0 * (log_evidence > 0.5)
    lost = evidence_shift(x, log_evidence)
    assert bool((lost.value > lost.null).all())
    assert lost.value.mean() > 1.5 * lost.null.mean()
    # A set does not know the others.
    torch.testing.assert_close(evidence_shift(x[7:8], log_evidence[7:8]).value, lost.value[7:8])


def test_shapes_are_checked() -> None:
    for x, log_evidence in ((torch.zeros(2, 3, 1), torch.zeros(2, 2)), (torch.zeros(2, 1, 1), torch.zeros(2, 1))):
        with pytest.raises(ValueError, match="n >= 2"):
            evidence_shift(x, log_evidence)
