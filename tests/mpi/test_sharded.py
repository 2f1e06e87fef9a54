"""Slices of w on the ranks give what whole copies give, for less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI

from hpcopt.analysis.export import export
from hpcopt.analysis.history import open_run
from hpcopt.checkpoint.restore import newest_valid, restore
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.models.registry import build
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.sharded.objective import ShardedStateObjective
from hpcopt.solvers.registry import make_solver
from tests.support.network_jobs import prepared
from tests.support.problems import CLASSES, FEATURES, samples, sharded, small_network
from tests.support.resuming import Case, Started, assert_same_bits, run_in_pieces

pytestmark = pytest.mark.mpi

LONGEST_ROW = 7
"""Numbers in a row of the second layer's weights."""

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    ("adam", {"learning_rate": 0.01}),
    ("lbfgs", {"memory": 2}),
    ("trust_region", {"model": "lsr1", "memory": 2}),
    ("nlcg", {"preset": "paper", "warmup_epochs": 0.0, "learning_rate": 0.05}),
    ("nlcg", {"preset": "paper", "warmup_epochs": 0.0, "learning_rate": 0.05, "beta": "hz", "safeguards": True}),
    ("nlcg", {"step_rule": "hager_zhang", "preconditioner": "diagonal_bfgs"}),
    ("nlcg", {"preconditioner": "gauss_newton_diagonal"}),
    ("newton", {"direction": "full", "subset": 0.3, "subset_least": 1, "preconditioner": "none"}),
]
ODD = torch.nn.Sequential(torch.nn.Linear(FEATURES, 1), torch.nn.Tanh(), torch.nn.Linear(1, CLASSES)).double()
"""12 numbers with biases of 1 and 3, weights of one row and of rows of one number."""

SMALL = torch.nn.Linear(FEATURES, CLASSES, bias=False).double()
"""Three rows, so that one of four ranks has none."""


def in_slices(comm: Communicator, seed: int = 0, **options: Any) -> ShardedStateObjective:
    """The problem with its samples, and slices of w, over the ranks of ``comm``."""
    return ShardedStateObjective(sharded(comm, seed=seed, **options), seed)


def whole(comm: Communicator, objective: Any, w: torch.Tensor) -> torch.Tensor:
    """All of w, whichever objective it is of."""
    if not isinstance(objective, ShardedStateObjective):
        return w
    return torch.cat([torch.from_numpy(part) for part in comm.allgather_objects(w.numpy())])


def trajectory(comm: Communicator, objective: Any, solver: Any, steps: int = 4) -> tuple[list[float], torch.Tensor]:
    """The losses of some steps, and w after them."""
    state, losses = solver.init(objective), []
    for _ in range(steps):
        state, report = solver.step(objective, state, objective.full_batch)
        losses.append(report.loss)
    return losses, whole(comm, objective, state["parameters"])


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_every_method_makes_the_steps_of_whole_copies(comm: Communicator, name: str, options: dict[str, Any]) -> None:
    solver = make_solver(name, options, 10.0)
    ours, w = trajectory(comm, in_slices(comm, weight_decay=0.01), solver)
    theirs, v = trajectory(comm, sharded(comm, weight_decay=0.01), solver)
    assert ours == pytest.approx(theirs, rel=1e-9)
    torch.testing.assert_close(w, v, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("name", "options"), METHODS[-2:])
def test_normalisations_that_do_not_decay_do_not_in_slices_either(
    comm: Communicator, name: str, options: dict[str, Any]
) -> None:
    solver, results = make_solver(name, options, 10.0), []
    layers = [torch.nn.Linear(FEATURES, 7), torch.nn.LayerNorm(7), torch.nn.Tanh(), torch.nn.Linear(7, CLASSES)]
    model = torch.nn.Sequential(*layers).double()
    for make, decay_norms in ((in_slices, False), (sharded, False), (sharded, True)):
        own = {"model": copy.deepcopy(model), "weight_decay": 0.5, "decay_norms": decay_norms}
        results.append(trajectory(comm, make(comm, **own), solver)[0])
    assert results[0] == pytest.approx(results[1], rel=1e-9)
    assert results[0] != pytest.approx(results[2], rel=1e-3)


@pytest.mark.parametrize("model", [ODD, SMALL])
@pytest.mark.parametrize(("name", "options"), [METHODS[2], METHODS[4]])
def test_slices_may_be_odd_or_empty(
    comm: Communicator, name: str, options: dict[str, Any], model: torch.nn.Module
) -> None:
    solver, results = make_solver(name, options, 10.0), []
    for make in (in_slices, sharded):
        results.append(trajectory(comm, make(comm, model=copy.deepcopy(model)), solver))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-7, atol=1e-8)


