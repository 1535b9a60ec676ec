"""Shared parts of the scripts: Hydra configs as trees of plain values, errors in one line, progress bars or lines."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm
from yaml import YAMLError

from sde.runtime import keep_memory

Item = TypeVar("Item")

# Absolute, because Hydra looks beside the module that defines the function, not beside the script.
CONFIGS = str(Path(__file__).resolve().parents[1] / "configs")

# The seconds between two lines of progress where there is no terminal.
EVERY = 30.0


def options(*keys: str) -> str:
    """The options of config groups for the help of a script, a paragraph for each group: `data, data@ood: ...`."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.partition("@")[0], []).append(key)
    names = {group: sorted(path.stem for path in (Path(CONFIGS) / group).glob("*.yaml")) for group in groups}
    texts = (f"{', '.join(keys)}: {', '.join(names[group])}" for group, keys in groups.items())
    return "\n".join(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="      ") for text in texts)


OmegaConf.register_new_resolver("options", options, replace=True)


def command(name: str) -> Callable[[Callable[[dict[str, Any]], None]], Callable[[], None]]:
    """Turns a function of a config tree into a program with the Hydra config `name`."""

    def wrap(main: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=CONFIGS, config_name=name)
        def run(config: DictConfig) -> None:
            keep_memory()
            try:
                missing = sorted(OmegaConf.missing_keys(config))
                if missing:
                    raise ValueError(f"{missing[0]} is missing: give {missing[0]}=...")
                tree = OmegaConf.to_container(config, resolve=True)
                assert isinstance(tree, dict)
                main({str(key): value for key, value in tree.items()})
            except (ValueError, ArithmeticError, OSError, OmegaConfBaseException) as error:
                message = str(error)
                sys.exit(f"error: {message.splitlines()[0] if isinstance(error, OmegaConfBaseException) else message}")
            except KeyboardInterrupt:
                sys.exit("interrupted")

        return run

    return wrap


class Lines:
    """The stream of a bar without a terminal: what a bar would show is a plain line of the standard output."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, flush=True)

    def flush(self) -> None:
        """Lines are flushed as they are written."""


def bar(total: float | None, done: int = 0, unit: str = "step", every: float | None = None) -> Any:
    """A progress bar on the error stream, or plain lines of the standard output if that is no terminal.

    Args:
        total: the number of units, None if it is not known yet.
        done: those that were done before.
        unit: what is counted.
        every: the seconds between two lines, :data:`EVERY` by default; `refresh` writes one at once.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True)
    every = EVERY if every is None else every
    form = f"{{n_fmt}} of {{total_fmt}} {unit}s, {{elapsed}} elapsed, {{remaining}} left{{postfix}}"
    lines: Any = {"file": Lines(), "bar_format": form, "mininterval": every, "delay": every, "miniters": 1}
    return tqdm(total=total, initial=done, leave=False, **lines)


def progress(
    items: Iterable[Item], total: int, done: int = 0, unit: str = "step", every: float | None = None
) -> Iterator[tuple[Item, Any]]:
    """The items, each with the :func:`bar`, which counts it already."""
    with bar(total, done, unit, every) as shown:
        for item in items:
            shown.update()
            yield item, shown


def draw(model: Any, n: int, **settings: Any) -> Any:
    """Samples of a model (:meth:`sde.Model.sample`) with a progress bar."""
    with bar(n, unit="sample") as shown:
        return model.sample(n, progress=lambda done: shown.update(round(done * n) - shown.n), **settings)


def show(states: Generator[Any, None, None], unit: str) -> None:
    """Runs a job (:meth:`sde.evaluation.job.Job.run`) with a progress bar that shows the means so far."""
    with contextlib.closing(states), bar(None, unit=unit) as shown:
        for state in states:
            if shown.total is None:
                shown.total, shown.initial, shown.n = state.total, state.rows, state.rows
            shown.set_postfix_str(state.means, refresh=False)
            shown.update(state.rows - shown.n)


def read_yaml(path: Path) -> dict[str, Any] | None:
    """The tree of plain values in a YAML file, or None if there is no file."""
    if not path.exists():
        return None
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {str(error).splitlines()[0]}") from error
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def to_yaml(tree: dict[str, Any]) -> str:
    """A tree of plain values as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(tree))
