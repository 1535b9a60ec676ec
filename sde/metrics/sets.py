r"""Sets of items: their checks, their groups and permutations, and the distances between their rows.

A set is a tensor of features (N, D). Groups, splits and permutations are functions of a seed and of the indices of the
items (:mod:`sde.noise`), so they are the same for any order in which the items come. The indices are the positions
0, ..., N - 1 unless given. Items with the same index (several draws from one image, several rows of one patient) are
dependent, and stay in one group.

All arithmetic is in float64. Features are converted in chunks, so that the memory of a measure does not grow by a
second copy of the sets.
"""

from __future__ import annotations

__all__ = [
    "Index",
    "check_pair",
    "check_paired",
    "check_set",
    "deal",
    "distance_rows",
    "group_pair",
    "index_pair",
    "keyed_order",
    "permuted_labels",
    "pooled_mean",
    "repeated",
    "slices",
    "squared_distances",
]

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ..noise import Noise, Stream, sample_index
from ..shapes import check_count

Index = tuple[Tensor, Tensor]

# Squared distances below this part of the squared norms are rounding errors of the matrix product.
_ROUNDING = 1e-12


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` of the positions 0, ..., n - 1."""
    check_count("a measure", "chunk_size", size)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def check_finite(owner: str, name: str, x: Tensor) -> None:
    """Refuses values that are not finite, with the index of the first item that has one."""
    for part in slices(len(x), 4096):
        finite = x[part].isfinite().flatten(1).all(1)
        if not finite.all():
            first = part.start + int((~finite).nonzero()[0])
            raise ValueError(f"{owner}: expected finite values, item {first} of the {name} has NaN or infinite ones")


def check_set(owner: str, name: str, x: Tensor, minimum: int = 2) -> None:
    """Refuses what is not a set of features (N, D) with N >= `minimum`, finite and not constant."""
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.shape[1]:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{owner}: expected the {name} as a tensor of features with shape (N, D), got {shape}")
    if len(x) < minimum:
        raise ValueError(f"{owner}: expected at least {minimum} items, the {name} has {len(x)}; give more items")
    check_finite(owner, name, x)
    if not any(bool((x[part] != x[:1]).any()) for part in slices(len(x), 4096)):
        raise ValueError(
            f"{owner}: all {len(x)} items of the {name} have the same features, so that there is no distribution to "
            "compare; look at the sampler or the feature network"
        )


def check_pair(owner: str, samples: Tensor, reference: Tensor, minimum: int = 2) -> None:
    """Refuses two sets that are not features of one kind."""
    check_set(owner, "samples", samples, minimum)
    check_set(owner, "reference", reference, minimum)
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"{owner}: expected the same features for both sets, got {samples.shape[1]} for the samples and "
            f"{reference.shape[1]} for the reference; use one feature network for both"
        )


def check_paired(owner: str, x: Tensor, reference: Tensor, dims: tuple[int, ...]) -> None:
    """Refuses two batches that are not items and their references, of one shape with `dims` dimensions, finite."""
    if x.shape != reference.shape or x.ndim not in dims or not x.numel():
        raise ValueError(
            f"{owner}: expected items and references of one shape with {' or '.join(map(str, dims))} dimensions, got "
            f"{tuple(x.shape)} and {tuple(reference.shape)}"
        )
    check_finite(owner, "items", x)
    check_finite(owner, "references", reference)


def index_pair(samples: Tensor, reference: Tensor, index: Index | None) -> Index:
    """The indices of the items of both sets, their positions by default."""
    first, second = (None, None) if index is None else index
    return sample_index(samples, first), sample_index(reference, second)


def keyed_order(index: Tensor, seed: int, stream: Stream, counter: int = 0) -> Tensor:
    """The positions of the items in an order that depends on seed and indices only, int64 with shape (N,)."""
    bits = Noise(seed).bits(stream, index, torch.full_like(index, counter), 1)[:, 0]
    return bits.argsort(stable=True)


def deal(index: Tensor, groups: int, seed: int, stream: Stream = Stream.GROUP, counter: int = 0) -> Tensor:
    """The group of every item, int64 with shape (N,): of the distinct indices, in a random order, every G-th."""
    distinct, inverse = index.unique(return_inverse=True)
    groups_of = torch.empty_like(distinct)
    groups_of[keyed_order(distinct, seed, stream, counter)] = torch.arange(len(distinct), device=index.device) % groups
    return groups_of[inverse]


def group_pair(owner: str, index: Index, groups: int, seed: int, keep: int = 2) -> tuple[Tensor, Tensor, int]:
    """The groups of the items of both sets, and their number: `groups`, or the size of the smaller set.

    Refuses sets that have fewer than `keep` items without one of their groups.
    """
    check_count(owner, "groups", groups, 2)
    groups = min(groups, *(len(side.unique()) for side in index))
    check_count(owner, "different indices of items", groups, 2)
    first, second = (deal(side, groups, seed) for side in index)
    for name, side in (("samples", first), ("reference", second)):
        left = len(side) - int(side.bincount(minlength=groups).max())
        if left < keep:
            raise ValueError(
                f"{owner}: expected at least {keep} items without one of {groups} groups, the {name} have {left} of "
                f"{len(side)}; give more items"
            )
    return first, second, groups


def permuted_labels(index: Index, permutations: int, seed: int, first: int = 0) -> Tensor:
    """Random divisions of the pooled items into sets of the sizes of the two, keyed by item.

    Args:
        first: the number of the first permutation.

    Returns:
        Whether an item is in the first set, bool with shape (permutations, n + m).
    """
    device, (n, m) = index[0].device, (len(index[0]), len(index[1]))
    side = torch.arange(2, device=device).repeat_interleave(torch.tensor([n, m], device=device))
    labels = torch.zeros(permutations, n + m, dtype=torch.bool, device=device)
    pooled = torch.cat(index)
    for part in slices(permutations, max(1, 2**22 // (n + m))):
        p = torch.arange(first + part.start, first + part.stop, device=device)[:, None]
        bits = Noise(seed).bits(Stream.PERMUTATION, pooled, 2 * p + side, 1)[..., 0]
        labels[part].scatter_(1, bits.argsort(dim=1, stable=True)[:, :n], True)
    return labels


def pooled_mean(samples: Tensor, reference: Tensor) -> Tensor:
    """The mean of the items of both sets, float64 with shape (D,)."""
    total = sum(side[part].double().sum(0) for side in (samples, reference) for part in slices(len(side), 4096))
    assert isinstance(total, Tensor)
    return total / (len(samples) + len(reference))


def repeated(x: Tensor) -> Tensor:
    """Whether an item has the features of an earlier one, bool with shape (N,).

    Items are sorted by a hash of their features, and those of one hash are compared. Of N different items two have one
    hash by chance with probability N^2 / 2^65; then the next hash is tried.
    """
    positions, columns = (torch.arange(n, device=x.device) for n in x.shape)
    for attempt in itertools.count():
        keys = torch.cat([_hashes(x[part], columns, attempt) for part in slices(len(x), 1024)])
        distinct, inverse = keys.unique(return_inverse=True)
        first = torch.full_like(distinct, len(x)).scatter_reduce(0, inverse, positions, "amin")[inverse]
        again = first < positions
        if all(torch.equal(x[part], x[first[part]]) for part in positions[again].split(1024)):
            break
    return again


def _hashes(x: Tensor, columns: Tensor, seed: int) -> Tensor:
    """The sums of the hashes of (number, column) for the rows of (n, D), int64; -0 counts as 0."""
    numbers = (x.double() + 0.0).view(torch.int64)
    return Noise(seed).bits(Stream.GROUP, numbers, columns, 1).sum((1, 2))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """The squared Euclidean distances of the rows of two float64 matrices (n, D), (m, D), with shape (n, m).

    The rows should be centred. Rows closer than a millionth of their norms count as equal, with distance exactly 0.
    """
    scale = x.square().sum(1)[:, None] + y.square().sum(1)
    squares = torch.addmm(scale, x, y.T, alpha=-2.0)
    return squares.masked_fill_(squares <= scale.mul_(_ROUNDING), 0.0)


def distance_rows(x: Tensor, y: Tensor, offset: Tensor, size: int = 4096) -> Tensor:
    """:func:`squared_distances` of the rows of `x` minus `offset` from those of `y`, which is converted in chunks."""
    rows = torch.empty(len(x), len(y), dtype=torch.float64, device=x.device)
    x = x.double() - offset
    for part in slices(len(y), size):
        rows[:, part] = squared_distances(x, y[part].double() - offset)
    return rows
