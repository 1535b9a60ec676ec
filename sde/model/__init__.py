"""Models: a denoiser and the scaling of its data in one piece, and how they are saved and loaded."""

__all__ = ["Model", "Restored", "from_checkpoint", "load", "save"]

from .files import from_checkpoint, load, save
from .model import Model
from .restoration import Restored
