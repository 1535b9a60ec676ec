"""Shared parts of the scripts: Hydra configs as trees of plain values, sweeps, errors in one line, progress."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hydra
import numpy as np
import torch
from faults import CONFIGS, line_of, line_of_composition
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from keys import check_keys
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from schema import SCHEMAS
from tqdm import tqdm
from yaml import YAMLError

from sde.runtime import keep_memory

Item = TypeVar("Item")


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


def command(name: str) -> Callable[[Callable[[dict[str, Any]], None]], Callable[..., None]]:
    """Turns a function of a config tree into a program with the Hydra config `name`.

    The config is checked before any work. An error is one line, and the exit status 1 at the end of the program: a
    sweep goes on with its next job. With a config as its argument the program runs without the command line.
    """

    def wrap(main: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
        failed: list[str] = []
        faults: list[Exception] = []  # of the program, not of the user

        @hydra.main(version_base="1.3", config_path=CONFIGS, config_name=name)
        def run(config: DictConfig) -> None:
            keep_memory()
            try:
                if not {"world", "ranks"} & config.keys() and (world := os.environ.get("WORLD_SIZE", "1")) != "1":
                    raise ValueError(f"this command runs in one process, got WORLD_SIZE={world}: start it by python")
                missing = sorted(OmegaConf.missing_keys(config))
                if missing:
                    raise ValueError(f"{missing[0]} is missing: give {missing[0]}=...")
                tree: Any = OmegaConf.to_container(config, resolve=True)
                check_keys(SCHEMAS[name], tree)
                main(tree)
            except Exception as error:
                line = line_of(error, [str(key) for key in config])
                if line is None:
                    faults.append(error)
                    raise
                job = f" (job {' '.join(HydraConfig.get().overrides.task)})" if in_sweep() else ""
                failed.append(f"error: {line}{job}")
                print(failed[-1], file=sys.stderr)
            except KeyboardInterrupt:
                sys.exit("interrupted")

        def program(config: DictConfig | None = None) -> None:
            with _errors_of_composition(name, faults):
                run(config)
            if failed:
                sys.exit(1)

        return program

    return wrap


@contextlib.contextmanager
def _errors_of_composition(name: str, faults: Sequence[Exception]) -> Iterator[None]:
    """Ends the program with one line if the command line does not make a config."""
    if "HYDRA_FULL_ERROR" in os.environ:
        yield
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors only then
    try:
        yield
    except Exception as error:
        if error in faults:
            raise
        sys.exit(f"error: {line_of_composition(error, name, [a for a in sys.argv[1:] if not a.startswith('-')])}")
    finally:
        del os.environ["HYDRA_FULL_ERROR"]


def in_sweep() -> bool:
    """Whether this is one of the jobs of `-m`."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def variant(*without: str) -> str:
    """The keys that the command sets, as the end of a file name: `-n_5-solver.steps_2`.

    Characters that Hydra or a shell would want quoted are replaced by underscores, and long names end in a digest.

    Args:
        without: keys that are left out; one that ends in a dot stands for all keys below it.
    """
    keys = overridden()
    below = tuple(key for key in without if key.endswith("."))
    texts = [text for key, text in sorted(keys.items()) if key not in without and not key.startswith(below)]
    name = "".join("-" + re.sub(r"[^\w.+-]+", "_", text).strip("_") for text in texts)
    return name if len(name) <= 150 else f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def overridden() -> dict[str, str]:
    """The overrides of the command by their keys, `KEY=VALUE`."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return {(text := word.lstrip("+~")).partition("=")[0]: text for word in words}


def named_by(chosen: object, group: str) -> tuple[str, ...]:
    """The key of a config group, for :func:`variant`, if the class of the chosen object tells the option: the option
    has its name, or no other one has this class."""
    options = {path.stem: path.read_text() for path in (Path(CONFIGS) / group).glob("*.yaml")}
    targets = {name: re.findall(r"^_target_: (\S+)", text, re.MULTILINE)[:1] for name, text in options.items()}
    option = overridden().get(group, "").partition("=")[2]
    named = option.replace("_", "") == type(chosen).__name__.lower()
    alone = option in targets and list(targets.values()).count(targets[option]) == 1
    return (group,) if named or alone else ()


def swept(*without: str) -> str:
    """:func:`variant` in the jobs of a sweep, so that each has files of its own; empty for a single job."""
    return f"{variant(*without)}{swept_checkpoint()}" if in_sweep() else ""


def swept_checkpoint() -> str:
    """The name of the checkpoint in the jobs of a sweep over the files of one run; empty for run directories."""
    path = Path(overridden().get("ckpt", "").partition("=")[2])
    return f"-{path.stem}" if in_sweep() and path.suffix else ""


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
    if os.environ.get("RANK", "0") != "0":
        return tqdm(total=total, initial=done, disable=True)
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


def conditions(model: Any, config: dict[str, Any], n: int, first: int = 0) -> dict[str, Any]:
    """The condition of n samples by the keys `label`, `embedding`, `prompt`, `image` (:meth:`sde.Model.condition`)."""
    values = {key: config[key] for key in ("label", "embedding", "prompt", "image")}
    if values["image"] is not None:
        try:
            values["image"] = image_of(Path(values["image"]))
        except (ValueError, OSError) as error:
            raise ValueError(f"image: {error}") from error
    return dict(model.condition(n, first=first, **values))


def image_of(path: Path) -> Any:
    """The image condition in a file: the array of an `.npy` file, or a picture with its pixels in [-1, 1], channels
    first, as :func:`sde.data.images` gives it."""
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB" if picture.mode not in ("1", "L", "I;16") else "L"), np.float32)
    values = torch.from_numpy((pixels + 0.5) / 128.0 - 1.0)
    return values[None] if values.ndim == 2 else values.movedim(2, 0)


def show(states: Generator[Any, None, None], unit: str) -> None:
    """Runs a job (:meth:`sde.evaluation.job.Job.run`) with a progress bar that shows the means so far."""
    with contextlib.closing(states), bar(None, unit=unit) as shown:
        for state in states:
            if shown.total is None:
                shown.total, shown.initial, shown.n = state.total, state.rows, state.rows
            shown.set_postfix_str(state.means, refresh=False)
            shown.update(state.rows - shown.n)


@contextlib.contextmanager
def track(what: str) -> Iterator[Callable[[float], object]]:
    """A function that shows the fraction of some work that is done, by a :func:`bar` from its first call."""
    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def show_done(done: float) -> None:
            if not bars:
                bars.append(stack.enter_context(bar(100, unit=f"{what} part")))
            bars[0].update(round(100 * done) - bars[0].n)

        yield show_done


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