def test_values_and_products_are_slices_of_the_whole(comm: Communicator) -> None:
    ours, theirs = in_slices(comm, weight_decay=0.1), sharded(comm, weight_decay=0.1)
    w, v, batch = ours.initial_vector(), theirs.initial_vector(), theirs.full_batch
    assert torch.equal(whole(comm, ours, w), v)
    assert ours.value(w, batch) == theirs.value(v, batch)
    value, gradient = ours.value_and_gradient(w, batch)
    assert value == pytest.approx(theirs.value(v, batch), rel=1e-14)
    torch.testing.assert_close(whole(comm, ours, gradient), theirs.value_and_gradient(v, batch)[1])
    part, all_of = ours.linearize(w, batch), theirs.linearize(v, batch)
    signs, both = ours.signs(3), theirs.signs(3)
    assert torch.equal(whole(comm, ours, signs), both)
    torch.testing.assert_close(part.jvp(signs), all_of.jvp(both))
    torch.testing.assert_close(whole(comm, ours, part.vjp(part.jvp(signs))), all_of.vjp(all_of.jvp(both)))
    torch.testing.assert_close(whole(comm, ours, part.gauss_newton(signs)), all_of.gauss_newton(both))
    directions, same = torch.stack([gradient, signs]), torch.stack([whole(comm, ours, gradient), both])
    for fresh in (True, False):
        lines = (ours.linearize(w, batch), theirs.linearize(v, batch)) if fresh else (part, all_of)
        torch.testing.assert_close(lines[0].curvatures(directions), lines[1].curvatures(same))
    for mine, its in zip(ours.evaluate(w, samples()), theirs.evaluate(v, samples()), strict=True):
        assert mine == pytest.approx(its)


def test_a_step_of_the_paper_is_a_gather_a_scatter_and_two_packs(comm: Communicator) -> None:
    objective, solver = in_slices(comm), make_solver("nlcg", {"preset": "paper"}, 10.0)
    state = solver.init(objective)
    for _ in range(3):
        before = {row.label: row.calls for row in comm.ledger.rows()}
        state, _ = solver.step(objective, state, objective.full_batch)
        calls = {row.label: row.calls - before.get(row.label, 0) for row in comm.ledger.rows()}
        made = {label: number for label, number in calls.items() if number}
        assert made == {"variables": 1, "gradient": 1, "dot": 2}


@pytest.mark.parametrize(("name", "options"), [METHODS[2], METHODS[4]])
def test_a_rank_keeps_its_slice_of_every_vector_and_no_more(
    comm: Communicator, name: str, options: dict[str, Any]
) -> None:
    solver, sizes = make_solver(name, options, 10.0), []
    for objective in (in_slices(comm), sharded(comm)):
        state = solver.init(objective)
        state, _ = solver.step(objective, state, objective.full_batch)
        n = objective.size
        held = [value for value in state.values() if isinstance(value, torch.Tensor) and value.dim()]
        sizes.append([value.numel() / n for value in held if value.shape[-1] == n])
    assert sizes[0] == sizes[1]
    assert abs(in_slices(comm).size - sharded(comm).size / comm.size) <= LONGEST_ROW


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["sgd", "nlcg"])
def test_what_is_not_finite_on_one_rank_is_rejected_on_all(comm: Communicator, name: str) -> None:
    objective, solver = in_slices(comm), make_solver(name, {"preset": "paper"} if name == "nlcg" else {}, 10.0)
    state = solver.init(objective)
    state, _ = solver.step(objective, state, objective.full_batch)
    if comm.rank == 1:
        objective.whole.shard.inputs = objective.whole.shard.inputs * torch.nan
    w = state["parameters"].clone()
    state, report = solver.step(objective, state, objective.full_batch)
    assert not report.finite
    assert torch.equal(state["parameters"], w)
    calls = sorted((row.label, row.calls) for row in comm.ledger.rows())
    assert comm.allgather_objects(calls) == [calls] * comm.size


@pytest.mark.parametrize(("name", "options"), [("lars", {}), ("apts", {}), ("slimtrain", {}), ("nlcg", {})])
def test_a_method_that_needs_whole_layers_is_refused_on_all_ranks(
    comm: Communicator, name: str, options: dict[str, Any]
) -> None:
    objective, solver = in_slices(comm), make_solver(name, options, 10.0)
    with pytest.raises(UsageError, match=r"parallel\.state"):
        solver.step(objective, solver.init(objective), objective.full_batch)


def test_a_parameter_without_a_dimension_is_refused(comm: Communicator) -> None:
    model = small_network()
    model.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(UsageError, match=r"scale .*\(1,\)"):
        in_slices(comm, model=model)


