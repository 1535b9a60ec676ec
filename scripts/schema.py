"""The keys of every script: a line for each with its type and limits, by which a config is checked before any work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from keys import (
    ARRAYS,
    Arrays,
    Checkpoint,
    Count,
    Device,
    Directory,
    Fraction,
    Input,
    Keys,
    Label,
    Option,
    Picture,
    Positive,
    Results,
    Samples,
    Seed,
    Target,
    Weights,
    Whole,
    some,
)
from schema_classifiers import FeatureClassifier, NoiseAware

from sde.data import Augmentation, DataSet
from sde.data.captions import Encoder
from sde.denoisers import Denoiser
from sde.evaluation.dequantiser_training import Density
from sde.evaluation.restoration_tasks import Task
from sde.guidance import Guidance
from sde.instantiate.annotations import Existing, Limit
from sde.likelihood.dequantisation import Dequantiser
from sde.measurement import PosteriorDenoiser
from sde.metrics.features import Features
from sde.networks.network import Network
from sde.objective import Objective
from sde.processes import SDE
from sde.solvers import Solver
from sde.trace import Trace
from sde.training import Decay, Execution, Logger, Ranks

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


class Job(Keys):
    """The keys of all scripts for a checkpoint of this library."""

    trust: list[str]
    ckpt: Checkpoint
    ema: str | None
    device: Device
    seed: Seed


class DataJob(Job):
    """The keys of all scripts that score data."""

    data: DataSet | None = None


class Split(DataJob):
    """The keys of all scripts that score a split by the flow."""

    split: Literal["train", "test", "valid"]
    solver: Solver
    trace: Trace
    atol: Positive | Literal["auto"] | None


class Batched(Split):
    """The keys of jobs that several processes can work on."""

    n: Count | None
    repeats: Count
    batch_size: Count
    rank: Whole
    world: Count
    out: Results | None
    dequantise: Dequantiser | None = None


class Likelihood(Batched):
    """`likelihood.py`."""

    pilot: Count | None
    error: Positive | None
    error_per_image: Positive | None
    budget: Whole
    guided: bool
    dry_run: bool
    ood: Annotated[str, Existing(ARRAYS, "; a data set is given as data@ood=NAME")] | DataSet | None
    ood_array: str
    guidance: Guidance | None = None


class Bounds(Batched):
    """`bounds.py`."""

    measures: Annotated[list[Literal["flow", "density", "continuous", "chain"]], some]
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
    out: Weights | None
    overwrite: bool
    density: Density


class Conditional(Job):
    """The keys of scripts that draw from models with conditions."""

    label: Label | list[Label] | None
    embedding: list[float] | list[list[float]] | None
    prompt: str | list[str] | None
    image: Input | None


class Sample(Conditional):
    """`sample.py`."""

    n: Count
    first: Whole
    batch_size: Count
    denoise: bool
    pilot: Count | None
    design: Count | None
    seconds: Positive | None
    out: Picture | None
    overwrite: bool
    solver: Solver
    guidance: Guidance | None = None


class Restore(DataJob):
    """`restore.py`."""

    task: Task
    method: PosteriorDenoiser
    solver: Solver
    split: Literal["train", "test", "valid"]
    n: Count | None
    repeats: Count
    batch_size: Count
    pilot: Annotated[int, Limit(">=", 2)]
    polish: Whole
    rank: Whole
    world: Count
    out: Results | None
    shown: Whole


class Edit(DataJob, Conditional):
    """`edit.py`."""

    strength: Annotated[float, Limit(">", 0), Limit("<=", 1)]
    split: Literal["train", "test", "valid"]
    n: Count
    first: Whole
    denoise: bool
    out: Picture | None
    overwrite: bool
    solver: Solver


class Augment(DataJob):
    """`augment.py`."""

    per_class: Count
    strength: Annotated[float, Limit(">", 0), Limit("<=", 1)] | None
    copies: Annotated[float, Limit(">=", 0), Limit("<", 1)]
    batch_size: Count
    out: Results | None
    solver: Solver
    guidance: Guidance | None = None


class Translate(Keys):
    """`translate.py`."""

    trust: list[str]
    source: Checkpoint
    target: Checkpoint
    ema: str | None
    device: Device
    split: Literal["train", "test", "valid"]
    n: Count
    first: Whole
    label: Label | list[Label] | None
    denoise: bool
    out: Picture | None
    overwrite: bool
    solver: Solver
    data: DataSet | None = None


class Compare(Job):
    """`compare.py`."""

    ckpt: Checkpoint | None  # type: ignore[assignment]
    target: Target | None
    solvers: list[Annotated[str, Option("solver")]] | Annotated[str, Option("solver")] | None
    grids: list[Annotated[str, Option("grid")]] | Annotated[str, Option("grid")] | None
    calls: list[Count] | Count | None
    tolerances: list[Positive] | Positive | None
    design: bool
    pilot: Annotated[int, Limit(">=", 4)]
    seconds: Positive | None
    n: Annotated[int, Limit(">=", 2)]
    draws: Annotated[int, Limit(">=", 40)]
    seed: Annotated[int, Limit(">=", 0), Limit("<", 2**63)]
    repeats: Count
    tolerance: Positive
    directions: Count
    problems: Count
    noises: Annotated[list[Positive], some]
    out: Directory | None
    sde: SDE


class Convert(Keys):
    """`convert.py`."""

    source: Input
    out: Weights | None
    settings: Annotated[str, Existing((".json",))] | dict[str, Any] | None
    overwrite: bool
    sde: SDE | None = None


class Evaluate(Keys):
    """`evaluate.py`."""

    trust: list[str]
    samples: Samples | list[Samples] | None
    restored: Samples | list[Samples] | None
    reference: Arrays | None
    split: Literal["train", "test", "valid"]
    array: str
    levels: Annotated[int, Limit(">=", 2)] | None
    n: Count | None
    metrics: Annotated[list[Metric], some]
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


class Paired(Keys):
    """`paired.py`."""

    first: Input
    second: Input
    column: str


class Preview(Keys):
    """`preview` of `train.py`."""

    n: Whole
    seed: Seed
    solver: Solver


class Evaluated(Keys):
    """`evaluate` of `train.py`."""

    metrics: Annotated[list[SetMetric], some]
    n: Annotated[int, Limit(">=", 2)]
    items: Annotated[int, Limit(">=", 2)]
    seed: Seed
    features: Features


class Demo(Keys):
    """`demo.py`."""

    run_dir: Annotated[str, Existing(advice="; `make demo` makes it")]
    samples: Annotated[str, Existing((".png",), "; `make demo` makes it")]
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
    conditional: bool | list[str]
    condition_dropout: Fraction | dict[str, Fraction] | None
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
    encoder: Encoder | None = None
    augmentation: Augmentation | None = None


SCHEMAS: dict[str, type[Keys]] = {
    "augment": Augment,
    "bounds": Bounds,
    "compare": Compare,
    "convert": Convert,
    "demo": Demo,
    "dequantiser_training": Dequantise,
    "diagnose": Diagnose,
    "edit": Edit,
    "evaluate": Evaluate,
    "feature_classifier": FeatureClassifier,
    "likelihood": Likelihood,
    "noise_classifier": NoiseAware,
    "paired": Paired,
    "restore": Restore,
    "sample": Sample,
    "train": Train,
    "translate": Translate,
}
