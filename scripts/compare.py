"""Compares solvers with each other: `python scripts/compare.py`; `--help` lists the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from command import command, progress, track
from faults import option
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from sde.comparison import (
    DesignPilot,
    Settings,
    Table,
    compare,
    compare_posteriors,
    open_problem,
    plan,
    plan_designs,
    posterior_report,
    posterior_ways,
    write_report,
)
from sde.instantiate import check
from sde.runtime import choose_device


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, an empty list for null, else a list of the value."""
    return value if isinstance(value, list) else [] if value is None else [value]


def leaf(group: str, entry: str, trust: Any = ()) -> dict[str, Any]:
    """The tree of an entry of `solvers` or `grids`, an option of a config group that keys may follow."""
    name, keys = option(group, entry)
    try:
        overrides = [f"+{group}={name}", *(f"{group}.{key}" for key in keys)]
        tree: Any = OmegaConf.to_container(compose("compare", overrides)[group], resolve=True)
    except HydraException as error:
        raise ValueError(f"{group}s: {entry!r}: {str(error).splitlines()[0]}") from error
    check(tree, f"{group}s.{name}", trust=trust)
    return dict(tree)


def posteriors(config: dict[str, Any]) -> None:
    """Compares posterior samplers on measurements of mixtures."""
    settings = {key: config[key] for key in ("problems", "noises", "draws", "seed")}
    folder = Path(config["out"] or f"runs/compare/posterior-{settings['draws']}-seed{settings['seed']}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "posterior.h5"
    states = compare_posteriors(path, posterior_ways(), **settings)
    _, total = next(states)
    for _ in progress(states, total, unit="row"):
        pass
    print(posterior_report(path))


@command("compare")
def main(config: dict[str, Any]) -> None:
    if config["target"] == "posterior":
        posteriors(config)
        return
    keys, trust = ("n", "draws", "seed", "repeats", "tolerance", "directions"), config["trust"]
    device = choose_device(config["device"])
    # A checkpoint has its own process, which only an explicit override replaces, not the default of the config.
    override = any(key.startswith("sde") for key in HydraConfig.get().overrides.task)
    process = config["sde"] if override or config["ckpt"] is None else None
    settings = Settings(**{key: config[key] for key in keys})
    axes: dict[str, Any] = {key: as_list(config[key]) for key in ("calls", "tolerances")}
    axes["grids"] = {grid: leaf("grid", grid, trust) for grid in as_list(config["grids"])}
    trees = {solver: leaf("solver", solver, trust) for solver in as_list(config["solvers"])}
    problem, name, identity = open_problem(
        config["target"], config["ckpt"], process, ema=config["ema"], device=device, trust=trust
    )
    experiments = [e for name, tree in trees.items() for e in plan(name, tree, problem.process, **axes, trust=trust)]
    if config["design"]:
        pilot = DesignPilot(config["pilot"], config["seconds"], config["seed"])
        experiments += plan_designs(axes["calls"], pilot)
    if not experiments:
        raise ValueError(
            "expected something to compare: set solvers=[...] or design=true, and calls=[...] or tolerances=[...]"
        )
    identity |= {key: config[key] for key in keys}
    with Table.open(config["out"], name, identity) as table:
        rows = []
        with track("exact results") as exact:
            results = compare(problem, experiments, settings, table.rows, progress=exact)
            for row, bar in progress(results, len(experiments), unit="experiment"):
                table.add(row)
                rows.append(row)
                bar.set_postfix_str(f"{row.solver} {row.grid}", refresh=False)
    title = f"{name}: {settings.n} samples per run, {settings.draws} for distributions. Exact results: {problem.truth}."
    print(write_report(rows, table.path.parent, title))


if __name__ == "__main__":
    main()
