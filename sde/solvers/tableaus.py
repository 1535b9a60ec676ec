r"""Butcher tableaus of embedded Runge-Kutta pairs, as data.

.. math::
    k_i = \tilde f\Big(x + h \sum_j a_{ij} k_j,\; t + c_i h\Big), \qquad
    x' = x + h \sum_i b_i k_i, \qquad
    \mathrm{error} = h \sum_i e_i k_i

Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, 1993, section II.4 and II.5.
"""

from __future__ import annotations

__all__ = ["BOGACKI_SHAMPINE", "DORMAND_PRINCE", "Tableau"]

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """An embedded pair whose last stage is the first of the next step (first same as last).

    Attributes:
        name: its usual name.
        order: the order of the solution that is carried on.
        a: row i holds the coefficients of stage i + 1 over the stages before it; the last row is `b` without its
            final 0.
        e: the weights of the error estimate, one more than `a` has rows.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    e: tuple[float, ...]

    @property
    def c(self) -> tuple[float, ...]:
        """The nodes of the stages, the sums of the rows; the last is 1, whatever the rounding of its sum."""
        return (0.0, *(sum(row) for row in self.a[:-1]), 1.0)


# Bogacki and Shampine, A 3(2) pair of Runge-Kutta formulas, 1989, https://doi.org/10.1016/0893-9659(89)90079-7.
BOGACKI_SHAMPINE = Tableau(
    name="Bogacki-Shampine 3(2)",
    order=3,
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    e=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)

# Dormand and Prince, A family of embedded Runge-Kutta formulae, 1980, https://doi.org/10.1016/0771-050X(80)90013-3.
DORMAND_PRINCE = Tableau(
    name="Dormand-Prince 5(4)",
    order=5,
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    e=(
        35 / 384 - 5179 / 57600,
        0.0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
)
