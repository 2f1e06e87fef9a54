"""slimTrain on several ranks: the same numbers as on one, whatever way features take from rank to rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.slimtrain import SlimTrain
from hpcopt.solvers.solver import State
from hpcopt.train.job import PreparedJob
from hpcopt.train.minimize import minimize
from tests.support.closures import same_everywhere, values_of
from tests.support.last_layers import FORMS, KINDS, assert_steps_of_one_rank, data, network, trained
from tests.support.problems import CLASSES, sharded

pytestmark = pytest.mark.mpi

WIDTH = 8
WORDS = WIDTH * (WIDTH + 1) // 2 + WIDTH * CLASSES + 1


@pytest.mark.parametrize(
    ("form", "count", "kind", "taken"),
    [
        ("auto", 4, "dense", "by_gather"),
        ("auto", 20, "dense", "by_gram"),
        ("auto", 4, "decoder", "by_gram"),
        ("tsqr", 4, "dense", "by_tsqr"),
        ("tsqr", 20, "dense", "by_tsqr"),
        ("gather", 20, "dense", "by_gather"),
        *((form, 4, kind, f"by_{form}") for form in FORMS for kind in KINDS[1:]),
    ],
)
def test_ten_steps_are_those_of_one_rank(comm: Communicator, form: str, count: int, kind: str, taken: str) -> None:
    state = assert_steps_of_one_rank(comm, Communicator(MPI.COMM_SELF), form, count, kind)
    assert int(state[taken]) >= 9


@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_without_memory_are_those_of_one_rank(comm: Communicator, kind: str) -> None:
    assert_steps_of_one_rank(comm, Communicator(MPI.COMM_SELF), "auto", 4, kind, memory=0)


def from_nearly_dependent_features(comm: Communicator, form: str) -> tuple[torch.Tensor, torch.Tensor, State]:
    """Two steps on features of condition number 1e10, the targets linear in them: those and what is predicted."""
    generator = torch.Generator().manual_seed(3)
    make: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    left, right = (torch.linalg.qr(torch.randn(rows, WIDTH, **make)).Q for rows in (64, WIDTH))
    inputs = left @ torch.diag(torch.logspace(0, -10, WIDTH, dtype=torch.float64)) @ right.T
    targets = inputs @ torch.randn(WIDTH, CLASSES, **make)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH, bias=False), torch.nn.Linear(WIDTH, CLASSES, bias=False))
    torch.nn.init.eye_(model.double()[0].weight)
    own = slice(comm.rank, None, comm.size)
    objective = DataParallelObjective(model, "squared", inputs[own], targets[own], comm)
    solver = SlimTrain(form=form, lambda_start=1e-30, lambda_min=1e-30, selection="fixed", learning_rate=1e-14)
    state = solver.init(objective)
    for _ in range(2):
        state, _ = solver.step(objective, state, objective.full_batch)
    weights = objective.separable.weights(state["parameters"])  # type: ignore[arg-type]
    return targets, inputs @ weights.T, state


@pytest.mark.parametrize("form", ["gram", "tsqr", "auto"])
def test_of_features_that_are_nearly_dependent_nothing_is_lost_but_in_gram_matrices(
    comm: Communicator, form: str
) -> None:
    targets, predicted, state = from_nearly_dependent_features(comm, form)
    assert int(state["by_gram" if form == "gram" else "by_tsqr"]) == 2
    error = float((predicted - targets).norm() / targets.norm())
    assert error > 1e-6 if form == "gram" else error < 1e-6


AUTOENCODER = """
[run]
iterations = 8
precision = "float64"
[data]
source = "digits"
target = "inputs"
limit = 40
batch = 10
[model]
name = "autoencoder"
width = 2
latent = 5
batch_norm = false
[loss]
name = "squared"
[solver]
name = "slimtrain"
"""


def test_an_autoencoder_learns_the_same_on_any_number_of_ranks(comm: Communicator) -> None:
    ours, theirs = (
        PreparedJob(parse_job(AUTOENCODER), ranks).run(None) for ranks in (comm, Communicator(MPI.COMM_SELF))
    )
    torch.testing.assert_close(ours.parameters, theirs.parameters, rtol=1e-7, atol=1e-8)
    losses = [row["train_loss"] for row in ours.history]
    assert losses[-1] < 0.6 * losses[0]


def test_a_loop_of_ones_own_may_leave_a_rank_without_samples(comm: Communicator) -> None:
    """The last one, from the first step on, in which it is to learn how many outputs a sample has."""

    def trained_by_hand(ranks: Communicator) -> torch.Tensor:
        """Values after three steps."""
        inputs, targets = data("decoder")
        model, owners = network("decoder"), max(1, ranks.size - 1)
        optimizer = hpcopt.optim.SlimTrain(model[:2], model[2], comm=ranks)  # type: ignore[index]
        own = slice(ranks.rank, 12, owners) if ranks.rank < owners else slice(0)
        for _ in range(3):
            optimizer.step(inputs[own], targets[own])
        return values_of(model)

    ours = trained_by_hand(comm)
    torch.testing.assert_close(ours, trained_by_hand(Communicator(MPI.COMM_SELF)), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_is_not_finite_on_one_rank_leaves_no_trace_in_its_epoch(comm: Communicator, form: str) -> None:
    """Neither in the window nor in lambda, Adam's moments or the last layer at the end."""

    def after_an_epoch(bad: int | None) -> State:
        objective = sharded(comm, "squared")
        solver = SlimTrain(form=form, memory=2, learning_rate=0.01)
        state, inputs, own = solver.init(objective), objective.shard.inputs, torch.arange(2)
        for number in range(5):
            batch = Batch(own + number, 2, 2 * comm.size, (0, number), ends_epoch=number == 4)
            if number == bad:
                kept = inputs.clone()
                inputs[number + 1] = torch.nan if comm.rank == comm.size - 1 else 1.0
                state, report = solver.step(objective, state, batch)
                assert (report.accepted, report.finite) == (False, False)
                inputs.copy_(kept)
            elif number != 2:
                state, report = solver.step(objective, state, batch)
                assert report.accepted
        return state

    with_it, without = after_an_epoch(2), after_an_epoch(None)
    for key in without.keys() - {f"by_{form}"}:
        assert torch.equal(torch.as_tensor(with_it[key]), torch.as_tensor(without[key])), key
    assert int(with_it[f"by_{form}"]) == int(without[f"by_{form}"]) + 1


