r"""Butcher tableaus of embedded Runge-Kutta pairs.

.. math::
    k_i = \tilde f\Big(x + h \sum_j a_{ij} k_j,\; t + c_i h\Big), \qquad
    x' = x + h \sum_i b_i k_i, \qquad
    \mathrm{error} = h \sum_i e_i k_i

Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, 1993, section II.4, II.5 and II.10.
"""

from __future__ import annotations

__all__ = ["BOGACKI_SHAMPINE", "DORMAND_PRINCE", "DORMAND_PRINCE_8", "TSITOURAS", "Tableau"]

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    r"""An embedded pair whose last stage is the first of the next step (first same as last).

    Attributes:
        name: its usual name.
        order: the order of the solution.
        a: row i holds the coefficients of stage i + 1 over the stages before it; the last row is `b` without its
            final 0.
        e: the weights of the error estimate, one more than `a` has rows.
        guard: the weights of a second estimate of lower order, or None. With it the norm of the error is
            :math:`\|e\|^2 / \sqrt{\|e\|^2 + \|\mathrm{guard}\|^2 / 100}`, which has the order of the method where
            the estimates agree, and is large where the first is small by chance.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    e: tuple[float, ...]
    guard: tuple[float, ...] | None = None

    @property
    def c(self) -> tuple[float, ...]:
        """The nodes of the stages, which are the sums of the rows; sums of 1 up to rounding are 1."""
        sums = (0.0, *(math.fsum(row) for row in self.a))
        return tuple(1.0 if abs(node - 1.0) < 1e-12 else node for node in sums)

    @staticmethod
    def bogacki_shampine() -> Tableau:
        """`BOGACKI_SHAMPINE`, for configs, where a name is a call."""
        return BOGACKI_SHAMPINE

    @staticmethod
    def tsitouras() -> Tableau:
        """`TSITOURAS`, for configs."""
        return TSITOURAS

    @staticmethod
    def dormand_prince_8() -> Tableau:
        """`DORMAND_PRINCE_8`, for configs."""
        return DORMAND_PRINCE_8


def _difference(a: tuple[tuple[float, ...], ...], weights: tuple[float, ...]) -> tuple[float, ...]:
    """The weights of the solution less those of an embedded one."""
    return tuple(b - other for b, other in zip((*a[-1], 0.0), weights))


# Bogacki and Shampine, A 3(2) pair of Runge-Kutta formulas, 1989, https://doi.org/10.1016/0893-9659(89)90079-7.
BOGACKI_SHAMPINE = Tableau(
    name="Bogacki-Shampine 3(2)",
    order=3,
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    e=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

# Dormand and Prince, A family of embedded Runge-Kutta formulae, 1980, https://doi.org/10.1016/0771-050X(80)90013-3.
_A5 = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_B4 = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
DORMAND_PRINCE = Tableau(name="Dormand-Prince 5(4)", order=5, a=_A5, e=_difference(_A5, _B4))

# Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, 2011,
# https://doi.org/10.1016/j.camwa.2011.06.002.
TSITOURAS = Tableau(
    name="Tsitouras 5(4)",
    order=5,
    a=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    ),
    e=(
        *(-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629),
        *(0.5823571654525552, -0.45808210592918697, 1 / 66),
    ),
)

# Dormand and Prince's method of order 8 with the error estimates of DOP853, Hairer et al. 1993, section II.10. Rows
# that are too long for a line stand in parts.
_A8 = (
    (0.05260015195876773,),
    (0.0197250569845379, 0.0591751709536137),
    (0.02958758547680685, 0.0, 0.08876275643042054),
    (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
    (0.037037037037037035, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
    (0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
    (
        *(0.03709200011850479, 0.0, 0.0, 0.17038392571223998, 0.10726203044637328),
        *(-0.015319437748624402, 0.008273789163814023),
    ),
    (
        *(0.6241109587160757, 0.0, 0.0, -3.3608926294469414, -0.868219346841726),
        *(27.59209969944671, 20.154067550477894, -43.48988418106996),
    ),
    (
        *(0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843, 21.230051448181193),
        *(15.279233632882423, -33.28821096898486, -0.020331201708508627),
    ),
    (
        *(-0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295, -8.149787010746927),
        *(-18.52006565999696, 22.739487099350505, 2.4936055526796523, -3.0467644718982196),
    ),
    (
        *(2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625, -17.9589318631188, 27.94888452941996),
        *(-2.8589982771350235, -8.87285693353063, 12.360567175794303, 0.6433927460157636),
    ),
    (
        *(0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585),
        *(0.3111643669578199, -0.1521609496625161, 0.20136540080403034, 0.04471061572777259),
    ),
)
_B3 = (31 / 127, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.733846688281611857, 0.0, 0.0, 3 / 136, 0.0)
DORMAND_PRINCE_8 = Tableau(
    name="Dormand-Prince 8(5,3)",
    order=8,
    a=_A8,
    e=(
        *(0.01312004499419488, 0.0, 0.0, 0.0, 0.0, -1.2251564463762044, -0.4957589496572502, 1.6643771824549864),
        *(-0.35032884874997366, 0.3341791187130175, 0.08192320648511571, -0.022355307863886294, 0.0),
    ),
    guard=_difference(_A8, _B3),
)
