"""Checks of the arguments of networks, with one message for all of them."""

from __future__ import annotations

__all__ = ["check_counts", "check_data", "check_per_sample", "check_positive", "check_rank"]

from torch import Tensor


def check_counts(**counts: int) -> None:
    """Raises a ValueError that names the first count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected a positive number, got {name}={count}")


def check_positive(**values: float) -> None:
    """Raises a ValueError that names the first value that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"expected a positive number, got {name}={value}")


def check_rank(rank: int) -> None:
    """Raises a ValueError unless there are 1, 2 or 3 spatial axes."""
    if rank not in (1, 2, 3):
        advice = "; vectors take sde.networks.MLP, network=mlp" if rank == 0 else ""
        raise ValueError(f"expected 1, 2 or 3 spatial axes, got rank={rank}{advice}")


def check_data(x: Tensor, channels: int, rank: int) -> None:
    """Raises a ValueError unless `x` has shape (B, channels, n_1, ..., n_rank) without empty axes."""
    if x.ndim != rank + 2 or x.shape[1] != channels:
        sizes = ", ".join(f"n_{axis + 1}" for axis in range(rank))
        raise ValueError(
            f"expected data of shape (B, {channels}, {sizes}), got {tuple(x.shape)}: "
            f"build the network with channels= and rank= (the number of spatial axes) of the data"
        )
    if 0 in x.shape[2:]:
        raise ValueError(f"expected spatial sizes of at least 1, got data of shape {tuple(x.shape)}")


def check_per_sample(name: str, values: Tensor, batch: int) -> None:
    """Raises a ValueError unless `values` is a scalar or has one entry per sample."""
    if values.shape not in ((), (batch,)):
        raise ValueError(
            f"expected {name} with shape () or ({batch},), a scalar or one entry per sample, got {tuple(values.shape)}"
        )
