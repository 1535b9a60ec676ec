r"""Objects from plain trees, such as configs and checkpoints.

A node `{_target_: sde.VP, beta_min: 0.1}` is a call with keyword arguments. A name must belong to this package, to the
few torch classes listed here, or to a package that the user trusts by name. The tree of a checkpoint may name fewer
modules: only those that define plain constructors. An unknown argument is an error that lists the valid ones.
"""

__all__ = ["MODEL_ROOMS", "MOVED", "build", "check", "class_name", "current", "describe", "find", "public"]

from .names import MODEL_ROOMS, MOVED, class_name, current, find, public
from .tree import build, check, describe
