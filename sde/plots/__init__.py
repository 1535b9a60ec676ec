r"""Plots of samples, trajectories, losses and likelihoods.

The functions return matplotlib figures, which a notebook shows and `figure.savefig` writes; `save_*` write files. None
of them touches the state of pyplot. Matplotlib is imported on first use.
"""

__all__ = [
    "bits_histogram",
    "density",
    "diagnostics",
    "fidelity_and_diversity",
    "image_grid",
    "histograms",
    "losses",
    "measures",
    "neighbours",
    "samples",
    "save_diagnostics",
    "save_likelihoods",
    "save_losses",
    "save_restorations",
    "save_neighbours",
    "save_samples",
    "trajectory",
    "typicality",
]

from .likelihoods import bits_histogram, diagnostics, save_diagnostics, save_likelihoods, typicality
from .losses import losses, save_losses
from .quality import fidelity_and_diversity, histograms, measures, neighbours, save_neighbours
from .restorations import save_restorations
from .samples import density, image_grid, samples, save_samples, trajectory
