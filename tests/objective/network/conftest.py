"""What the tests of cut networks have in common."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["squared", "cross_entropy"])
def loss(request: pytest.FixtureRequest) -> str:
    """Each loss of a cut network."""
    found: str = request.param
    return found
