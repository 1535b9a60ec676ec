"""Models: a denoiser and the scaling of its data in one piece; how they are saved and loaded; editing, translation."""

__all__ = [
    "Editing",
    "Model",
    "Restored",
    "condition_from",
    "edit",
    "from_checkpoint",
    "interpolate",
    "load",
    "load_denoiser",
    "matched",
    "save",
    "slerp",
    "translate",
]

from .conditions import condition_from
from .editing import Editing
from .files import from_checkpoint, load, load_denoiser, save
from .model import Model
from .restoration import Restored
from .translation import edit, interpolate, matched, slerp, translate
