r"""The base class of the networks of this library, which records the arguments of a network's constructor, and the
networks inside of torch's wrappers."""

from __future__ import annotations

__all__ = ["WRAPPED", "Network", "inside", "network_in"]

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .conditions import Conditions, Taken
from .context import Context

# The attributes in which `torch.compile`, FSDP and activation checkpointing keep the module that they wrap.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Network(nn.Module):
    """A network that a checkpoint can rebuild.

    Attributes:
        arguments: the arguments of its constructor by name, defaults included.
        context: how noise level, label and embedding enter.
        conditions: the sizes of the other conditions.
    """

    arguments: dict[str, Any]
    context: Context
    conditions: Conditions = Conditions()

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

    @property
    def takes(self) -> dict[str, Taken]:
        """The conditions that the network takes, by name."""
        sizes, takes = self.conditions, dict[str, Taken]()
        if self.classes is not None:
            takes["label"] = Taken(classes=self.classes, null=self.context.null_class)
        if self.context.augment is not None:
            takes["augment"] = Taken((self.context.augment.in_features,))
        if sizes.embedding is not None:
            takes["embedding"] = Taken((sizes.embedding,))
        if sizes.tokens is not None:
            takes |= {"tokens": Taken((None, sizes.tokens)), "tokens_mask": Taken((None,))}
        if sizes.image is not None:
            takes["image"] = Taken((sizes.image, *(None,) * self.arguments.get("rank", 0)))
        return takes


def inside(module: nn.Module) -> nn.Module:
    """The module inside of all wrappers around it; parts of it may be wrapped all the same."""
    wrapped = next((module._modules[name] for name in WRAPPED if name in module._modules), None)
    if isinstance(module, nn.DataParallel | DistributedDataParallel | AveragedModel):
        wrapped = module.module
    return module if wrapped is None else inside(wrapped)


def network_in(module: nn.Module) -> Network | None:
    """The network of this library inside of all wrappers, or None for a module of another kind."""
    network = inside(module)
    return network if isinstance(network, Network) else None
