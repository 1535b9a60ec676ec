r"""Pickles of tensors and plain values, read without unpickling.

A pickle is a program for a small stack machine, and unpickling runs it: the instruction GLOBAL names any function that
Python can import, and REDUCE calls it. The machine in this module supports only the instructions that build plain
values, and the names in one list. Each of these names stands for a function of this module, which checks its arguments.
No other name is resolved, imported or called. A tensor remains a reference to a storage of the file, so that its size
can be checked against the file before anything is allocated.

Dictionary keys must be strings or numbers, because hashing a deeply nested tuple would recurse without bound.
"""

from __future__ import annotations

__all__ = ["LazyTensor", "Storage", "evaluate", "shown"]

import mmap
import pickletools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

# An instruction takes at most a few hundred bytes, so that the whole program takes about 50 MB. A tensor needs about
# forty instructions.
MAX_INSTRUCTIONS = 2**19


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor in a file: its shape, checked against the file, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Storage:
    """A storage in a file: its number of elements, and how to read them as one flat tensor."""

    numel: int
    read: Callable[[], Tensor]


def shown(value: Any) -> str:
    """A value for an error message; only the type of a container, because printing a nested one may not terminate."""
    plain = isinstance(value, str | bytes | int | float | torch.dtype | None)
    return repr(value)[:80] if plain else type(value).__name__


def evaluate(stream: IO[bytes] | mmap.mmap, persistent: Callable[[Any], Storage]) -> Any:
    """The value of the pickle at the stream's position, which moves to the end of the pickle.

    Args:
        stream: the file, whose `read(n)` must not return or allocate more bytes than the file has.
        persistent: maps a persistent id to its storage.

    Raises:
        ValueError: if the pickle is damaged, or names anything that tensors and plain values do not need.
    """
    machine = _Machine(persistent)
    try:
        operations = pickletools.genops(stream)  # type: ignore[arg-type]
        for k, (opcode, argument, _) in enumerate(operations):
            if k == MAX_INSTRUCTIONS:
                raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions, which no checkpoint needs")
            machine.step(opcode.name, argument)
        value = machine.stack.pop()
        if machine.stack:
            raise ValueError(f"its pickle is damaged: it leaves {len(machine.stack)} values behind")
        return value
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError(f"its pickle is damaged: {type(error).__name__}: {error}") from error


class _Machine:
    """The stack machine: a stack, the heights of the marks, and the memo."""

    def __init__(self, persistent: Callable[[Any], Storage]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent

    def step(self, name: str, argument: Any) -> None:
        """Executes one instruction, named as in `pickletools`."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "BINUNICODE8" | "SHORT_BINSTRING" | "BINSTRING" | "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "APPEND":
                value = stack.pop()
                _list(stack[-1]).append(value)
            case "APPENDS":
                values = self._since_mark()
                _list(stack[-1]).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _fill(stack[-1], [key, value])
            case "SETITEMS":
                values = self._since_mark()
                _fill(stack[-1], values)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_named(argument))
            case "STACK_GLOBAL":
                function, module = stack.pop(), stack.pop()
                stack.append(_named(f"{module} {function}"))
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if function not in _FUNCTIONS:
                    raise ValueError(f"its pickle calls {type(function).__name__!r}, which is not a function")
                stack.append(function(*arguments))
            case "BUILD":
                state, value = stack.pop(), stack[-1]
                # The attributes of an OrderedDict are the versions of the modules; those of a dtype are its byte order.
                if not isinstance(value, dict | _Number):
                    raise ValueError(f"its pickle sets the state of {type(value).__name__!r}")
                if isinstance(value, _Number) and not (state[1] == "<" or state[1] == "|"):
                    raise ValueError(f"it holds NumPy numbers of byte order {shown(state[1])}: expected little-endian")
            case _:
                raise ValueError(f"its pickle has the instruction {name}, which plain values and tensors do not need")

    def _since_mark(self) -> list[Any]:
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"its pickle appends to {type(value).__name__!r}")
    return value


def _fill(target: Any, values: Sequence[Any]) -> None:
    """Puts key, value, key, value, ... into a dictionary."""
    if not isinstance(target, dict) or len(values) % 2:
        raise ValueError(f"its pickle puts {len(values)} keys and values into {type(target).__name__!r}")
    for key, value in zip(values[::2], values[1::2]):
        if not isinstance(key, str | int | float | None):
            raise ValueError(f"its pickle has a dictionary with a key of type {type(key).__name__!r}")
        target[key] = value


def _named(name: str) -> Any:
    """The function or dtype for a `module name` in a pickle."""
    if name not in _NAMES:
        raise ValueError(
            f"its pickle names {name.replace(' ', '.', 1)!r}, which is neither a tensor nor a plain value: such a file "
            "can run code and is not opened; export the weights alone, as torch.save(network.state_dict(), path)"
        )
    return _NAMES[name]


def _ordered_dict(items: Sequence[Sequence[Any]] = ()) -> dict[Any, Any]:
    filled: dict[Any, Any] = {}
    for key, value in items:
        _fill(filled, [key, value])
    return filled


def _size(size: Sequence[int] = ()) -> tuple[int, ...]:
    return tuple(size)


def _tensor(storage: Storage, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> LazyTensor:
    """A tensor as a view of its storage, if it lies within the storage."""
    if not isinstance(storage, Storage):
        raise ValueError(f"its pickle makes a tensor of {type(storage).__name__!r}")
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        said = [", ".join(map(shown, part)) for part in ([offset], size, stride)]
        raise ValueError("it claims a tensor of offset {}, size ({}) and stride ({})".format(*said))
    numel, last = 1, offset
    for n, step in zip(size, stride):
        numel, last = numel * n, last + (n - 1) * step
    if numel > storage.numel or (numel and last >= storage.numel):
        raise ValueError(
            f"it claims a tensor of size {tuple(size)} and stride {tuple(stride)} at offset {offset} of a storage "
            f"with {storage.numel} elements"
        )
    shape, strides = tuple(size), tuple(stride)
    return LazyTensor(shape, lambda: storage.read().as_strided(shape, strides, offset))


def _parameter(data: LazyTensor, *_: Any) -> LazyTensor:
    if not isinstance(data, LazyTensor):
        raise ValueError(f"its pickle makes a parameter of {type(data).__name__!r}")
    return data


@dataclass(frozen=True)
class _Number:
    """The type of a NumPy number, as a format of `struct`."""

    format: str


def _number_type(code: str, *_: Any) -> _Number:
    if not isinstance(code, str) or code not in _FORMATS:
        raise ValueError(f"it holds a NumPy value of type {shown(code)}: expected one of {', '.join(_FORMATS)}")
    return _Number(_FORMATS[code])


def _number(kind: _Number, data: bytes) -> Any:
    return struct.unpack(kind.format, data)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    if encoding != "latin1":
        raise ValueError(f"its pickle encodes text as {shown(encoding)}")
    return text.encode("latin1")


_FORMATS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b", "u1": "<B", "b1": "<?"}

_FUNCTIONS = (_ordered_dict, _size, _tensor, _parameter, _number_type, _number, _encode)

_NAMES: dict[str, Any] = {
    "collections OrderedDict": _ordered_dict,
    "torch Size": _size,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "numpy dtype": _number_type,
    "numpy.core.multiarray scalar": _number,
    "numpy._core.multiarray scalar": _number,
    "_codecs encode": _encode,
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
