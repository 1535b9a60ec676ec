r"""The base class of the networks of this library, which records the arguments of a network's constructor."""

from __future__ import annotations

__all__ = ["Network"]

import inspect
from typing import Any

from torch import nn


class Network(nn.Module):
    """A network that a checkpoint can rebuild.

    Attributes:
        arguments: the arguments of its constructor by name, defaults included.
    """

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Network:
        network = super().__new__(cls)
        # Copies and unpickled networks come here without arguments, and get the attribute afterwards.
        bound = inspect.signature(cls.__init__).bind_partial(network, *args, **kwargs)
        bound.apply_defaults()
        vars(network)["arguments"] = dict(list(bound.arguments.items())[1:])
        return network
