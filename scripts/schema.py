"""The keys of every script: a line for each with its type and limits, by which a config is checked before any work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from keys import Count, Device, Directory, File, Fraction, Keys, Picture, Positive, Results, Seed, Whole
from schema_classifiers import FeatureClassifier, NoiseAware

from sde.data import Augmentation, DataSet
from sde.data.captions import Encoder
from sde.denoisers import Denoiser
from sde.evaluation.dequantiser_training import Density
from sde.evaluation.restoration_tasks import Task
from sde.guidance import Guidance
from sde.instantiate.annotations import Limit
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


# A class, or the word for samples without one.
Label = int | Literal["none"]


class Job(Keys):
    """The keys of all scripts for a checkpoint of this library."""

    trust: list[str]
    ckpt: str
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
    out: File | None
    dequantise: Dequantiser | None = None


class Likelihood(Batched):
    """`likelihood.py`."""

    pilot: Count | None
    error: Positive | None
    error_per_image: Positive | None
    budget: Whole
    guided: bool
    dry_run: bool
    ood: str | DataSet | None
    ood_array: str
    guidance: Guidance | None = None


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


class Conditional(Job):
    """The keys of scripts that draw from models with conditions."""

    label: Label | list[Label] | None
    embedding: list[float] | list[list[float]] | None
    prompt: str | list[str] | None
    image: str | None


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
    pilot: Count
    polish: Whole
    rank: Whole
    world: Count
    out: File | None
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
    out: File | None
    solver: Solver
    guidance: Guidance | None = None


class Translate(Keys):
    """`translate.py`."""

    trust: list[str]
    source: str
    target: str
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

    ckpt: str | None  # type: ignore[assignment]
    target: str | None
    solvers: list[str] | str | None
    grids: list[str] | str | None
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
    noises: list[Positive]
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
