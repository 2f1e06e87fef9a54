"""The best combination of two directions against the dense model."""

from __future__ import annotations

import pytest
import torch

from hpcopt.linalg.two_directions import combination, decrease


def model(seed: int, size: int = 6, rank: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """G (n, n) of that rank, g (n,), and two directions (2, n)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    g = torch.randn(size, generator=generator, dtype=torch.float64)
    return root @ root.T, g, torch.randn(2, size, generator=generator, dtype=torch.float64)


def value(matrix: torch.Tensor, g: torch.Tensor, s: torch.Tensor) -> float:
    return float(g @ s + 0.5 * s @ matrix @ s)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_combination_is_better(seed: int) -> None:
    matrix, g, directions = model(seed)
    slopes, curvatures = directions @ g, directions @ matrix @ directions.T
    best = combination(slopes, curvatures)
    promised = decrease(slopes, curvatures, best)
    assert promised == pytest.approx(-value(matrix, g, best @ directions), rel=1e-10)
    torch.testing.assert_close(curvatures @ best, -slopes, rtol=1e-7, atol=1e-9)
    for step in torch.randn(50, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64):
        assert promised >= -value(matrix, g, (best + step) @ directions)


@pytest.mark.parametrize("seed", range(20))
def test_it_promises_no_less_than_either_direction_alone(seed: int) -> None:
    matrix, g, directions = model(seed)
    slopes, curvatures = directions @ g, directions @ matrix @ directions.T
    both = decrease(slopes, curvatures, combination(slopes, curvatures))
    for k in (0, 1):
        alone = combination(slopes[k : k + 1], curvatures[k : k + 1, k : k + 1])
        assert both >= decrease(slopes[k : k + 1], curvatures[k : k + 1, k : k + 1], alone) * (1 - 1e-12) > 0


def test_one_direction_gets_its_exact_step() -> None:
    assert combination(torch.tensor([-6.0]), torch.tensor([[3.0]])).tolist() == [2.0]
    assert combination(torch.tensor([-0.5]), torch.tensor([[0.25]])).tolist() == [2.0]


@pytest.mark.parametrize("factor", [1.0, -3.0, 1e-6, 0.0])
def test_directions_that_are_the_same_to_the_model_count_once(factor: float) -> None:
    matrix, g, directions = model(0)
    directions[1] = factor * directions[0]
    slopes, curvatures = directions @ g, directions @ matrix @ directions.T
    best = combination(slopes, curvatures)
    assert best.tolist() == [pytest.approx(-float(slopes[0] / curvatures[0, 0])), 0.0]


@pytest.mark.parametrize("bend", [0.0, -1.0])
def test_a_direction_without_a_minimum_is_taken_as_it_is(bend: float) -> None:
    curvatures = torch.tensor([[bend, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert combination(torch.tensor([-1.0, -1.0], dtype=torch.float64), curvatures).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("precision", "counts"), [(torch.float32, False), (torch.float64, True)])
def test_what_differs_by_rounding_only_is_the_same(precision: torch.dtype, counts: bool) -> None:
    """An angle of 1e-3 is a determinant of 1e-6, which products in float32 cannot tell from 0."""
    curvatures = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-6]], dtype=torch.float64)
    best = combination(torch.tensor([-1.0, -1.1], dtype=torch.float64), curvatures, precision)
    assert (best[1] != 0) == counts
