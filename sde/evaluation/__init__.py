"""Evaluation: a model over a whole data set, in jobs that are sharded, resumed and forecast."""

__all__ = ["BoundDensity", "Density", "FlowDensity", "Paired", "load_dequantiser", "paired", "save_dequantiser"]

from .dequantiser_file import load_dequantiser, save_dequantiser
from .dequantiser_training import BoundDensity, Density, FlowDensity
from .pairing import Paired, paired
