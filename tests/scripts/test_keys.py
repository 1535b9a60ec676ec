"""Every key of every script is checked before any work: one line that names it, exit status 1, nothing written."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from support.commands import SCRIPTS, Result, process, refused

CONFIGS = SCRIPTS.parent / "configs"

# The files that are there.
FILES = ["file.png", "file.txt", "set.h5"]

# The config of each script, with what a command has to give.
COMMANDS = {
    "augment": ("augment", ["ckpt=file.txt"]),
    "bounds": ("bounds", ["ckpt=file.txt"]),
    "compare": ("compare", []),
    "convert": ("convert", ["source=file.txt"]),
    "demo": ("demo", ["run_dir=.", "samples=file.png"]),
    "dequantise": ("dequantiser_training", ["ckpt=file.txt"]),
    "diagnose": ("diagnose", ["ckpt=file.txt"]),
    "edit": ("edit", ["ckpt=file.txt"]),
    "evaluate": ("evaluate", ["samples=set.h5"]),
    "feature_classifier": ("feature_classifier", []),
    "likelihood": ("likelihood", ["ckpt=file.txt"]),
    "noise_classifier": ("noise_classifier", ["ckpt=file.txt"]),
    "paired": ("paired", ["first=file.txt", "second=file.txt"]),
    "restore": ("restore", ["ckpt=file.txt"]),
    "sample": ("sample", ["ckpt=file.txt"]),
    "train": ("train", ["run_dir=run"]),
    "translate": ("translate", ["source=file.txt", "target=file.txt"]),
}

# What `out` may end in: a picture, an HDF5 file of results, a file of weights. That of `compare.py` is a directory.
OUT = {
    **dict.fromkeys(("diagnose", "edit", "sample", "translate"), ".png"),
    **dict.fromkeys(("augment", "bounds", "evaluate", "likelihood", "restore"), ".h5 or .hdf5"),
    **dict.fromkeys(("convert", "dequantise", "feature_classifier", "noise_classifier"), ".pt"),
}

# The keys that are paths of what is read.
READ = {
    **dict.fromkeys(("augment", "bounds", "dequantise", "diagnose", "noise_classifier", "restore"), "ckpt"),
    "compare": "ckpt target",
    "convert": "source settings",
    "demo": "run_dir samples",
    "edit": "ckpt image",
    "evaluate": "samples restored reference",
    "likelihood": "ckpt ood",
    "paired": "first second",
    "sample": "ckpt image",
    "translate": "source target",
}

# The scripts that take conditions, and those whose config names no packages to trust.
CONDITIONAL = ("edit", "sample")
PLAIN = ("convert", "demo", "paired")

# The kinds of keys: their wrong values, and the keys of each script.
KINDS: list[tuple[str, dict[str, str]]] = [
    (
        "abc 1.5 null 0",
        {
            "bounds": "repeats batch_size draws data_draws chain_draws world",
            "compare": "n draws repeats directions problems pilot",
            "demo": "components",
            "dequantise": "steps batch_size layers width",
            "diagnose": "n",
            "evaluate": "groups batch_size world",
            "feature_classifier": "steps batch_size width n_features",
            "noise_classifier": "steps batch_size width depth",
            "likelihood": "repeats batch_size world",
            "restore": "repeats batch_size pilot world",
            "sample": "n batch_size",
            "augment": "per_class batch_size",
            "edit": "n",
            "translate": "n",
            "train": "steps batch_size log_every validate_every save_every accumulate score_n posthoc_every",
        },
    ),
    ("1 null", {"diagnose": "times"}),
    (
        "abc null -1",
        {
            "bounds": "rank",
            "evaluate": "permutations rank",
            "likelihood": "budget rank",
            "restore": "rank shown polish",
            "train": "warmup workers unreadable preview.n max_skipped levels",
        }
        | dict.fromkeys(("edit", "sample", "translate"), "first"),
    ),
    (
        "1.5 0 None",
        {
            "bounds": "n steps",
            "dequantise": "n",
            "evaluate": "n levels",
            "likelihood": "n pilot",
            "restore": "n",
            "sample": "pilot design",
            "train": "keep score_every sample_every evaluate_every",
        },
    ),
    (
        "null abc 9223372036854775808",
        dict.fromkeys([name for name in COMMANDS if name not in (*PLAIN, "translate")], "seed"),
    ),
    ("null 0.5", {"train": "preview.seed"}),
    ("abc 1.5 -0.1", {"train": "condition_dropout"}),
    ("abc 1.5", dict.fromkeys(CONDITIONAL, "label")),
    ("abc 1.5 [a]", dict.fromkeys(CONDITIONAL, "embedding")),
    ("1.5 true [1]", dict.fromkeys(CONDITIONAL, "prompt")),
    ("1.5 [1]", dict.fromkeys(CONDITIONAL, "image")),
    (
        "fast null nan 0",
        {"compare": "tolerance", "train": "clip"}
        | dict.fromkeys(("dequantise", "feature_classifier", "noise_classifier"), "lr"),
    ),
    ("null 1 -0.1", {"noise_classifier": "dropout", "train": "ema"}),
    ("0.1 null [0.3] [a]", {"train": "posthoc"}),
    ("null -1 256", {"train": "requeue_status"}),
    ("null", {"train": "loggers"}),
    (
        "small 0",
        {
            "bounds": "atol end",
            "diagnose": "atol",
            "evaluate": "data_range",
            "likelihood": "atol error error_per_image",
            "compare": "seconds",
            "sample": "seconds",
        },
    ),
    (
        "no null",
        {
            "compare": "design",
            "convert": "overwrite",
            "dequantise": "overwrite",
            "diagnose": "overwrite",
            "evaluate": "overwrite",
            "feature_classifier": "overwrite",
            "noise_classifier": "overwrite",
            "likelihood": "dry_run guided",
            "sample": "denoise overwrite",
            "edit": "denoise overwrite",
            "translate": "denoise overwrite",
            "train": "conditional",
        },
    ),
    (
        "0.999",
        dict.fromkeys([name for name in COMMANDS if name not in (*PLAIN, "feature_classifier", "train")], "ema"),
    ),
    (
        "2024 null",
        {
            "bounds": "ckpt device",
            "compare": "device",
            "convert": "source",
            "demo": "run_dir samples",
            "dequantise": "ckpt device",
            "diagnose": "ckpt device",
            "evaluate": "array cache device",
            "feature_classifier": "device",
            "noise_classifier": "ckpt device",
            "likelihood": "ckpt ood_array device",
            "paired": "first second column",
            "restore": "ckpt device",
            "sample": "ckpt device",
            "augment": "ckpt device",
            "edit": "ckpt device",
            "translate": "source target device",
            "train": "run_dir device",
        },
    ),
    (
        "2024 None",
        {
            "bounds": "out",
            "compare": "target ckpt out",
            "convert": "out settings",
            "dequantise": "out",
            "diagnose": "out",
            "evaluate": "samples restored reference out",
            "feature_classifier": "out",
            "noise_classifier": "out",
            "likelihood": "out ood",
            "restore": "out",
            "sample": "out",
            "augment": "out",
            "edit": "out",
            "translate": "out",
        },
    ),
    ("dev", dict.fromkeys(("bounds", "diagnose", "edit", "evaluate", "likelihood", "restore", "translate"), "split")),
    ("0 1.5 null", {"edit": "strength"}),
    ("0 1.5", {"augment": "strength"}),
    ("-1 1 null", {"augment": "copies"}),
    ("abc 1.5", {"translate": "label"}),
    (
        "nothing [1]",
        dict.fromkeys([name for name in COMMANDS if name not in PLAIN], "trust"),
    ),
    ("flow [flow,bits]", {"bounds": "measures"}),
    ("frechet [frechet,fid]", {"evaluate": "metrics"}),
    ("[heun,3]", {"compare": "solvers grids"}),
    ("many [5,0] 1.5", {"compare": "calls"}),
    ("many [0.1,0]", {"compare": "tolerances noises"}),
]

# Values inside of groups, and others, with what the line begins with and a word that it contains.
SINGLE: list[tuple[str, str, str, str]] = [
    ("train", "optimizer.lr=fast", "optimizer.lr='fast'", "a number"),
    ("train", "optimizer.lr=-1", "optimizer:", "-1"),
    ("train", "optimizer.betas=[0.9]", "optimizer.betas=[0.9]", "2 entries"),
    ("train", "network.width=a", "network.width='a'", "a whole number"),
    ("train", "network.width=0", "network:", "=0"),
    ("train", "network.width=null", "network.width=null", "a whole number"),
    ("train", "network.heads=3", "network:", "heads=3"),
    ("train", "network.multipliers=2", "network.multipliers=2", "a list"),
    ("train", "network.multipliers=[1,b]", "network.multipliers=[1, 'b']", "a number"),
    ("train", "+network.widht=8", "network:", "did you mean width?"),
    ("train", "network._target_=sde.networks.Unet", "network:", "'sde.networks.Unet'"),
    ("train", "sde.beta_min=abc", "sde.beta_min='abc'", "a number"),
    ("train", "sde.beta_min=-1", "sde:", "beta_min=-1"),
    ("train", "+sde.beta_mix=1", "sde:", "did you mean beta_min?"),
    ("train", "denoiser.level.scale=null", "denoiser.level.scale=null", "a number"),
    ("train", "objective.mean=no", "objective.mean='no'", "true or false"),
    ("train", "data.holdout=None", "data.holdout='None'", "data.holdout=null"),
    ("train", "preview=5", "preview=5", "n, seed, solver"),
    ("train", "+preview.m=5", "preview.m ", "did you mean preview.n?"),
    ("train", "evaluate.n=1", "evaluate.n=1", ">= 2"),
    ("train", "evaluate.metrics=[psnr]", "evaluate.metrics=", "frechet"),
    ("train", "evaluate.features=raw", "evaluate.features='raw'", "a Features"),
    ("train", "preview.solver.steps=0", "preview.solver:", "steps=0"),
    ("train", "sde._target_=sde.SDE", "sde:", "SDE"),
    ("train", "preview.solver._target_=sde.solvers.Huen", "preview.solver:", "'sde.solvers.Huen'"),
    ("train", "sde=5", "sde=5", "a SDE"),
    ("train", "device=gpu", "device:", "'gpu'"),
    ("compare", "n=1", "n=1", ">= 2"),
    ("compare", "draws=39", "draws=39", ">= 40"),
    ("compare", "sde.beta_min=-1", "sde:", "beta_min=-1"),
    ("train", "device=cuda:99", "device:", "cuda:99"),
    ("train", "run_dir=file.txt/run", "run_dir:", "file.txt"),
    ("sample", "solver.steps=null", "solver.steps=null", "a whole number"),
    ("sample", "solver.grid=uniform", "solver.grid='uniform'", "a Grid"),
    ("sample", "+solver.grid.roh=3", "solver.grid:", "'roh'"),
    ("sample", "out=samples", "out:", ".png"),
    ("sample", "out=file.txt/a.png", "out:", "file.txt"),
    ("likelihood", "ood=moons", "ood:", "data@ood=NAME"),
    ("likelihood", "ood=file.txt", "ood:", ".npz or .h5"),
    ("evaluate", "out=set.h5", "out=set.h5 ", "samples is read from"),
    ("evaluate", "reference=.", "reference:", ".npz or .h5"),
    ("evaluate", "metrics=[]", "metrics:", "at least one"),
    ("bounds", "measures=[]", "measures:", "at least one"),
    ("sample", "n=9223372036854775808", "n=9223372036854775808", "a whole number >= 1"),
    ("evaluate", "samples=[set.h5,sets.h5]", "samples:", "did you mean set.h5?"),
    ("compare", "target=posteriors", "target:", "did you mean posterior?"),
    ("compare", "out=file.txt", "out:", "file.txt"),
    ("compare", "solvers=[heun,foo]", "solvers: 'foo'", "euler_maruyama"),
    ("compare", "solvers=huen", "solvers: 'huen'", "did you mean heun?"),
    ("compare", "grids=[uniform,karas]", "grids: 'karas'", "did you mean karras?"),
    ("likelihood", "solver.rtol=tight", "solver.rtol='tight'", "a number"),
    ("likelihood", "solver.on_failure=skip", "solver.on_failure='skip'", "raise or mark"),
    ("likelihood", "trace.probes=0", "trace:", "probes"),
    ("evaluate", "features.block=0", "features:", "block=0"),
    ("dequantise", "density.draws=0", "density:", "draws=0"),
    ("restore", "task.noise=-1", "task:", "noise=-1"),
    ("restore", "method.weight=a", "method.weight='a'", "a number"),
    ("restore", "pilot=1", "pilot=1", ">= 2"),
    ("restore", "out=a.png", "out:", ".h5"),  # where its picture would be
    ("bounds", "chain=ancestral", "chain='ancestral'", "a Solver"),
]

Program = Callable[[str, str], Result]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """Runs a script with one override more, each with a config that is composed once."""
    known: dict[str, tuple[Any, Any]] = {}
    parser = OverridesParser.create()

    def load(script: str) -> tuple[Any, Any]:
        name, keys = COMMANDS[script]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(name, keys, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        OmegaConf.set_readonly(config, False)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        return runpy.run_path(str(SCRIPTS / f"{script}.py"))["main"], config

    def run(script: str, override: str) -> Result:
        if script not in known:
            known[script] = load(script)
        main, config = known[script]
        parsed = parser.parse_override(override)
        top = parsed.key_or_group.partition(".")[0]
        saved = copy.deepcopy(config._get_node(top))
        OmegaConf.update(config, parsed.key_or_group, parsed.value(), force_add=True)
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(config)
            except SystemExit as stop:
                code = stop.code
            finally:
                config.pop(top)
                if saved is not None:
                    config[top] = saved
        return Result(code, out.getvalue(), err.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield run
    HydraConfig.instance().cfg = None


def table() -> Iterator[tuple[str, str, str, str]]:
    """All cases: the script, the override, what the line begins with, and a word of it."""
    for values, keys in KINDS:
        for script, names in keys.items():
            for key in names.split():
                yield from ((script, f"{key}={value}", f"{key}=", "expected") for value in values.split())
    yield from ((script, "out=file.odd", "out:", f"a name that ends in {suffix}") for script, suffix in OUT.items())
    for script, names in READ.items():
        yield from ((script, f"{name}=file.tx", f"{name}:", "did you mean file.txt?") for name in names.split())
    yield from SINGLE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a command, with some files."""
    for name in FILES:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", COMMANDS)
