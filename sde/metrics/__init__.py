r"""Measures of samples, each with its uncertainty: how good are they, and how sure is that?

Every measure answers with an :class:`Estimate`: the value, its standard error and its 95 % interval, and where they
exist the uncorrected value, the value expected of equal distributions, and a p-value. All compute in float64, on
features (N, D) of any kind or on items and their references, and draw nothing from a global generator: groups, splits
and permutations are functions of a seed and of the indices of the items (:mod:`sde.noise`). Results do not depend on
chunk sizes.
"""

__all__ = [
    "Estimate",
    "difference",
    "frechet_distance",
    "kernel_distance",
    "mmd",
    "energy_distance",
    "Kernel",
    "Polynomial",
    "Gaussian",
    "NegativeDistance",
    "inception_score",
    "precision_recall",
    "Manifold",
    "sliced_wasserstein",
    "EvidenceShift",
    "evidence_shift",
    "classifier_two_sample_test",
    "Classifier",
    "memorisation",
    "Memorisation",
    "psnr",
    "ssim",
    "ms_ssim",
    "perceptual_distance",
    "FeatureMaps",
    "log_spectral_distance",
    "multi_resolution_stft_distance",
    "Resolution",
    "column_wasserstein",
    "correlation_distance",
    "features",
    "Features",
    "ModuleFeatures",
    "RawValues",
    "dinov2",
    "efficientnet_lite0",
    "inception",
    "load_program",
]

from . import features
from .class_predictions import inception_score
from .copies import Memorisation, memorisation
from .estimate import Estimate, difference
from .evidence import EvidenceShift, evidence_shift
from .features import Features, ModuleFeatures, RawValues, dinov2, efficientnet_lite0, inception, load_program
from .fidelity import ms_ssim, psnr, ssim
from .frechet import frechet_distance
from .kernel import Gaussian, Kernel, NegativeDistance, Polynomial, energy_distance, kernel_distance, mmd
from .manifold import Manifold, precision_recall
from .perceptual import FeatureMaps, perceptual_distance
from .spectral import Resolution, log_spectral_distance, multi_resolution_stft_distance
from .tables import correlation_distance
from .transport import column_wasserstein, sliced_wasserstein
from .two_sample import Classifier, classifier_two_sample_test
