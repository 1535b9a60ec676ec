"""Measures solvers against each other: `python scripts/compare.py`; `--help` lists the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from command import CONFIGS, command, progress
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from sde.comparison import Settings, Table, compare, open_problem, plan, write_report
from sde.runtime import choose_device


def listed(value: Any) -> list[Any]:
    """A list as it is, one value as a list of it, and null as an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def leaf(group: str, entry: Any) -> dict[str, Any]:
    """The tree of one name of a config group, with the keys that follow it, as in `heun steps=3`."""
    name, *keys = str(entry).split() or [""]
    known = sorted(path.stem for path in (Path(CONFIGS) / group).glob("*.yaml"))
    if name not in known:
        raise ValueError(f"{group} {name!r} is not known: expected {', '.join(known)}")
    try:
        overrides = [f"+{group}={name}", *(f"{group}.{key}" for key in keys)]
        return OmegaConf.to_container(compose("compare", overrides)[group], resolve=True)  # type: ignore[return-value]
    except HydraException as error:
        raise ValueError(f"{group} {entry!r}: {str(error).splitlines()[0]}") from error


@command("compare")
def main(config: dict[str, Any]) -> None:
    keys, trust = ("n", "draws", "seed", "repeats", "tolerance", "directions"), config["trust"]
    device = choose_device(config["device"])
    # A checkpoint brings its own process; the default is none that was asked for.
    chosen = any(override.startswith("sde") for override in HydraConfig.get().overrides.task)
    process = config["sde"] if chosen or config["ckpt"] is None else None
    problem, name, identity = open_problem(
        config["target"], config["ckpt"], process, ema=config["ema"], device=device, trust=trust
    )
    settings = Settings(**{key: config[key] for key in keys})
    axes: dict[str, Any] = {key: listed(config[key]) for key in ("calls", "tolerances")}
    axes["grids"] = {grid: leaf("grid", grid) for grid in listed(config["grids"])}
    trees = {solver: leaf("solver", solver) for solver in listed(config["solvers"])}
    cells = [c for solver, tree in trees.items() for c in plan(solver, tree, problem.process, **axes, trust=trust)]
    if not cells:
        raise ValueError("there is nothing to compare: give solvers=[...], and calls=[...] or tolerances=[...]")
    identity |= {key: config[key] for key in keys}
    with Table.open(config["out"], name, identity) as table:
        rows = []
        for row, bar in progress(compare(problem, cells, settings, table.rows), len(cells), unit="cell"):
            table.add(row)
            rows.append(row)
            bar.set_postfix_str(f"{row.solver} {row.grid}", refresh=False)
    title = f"{name}: {settings.n} samples a run, {settings.draws} for distributions. Truth: {problem.truth}."
    print(write_report(rows, table.path.parent, title))


if __name__ == "__main__":
    main()
