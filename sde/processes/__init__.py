"""Processes: forward SDEs, and the discrete chain as a special case."""

from .base import SDE
from .chain import ChainSDE, DiscreteChain
from .subvp import SubVP
from .ve import VE
from .vp import VP

__all__ = ["SDE", "VP", "SubVP", "VE", "ChainSDE", "DiscreteChain"]
