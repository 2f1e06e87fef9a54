"""The sweeps in C: those of torch in float64 on vectors of any length and place, and the same steps of a method."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpcopt.kernels import compiled as module
from hpcopt.kernels import sweeps as torch_sweeps
from hpcopt.kernels.compiled import CompiledSweeps, compiled_sweeps, shares
from hpcopt.kernels.sweeps import Pair, Sweeps, TorchSweeps
from hpcopt.solvers import adam, products
from hpcopt.solvers.conjugate import controlled
from hpcopt.solvers.products import totals
from hpcopt.solvers.registry import make_solver
from tests.kernels.conftest import Build
from tests.support.checks import run
from tests.support.objectives import QuadraticObjective, digits, mini_batches
from tests.support.sweeps import assert_sweep_of_adam, assert_sweeps_of_nlcg, draw

LENGTHS = (0, 1, 7, 64, 701)
LEARNING = Pair(0.5, 0.3, 0.2, -0.01)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums come in several parts."""
    monkeypatch.setattr(module, "BLOCK", 64)


def inside(dtype: torch.dtype, size: int, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Vectors that begin at no multiple of a register's bytes, and what they lie in: NaN before and behind."""
    whole = [torch.full((size + 4,), math.nan, dtype=dtype) for _ in range(count)]
    own = [each[1 : size + 1] for each in whole]
    for seed, each in enumerate(own):
        each.copy_(draw(dtype, size, seed=seed))
    return own, whole


@PRECISIONS
@pytest.mark.parametrize("size", LENGTHS)
def test_sweeps_are_those_of_torch_in_double(compiled: CompiledSweeps, dtype: torch.dtype, size: int) -> None:
    for keeps, pair, undo in product((True, False), (LEARNING, None), (0.0, 0.25)):
        own, whole = inside(dtype, size, 7)
        assert_sweeps_of_nlcg(compiled, own, keeps, pair, undo)
        assert all(torch.cat([each[:1], each[size + 1 :]]).isnan().all() for each in whole)
    own, whole = inside(dtype, size, 4)
    assert_sweep_of_adam(compiled, own)
    assert all(torch.cat([each[:1], each[size + 1 :]]).isnan().all() for each in whole)


def test_sums_of_single_precision_are_in_double_beyond_a_block(
    compiled: CompiledSweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 1)
    monkeypatch.setattr(torch_sweeps, "PIECE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x = torch.tensor([1e8, 1.0, -1e8, 1.0])
    for sweeps in (compiled, TorchSweeps()):
        parts = sweeps.products([(x, torch.ones(4)), (x, torch.full((4,), 2.0))])
        assert totals(QuadraticObjective(4), parts) == [2.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_in_sums_and_stays_where_it_is(compiled: CompiledSweeps, bad: float) -> None:
    g, previous, h, d = (draw(torch.float32, 200, seed=seed).abs_() for seed in range(4))
    g[100] = bad
    ((square, *_),) = compiled.measure(g, previous, d, d)
    assert not square.isfinite()
    compiled.precondition(g, previous, h, d, None, LEARNING, 1e-3)
    assert [(~each.isfinite()).nonzero().flatten().tolist() for each in (g, previous, h)] == [[100]] * 3


def test_the_number_of_threads_changes_no_bit(compiled: CompiledSweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE", 1)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        own, _ = inside(torch.float32, 701, 6)
        sums = compiled.precondition(*own[:5], LEARNING, 1e-3)
        compiled.move(own[0], own[3], own[5], None, beta=0.7, undo=0.1, rate=0.1, leaves=0.0)
        found.append(torch.stack([*own, torch.stack(list(sums[0])).repeat(701)[:701]]))
    assert torch.equal(*found)


def test_shares_are_whole_blocks_and_short_vectors_one_thread_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(0, 4) == [(0, 0)]
    assert shares(701, 4) == [(0, 701)]
    monkeypatch.setattr(module, "SHARE", 100)
    assert shares(701, 4) == [(0, 192), (192, 384), (384, 576), (576, 701)]
    assert shares(299, 4) == [(0, 192), (192, 299)]


def test_vectors_that_c_would_misread_are_refused(compiled: CompiledSweeps) -> None:
    x = torch.ones(10)
    for other in (torch.ones(20)[::2], torch.ones(10, dtype=torch.float64)):
        with pytest.raises(ValueError, match="takes contiguous ones"):
            compiled.measure(x, x, x, other)
    with pytest.raises(ValueError, match="of one length"):
        compiled.products([(x, x[:9])])


METHODS = [
    ("nlcg", {"preset": "paper", "learning_rate": 0.3}),
    ("nlcg", {"preset": "paper", "beta": "pr", "learning_rate": 0.3}),
    ("nlcg", {"step_rule": "control", "preconditioner": "identity", "learning_rate": 0.3}),
    ("adam", {"decoupled_weight_decay": 0.01}),
]


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_a_method_takes_the_same_steps_as_by_torch(
    name: str, options: dict[str, Any], compiled: CompiledSweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def end(sweeps: Sweeps) -> Any:
        """Where 30 steps by these sweeps lead to."""

        def sweeps_on(vector: torch.Tensor) -> Sweeps:
            taken.append(sweeps)
            return sweeps

        for place in (adam, controlled, products):
            monkeypatch.setattr(place, "sweeps_on", sweeps_on)
        objective = digits(torch.float64)
        state, _ = run(make_solver(name, options, 30.0), objective, 30, batches=mini_batches(objective))
        return state["parameters"]

    torch.testing.assert_close(end(compiled), end(TorchSweeps()), rtol=1e-7, atol=1e-9)
    assert len(set(taken)) == 2


def test_without_a_compiler_hpcopt_is_installed_without_them(build: Build) -> None:
    assert build(CC="/nowhere/cc", LDSHARED="/nowhere/cc") == []


def test_why_there_are_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert compiled_sweeps.__wrapped__() == "none were compiled when hpcopt was installed"
    broken = tmp_path / "_vectors.so"
    broken.write_text("not a library")
    monkeypatch.setattr(module, "find_spec", lambda _: SimpleNamespace(origin=str(broken)))
    assert str(compiled_sweeps.__wrapped__()).startswith("the compiled sweeps cannot be loaded")


def test_a_library_of_other_sources_is_not_used(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: SimpleNamespace(origin=str(library)))
    assert isinstance(compiled_sweeps.__wrapped__(), CompiledSweeps)
    for source in module.FOLDER.iterdir():
        (tmp_path / source.name).write_text(source.read_text() + "// another one")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    assert str(compiled_sweeps.__wrapped__()).startswith("the compiled sweeps are of other sources")
