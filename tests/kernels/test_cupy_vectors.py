"""The CUDA kernels for long vectors: those of torch in float64, in any order of threads and beside no tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hpcopt.kernels import cupy_vectors
from hpcopt.kernels.choice import TORCH
from hpcopt.kernels.cupy_vectors import EVERY, CupyVectors
from hpcopt.kernels.sweeps import Pair
from hpcopt.linalg import conjugate_gradient
from hpcopt.linalg.conjugate_gradient import Solution, conjugate_gradients
from hpcopt.objective.vectors import inner
from tests.support.emulation import Emulation
from tests.support.sweeps import TOLERANCE, assert_sweeps_of_nlcg, draw

SIZE = 700


@pytest.fixture
def vectors(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> CupyVectors:
    monkeypatch.setattr(cupy_vectors, "THREADS", 64)
    monkeypatch.setattr(cupy_vectors, "MOST_BLOCKS", 3)  # every thread takes several numbers, some one more
    return CupyVectors(emulation)


@pytest.fixture(params=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = getattr(torch, request.param)
    return found


@pytest.mark.parametrize(("k", "l"), [(1, 1), (2, 22), (5, 4)])
def test_inner_products_are_those_in_float64(vectors: CupyVectors, dtype: torch.dtype, k: int, l: int) -> None:  # noqa: E741
    x, y = draw(dtype, k, SIZE), draw(dtype, l, SIZE, seed=1)
    found = vectors.inner(x, y)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, x.double() @ y.double().T, rtol=1e-13, atol=1e-12)


def test_products_of_nothing_are_0(vectors: CupyVectors) -> None:
    assert vectors.inner(torch.zeros(2, 0), torch.zeros(1, 0)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("pair", [Pair(0.5, 0.3, 0.2, -0.01), None])
@pytest.mark.parametrize("undo", [0.0, 0.25])
def test_sweeps_of_nlcg_are_those_of_torch(
    vectors: CupyVectors, dtype: torch.dtype, keeps: bool, pair: Pair | None, undo: float
) -> None:
    assert_sweeps_of_nlcg(vectors, [draw(dtype, SIZE, seed=seed) for seed in range(7)], keeps, pair, undo)


def system(dtype: torch.dtype, size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric positive definite matrix and a right-hand side."""
    q, _ = torch.linalg.qr(draw(torch.float64, size, size))
    values = torch.logspace(-2, 0, size, dtype=torch.float64)
    return (q @ torch.diag(values) @ q.T).to(dtype), draw(dtype, size, seed=1)


@pytest.fixture
def on_device(vectors: CupyVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local conjugate gradients take the kernels."""
    monkeypatch.setattr(conjugate_gradient, "kernels_on", lambda *_: TORCH._replace(vectors=vectors))


def both(
    product: Callable[[torch.Tensor], torch.Tensor], gradient: torch.Tensor, damping: float, **options: Any
) -> tuple[Solution, Solution]:
    """The solution with scalars on the processor, and with those on the device."""
    given = {"tolerance": 1e-6, "most": 100} | options
    return tuple(conjugate_gradients(product, gradient, damping, inner, **given, local=at) for at in (False, True))  # type: ignore[return-value]


@pytest.mark.usefixtures("on_device")
def test_conjugate_gradients_take_the_same_steps(dtype: torch.dtype) -> None:
    a, g = system(dtype)
    kept = g.clone()
    host, device = both(a.mv, g, 0.1, tolerance=1e-3)
    assert (device.iterations, device.converged, device.finite) == (host.iterations, True, True)
    assert host.iterations % EVERY != 0  # the end is found between two looks
    torch.testing.assert_close(device.direction, host.direction, rtol=1e-4, atol=100 * TOLERANCE[dtype])
    assert torch.equal(g, kept)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("most", [1, 2, EVERY, EVERY + 1])
def test_iterations_are_those_that_were_asked_for(most: int) -> None:
    a, g = system(torch.float64)
    host, device = both(a.mv, g, 0.0, tolerance=0.0, most=most)
    assert device.iterations == host.iterations == most
    assert not device.converged
    torch.testing.assert_close(device.direction, host.direction, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("on_device")
def test_a_phase_may_be_ended_from_outside() -> None:
    a, g = system(torch.float64)
    host, device = both(a.mv, g, 0.0, tolerance=0.0, goes_on=lambda done: done < 3)
    assert device.iterations == host.iterations == 3


@pytest.mark.usefixtures("on_device")
def test_without_positive_curvature_the_direction_is_the_last_one_or_downhill() -> None:
    g = draw(torch.float64, 5)
    for product in (torch.neg, lambda v: v * torch.tensor([1.0, 1.0, 1.0, -0.2, 1.0], dtype=torch.float64)):
        host, device = both(product, g, 0.0, tolerance=1e-8, most=20)
        assert not device.converged
        assert device.finite
        torch.testing.assert_close(device.direction, host.direction)
        assert float(g @ device.direction) < 0


@pytest.mark.usefixtures("on_device")
def test_what_is_not_finite_leaves_the_direction_of_the_iteration_before() -> None:
    a, g = system(torch.float64)
    counts = [0]

    def product(v: torch.Tensor) -> torch.Tensor:
        """The third one fails; the same for both solvers."""
        counts[0] += 1
        return a @ v * (math.nan if counts[0] % 1000 == 3 else 1.0)

    host = conjugate_gradients(product, g, 0.1, inner, tolerance=1e-9, most=50)
    counts[0] = 1000
    device = conjugate_gradients(product, g, 0.1, inner, tolerance=1e-9, most=50, local=True)
    assert not device.finite
    assert device.iterations == host.iterations == 3
    torch.testing.assert_close(device.direction, host.direction)


@pytest.mark.usefixtures("on_device")
def test_nothing_to_solve_is_solved() -> None:
    _, device = both(torch.clone, torch.zeros(7), 0.1)
    assert device.converged
    assert device.direction.tolist() == [0.0] * 7


@pytest.mark.usefixtures("on_device")
def test_where_the_prediction_is_rounding_the_residual_itself_decides() -> None:
    a, g = system(torch.float32)
    host, device = both(a.mv, g, 0.1, tolerance=1e-6)
    assert device.converged
    assert host.iterations <= device.iterations <= host.iterations + 1


def test_the_device_is_looked_at_once_in_a_few_iterations(
    vectors: CupyVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, g = system(torch.float64)
    steps, looks = vectors.conjugate_steps(g, 0.0), [0]
    state = steps._state

    def counted() -> float:
        """Where the processor would wait."""
        looks[0] += 1
        return state()

    monkeypatch.setattr(steps, "_state", counted)
    assert all([steps.advance(a.mv, 0.0) for _ in range(2 * EVERY + 1)])
    assert looks == [2]
