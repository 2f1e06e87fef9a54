"""What the tests of cut networks have in common."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.replicas import CASES, PAPER, PROBLEMS, SPLITS


@pytest.fixture(params=["squared", "cross_entropy"])
def loss(request: pytest.FixtureRequest) -> str:
    """Each loss of a cut network."""
    found: str = request.param
    return found


@pytest.fixture(params=PROBLEMS, ids=lambda problem: problem[1])
def problem(request: pytest.FixtureRequest) -> Any:
    """Sizes and loss of a network that has replicas."""
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} of {case[1]}")
def case(request: pytest.FixtureRequest, problem: Any) -> Any:
    """Number of replicas, and how each is cut: a grid, or a split by layers."""
    replicas, cut = request.param
    return replicas, SPLITS[problem[0]] if cut == PAPER else cut
