r"""The shift of draws when they are weighed by their evidence: a sign of a mode that some runs of particles lost.

Each run of particles gives one draw and an estimate :math:`Z_i` of the same evidence. Draws weighed by :math:`Z_i` are
from the posterior as the number of runs grows, however few particles a run has; draws with equal weights are not, where
the runs that found one mode have other estimates than those that found another one. So

.. math:: \frac{W_2\big(\sum_i w_i \delta_{x_i},\, \frac1n \sum_i \delta_{x_i}\big)}{\text{standard deviation}},
    \qquad w_i = Z_i / \sum_j Z_j,

with the sliced Wasserstein distance, estimates the error of the draws in their own standard deviations. Few draws move
by chance: the **null** is the distance where the estimates are dealt out to the draws at random, its root mean square.

On 56 runs of measurements of mixtures in 8 and 16 dimensions (noise 0.01 and 0.1; 4 or 16 particles and 30 steps), of
which nine had an error above three floors, the net distance was above 0.2 in 9, 8 and 7 of these with 512, 64 and 16
draws, and in 6, 6 and 9 of the 47 others; the area under the curve is 0.95, 0.92 and 0.75. That of the standard
deviation of the log evidence, of 512 draws, is 0.86.
"""

from __future__ import annotations

__all__ = ["EvidenceShift", "evidence_shift"]

from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..shapes import check_count
from .transport import random_directions


@dataclass(frozen=True)
class EvidenceShift:
    """The shifts of sets of draws when they are weighed by their evidence, in their standard deviations.

    Attributes:
        value: the distances, float64 of shape (B,); 0 for draws that are all equal.
        null: the distances expected where the evidence has nothing to do with the draw, float64 of shape (B,).
    """

    value: Tensor
    null: Tensor

    @property
    def net(self) -> Tensor:
        r"""The shift beyond chance, :math:`(\mathrm{value}^2 - \mathrm{null}^2)^{1/2}` or 0, with shape (B,): above 0.2
        a mode is likely to be lost."""
        return (self.value.square() - self.null.square()).clamp(min=0.0).sqrt()


def evidence_shift(
    x: Tensor, log_evidence: Tensor, *, directions: int = 128, permutations: int = 20, seed: int = 0
) -> EvidenceShift:
    r"""The distance of draws with equal weights from the same draws weighed by their evidence.

    Args:
        x: draws of a posterior from independent runs, with shape (B, n, \*), n >= 2.
        log_evidence: their log evidences, in nats, with shape (B, n).
        directions: the number of random directions.
        permutations: the number of permutations of the null.
        seed: the seed of the directions and the permutations.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_count("evidence_shift", "permutations", permutations)
    if log_evidence.ndim != 2 or x.shape[:2] != log_evidence.shape or log_evidence.shape[1] < 2:
        raise ValueError(
            "evidence_shift: expected draws (B, n, *) and log evidences (B, n) with n >= 2, got "
            f"{tuple(x.shape)} and {tuple(log_evidence.shape)}"
        )
    n = log_evidence.shape[1]
    flat = x.flatten(2).double()
    line, order = (flat @ random_directions(flat[0], directions, seed)).mT.sort(dim=2)  # (B, L, n)
    spread = line.var(dim=2, correction=0).mean(1)
    weights = log_evidence.double().softmax(1)
    counts = torch.arange(permutations, device=x.device)
    keys = Noise(seed).uniform(Stream.PERMUTATION, counts, torch.zeros_like(counts), (n,), torch.float64)

    def square(dealt: Tensor) -> Tensor:
        """W_2^2, the mean over directions, (B,)."""
        cumulative = dealt[:, None].expand_as(line).gather(2, order).cumsum(2)
        cumulative = (cumulative / cumulative[..., -1:]).contiguous()
        equal = torch.arange(1, n + 1, dtype=torch.float64, device=x.device) / n
        ends = torch.cat([cumulative, equal.expand_as(cumulative)], 2).sort(dim=2).values
        widths = ends.diff(dim=2, prepend=torch.zeros_like(ends[..., :1]))
        middle = ends - 0.5 * widths
        first = line.gather(2, torch.searchsorted(cumulative, middle).clamp(max=n - 1))
        second = line.gather(2, (middle * n).long().clamp(max=n - 1))
        return torch.where(spread > 0, ((first - second).square() * widths).sum(2).mean(1) / spread, 0.0)

    null = torch.stack([square(weights[:, key.argsort()]) for key in keys]).mean(0)
    return EvidenceShift(square(weights).sqrt(), null.sqrt())
