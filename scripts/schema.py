"""The keys of every script: a line for each with its type and limits, by which a config is checked before any work.

A class describes a config as its annotations do a function: a key with a default may be absent, any other key is
refused. A key whose annotation is a class of the library has a tree for :func:`sde.instantiate.build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import torch
from faults import unknown_key

from sde.data import DataSet
from sde.denoisers import Denoiser
from sde.evaluation.dequantiser_training import Density
from sde.guidance import Guidance
from sde.instantiate import check
from sde.instantiate.annotations import Limit, check_value, shown
from sde.likelihood.dequantisation import Dequantiser
from sde.metrics.features import Features
from sde.networks.network import Network
from sde.objective import Objective
from sde.processes import SDE
from sde.runtime import choose_device
from sde.solvers import Solver
from sde.storage.files import check_writable
from sde.trace import Trace
from sde.training import Decay, Execution, Logger, Ranks

Count = Annotated[int, Limit(">=", 1)]
Whole = Annotated[int, Limit(">=", 0)]
Positive = Annotated[float, Limit(">", 0)]
Fraction = Annotated[float, Limit(">=", 0), Limit("<", 1)]
Seed = Annotated[int, Limit(">=", -(2**63)), Limit("<", 2**63)]  # the range of torch.manual_seed
Device = Annotated[str, choose_device]


@dataclass(frozen=True)
class Output:
    """A file that is written at the end, with one of these suffixes if there are any, or a directory."""

    suffixes: tuple[str, ...] = ()
    directory: bool = False

    def __call__(self, path: str) -> None:
        check_writable(path, self.suffixes, directory=self.directory)


File = Annotated[str, Output()]
Picture = Annotated[str, Output((".png",))]
Results = Annotated[str, Output((".h5",))]
Directory = Annotated[str, Output(directory=True)]


# The measures of `evaluate.py`: those of sets, and with them those of restorations.
SetMetric = Literal[
    "frechet",
    "kernel",
    "mmd",
    "energy",
    "precision_recall",
    "sliced_wasserstein",
    "classifier_test",
    "inception_score",
    "memorisation",
    "columns",
    "correlations",
]
Metric = SetMetric | Literal["psnr", "ssim", "ms_ssim", "perceptual", "log_spectral", "stft"]


class Keys:
    """The base of the classes that describe a config."""


class Job(Keys):
    """What all scripts for a checkpoint of this library take."""

    trust: list[str]
    ckpt: str
    ema: str | None
    device: Device
    seed: Seed


class DataJob(Job):
    """What all scripts take that score data."""

    data: DataSet | None = None


class Split(DataJob):
    """What all scripts take that score a split by the flow."""

    split: Literal["train", "test", "valid"]
    solver: Solver
    trace: Trace
    atol: Positive | Literal["auto"] | None


class Batched(Split):
    """What the jobs share that several processes can work on."""

    n: Count | None
    repeats: Count
    batch_size: Count
    rank: Whole
    world: Count
    out: File | None
    dequantise: Dequantiser | None = None


class Likelihood(Batched):
    """`likelihood.py`."""

    pilot: Count | None
    budget: Whole
    dry_run: bool
    ood: str | DataSet | None
    ood_array: str


class Bounds(Batched):
    """`bounds.py`."""

    measures: list[Literal["flow", "density", "continuous", "chain"]]
    draws: Count
    data_draws: Count
    end: Positive | Literal["auto"] | None
    steps: Count | None
    chain: Solver | None
    chain_draws: Count


class Diagnose(Split):
    """`diagnose.py`."""

    n: Count
    times: Annotated[int, Limit(">=", 2)]
    out: Picture | None
    overwrite: bool


class Dequantise(DataJob):
    """`dequantise.py`."""

    steps: Count
    batch_size: Count
    lr: Positive
    layers: Count
    width: Count
    n: Count | None
    out: File | None
    overwrite: bool
    density: Density


class Sample(Job):
    """`sample.py`."""

    n: Count
    first: Whole
    batch_size: Count
    denoise: bool
    pilot: Count | None
    out: Picture | None
    overwrite: bool
    solver: Solver
    guidance: Guidance | None = None


class Compare(Job):
    """`compare.py`."""

    ckpt: str | None  # type: ignore[assignment]
    target: str | None
    solvers: list[str] | str | None
    grids: list[str] | str | None
    calls: list[Count] | Count | None
    tolerances: list[Positive] | Positive | None
    n: Annotated[int, Limit(">=", 2)]
    draws: Annotated[int, Limit(">=", 40)]
    seed: Annotated[int, Limit(">=", 0), Limit("<", 2**63)]
    repeats: Count
    tolerance: Positive
    directions: Count
    out: Directory | None
    sde: SDE


class Convert(Keys):
    """`convert.py`."""

    source: str
    out: str | None
    settings: str | dict[str, Any] | None
    overwrite: bool
    sde: SDE | None = None


class Evaluate(Keys):
    """`evaluate.py`."""

    trust: list[str]
    samples: str | list[str] | None
    restored: str | list[str] | None
    reference: str | None
    split: Literal["train", "test", "valid"]
    array: str
    levels: Annotated[int, Limit(">=", 2)] | None
    n: Count | None
    metrics: list[Metric]
    groups: Annotated[int, Limit(">=", 2)]
    permutations: Whole
    data_range: Positive | None
    seed: Seed
    ema: str | None
    batch_size: Count
    cache: Directory
    rank: Whole
    world: Count
    device: Device
    out: Results | None
    overwrite: bool
    features: Features
    solver: Solver
    data: DataSet | None = None


class FeatureClassifier(Keys):
    """`feature_classifier.py`."""

    trust: list[str]
    steps: Count
    batch_size: Count
    lr: Positive
    width: Annotated[int, Limit(">=", 8)]
    features: Count
    seed: Seed
    device: Device
    out: File | None
    overwrite: bool
    data: DataSet


class Paired(Keys):
    """`paired.py`."""

    first: str
    second: str
    column: str


class Preview(Keys):
    """`preview` of `train.py`."""

    n: Whole
    seed: Seed
    solver: Solver


class Evaluated(Keys):
    """`evaluate` of `train.py`."""

    metrics: list[SetMetric]
    n: Annotated[int, Limit(">=", 2)]
    items: Annotated[int, Limit(">=", 2)]
    seed: Seed
    features: Features


class Demo(Keys):
    """`demo.py`."""

    run_dir: str
    samples: str
    components: Count


class Train(Keys):
    """`train.py`."""

    trust: list[str]
    run_dir: Directory
    steps: Count
    batch_size: Count
    workers: Whole
    unreadable: Whole
    seed: Seed
    device: Device
    warmup: Whole
    accumulate: Count
    clip: Positive
    max_skipped: Whole
    ema: Fraction | dict[str, Fraction]
    posthoc: list[Annotated[float, Limit(">", 0), Limit("<", 0.288)]]
    posthoc_every: Count
    conditional: bool
    log_every: Count
    validate_every: Count
    levels: Whole
    sample_every: Count | None
    score_every: Count | None
    score_n: Count
    evaluate_every: Count | None
    save_every: Count
    keep: Count | None
    requeue_status: Annotated[int, Limit(">=", 0), Limit("<", 256)]
    preview: Preview
    evaluate: Evaluated
    sde: SDE
    network: Network
    denoiser: Denoiser
    objective: Objective
    optimizer: torch.optim.Optimizer
    decay: Decay
    execution: Execution
    ranks: Ranks
    loggers: dict[str, Logger]
    data: DataSet


SCHEMAS: dict[str, type[Keys]] = {
    "bounds": Bounds,
    "compare": Compare,
    "convert": Convert,
    "demo": Demo,
    "dequantiser_training": Dequantise,
    "diagnose": Diagnose,
    "evaluate": Evaluate,
    "feature_classifier": FeatureClassifier,
    "likelihood": Likelihood,
    "paired": Paired,
    "sample": Sample,
    "train": Train,
}

# Examples of the arguments of trees that the library fills in.
EXAMPLES: dict[str, dict[str, Any]] = {
    "network": {"channels": 1, "features": 1, "rank": 1},
    "optimizer": {"params": [torch.zeros(1, device="cpu")]},
}


def check_keys(schema: type[Keys], tree: Mapping[str, Any], prefix: str = "", trust: Any = ()) -> None:
    """Checks a config before any work: its keys and their values.

    Raises:
        ValueError: for the first mistake, with its key.
    """
    annotations = get_type_hints(schema, include_extras=True)
    for key in tree:
        if key not in annotations:
            raise ValueError(unknown_key(f"{prefix}{key}", [f"{prefix}{known}" for known in annotations]))
    for key, annotation in annotations.items():
        name, value = f"{prefix}{key}", tree.get(key)
        if key not in tree:
            if not hasattr(schema, key):
                raise ValueError(f"{name} is missing: give {name}=...")
        elif isinstance(annotation, type) and issubclass(annotation, Keys):
            if not isinstance(value, Mapping):
                raise ValueError(f"{name}={shown(value)}: expected the keys {', '.join(get_type_hints(annotation))}")
            check_keys(annotation, value, f"{name}.", trust)
        else:
            check_value(name, value, annotation)
            trust = value if key == "trust" else trust
            check(value, name, trust=trust, **EXAMPLES.get(key, {}))
