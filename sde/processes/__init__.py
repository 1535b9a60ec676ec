"""Processes: forward SDEs, and the discrete chain as a special case."""

from .base import SDE
from .bridge import Bridge, Brownian
from .chain import ChainSDE, DiscreteChain
from .cosine import Cosine
from .karras_ve import KarrasVE
from .learned import LearnedVP
from .matching import check_same
from .proposals import propose_beta_max, propose_sigma_max
from .rectified_flow import RectifiedFlow
from .subvp import SubVP
from .ve import VE
from .vp import VP

__all__ = ["SDE", "VP", "SubVP", "VE", "Cosine", "KarrasVE", "RectifiedFlow", "LearnedVP", "ChainSDE"]
__all__ += ["DiscreteChain", "check_same", "propose_beta_max", "propose_sigma_max"]
__all__ += ["Bridge", "Brownian"]