def test_an_epoch_ends_with_the_same_last_layer_as_on_one_rank(comm: Communicator) -> None:
    def delivered(ranks: Communicator) -> torch.Tensor:
        options = {"learning_rate": 0.01, "memory": 1}
        return minimize(sharded(ranks, "squared"), SlimTrain(**options), epochs=1, batch=12).parameters

    ours = delivered(comm)
    torch.testing.assert_close(ours, delivered(Communicator(MPI.COMM_SELF)), rtol=1e-8, atol=1e-9)
    assert same_everywhere(comm, ours)


@pytest.mark.parametrize(("form", "calls", "words"), [("gram", 2, WORDS), ("tsqr", 2, WORDS), ("gather", 3, 4 * 11)])
def test_a_step_takes_the_calls_and_the_numbers_that_are_said(
    comm: Communicator, form: str, calls: int, words: int
) -> None:
    trained(comm, form, 4, steps=1)
    found = {row.label: row for row in comm.ledger.rows()}
    if comm.size == 1:
        assert "last layer" not in found or found["last layer"].bytes == 8 * words
        return
    counts = comm.size if form == "gather" else 0
    answer = WIDTH * CLASSES + 4
    assert found["last layer"].calls == calls
    assert found["last layer"].bytes == 8 * (words + counts + answer)
    assert found["gradient"].calls == 1


@pytest.mark.parametrize("form", ["gram", "tsqr"])
def test_of_a_decoder_only_the_blocks_are_sent(comm: Communicator, form: str) -> None:
    """Four of them, each with 3 x 2 x 2 columns and the bias; all columns are 3 x 4 x 4 and the bias."""
    trained(comm, form, 4, "decoder", steps=1)
    found = {row.label: row for row in comm.ledger.rows()}
    if comm.size > 1:
        block, answer = 13 * 14 // 2 + 13 * 2 + 1, 49 * 2 + 4
        assert found["last layer"].bytes == 8 * (4 * block + answer)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("", "with the squared loss only"),
        ('[parallel]\nlayout = "variables"\n[loss]\nname = "squared"', 'parallel.layout = "data"'),
    ],
)
def test_a_job_that_has_no_last_layer_to_solve_for_is_refused_on_all_ranks(
    comm: Communicator, more: str, words: str
) -> None:
    job = '[data]\nsource = "digits"\nlimit = 50\n[model]\nwidths = [8]\ninit = "he"\n[solver]\nname = "slimtrain"\n'
    with pytest.raises(UsageError, match=words):
        PreparedJob(parse_job(job + more), comm)
