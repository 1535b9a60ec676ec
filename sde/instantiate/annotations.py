r"""Plain values against type annotations: whether one fits, and which values a parameter takes, in words.

A config gives every parameter a plain value: null, a truth value, a number, a text or a list. The annotation of the
parameter says which of them it takes. `typing.Annotated` adds limits, `Annotated[int, Limit(">=", 1)]`, and other
checks: functions of the value that raise a ValueError. An annotation that is a class, such as `Grid`, takes no plain
value, but a mapping that describes an object.
"""

from __future__ import annotations

__all__ = ["Existing", "Limit", "annotations_of", "check_value", "expected", "fits", "nearest", "shown", "takes_path"]

import dataclasses
import difflib
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from torch import Tensor

_SIGNS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_WORDS = {None: "null", bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclasses.dataclass(frozen=True)
class Limit:
    """Limit of a number.

    Args:
        sign: `>=`, `>`, `<=` or `<`.
        bound: the number on the right of the sign.
    """

    sign: str
    bound: float

    def __call__(self, value: float) -> bool:
        """Whether a number is within the limit."""
        return bool(_SIGNS[self.sign](value, self.bound))

    def __str__(self) -> str:
        return f"{self.sign} {self.bound}"


@dataclasses.dataclass(frozen=True)
class Existing:
    """Check that there is a file or a directory at a path from which something is read.

    Args:
        suffixes: those that the name of a file may have, all by default.
        advice: what else to say where there is nothing, or something else.
        directory: whether it may be a directory in place of a file with one of the suffixes.
    """

    suffixes: tuple[str, ...] = ()
    advice: str = ""
    directory: bool = False

    def __call__(self, path: str | os.PathLike[str]) -> None:
        place = Path(path)
        if not place.exists():
            raise ValueError(f"there is nothing at {str(path)!r}{self.advice}{_similar(place)}")
        if self.suffixes and place.suffix.lower() not in self.suffixes and not (self.directory and place.is_dir()):
            kinds = f"a file with a name that ends in {' or '.join(self.suffixes)}{' or a directory' * self.directory}"
            raise ValueError(f"expected {kinds}, got {str(path)!r}{self.advice}")


def _similar(path: Path) -> str:
    """The end of an error message that suggests the path nearest to one at which there is nothing."""
    folder = next((p for p in path.parents if p.is_dir()), Path())
    first, *rest = path.relative_to(folder).parts
    # Suffixes make names similar that are not.
    stems = {Path(name).stem: name for name in (os.listdir(folder) if os.access(folder, os.R_OK) else [])}
    close = [stems[stem] for stem in difflib.get_close_matches(Path(first).stem, stems, n=1)]
    folders = [folder.joinpath(name, *rest) for name in close] + [folder / name for name in close]
    return next((f"; did you mean {p}?" for p in folders if p.exists()), "")


def annotations_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the parameters of a function or class by name; unannotated ones are left out."""
    # The fields of a dataclass may be inherited from other modules, in whose names their annotations are written.
    plain = not inspect.isclass(target) or dataclasses.is_dataclass(target)
    return typing.get_type_hints(target if plain else target.__init__, include_extras=True)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value is one of those of an annotation; a tree that describes an object fits other classes."""
    annotation = None if annotation is type(None) else annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Annotated:
        return fits(value, arguments[0]) and all(limit(value) for limit in arguments[1:] if isinstance(limit, Limit))
    if origin is Literal:
        return value in arguments and not isinstance(value, bool)
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        return True
    if annotation is None or value is None:
        return value is annotation
    if isinstance(value, Mapping):
        plain = annotation in _WORDS or _is(annotation, os.PathLike) or _is(annotation, Sequence)
        return _is(annotation, Mapping) or ("_target_" in value and not plain)
    if annotation in (bool, int, float):
        if type(value) is int:
            return annotation is not bool and -(2**63) <= value < 2**63  # what tensors take
        return type(value) is annotation and not math.isnan(value)
    if annotation is str or _is(annotation, os.PathLike):
        return isinstance(value, str) and value != "None"
    if isinstance(value, list) and origin is tuple and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if isinstance(value, list) and _is(annotation, Sequence):
        return all(fits(entry, argument) for entry in value for argument in arguments[:1])
    return isinstance(value, list) and annotation is Tensor


def expected(annotation: Any) -> str:
    """The values of an annotation in words, such as `a whole number >= 1 or null`."""
    annotation = None if annotation is type(None) else annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        # A path may be given as a text, and a number for a tensor.
        kinds = [
            a
            for a in arguments
            if not (a is str and len(arguments) > 1 and any(_is(b, os.PathLike) for b in arguments))
        ]
        return " or ".join(dict.fromkeys(expected(a) for a in kinds if a is not Tensor or len(kinds) == 1))
    if origin is Annotated:
        limits = " and ".join(str(a) for a in arguments[1:] if isinstance(a, Limit))
        return f"{expected(arguments[0])} {limits}".rstrip()
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if _is(annotation, os.PathLike):
        return "a path"
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} entries, each {' or '.join(dict.fromkeys(map(expected, arguments)))}"
    if _is(annotation, Sequence) and annotation is not str:
        return f"a list, each entry {expected(arguments[0])}" if arguments else "a list"
    if _is(annotation, Mapping):
        return "a mapping"
    return _WORDS.get(annotation) or f"a {getattr(annotation, '__name__', annotation)}, a mapping with _target_"


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Refuses a value that does not fit the annotation.

    Raises:
        ValueError: it names the key, the value, what is expected, and what to write where that is often mistaken.
    """
    if fits(value, annotation):
        for inspect_value, entry in _checks(value, annotation):
            try:
                inspect_value(entry)
            except (ValueError, OSError) as error:
                raise ValueError(f"{key}: {error}") from error
        return
    advice = ""
    if isinstance(value, str) and value.lower() == "none":
        advice = f"; {key}=null stands for none"
    elif fits(str(value), annotation):
        advice = f"; a text that looks like another value is given in quotes within quotes: '{key}=\"{value}\"'"
    raise ValueError(f"{key}={shown(value)}: expected {expected(annotation)}{advice}")


def _checks(value: Any, annotation: Any) -> Iterator[tuple[Callable[[Any], object], Any]]:
    """The checks of the first alternative of an annotation that a value fits, each with what it checks: the value or an
    entry of it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        yield from _checks(value, next(argument for argument in arguments if fits(value, argument)))
    elif origin is Annotated:
        yield from _checks(value, arguments[0])
        yield from ((check, value) for check in arguments[1:] if not isinstance(check, Limit))
    elif isinstance(value, list) and arguments and _is(annotation, Sequence):
        for entry in value:
            yield from _checks(entry, arguments[0])


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message that suggests the known name nearest to a misspelt one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def shown(value: Any) -> str:
    """A plain value as the command line has it, with texts in quotes."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def takes_path(annotation: Any) -> bool:
    """Whether an annotation is that of a path, which a text may stand for."""
    return any(_is(a, os.PathLike) for a in (annotation, *typing.get_args(annotation)))


def _is(annotation: Any, kind: type) -> bool:
    base = typing.get_origin(annotation) or annotation
    return inspect.isclass(base) and issubclass(base, kind)
