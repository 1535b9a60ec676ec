"""What several test files share: the processes, two exact distributions in float64, and a seeded generator."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from sde.exact import Gaussian, Mixture
from sde.processes import SDE, VE, VP, DiscreteChain, SubVP

# The helpers' assertions show their values, as those of test files do.
pytest.register_assert_rewrite("support")


def pytest_collection_finish() -> None:
    """What collecting the tests has made stays to the end, so the garbage collector need not walk through it."""
    gc.collect()
    gc.freeze()


PROCESSES: dict[str, SDE] = {
    "VP": VP(),
    "SubVP": SubVP(),
    "VE": VE(),
    "ChainSDE": DiscreteChain.linear(1000).sde(),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, so that sums are taken in one order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=list(PROCESSES.values()), ids=list(PROCESSES))
def process(request: pytest.FixtureRequest) -> SDE:
    """Each process in turn."""
    return request.param


@pytest.fixture
def gaussian() -> Gaussian:
    """A correlated Gaussian in two dimensions, away from the origin."""
    mean = torch.tensor([0.7, -0.3], dtype=torch.float64)
    cov = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)
    return Gaussian(mean, cov)


@pytest.fixture
def mixture() -> Mixture:
    """Three correlated Gaussians of different size and weight in two dimensions."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = torch.tensor([[-1.2, 0.4], [1.0, 1.1], [0.3, -1.4]], dtype=torch.float64)
    covs = torch.tensor(
        [[[0.12, 0.05], [0.05, 0.08]], [[0.05, -0.02], [-0.02, 0.15]], [[0.2, 0.0], [0.0, 0.03]]], dtype=torch.float64
    )
    return Mixture(weights, means, covs)
