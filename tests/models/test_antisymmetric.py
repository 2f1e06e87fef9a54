"""The antisymmetric network is its differential equation."""

from __future__ import annotations

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.models import build, count_parameters
from hpcopt.models.antisymmetric import GAMMA, AntisymmetricEquation


def test_it_has_the_published_numbers_of_parameters() -> None:
    """Convection, diffusion and reaction: 1,984 and 72 x 17; peaks: 304 and 9."""
    assert count_parameters(build("antisymmetric_resnet", {}, (55,), 72, seed=0)) == 1984 + 72 * 17
    peaks = build("antisymmetric_resnet", {"width": 8, "bias": False}, (2,), 1, seed=0)
    assert count_parameters(peaks) == 304 + 9


def test_its_matrices_are_antisymmetric_but_for_the_damping_and_alike_at_the_start() -> None:
    torch.manual_seed(0)
    matrices = AntisymmetricEquation(4, 3, 1.0).double().matrices().detach()
    torch.testing.assert_close(matrices + matrices.mT, -2 * GAMMA * torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    assert torch.equal(matrices[0], matrices[2])
    assert float(matrices[0].abs().max()) > 0.1


def test_it_converges_to_the_equation_with_order_four() -> None:
    """The same weights, linear in time, on grids of 8, 16 and 256 steps."""
    torch.manual_seed(0)
    ends = 0.5 * torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    y, found = torch.randn(5, 4, dtype=torch.float64), []
    for steps in (8, 16, 256):
        equation = AntisymmetricEquation(4, steps + 1, 2.0).double()
        part = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None]
        with torch.no_grad():
            equation.weights.copy_(ends[0][0] + part * (ends[0][1] - ends[0][0]))
            equation.biases.copy_(ends[1][0] + part * (ends[1][1] - ends[1][0]))
            found.append(equation(y))
    coarse, fine = ((each - found[2]).norm() for each in found[:2])
    assert 10 < float(coarse / fine) < 25
    assert float(fine) < 1e-2


@pytest.mark.parametrize(
    ("options", "words"),
    [({"width": 1}, "model.width"), ({"nodes": 1}, "model.nodes"), ({"time": 0}, "model.time"), ({"bias": 1}, "bias")],
)
def test_wrong_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build("antisymmetric_resnet", options, (3,), 2, seed=0)
