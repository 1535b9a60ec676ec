"""Evaluation: a model over a whole data set, in jobs that are sharded, resumed and forecast."""

__all__ = [
    "Augmentation",
    "BatchPlan",
    "BoundDensity",
    "BoundsScorer",
    "Colourise",
    "CompressedSensing",
    "Deblur",
    "Denoise",
    "Density",
    "FlowDensity",
    "FlowScorer",
    "FourierSampling",
    "Inpaint",
    "JobSetup",
    "Paired",
    "RestorationScorer",
    "Quality",
    "QualityCheck",
    "QualityJob",
    "Shard",
    "SuperResolution",
    "Task",
    "against_flow",
    "bounds_job",
    "budget_report",
    "calibration",
    "fit_noise_classifier",
    "flow_scorer",
    "forecast",
    "join",
    "likelihood_jobs",
    "load_classifier",
    "load_dequantiser",
    "load_noise_classifier",
    "noise_accuracy",
    "paired",
    "quality_job",
    "quality_table",
    "report",
    "restoration_job",
    "restoration_report",
    "save_classifier",
    "save_dequantiser",
    "save_noise_classifier",
    "summarise",
    "summarise_measures",
    "table",
    "waiting",
    "with_accuracy",
]

from .augmentation import Augmentation
from .bounds_job import BoundsScorer, bounds_job
from .bounds_table import summarise_measures, table
from .classifier_file import load_classifier, save_classifier
from .dequantiser_file import load_dequantiser, save_dequantiser
from .dequantiser_training import BoundDensity, Density, FlowDensity
from .forecast import forecast
from .job import waiting
from .job_setup import JobSetup
from .likelihood_accuracy import with_accuracy
from .likelihood_job import FlowScorer, budget_report, flow_scorer, likelihood_jobs, report
from .noise_classifier import fit_noise_classifier, load_noise_classifier, noise_accuracy, save_noise_classifier
from .pairing import Paired, paired
from .plots import against_flow
from .quality import Quality
from .quality_check import QualityCheck
from .quality_job import QualityJob
from .quality_setup import quality_job
from .quality_table import quality_table
from .restoration_job import RestorationScorer, calibration, restoration_job, restoration_report
from .restoration_tasks import (
    Colourise,
    CompressedSensing,
    Deblur,
    Denoise,
    FourierSampling,
    Inpaint,
    SuperResolution,
    Task,
)
from .sharding import BatchPlan, Shard
from .summary import join, summarise
