r"""The base class of the networks of this library, which records the arguments of a network's constructor."""

from __future__ import annotations

__all__ = ["Network"]

import inspect
from typing import Any

from torch import nn

from .context import Context


class Network(nn.Module):
    """A network that a checkpoint can rebuild.

    Attributes:
        arguments: the arguments of its constructor by name, defaults included.
        context: how noise level and label enter.
    """

    arguments: dict[str, Any]
    context: Context

    def __new__(cls, *args: Any, **kwargs: Any) -> Network:
        network = super().__new__(cls)
        # Copies and unpickled networks come here without arguments, and get the attribute afterwards.
        bound = inspect.signature(cls.__init__).bind_partial(network, *args, **kwargs)
        bound.apply_defaults()
        vars(network)["arguments"] = dict(list(bound.arguments.items())[1:])
        return network

    @property
    def classes(self) -> int | None:
        """The number of classes, or None for a network without labels."""
        return self.context.classes
