"""A table whose columns have units of their own, with the spreads of the POWER data of UCI."""

from __future__ import annotations

import torch
from torch.distributions import MultivariateNormal

# Active and reactive power in kW, voltage in V, current in A, three meters in Wh, and the time of day in minutes.
MEAN = torch.tensor([1.09, 0.124, 240.8, 4.63, 1.12, 1.30, 6.46, 719.5], dtype=torch.float64)
STD = torch.tensor([1.06, 0.113, 3.24, 4.44, 6.15, 5.82, 8.44, 415.7], dtype=torch.float64)


def power() -> MultivariateNormal:
    """A Gaussian with these means and standard deviations, and a correlation of 1/2 between any two columns."""
    correlation = 0.5 * (torch.eye(8, dtype=torch.float64) + 1.0)
    return MultivariateNormal(MEAN, STD[:, None] * correlation * STD)


def rows(n: int, seed: int = 0) -> torch.Tensor:
    """`n` draws, float32 with shape (n, 8)."""
    z = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (MEAN + z @ power().scale_tril.T).float()
