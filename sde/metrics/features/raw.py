"""Raw values as features: pixels, columns of a table, samples of a signal."""

from __future__ import annotations

__all__ = ["RawValues"]

from dataclasses import dataclass

from torch import Tensor

from ...shapes import check_count
from .base import Extracted, Features, digest


@dataclass(frozen=True)
class RawValues(Features):
    """The values of an item in a row.

    Args:
        block: the number of items at a time; results do not depend on it.
    """

    block: int = 1024

    def __post_init__(self) -> None:
        check_count("RawValues", "block", self.block)

    @property
    def name(self) -> str:
        return "raw"

    @property
    def fingerprint(self) -> str:
        return digest("raw values")

    def __call__(self, x: Tensor, /) -> Extracted:
        return Extracted(x.flatten(1), maps=(x,) if x.ndim > 2 else ())
