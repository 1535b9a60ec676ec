r"""Shapes and precision: broadcasting functions of time over data.

Data has shape (B, *): B samples and any event shape. Time has shape () or (B,). A function of time is evaluated in the
dtype of the time, and only its result is cast to the dtype of the data. So a schedule computed in float64 stays
accurate, and a float64 time never promotes a float32 state.

Autograd does not record what was made under `torch.inference_mode()`. Tensors are then copied, and modules refused.

Numbers in half precision are for networks: states, times, noise and densities are computed in float32 at least, and
rounded once where a result in half precision is asked for.
"""

from __future__ import annotations

__all__ = [
    "as_tensor",
    "check_callable",
    "check_condition",
    "check_count",
    "check_event",
    "check_kind",
    "check_recordable",
    "described",
    "event_dims",
    "expand",
    "float64",
    "named_tensors",
    "numbers_of",
    "recordable",
    "recording",
    "sum_event",
    "working",
    "working_dtype",
]

import contextlib
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def expand(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape () or (B,), reshaped to broadcast against `x` (B, *), in its dtype and on its device."""
    if values.ndim and values.shape != x.shape[:1]:
        raise ValueError(
            f"expected a scalar or one time per sample, of shape () or ({x.shape[0]},), "
            f"got {tuple(values.shape)} for data of shape {tuple(x.shape)}"
        )
    values = values.to(device=x.device, dtype=x.dtype)
    return values.reshape(-1, *(1,) * (x.ndim - 1)) if values.ndim else values


def sum_event(x: Tensor) -> Tensor:
    """The sum over the event dimensions: (B, *) -> (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def event_dims(x: Tensor) -> int:
    """The number of dimensions D of one sample of `x` (B, *)."""
    return math.prod(x.shape[1:])


def as_tensor(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of numbers or of an array, on the CPU whatever torch's default device; a tensor stays on its own."""
    return torch.as_tensor(value, dtype=dtype, device=value.device if isinstance(value, Tensor) else "cpu")


def numbers_of(name: str, value: Any) -> Tensor:
    """Numbers that users give, as a tensor: a tensor as it is, an array of any byte order or stride, or a list.

    Args:
        name: what they are, for the error.
        value: the numbers.

    Raises:
        ValueError: if they are none.
    """
    try:
        if isinstance(value, np.ndarray):
            wide = value.dtype.kind == "u" and value.dtype.itemsize > 1  # torch has no arithmetic for these
            value = np.require(value, np.int64 if wide else value.dtype.newbyteorder("="), ["C", "W"])
        return as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected {name} to be numbers, in a tensor or an array, got {described(value)}") from error


def described(value: Any) -> str:
    """A value in an error message: plain ones themselves, of anything else the class, and the shape if any."""
    if value is None or isinstance(value, bool | numbers.Number | str | list | tuple):
        return repr(value)[:80]
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else ""
    return f"a {type(value).__name__}{shape}"


def float64(value: Tensor | float | Sequence[float]) -> Tensor:
    """Times, and numbers that depend on time alone, as a tensor for computations in float64."""
    return as_tensor(value, torch.float64)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which results of a dtype are computed: float32 for half precision, else itself."""
    return torch.promote_types(dtype, torch.float32)


def working(x: Tensor) -> Tensor:
    """`x` in its working dtype."""
    return x.to(working_dtype(x.dtype))


def recordable(x: Tensor) -> Tensor:
    """`x`, or a copy of it that autograd can record if it was made under `torch.inference_mode()`."""
    return x.clone() if x.is_inference() else x


def named_tensors(condition: Any) -> dict[str, Tensor]:
    """Named conditions as tensors; None is none of them.

    Raises:
        ValueError: if they are no mapping of names to numbers.
    """
    if condition is None:
        return {}
    if not isinstance(condition, Mapping):
        raise ValueError(
            "expected condition to be named tensors, such as {'label': y} of class labels y, got "
            f"{described(condition)}: give it with its name"
        )
    return {str(name): recordable(numbers_of(f"condition {name!r}", value)) for name, value in condition.items()}


def check_kind(argument: str, value: Any, kind: type, example: str) -> None:
    """Refuses an argument that is no object of a class."""
    if not isinstance(value, kind):
        raise ValueError(
            f"expected {argument} to be of the class {kind.__name__}, such as {example}, got {described(value)}"
        )


def check_callable(**arguments: Any) -> None:
    """Refuses an argument that is neither None nor a function."""
    for name, value in arguments.items():
        if value is not None and not callable(value):
            raise ValueError(
                f"expected {name} to be a function, such as print or the append of a list, got {described(value)}"
            )


def check_recordable(module: nn.Module, purpose: str, what: str = "denoiser") -> None:
    """Refuses a module with weights that autograd cannot record.

    Args:
        module: the module.
        purpose: what it is needed for, for the error.
        what: what it is, for the error.
    """
    if any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(
            f"this {what} was made under torch.inference_mode(), and {purpose}: make it outside of inference mode, or "
            f"take a copy, copy.deepcopy({what})"
        )


@contextlib.contextmanager
def recording(differentiable: bool) -> Iterator[None]:
    """Gradients on or off inside the context, and never inference mode, whose tensors autograd refuses later."""
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        yield


def check_event(x: Tensor, shape: tuple[int, ...], owner: str = "this model") -> None:
    """Refuses a batch of another event shape than `shape`."""
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{owner} is for data of shape (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def check_count(owner: str, argument: str, value: int, minimum: int = 1) -> None:
    """Refuses a value that is not a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{owner} needs a whole number {argument} >= {minimum}, got {argument}={value!r}")


def check_condition(condition: Mapping[str, Tensor], size: int) -> None:
    """Raises a ValueError that names the first condition that is neither a scalar nor of leading size `size`."""
    for name, value in condition.items():
        if value.ndim and len(value) != size:
            raise ValueError(
                f"condition {name!r}: expected a scalar or leading size {size}, one entry per sample, got shape "
                f"{tuple(value.shape)}"
            )
