"""Shared parts of the scripts: Hydra configs as trees of plain values, errors in one line, progress bars."""

from __future__ import annotations

import contextlib
import sys
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


def progress(items: Iterable[Item], total: int, done: int = 0, unit: str = "step") -> Iterator[tuple[Item, Any]]:
    """The items, each with the progress bar, which is off unless the error stream is a terminal."""
    with tqdm(total=total, initial=done, unit=unit, disable=None, dynamic_ncols=True) as bar:
        for item in items:
            yield item, bar
            bar.update()


def show(states: Generator[Any, None, None], unit: str) -> None:
    """Runs a job (:meth:`sde.evaluation.job.Job.run`) with a progress bar that shows the means so far."""
    with contextlib.closing(states), tqdm(unit=unit, disable=None, dynamic_ncols=True) as bar:
        for state in states:
            if bar.total is None:
                bar.total, bar.initial, bar.n = state.total, state.rows, state.rows
            bar.set_postfix_str(state.means, refresh=False)
            bar.update(state.rows - bar.n)


@contextlib.contextmanager
def track(what: str) -> Iterator[Callable[[float], object]]:
    """A function that shows the fraction of one piece of work that is done, with a progress bar if it takes long."""
    with tqdm(total=100, desc=what, unit="%", disable=None, dynamic_ncols=True, leave=False, delay=1.0) as bar:
        yield lambda done: bar.update(round(100 * done) - bar.n)


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
