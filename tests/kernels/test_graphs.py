"""Iterations of conjugate gradients that are recorded once are those that are started one by one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.kernels import cupy_kernels, cupy_vectors
from hpcopt.kernels.choice import TORCH, choose, with_graphs
from hpcopt.kernels.cupy_kernels import CupyKernels
from hpcopt.kernels.cupy_vectors import ConjugateSteps, CupyVectors
from hpcopt.kernels.graphs import CudaCapture, Repeated, Work
from hpcopt.linalg import conjugate_gradient
from hpcopt.linalg.conjugate_gradient import Solution, conjugate_gradients
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.vectors import inner
from tests.support.capture import SimulatedCapture
from tests.support.emulation import Emulation

EVERY = 3
"""Iterations between looks at whether they have ended."""


@pytest.fixture
def capture(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> SimulatedCapture:
    # Few threads and iterations, as every thread is simulated.
    monkeypatch.setattr(cupy_vectors, "THREADS", 32)
    monkeypatch.setattr(cupy_kernels, "THREADS", 32)
    monkeypatch.setattr(cupy_vectors, "EVERY", EVERY)
    return SimulatedCapture(emulation)


def solve(
    vectors: CupyVectors,
    product: Callable[[torch.Tensor], torch.Tensor],
    gradient: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    **options: float,
) -> Solution:
    monkeypatch.setattr(conjugate_gradient, "kernels_on", lambda *_: TORCH._replace(vectors=vectors))
    given = {"tolerance": 1e-10, "most": 100} | options
    return conjugate_gradients(product, gradient, 1e-3, inner, **given, local=True)


@pytest.mark.parametrize("half", ["full", "bfloat16"])
def test_a_block_is_solved_with_the_same_bits(
    comm: Communicator, capture: SimulatedCapture, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    """Products by the CUDA kernels too; all that an iteration starts is recorded."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(4, 6, generator=generator), torch.randint(3, (4,), generator=generator)
    objective = NetworkObjective([6, 8, 5, 3], "tanh", "cross_entropy", inputs, labels, comm, factors=half)
    objective.network.kernels = CupyKernels(capture)
    w = objective.initial_vector()
    _, gradient = objective.value_and_gradient(w, objective.full_batch)
    block = objective.linearize(w, objective.full_batch).block
    plain, recorded = (
        solve(CupyVectors(capture, given), block.product, gradient, monkeypatch, most=2 * EVERY + 3, tolerance=0.0)
        for given in (None, capture)
    )
    assert capture.done == ["warm", "record", *["replay"] * (EVERY + 3)]
    assert recorded.iterations == plain.iterations == 2 * EVERY + 3
    assert torch.equal(recorded.direction, plain.direction)


def test_a_short_solution_is_not_recorded(capture: SimulatedCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64))
    solve(CupyVectors(capture, capture), matrix.mv, torch.ones(3, dtype=torch.float64), monkeypatch)
    assert "record" not in capture.done


def test_the_processor_looks_at_the_device_once_in_a_few_iterations_and_never_in_one(
    capture: SimulatedCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    monkeypatch.setattr(ConjugateSteps, "_state", lambda _: float(looks.append(1) or 0))
    matrix = torch.diag(torch.arange(1.0, 51, dtype=torch.float64))
    solve(CupyVectors(capture, capture), matrix.mv, torch.ones(50, dtype=torch.float64), monkeypatch, most=3 * EVERY)
    assert len(looks) == 3
    assert capture.done.count("replay") == 2 * EVERY


def test_what_is_recorded_does_not_outlive_the_solution(capture: SimulatedCapture) -> None:
    g = torch.ones(50, dtype=torch.float64)
    steps = CupyVectors(capture, capture).conjugate_steps(g, 0.0)
    for _ in range(EVERY + 1):
        steps.advance(torch.diag(torch.arange(1.0, 51, dtype=torch.float64)).mv, 0.0)
    steps.end()
    gone = weakref.ref(steps)
    del steps
    assert gone() is None


def test_what_waits_for_the_device_is_not_recorded_but_done(
    capture: SimulatedCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = torch.diag(torch.arange(1.0, 51, dtype=torch.float64))
    g = torch.ones(50, dtype=torch.float64)

    def product(v: torch.Tensor) -> torch.Tensor:
        return (matrix @ v) * float(v.new_ones(()))

    found = solve(CupyVectors(capture, capture), product, g, monkeypatch)
    assert capture.done == ["warm", "record"]
    torch.testing.assert_close(found.direction, torch.linalg.solve(matrix + 1e-3 * torch.eye(50), -g))


def test_what_cannot_be_recorded_is_done_as_often_as_it_is_called() -> None:
    class Refusing:
        def warm(self, work: Work) -> None:
            work()

        def record(self, work: Work) -> Work:
            raise RuntimeError("operation not permitted when stream is capturing")

    calls = [0]

    def work() -> None:
        calls[0] += 1

    repeated = Repeated(work, Refusing(), 2)
    for _ in range(7):
        repeated()
    assert calls == [7]


def test_recordings_are_used_where_a_trial_has_the_same_bits(emulation: Emulation, capture: SimulatedCapture) -> None:
    plain, at = CupyVectors(capture), (torch.device("cpu"), torch.float64)
    taken = with_graphs(plain, capture, *at)
    assert taken.capture is capture
    times = {"torch": 1e-4}
    assert choose({"torch": TORCH.factors}, taken, times).reason == "torch (torch 100 us), iterations in CUDA graphs"

    class Forgetful(SimulatedCapture):
        def record(self, work: Work) -> Work:
            super().record(work)
            return lambda: None

    assert with_graphs(plain, Forgetful(emulation), *at) is plain
    assert choose({"torch": TORCH.factors}, plain, times).reason == "torch (torch 100 us)"


def test_a_trial_that_fails_leaves_kernels_that_are_started_one_by_one(capture: SimulatedCapture) -> None:
    plain = CupyVectors(capture)
    capture.warm = lambda work: (_ for _ in ()).throw(RuntimeError("no graphs here"))  # type: ignore[method-assign]
    assert with_graphs(plain, capture, torch.device("cpu"), torch.float32) is plain


def test_a_device_records_on_a_stream_beside_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name, self.device = name, torch.device("cpu")

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

    class Graph:
        def capture_begin(self, pool: str, capture_error_mode: str) -> None:
            said.append(f"begin in {pool}")

        def capture_end(self) -> None:
            said.append("end")

        def replay(self) -> None:
            said.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("other"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "memory")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    capture = CudaCapture(torch.device("cuda", 0))
    repeated = Repeated(lambda: said.append("work"), capture, 1)
    repeated()
    assert said == ["other waits for current", "work", "current waits for other"]
    said.clear()
    repeated()
    beside = ["other waits for current", "begin in memory", "work", "end", "current waits for other"]
    assert said == [*beside, "replay"]
    with pytest.raises(RuntimeError, match="not permitted"):
        capture.record(refused)
    assert said[-1] == "current waits for other"


def refused() -> None:
    """What cannot be recorded."""
    raise RuntimeError("operation not permitted when stream is capturing")
