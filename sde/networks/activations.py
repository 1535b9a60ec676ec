r"""Activations by name, each applied entry by entry:

===== ==================================================================== ===================================
name  a(x)                                                                 reference
===== ==================================================================== ===================================
silu  :math:`x / (1 + e^{-x})`                                             Elfwing et al. 2017, arXiv:1702.03118
gelu  :math:`x \, \Phi(x)`, with the normal distribution function          Hendrycks, Gimpel 2016, arXiv:1606.08415
mish  :math:`x \tanh \log(1 + e^x)`                                        Misra 2019, arXiv:1908.08681
elu   :math:`x` for :math:`x > 0`, else :math:`e^x - 1`                    Clevert et al. 2015, arXiv:1511.07289
relu  :math:`\max(x, 0)`                                                   Nair and Hinton 2010
lrelu :math:`\max(x, 0.2 x)`                                               Maas et al. 2013, slope of Song et al.
===== ==================================================================== ===================================

A network with a name in its arguments can be described in a checkpoint; one with a module of another class cannot.
"""

from __future__ import annotations

__all__ = ["ACTIVATIONS", "Activation", "named_activation"]

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

# A name or a module.
Activation = str | nn.Module

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "lrelu": partial(nn.LeakyReLU, 0.2),
}


def named_activation(choice: Activation) -> nn.Module:
    """The activation of a name, or a module itself.

    Raises:
        ValueError: if there is no activation of that name.
    """
    if isinstance(choice, nn.Module):
        return choice
    if choice not in ACTIVATIONS:
        raise ValueError(f"expected an activation among {', '.join(ACTIVATIONS)}, or a module, got {choice!r}")
    return ACTIVATIONS[choice]()
