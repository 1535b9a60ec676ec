"""Errors that users meet, as one line that names the key: mistakes of the command line, of files, of the machine."""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from sde.instantiate.annotations import nearest

# Absolute, because Hydra looks beside the module that defines the function, not beside the script.
CONFIGS = str(Path(__file__).resolve().parents[1] / "configs")

# Keys that users ask for and that only some scripts have.
NOT_YET = {"label": "sample.py and edit.py take it; for other work, methods in Python take condition="}

# Values of Python in advice such as `test=None`.
_PYTHON = re.compile(r"(?<=\w=)(None|True|False)\b")

# The part of another group from which a key takes its value.
_SOURCE = re.compile(r"Interpolation key '([^.']+)\.([^']+)'")

# What the allocators of torch say where they raise a plain RuntimeError.
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory")


def line_of(error: Exception, keys: Collection[str] = ()) -> str | None:
    """The line for the user about an error, or None for a fault of the program, whose traceback is needed.

    Args:
        error: the error.
        keys: the keys of the script.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        smaller = " or ".join(f"{key}=" for key in ("batch_size", "n", "draws") if key in keys)
        return f"out of memory{f': give a smaller {smaller}' if smaller else ''}; {text[:200]}"
    if isinstance(error, InterpolationKeyError) and (source := _SOURCE.match(text)):
        return _line_of_lacking(str(error.full_key), *source.groups())
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:  # as the system says it
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and "out" in keys
        text = f"{error.filename}: {error.strerror}{'; give another out=' if denied else ''}"
    # The library speaks Python.
    text = _PYTHON.sub(lambda value: {"None": "null"}.get(value[0], value[0].lower()), text)
    return text if isinstance(error, (ValueError, ArithmeticError, OSError, HydraException)) else None


def _line_of_lacking(key: str, group: str, part: str) -> str:
    """The line about a key whose value is that of a part that the chosen option of a group does not have."""
    options = sorted((Path(CONFIGS) / group).glob("*.yaml"))
    having = [p.stem for p in options if OmegaConf.select(OmegaConf.load(p), part, throw_on_missing=False) is not None]
    chosen = key.partition(".")[0]
    return (
        f"{key} is that of {group}.{part}, which the chosen {group} does not have: expected {group}="
        f"{' or '.join(having)}, or another {chosen}="
    )


def line_of_composition(error: Exception, config: str, overrides: Sequence[str]) -> str:
    """The line about overrides from which Hydra cannot compose a config.

    Args:
        error: the error of Hydra.
        config: the name of the config.
        overrides: the overrides of the command line.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        quoted = "a value with =, commas or spaces is given in quotes within quotes: 'key=\"a=b, c\"'"
        return f"{error.override} is not KEY=VALUE: {text.partition(' See https')[0]}; {quoted}"
    if key := re.match(r"Could not override '([^']+)'", text):
        known = list(_dotted(_composed(config, [o for o in overrides if _is_group(o)])))
        same = [name for name in known if name.count(".") == key[1].count(".")]
        return unknown_key(key[1], same)
    if match := re.search(r"Could not find '([^']+)/([^'/]+)' Available", text):
        names = sorted(path.stem for path in (Path(CONFIGS) / match[1]).glob("*.yaml"))
        return f"{match[1]}={match[2]}: expected one of {', '.join(names)}{nearest(match[2], names)}"
    if swept := re.match(r"Ambiguous value for argument '(.+?)' 1\.", text):
        return (
            f"{swept[1]}: values with commas are those of a sweep, which -m runs; one value with commas is given "
            "in quotes within quotes: 'key=\"a,b\"'"
        )
    guilty = next((o for i, o in enumerate(overrides) if _composed(config, [*overrides[:i], *overrides[i + 1 :]])), "")
    return f"{guilty}: {text}".removeprefix(": ")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The line about a key that the script does not read.

    Args:
        key: the dotted key.
        known: the dotted keys that may have been meant.
    """
    advice = f"; {NOT_YET[key]}" if key in NOT_YET else nearest(key, known)
    return f"{key} is not a key of this script{advice}; --help lists the keys"


def option(group: str, entry: str) -> tuple[str, list[str]]:
    """The option of a config group that a text names, and the keys after it: `heun steps=3`.

    Raises:
        ValueError: if the group has no such option.
    """
    name, *keys = entry.split() or [""]
    names = sorted(path.stem for path in (Path(CONFIGS) / group).glob("*.yaml"))
    if name not in names:
        raise ValueError(f"{name!r} is not known: expected {', '.join(names)}{nearest(name, names)}")
    return name, keys


def _is_group(override: str) -> bool:
    return (Path(CONFIGS) / override.lstrip("+~").partition("=")[0].partition("@")[0]).is_dir()


def _composed(config: str, overrides: Sequence[str]) -> Any:
    """The tree of a config, or None if Hydra cannot compose it."""
    try:
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            return OmegaConf.to_container(compose(config, [*overrides]))
    except Exception:  # Hydra raises exceptions of every kind
        return None


def _dotted(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield f"{prefix}{key}"
        yield from _dotted(value, f"{prefix}{key}.")