def test_a_run_goes_on_exactly(comm: Communicator, shared_path: Path) -> None:
    case = Case(*METHODS[4], 10, iterations=5, objective=in_slices)
    done = run_in_pieces(comm, case, shared_path / "whole")
    assert_same_bits(run_in_pieces(comm, case, shared_path / "pieces", [2, 1]), done)


def go_on(comm: Communicator, case: Case, directory: Path, asks_at: int = 0) -> torch.Tensor:
    """One start of a run; all of w at its end."""
    start = Started(comm, case, directory, asks_at)
    return whole(comm, start.objective, start.run().parameters)


@pytest.mark.parametrize(("name", "options"), [METHODS[2], METHODS[4]])
def test_a_run_goes_on_where_the_state_is_kept_in_another_way(
    comm: Communicator, shared_path: Path, name: str, options: dict[str, Any]
) -> None:
    cut = Case(name, options, iterations=7, objective=in_slices, batch_norm=True)
    kept = Case(name, options, iterations=7, batch_norm=True)
    expected = go_on(comm, kept, shared_path / "whole")
    for number, case in enumerate((kept, cut, kept, cut)):
        found = go_on(comm, case, shared_path / "pieces", 2 if number < 3 else 0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("first", [in_slices, sharded])
def test_another_number_of_ranks_goes_on(comm: Communicator, shared_path: Path, first: Any) -> None:
    name, options = METHODS[4]
    case, alone = Case(name, options, iterations=6, objective=first), Communicator(MPI.COMM_SELF)
    if comm.rank == 0:
        expected = go_on(alone, case, shared_path / "whole")
        go_on(alone, case, shared_path / "pieces", 3)
    comm.barrier()
    found = go_on(comm, Case(name, options, iterations=6, objective=in_slices), shared_path / "pieces", 1)
    if comm.rank == 0:
        found = go_on(alone, case, shared_path / "pieces")
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_has_the_names_and_shapes_of_whole_copies(comm: Communicator, shared_path: Path) -> None:
    contents = []
    for number, make in enumerate((in_slices, sharded)):
        case = Case("adam", {}, 10, iterations=3, objective=make, batch_norm=True)
        go_on(comm, case, shared_path / str(number))
        found = newest_valid(comm, shared_path / str(number))
        assert found is not None
        restored = restore(comm, found).replicated
        contents.append({k: getattr(v, "shape", None) for k, v in restored.items() if not k.startswith("loop/s")})
    assert contents[0] == contents[1]


def test_the_module_holds_all_of_w_at_the_end(comm: Communicator) -> None:
    objective = in_slices(comm)
    w = objective.initial_vector().add_(1.0)
    objective.model.bind(w)
    assert isinstance(objective.whole, DataParallelObjective)
    held = torch.cat([p.detach().reshape(-1) for p in objective.model.whole.module.parameters()])
    assert torch.equal(held, whole(comm, objective, w))


def test_a_job_in_slices_comes_to_the_end_of_one_in_whole_copies(comm: Communicator, shared_path: Path) -> None:
    settings = ["parallel.layout=data", "run.iterations=3", "solver.name=nlcg", "debug.check_agreement=true"]
    settings += ["solver.preconditioner=gauss_newton_diagonal"]
    ours = prepared(comm, *settings, "parallel.state=sharded").run(shared_path / "run")
    theirs = prepared(comm, *settings).run(None)
    assert ours.final.train_loss == pytest.approx(theirs.final.train_loss, rel=1e-9)
    assert ours.final.test_accuracy == theirs.final.test_accuracy
    if comm.rank == 0:
        with open_run(shared_path / "run").checkpoint() as checkpoint:
            export(checkpoint, shared_path / "model.pt")
        model = build("mlp", {"widths": [12, 11, 13], "activation": "tanh"}, (64,), 10, 0).double()
        model.load_state_dict(torch.load(shared_path / "model.pt"))
        saved = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        assert torch.allclose(saved, theirs.parameters, rtol=1e-6, atol=1e-8)
    comm.barrier()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["parallel.layout=variables"], 'parallel.state = "sharded" needs parallel.layout = "data"'),
        (["parallel.layout=data", "solver.name=slimtrain", "loss.name=squared"], 'parallel.state = "replicated"'),
    ],
)
def test_a_job_that_cannot_be_in_slices_is_refused(comm: Communicator, settings: list[str], words: str) -> None:
    with pytest.raises(UsageError) as found:
        prepared(comm, "solver.name=sgd", "parallel.state=sharded", *settings)
    assert words in str(found.value)
    comm.barrier()
