r"""Names of weights without the prefixes that the wrappers of a module leave in its state dict.

Data-parallel modules and `torch.optim.swa_utils.AveragedModel` put `module.` before all names of what they wrap,
`torch.compile` puts `_orig_mod.`, FSDP `_fsdp_wrapped_module.`, and activation checkpointing
`_checkpoint_wrapped_module.`. Wrappers occur together, and around a part of a module.
"""

from __future__ import annotations

__all__ = ["fitted", "unwrapped"]

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..networks.network import WRAPPED

Value = TypeVar("Value")

# An ordinary module may have a part of the name `module`, too.
_MODULE, _COUNTER = "module", "n_averaged"  # AveragedModel has a counter beside its module
_PARTS = 2**17  # of all names together, more than any module has; it bounds the memory that names in a file can take


def unwrapped(state: Mapping[str, Value]) -> dict[str, Value]:
    """The entries of a state dict by their names without wrappers, in the same order.

    `module` is a wrapper where every name with the same beginning continues with it. If two names would become one, or
    if there are more names than a module has, all of them are left as they are.
    """
    if sum(name.count(".") + 1 for name in state) > _PARTS:
        return dict(state)
    paths = {name: [*(p for p in name.split(".")[:-1] if p not in WRAPPED), name.split(".")[-1]] for name in state}
    tree: dict[str, Any] = {}
    for path in paths.values():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
    plain: dict[str, Value] = {}
    counters = 0
    for name, path in paths.items():
        node, parts, wraps = tree, [], False
        for part in path:
            wraps = bool(node.get(_MODULE)) and node.keys() <= {_MODULE, _COUNTER}
            if not wraps or part != _MODULE:
                parts.append(part)
            node = node[part]
        if wraps and path[-1] == _COUNTER:
            counters += 1
        else:
            plain[".".join(parts)] = state[name]
    return plain if len(plain) + counters == len(state) else dict(state)


def fitted(names: Iterable[str], weights: Mapping[str, Value]) -> dict[str, Value]:
    """The weights by the names of a module that agree with theirs without wrappers; other names lose the wrappers.

    Args:
        names: the names of the weights of a module, which may be wrapped or contain wrappers itself.
        weights: the weights by name.
    """
    expected = {name: name for name in names}
    if expected.keys() == weights.keys():
        return dict(weights)
    theirs = unwrapped(expected)
    return {theirs.get(name, name): value for name, value in unwrapped(weights).items()}
