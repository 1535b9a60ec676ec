"""Settings of a run: which may change when it is continued, and what a config without some of them means."""

from __future__ import annotations

__all__ = ["DEFAULTS", "RESUMABLE_KEYS", "differences", "rehearsing"]

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..instantiate import public
from ..instantiate.annotations import shown

# The keys of the config that may change when a run is continued.
RESUMABLE_KEYS: tuple[str, ...] = (
    *("steps", "device", "run_dir", "log_every", "save_every", "validate_every", "keep", "trust", "preview"),
    *("ranks", "max_skipped", "requeue_status", "levels", "sample_every", "score_every", "score_n", "loggers"),
    *("workers", "unreadable", "evaluate_every", "evaluate"),
)

# What a config without these keys means, such as that of a run of an earlier version.
DEFAULTS: dict[str, Any] = {
    "decay": {"_target_": "sde.training.Constant"},
    "accumulate": 1,
    "workers": 0,
    "unreadable": 0,
    "max_skipped": 0,
    "execution": {
        "_target_": "sde.training.Execution",
        "autocast": None,
        "compile": None,
        "channels_last": False,
        "checkpointing": False,
    },
    "ranks": {"_target_": "sde.training.DDP"},
    "posthoc": [],
    "posthoc_every": 1000,
    "levels": 0,
    "score_every": None,
    "score_n": 32,
    "loggers": {},
    "augmentation": None,
}


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, free: Sequence[str] = RESUMABLE_KEYS
) -> Iterator[str]:
    """Yields a line for each dotted key in which two configs differ, except for the free keys.

    Two names of one class, such as that of version 0.1.0 and the present one, are equal.
    """
    whole = ({**DEFAULTS, **config} for config in (old, new))
    a, b = (dict(_flat(public({k: v for k, v in config.items() if k not in free}))) for config in whole)
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            yield f"{key} was {shown(a.get(key))} and is now {shown(b.get(key))}"


@contextlib.contextmanager
def rehearsing(key: str) -> Iterator[None]:
    """Within it, what a training does later only is tried before its first step: any error is a ValueError that begins
    with the key of the config."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{key}: {error or type(error).__name__}") from error


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.loads(json.dumps(tree))