def test_wrong_values(program: Program, script: str, folder: Path) -> None:
    """Each is refused in one line, and so are keys that nobody reads."""
    cases = [case for case in table() if case[0] == script]
    for _, override, beginning, word in [
        *cases,
        *([] if script in (*CONDITIONAL, "translate") else [("", "+label=7", "label ", "condition")]),
        ("", "+see=7", "see ", "--help"),
    ]:
        result = program(script, override)
        refused(result, word)
        assert result.code == 1
        assert result.err.startswith(f"error: {beginning}"), (override, result.err)
    assert sorted(os.listdir(folder)) == FILES


def test_no_script_is_missing() -> None:
    found = {
        path.stem: re.search(r'^@command\("(.*)"\)', path.read_text(), re.MULTILINE) for path in SCRIPTS.glob("*.py")
    }
    assert {name: match[1] for name, match in found.items() if match} == {name: c for name, (c, _) in COMMANDS.items()}


@pytest.mark.usefixtures("folder")
def test_the_table_has_every_key(program: Program) -> None:
    """No key of a script is without a wrong value, and none of the schema is missing in the configs; every `out` is
    subject to the rule."""
    cases = list(table())
    assert len(cases) >= 60
    schema, module = (importlib.import_module(name) for name in ("schema", "keys"))  # put on the path by the fixture
    for script, (name, keys) in COMMANDS.items():
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            tree = compose(name, keys)
        tested = {override.lstrip("+").partition("=")[0].partition(".")[0] for s, override, *_ in cases if s == script}
        groups = {key for key in tree if OmegaConf.is_config(tree._get_node(key)) and "_target_" in tree[key]}
        assert tree.keys() - tested - groups == set()
        # The command line takes the name of a group for the choice of an option.
        assert not {key for key in tree.keys() - groups if (CONFIGS / key).is_dir() and tree[key] is not None}
        assert ("out" in tree) == (script in OUT or script == "compare")
        plain = OmegaConf.to_container(tree, resolve=True)
        module.check_keys(schema.SCHEMAS[name], plain)
        for key in plain if script in {"sample", "paired"} else ():
            shorter = {k: v for k, v in plain.items() if k != key}
            with pytest.raises(ValueError, match=f"^{key} is missing"):
                module.check_keys(schema.SCHEMAS[name], shorter)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("script", "override", "word"),
    [
        ("likelihood", "budget=-1", "budget=-1"),
        pytest.param("train", "optimizer.lr=fast", "optimizer.lr='fast'", marks=slow),
        pytest.param("train", "stepz=3", "did you mean steps?", marks=slow),
        pytest.param("sample", "n=1.5", "n=1.5", marks=slow),
        pytest.param("likelihood", "+label=7", "condition", marks=slow),
        pytest.param("paired", "column=null", "column=null", marks=slow),
    ],
)
def test_commands(folder: Path, script: str, override: str, word: str) -> None:
    """In processes of their own."""
    result = process(folder, script, *COMMANDS[script][1], override)
    refused(result, word)
    assert result.code == 1
    assert sorted(os.listdir(folder)) == FILES
