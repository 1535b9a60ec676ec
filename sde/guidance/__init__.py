r"""Guidance: a denoiser in, a denoiser out, whose samples are drawn more strongly to what is asked for.

The score of a conditional model is pushed away from that of a weaker one, or along the gradient of a classifier. The
convention of the weight is one for all: :math:`b + w\,(a - b)`, so that 1 is the model itself, 0 is the weaker one, and
more than 1 exaggerates the difference. (Ho and Salimans' own w is this weight less 1.)

**What guidance is biased by.** A guided score is the score of no density: of :math:`p_t(x_t)\,p_t(y|x_t)^w` at each
time by itself, but not of one :math:`p(x)\,p(y|x)^w` under the process, because noising and raising to a power do not
commute. Samples are those of neither; for classes that overlap little they are narrower than the tilted distribution,
and pushed away from the other classes. So likelihoods refuse a guided denoiser unless they are asked for the density of
its flow (`guided=True`).
"""

__all__ = [
    "Autoguidance",
    "Classifier",
    "ClassifierFree",
    "Composed",
    "Guidance",
    "LogProbability",
    "NoiseClassifier",
    "Weighted",
]

from .autoguidance import Autoguidance
from .base import Guidance, Weighted
from .classifier import Classifier, LogProbability
from .classifier_free import ClassifierFree
from .composed import Composed
from .noise_classifier import NoiseClassifier
