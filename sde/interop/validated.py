r"""Settings of other projects: values that are checked one by one before anything is made of them."""

from __future__ import annotations

__all__ = ["Checked"]

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any

from .formats import Source


class Checked:
    """Settings by name, each checked when it is asked for.

    Args:
        source: whose settings.
        values: the settings.
    """

    def __init__(self, source: Source, values: Mapping[str, Any]) -> None:
        self.source, self.values = source, values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def error(self, name: str, expected: str) -> ValueError:
        """What to raise where a setting does not serve."""
        return ValueError(f"{self.source.path}: {name}={self[name]!r} is not supported: expected {expected}")

    def choice(self, name: str, *allowed: Any) -> Any:
        """One of the allowed values."""
        if not any(type(self[name]) is type(value) and self[name] == value for value in allowed):
            raise self.error(name, " or ".join(map(repr, allowed)))
        return self[name]

    def flag(self, name: str) -> bool:
        """True or false, which None stands for too."""
        return bool(self.choice(name, True, False, None))

    def whole(self, name: str, most: float = 2**16) -> int:
        """A whole number from 1 to `most`: what a file asks for is bounded before it is built."""
        if type(self[name]) is not int or not 1 <= self[name] <= most:
            raise self.error(name, f"a whole number from 1 to {most}")
        return int(self[name])

    def number(self, name: str) -> float:
        """A finite number."""
        if type(self[name]) not in (int, float) or not math.isfinite(self[name]):
            raise self.error(name, "a finite number")
        return float(self[name])

    def several(self, name: str, kind: type | UnionType, most: int) -> list[Any]:
        """A list of 1 to `most` values of a kind."""
        values = self[name]
        if not isinstance(values, list | tuple) or not 1 <= len(values) <= most:
            raise self.error(name, f"a list of 1 to {most} values")
        wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, kind)]
        if wrong:
            raise self.error(name, f"no such entry as {wrong[0]!r}")
        return list(values)
