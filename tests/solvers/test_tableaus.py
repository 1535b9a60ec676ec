"""The tableaus: every order condition, the nodes, first same as last, and the order that is measured."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import scipy.integrate

from sde.solvers.tableaus import BOGACKI_SHAMPINE, DORMAND_PRINCE, DORMAND_PRINCE_8, TSITOURAS, Tableau

ALL = [BOGACKI_SHAMPINE, DORMAND_PRINCE, TSITOURAS, DORMAND_PRINCE_8]
EACH = pytest.mark.parametrize("tableau", ALL, ids=lambda t: t.name)

Tree = tuple  # of trees; () is the single node


@cache
def trees(nodes: int) -> frozenset[Tree]:
    """The rooted trees with that many nodes."""
    if nodes == 1:
        return frozenset({()})
    return frozenset(
        tuple(sorted((*tree, branch))) for n in range(1, nodes) for tree in trees(n) for branch in trees(nodes - n)
    )


@cache
def size(tree: Tree) -> int:
    return 1 + sum(size(branch) for branch in tree)


@cache
def density(tree: Tree) -> int:
    """gamma: the product over the nodes of the sizes of the trees that hang from them."""
    return size(tree) * math.prod(density(branch) for branch in tree)


def matrix(tableau: Tableau) -> np.ndarray:
    stages = len(tableau.a) + 1
    return np.array([[0.0] * stages, *([*row, *[0.0] * (stages - len(row))] for row in tableau.a)])


def weights(tableau: Tableau, error: tuple[float, ...] | None = None) -> np.ndarray:
    """b, or the weights of the embedded solution from which an error is measured."""
    b = np.array([*tableau.a[-1], 0.0])
    return b if error is None else b - np.array(error)


def residual(tableau: Tableau, b: np.ndarray, order: int) -> float:
    """The most that the conditions b . Phi(tree) = 1 / gamma(tree) of one order leave (Hairer et al. 1993, II.2.13)."""
    a = matrix(tableau)

    @cache
    def weight(tree: Tree) -> np.ndarray:
        return np.prod([a @ weight(branch) for branch in tree], axis=0) if tree else np.ones(len(a))

    return max(abs(float(b @ weight(tree)) - 1.0 / density(tree)) for tree in trees(order))


def test_the_trees_are_all_there() -> None:
    assert [len(trees(n)) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]


@EACH
def test_the_solution_has_its_order_and_no_more(tableau: Tableau) -> None:
    b = weights(tableau)
    for order in range(1, tableau.order + 1):
        assert residual(tableau, b, order) < 1e-13, order
    assert residual(tableau, b, tableau.order + 1) > 1e-5


@pytest.mark.parametrize(
    ("tableau", "error", "order"),
    [
        (BOGACKI_SHAMPINE, BOGACKI_SHAMPINE.e, 2),
        (DORMAND_PRINCE, DORMAND_PRINCE.e, 4),
        (TSITOURAS, TSITOURAS.e, 4),
        (DORMAND_PRINCE_8, DORMAND_PRINCE_8.e, 5),
        (DORMAND_PRINCE_8, DORMAND_PRINCE_8.guard, 3),
    ],
    ids=["BS", "DP54", "Tsitouras", "DP8-e", "DP8-guard"],
)
def test_the_embedded_solutions_have_their_order_and_no_more(
    tableau: Tableau, error: tuple[float, ...], order: int
) -> None:
    embedded = weights(tableau, error)
    for lower in range(1, order + 1):
        assert residual(tableau, embedded, lower) < 3e-14, lower
    assert residual(tableau, embedded, order + 1) > 1e-4
    assert abs(math.fsum(error)) < 1e-15


ROOT = math.sqrt(6.0)


@pytest.mark.parametrize(
    ("tableau", "nodes"),
    [
        (BOGACKI_SHAMPINE, (0, 1 / 2, 3 / 4, 1)),
        (DORMAND_PRINCE, (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)),
        (TSITOURAS, (0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1)),
        (
            DORMAND_PRINCE_8,
            (
                *(0, (12 - 2 * ROOT) / 135, (6 - ROOT) / 45, (6 - ROOT) / 30, (6 + ROOT) / 30),
                *(1 / 3, 1 / 4, 4 / 13, 127 / 195, 3 / 5, 6 / 7, 1, 1),
            ),
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Tableau) else "",
)
def test_the_rows_add_up_to_the_published_nodes(tableau: Tableau, nodes: tuple[float, ...]) -> None:
    np.testing.assert_allclose(tableau.c, nodes, rtol=0.0, atol=3e-15)
    # What is meant to be the end of a step is exactly that: a stage beyond it may leave the process's interval.
    assert [c for c in tableau.c if c > 0.99] == [1.0] * nodes.count(1)


@EACH
def test_first_same_as_last(tableau: Tableau) -> None:
    """The last stage stands where the step arrives, and the method is explicit."""
    assert [len(row) for row in tableau.a] == list(range(1, len(tableau.a) + 1))
    assert len(tableau.e) == len(tableau.a) + 1
    assert math.isclose(math.fsum(tableau.a[-1]), 1.0, abs_tol=1e-15)
    assert tableau.guard is None or len(tableau.guard) == len(tableau.e)


def test_dormand_and_prince_s_coefficients_are_those_of_scipy() -> None:
    for ours, theirs in ((DORMAND_PRINCE, scipy.integrate.RK45), (DORMAND_PRINCE_8, scipy.integrate.DOP853)):
        rows, columns = theirs.A[: len(theirs.C)].shape
        np.testing.assert_allclose(matrix(ours)[:rows, :columns], theirs.A[:rows], rtol=1e-15, atol=0.0)
        np.testing.assert_allclose(ours.a[-1], theirs.B, rtol=1e-15, atol=0.0)
    assert DORMAND_PRINCE_8.guard is not None
    np.testing.assert_allclose(DORMAND_PRINCE_8.e, scipy.integrate.DOP853.E5, rtol=1e-15, atol=0.0)
    np.testing.assert_allclose(DORMAND_PRINCE_8.guard, scipy.integrate.DOP853.E3, rtol=1e-14, atol=0.0)
    np.testing.assert_allclose(-np.array(DORMAND_PRINCE.e), scipy.integrate.RK45.E, rtol=1e-13, atol=1e-16)


def test_simplifying_assumptions() -> None:
    """sum_i b_i a_ij = b_j (1 - c_j) holds for all three; sum_j a_ij c_j = c_i^2 / 2 not for Tsitouras's, hence its
    name, and for the others in all stages but the second."""

    def columns(tableau: Tableau) -> np.ndarray:
        b = weights(tableau)
        return np.abs(b @ matrix(tableau) - b * (1.0 - np.array(tableau.c)))

    def rows(tableau: Tableau) -> np.ndarray:
        c = np.array(tableau.c)
        return np.abs(matrix(tableau) @ c - 0.5 * c**2)

    for tableau in (DORMAND_PRINCE, TSITOURAS, DORMAND_PRINCE_8):
        assert columns(tableau).max() < 1e-14
    for tableau in (DORMAND_PRINCE, DORMAND_PRINCE_8):
        assert rows(tableau)[2:].max() < 1e-13
    assert rows(TSITOURAS)[1:6].min() > 1e-4


@EACH
def test_the_order_is_measured_on_a_nonlinear_problem(tableau: Tableau) -> None:
    """y1' = -2 t y1^2, y2' = y1 y2 cos t / (1 + y2^2) from (1, 1): in fixed steps, against SciPy at 1e-13."""

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        return np.array([-2.0 * t * y[0] ** 2, y[0] * y[1] * math.cos(t) / (1.0 + y[1] ** 2)])

    def error(n: int) -> float:
        y, h = np.ones(2), 2.0 / n
        for k in range(n):
            slopes = [slope(k * h, y)]
            for c, row in zip(tableau.c[1:], tableau.a):
                z = y + h * sum(w * s for w, s in zip(row, slopes))
                slopes.append(slope((k + c) * h, z))
            y = z
        return float(np.abs(y - truth).max())

    options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-15}
    truth = scipy.integrate.solve_ivp(slope, (0.0, 2.0), np.ones(2), **options).y[:, -1]
    n = {3: 64, 5: 24, 8: 6}[tableau.order]
    measured = math.log2(error(n) / error(2 * n))
    # Double precision ends where the next order has not quite died out yet.
    assert -0.3 < measured - tableau.order < 1.0, (measured, error(2 * n))
