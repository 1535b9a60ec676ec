"""Models: a denoiser and the scaling of its data in one piece, and how they are saved and loaded."""

__all__ = ["Model", "from_checkpoint", "load", "load_denoiser", "save"]

from .files import from_checkpoint, load, load_denoiser, save
from .model import Model
