"""hpcopt.optim.APTS on the ranks of one job: the same numbers as the solver, and what one rank alone may do wrong."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hpcopt
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.optim import APTS
from hpcopt.train.minimize import minimize
from tests.support.closures import closure_of, same_everywhere, unequal, values_of
from tests.support.problems import samples, small_network

pytestmark = pytest.mark.mpi

OPTIONS: list[dict[str, Any]] = [{}, {"local_solver": "adam", "global_iterations": 2}, {"preset": "paper"}]
IDS = ["default", "other", "paper"]


def solver_of(options: dict[str, Any]) -> Any:
    named = {key: value for key, value in options.items() if key != "preset"}
    presets = hpcopt.solvers.APTS.PRESETS
    return hpcopt.solvers.APTS(**{**presets.get(options.get("preset", ""), {}), **named})


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_mini_batches_give_the_steps_of_the_solver(
    comm: Communicator, options: dict[str, Any], weight_decay: float
) -> None:
    """Unequal parts of the batch on the ranks, and none on most of them in every third batch."""
    inputs, targets = unequal(comm)
    model = small_network()
    objective = DataParallelObjective(
        small_network(), "cross_entropy", inputs, targets, comm, weight_decay=weight_decay
    )
    optimizer, solver = APTS(model.parameters(), comm=comm, weight_decay=weight_decay, **options), solver_of(options)
    state = solver.init(objective)
    for number in range(6):
        mine = torch.arange(number % 2, len(inputs), 2) if number % 3 or comm.rank == comm.size - 1 else torch.arange(0)
        total = int(comm.reduce_scalars([len(mine)])[0])
        state, report = solver.step(objective, state, Batch(mine, len(mine), total, (0, number)))
        optimizer.step(closure_of(model, inputs[mine], targets[mine]), samples=len(mine))
        near = {"rtol": 1e-12, "atol": 1e-12} if number < 3 else {"rtol": 1e-9, "atol": 1e-10}
        torch.testing.assert_close(values_of(model), state["parameters"], **near)
        with optimizer.averaged():
            torch.testing.assert_close(values_of(model), state.get("average", state["parameters"]), **near)
        assert optimizer.report is not None
        assert optimizer.report.local_iterations == report.local_iterations
        assert optimizer.report.accepted == report.accepted
        assert optimizer.report.radius == pytest.approx(report.radius, rel=1e-9)
        assert same_everywhere(comm, values_of(model))


@pytest.mark.parametrize(("steps", "near"), [(3, 1e-12), (8, 1e-9)])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_full_batches_give_the_run_of_minimize(
    comm: Communicator, options: dict[str, Any], steps: int, near: float
) -> None:
    inputs, targets = unequal(comm)
    model, losses = small_network(), []
    objective = DataParallelObjective(small_network(), "cross_entropy", inputs, targets, comm)
    result = minimize(objective, solver_of(options), iterations=steps)
    optimizer = APTS(model.parameters(), comm=comm, full_batch=True, **options)
    for _ in range(steps):
        losses.append(optimizer.step(closure_of(model, inputs, targets), samples=len(inputs)))
    torch.testing.assert_close(values_of(model), result.parameters, rtol=near, atol=near)
    assert losses[0] == pytest.approx(result.initial.train_loss, rel=1e-13)
    assert same_everywhere(comm, torch.tensor(losses, dtype=torch.float64))


def test_without_samples_the_ranks_count_alike(comm: Communicator) -> None:
    inputs, targets = unequal(comm)
    model = small_network()
    closure = closure_of(model, inputs, targets)
    expected = comm.reduce_scalars([float(closure().detach()) / comm.size])[0]
    assert APTS(model.parameters(), comm=comm).step(closure) == pytest.approx(expected, rel=1e-14)


def long_calls(comm: Communicator) -> int:
    return sum(row.calls for row in comm.ledger.rows() if row.label in ("gradient", "step"))


@pytest.mark.parametrize("trials", [0, 1, 2])
@pytest.mark.parametrize("full_batch", [True, False])
def test_the_messages_are_those_of_the_solver(comm: Communicator, full_batch: bool, trials: int) -> None:
    inputs, targets = unequal(comm)
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, full_batch=full_batch, global_iterations=trials)
    gained = False  # only then there is something to compare on the next batch
    for number in range(4):
        comm.ledger.clear()
        optimizer.step(closure_of(model, inputs, targets), samples=len(inputs))
        assert long_calls(comm) == 2 + trials + (number == 0 or not full_batch)
        calls = {row.label: row.calls for row in comm.ledger.rows()}
        assert calls["batch"] == 1
        assert calls.get("value", 0) == (gained and not full_batch)
        assert calls.get("parameters", 0) == (number == 0 and full_batch)
        assert "together" not in calls
        assert optimizer.report is not None
        gained = optimizer.report.accepted


def test_float32_ranks_hold_the_same_bits_and_the_loss_falls(comm: Communicator) -> None:
    inputs, targets = unequal(comm)
    model = small_network(seed=comm.rank).float()
    optimizer = APTS(model.parameters(), comm=comm)
    assert same_everywhere(comm, values_of(model))
    closure = closure_of(model, inputs.float(), targets)
    losses = [optimizer.step(closure, samples=len(inputs)) for _ in range(10)]
    assert same_everywhere(comm, values_of(model))
    assert losses[-1] < 0.8 * losses[0]


def test_every_rank_draws_its_own_masks_and_keeps_them(comm: Communicator) -> None:
    inputs, targets = unequal(comm)
    model = small_network(dropout=0.5)
    drawn: list[torch.Tensor] = []
    model[2].register_forward_hook(lambda _, args, out: drawn.append((out == 0) & (args[0] != 0)))
    optimizer = APTS(model.parameters(), comm=comm, full_batch=True)
    torch.manual_seed(comm.rank)
    for _ in range(3):
        drawn.clear()
        optimizer.step(closure_of(model, inputs, targets), samples=len(inputs))
        assert all(torch.equal(mask, drawn[0]) for mask in drawn)
    assert same_everywhere(comm, values_of(model))


def test_one_closure_with_dropout_makes_all_ranks_evaluate(comm: Communicator) -> None:
    """Else that rank would reduce where the others rely on what they know."""
    inputs, targets = unequal(comm)
    model = small_network(dropout=0.5 if comm.rank == comm.size - 1 else 0.0)
    optimizer = APTS(model.parameters(), comm=comm, full_batch=True)
    for _ in range(3):
        comm.ledger.clear()
        optimizer.step(closure_of(model, inputs, targets), samples=len(inputs))
        assert long_calls(comm) == 4


def restart(comm: Communicator, state: dict[str, Any]) -> tuple[torch.nn.Module, APTS]:
    model = small_network(seed=9)
    optimizer = APTS(model.parameters(), comm=comm)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer


def test_a_resumed_run_goes_on_to_the_last_bit(comm: Communicator) -> None:
    inputs, targets = unequal(comm)
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm)
    for _ in range(4):
        optimizer.step(closure_of(model, inputs, targets), samples=len(inputs))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = [optimizer.step(closure_of(model, inputs, targets), samples=len(inputs)) for _ in range(4)]
    file.seek(0)
    again, resumed = restart(comm, torch.load(file, weights_only=True))
    assert [resumed.step(closure_of(again, inputs, targets), samples=len(inputs)) for _ in range(4)] == expected
    assert torch.equal(values_of(model), values_of(again))


def restart_from_rank_zero(comm: Communicator, model: torch.nn.Module, optimizer: APTS) -> tuple[Any, APTS, Any]:
    mine = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state = comm.broadcast_object(copy.deepcopy(mine))
    return *restart(comm, state), state


@pytest.mark.parametrize("full_batch", [True, False])
def test_rank_zeros_state_on_all_ranks_is_taken_without_its_own_part(comm: Communicator, full_batch: bool) -> None:
    inputs, targets = unequal(comm)
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, full_batch=full_batch)
    for _ in range(4):
        last = optimizer.step(closure_of(model, inputs, targets), samples=len(inputs))
    again, resumed, _ = restart_from_rank_zero(comm, model, optimizer)
    own = resumed.state_dict()["state"][0]
    assert bool((own["own_gradient"] == 0).all()) == (comm.rank > 0)
    assert own["local_pairs_stored"] == 0 or comm.rank == 0
    losses = [resumed.step(closure_of(again, inputs, targets), samples=len(inputs)) for _ in range(3)]
    assert same_everywhere(comm, values_of(again))
    assert losses[-1] < last


def test_rank_zeros_state_on_all_ranks_keeps_the_running_mean(comm: Communicator) -> None:
    """And what the last step promised of the next batch: only what a rank remembers of its samples is its own."""
    inputs, targets = unequal(comm)
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm)
    for _ in range(11):
        optimizer.step(closure_of(model, inputs, targets), samples=len(inputs))
    again, resumed, state = restart_from_rank_zero(comm, model, optimizer)
    mean = state["optimizer"]["state"][0]["average"]
    comm.ledger.clear()
    resumed.step(closure_of(again, inputs, targets), samples=len(inputs))
    iterate = values_of(again)
    with resumed.averaged():
        torch.testing.assert_close(values_of(again), mean + (iterate - mean) / 3, rtol=1e-12, atol=1e-12)
        assert same_everywhere(comm, values_of(again))
    assert sum(row.calls for row in comm.ledger.rows() if row.label == "value") == 1


@pytest.mark.mpi(min_size=2)
def test_a_state_loaded_on_one_rank_only_is_refused(comm: Communicator) -> None:
    inputs, targets = unequal(comm)
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.step(closure_of(model, inputs, targets))
    if comm.rank == 0:
        optimizer.load_state_dict(state)
    with pytest.raises(UsageError, match="not at the same step") as raised:
        optimizer.step(closure_of(model, inputs, targets))
    assert raised.value.collective


@pytest.mark.mpi(min_size=2)
def test_parameters_changed_on_one_rank_become_those_of_rank_zero(comm: Communicator) -> None:
    inputs, targets = unequal(comm)
    model, other = small_network(), small_network(seed=4)
    optimizer = APTS(model.parameters(), comm=comm, full_batch=True)
    optimizer.step(closure_of(model, inputs, targets), samples=len(inputs))
    if comm.rank == 0:
        model.load_state_dict(other.state_dict())
    with torch.no_grad():
        mine = torch.nn.functional.cross_entropy(other(inputs), targets, reduction="sum") / 37
    expected = comm.reduce_scalars([float(mine)])[0]
    found = optimizer.step(closure_of(model, inputs, targets), samples=len(inputs))
    assert found == pytest.approx(expected, rel=1e-13)
    assert same_everywhere(comm, values_of(model))


def failing_at(
    comm: Communicator, plain: Callable[[], torch.Tensor], at: int, fail: Callable[[], torch.Tensor]
) -> tuple[Callable[[], torch.Tensor], list[int]]:
    """A closure whose call number ``at``, from 0, fails on the last rank; and the number of its calls."""
    calls: list[int] = []

    def closure() -> torch.Tensor:
        calls.append(len(calls))
        return fail() if comm.rank == comm.size - 1 and calls[-1] == at else plain()

    return closure, calls


@pytest.mark.parametrize("at", range(12))
def test_nan_on_one_rank_is_a_rejection_on_all(comm: Communicator, at: int) -> None:
    inputs, targets = unequal(comm)
    model, losses = small_network(), []
    plain = closure_of(model, inputs, targets)
    closure, calls = failing_at(comm, plain, at, lambda: plain() * math.nan)
    optimizer = APTS(model.parameters(), comm=comm)
    for _ in range(6):
        before = values_of(model)
        losses.append(optimizer.step(closure, samples=len(inputs)))
        assert optimizer.report is not None
        assert optimizer.report.accepted != torch.equal(values_of(model), before)
        assert bool(values_of(model).isfinite().all())
        assert same_everywhere(comm, values_of(model))
        assert same_everywhere(comm, torch.tensor([losses[-1]]).nan_to_num())
    assert len(calls) > at
    assert math.isnan(losses[0]) == (at == 0)
    assert losses[-1] < 1.05


def raise_alone() -> torch.Tensor:
    raise ZeroDivisionError("not today")


@pytest.mark.parametrize("at", range(12))
def test_an_exception_on_one_rank_is_raised_on_all(comm: Communicator, at: int) -> None:
    """The numbers cover the start, the trials of the local phase, and the new batch at the old point."""
    inputs, targets = unequal(comm)
    model = small_network()
    closure, calls = failing_at(comm, closure_of(model, inputs, targets), at, raise_alone)
    optimizer = APTS(model.parameters(), comm=comm)
    alone = comm.size == 1
    message = "^not today$" if alone else rf"on rank {comm.size - 1} .*evaluating the closure: ZeroDivisionError: not"
    with pytest.raises(ZeroDivisionError if alone else RuntimeError, match=message) as raised:
        [optimizer.step(closure, samples=len(inputs)) for _ in range(5)]
    assert alone or raised.value.failed_rank == comm.size - 1  # type: ignore[attr-defined]
    assert len(calls) == at + 1 or comm.rank < comm.size - 1
    assert same_everywhere(comm, values_of(model))
    losses = [optimizer.step(closure, samples=len(inputs)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert same_everywhere(comm, values_of(model))


def test_the_same_exception_on_all_ranks_stays_what_it_is(comm: Communicator) -> None:
    with pytest.raises(ZeroDivisionError, match="not today"):
        APTS(small_network().parameters(), comm=comm).step(raise_alone)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("case", ["closure", "samples", "some"])
def test_a_wrong_argument_on_one_rank_is_an_error_on_all(comm: Communicator, case: str) -> None:
    inputs, targets = unequal(comm)
    model = small_network()
    closure: Any = closure_of(model, inputs, targets)
    number: Any = len(inputs)
    if comm.rank == comm.size - 1:
        closure = None if case == "closure" else closure
        number = {"closure": number, "samples": -1, "some": None}[case]
    words = {"closure": "needs a closure", "samples": "samples = -1", "some": "give it on all ranks or on none"}[case]
    with pytest.raises(UsageError, match=words) as raised:
        APTS(model.parameters(), comm=comm).step(closure, samples=number)
    assert raised.value.collective


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("case", ["mixed", "size", "option"])
def test_wrong_parameters_on_one_rank_are_an_error_on_all(comm: Communicator, case: str) -> None:
    model, odd = small_network(), comm.rank == comm.size - 1
    parameters = list(model.parameters())
    if odd and case == "mixed":
        parameters.append(torch.nn.Parameter(torch.zeros(2)))
    if odd and case == "size":
        parameters.pop()
    decay = 0.1 if odd and case == "option" else 0.0
    words = "different precisions" if case == "mixed" else f"rank 0 and rank {comm.size - 1} have different optimisers"
    with pytest.raises(UsageError, match=words) as raised:
        APTS(parameters, comm=comm, weight_decay=decay)
    assert raised.value.collective


def test_a_rank_without_samples_takes_part_and_is_not_asked(comm: Communicator) -> None:
    inputs, targets = samples()
    model, alone = small_network(), small_network()
    has_all = comm.rank == comm.size - 1
    closure = closure_of(model, inputs, targets) if has_all else raise_alone
    optimizer = APTS(model.parameters(), comm=comm)
    single = APTS(alone.parameters(), comm=comm.mpi.Split(comm.rank))
    for _ in range(5):
        optimizer.step(closure, samples=len(inputs) if has_all else 0)
        single.step(closure_of(alone, inputs, targets))
        torch.testing.assert_close(values_of(model), values_of(alone), rtol=1e-12, atol=1e-12)
    assert optimizer.report is not None
    assert [bool(trials) for trials in optimizer.report.local_iterations] == [False] * (comm.size - 1) + [True]
    single.comm.mpi.Free()
