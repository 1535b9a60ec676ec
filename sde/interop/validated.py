r"""Validation of other projects' settings, value by value, before anything is built from them."""

from __future__ import annotations

__all__ = ["ValidatedSettings"]

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any

from .formats import Source


class ValidatedSettings:
    """Settings by name, each validated on access.

    Args:
        source: the source that the settings belong to.
        values: the settings.
    """

    def __init__(self, source: Source, values: Mapping[str, Any]) -> None:
        self.source, self.values = source, values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def error(self, name: str, expected: str) -> ValueError:
        """The error for an unsupported setting."""
        return ValueError(f"{self.source.path}: {name}={self[name]!r} is not supported: expected {expected}")

    def choice(self, name: str, *allowed: Any) -> Any:
        """One of the allowed values."""
        if not any(type(self[name]) is type(value) and self[name] == value for value in allowed):
            raise self.error(name, " or ".join(map(repr, allowed)))
        return self[name]

    def flag(self, name: str) -> bool:
        """True or false; None counts as false."""
        return bool(self.choice(name, True, False, None))

    def integer(self, name: str, maximum: float = 2**16) -> int:
        """An integer from 1 to `maximum`, which bounds the size of the network before it is built."""
        if type(self[name]) is not int or not 1 <= self[name] <= maximum:
            raise self.error(name, f"a whole number from 1 to {maximum}")
        return int(self[name])

    def number(self, name: str) -> float:
        """A finite number."""
        if type(self[name]) not in (int, float) or not math.isfinite(self[name]):
            raise self.error(name, "a finite number")
        return float(self[name])

    def sequence(self, name: str, kind: type | UnionType, maximum: int) -> list[Any]:
        """A list of 1 to `maximum` values of type `kind`."""
        values = self[name]
        if not isinstance(values, list | tuple) or not 1 <= len(values) <= maximum:
            raise self.error(name, f"a list of 1 to {maximum} values")
        wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, kind)]
        if wrong:
            raise self.error(name, f"no such entry as {wrong[0]!r}")
        return list(values)
