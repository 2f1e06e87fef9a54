from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpcopt.analysis.predict import PRODUCTS, Subject, predict, subject_of
from hpcopt.config import parse_job
from hpcopt.costs.machine import Machine, read
from hpcopt.errors import UsageError
from tests.support.measurements import ONE_A_NANOSECOND, TWICE, rates, written

DIGITS = '[data]\nsource = "digits"\nlimit = 500\n'


def subject(solver: str, *settings: str, data: str = DIGITS, widths: str = "[100]", init: str = "he") -> Subject:
    model = f'[model]\nwidths = {widths}\ninit = "{init}"\n'
    return subject_of(parse_job(f'{data}{model}[solver]\nname = "{solver}"\n', list(settings), name="a"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """An operation or a byte a nanosecond, half of that with two ranks, 100 us a module; 8 bytes in 10 us."""
    return read(written(tmp_path / "m.json"))


def test_seconds_bytes_and_calls_of_a_step_of_sgd_are_those_worked_out_by_hand(machine: Machine) -> None:
    """64-100-10 in float32 on both of two ranks: n = 7,510, and 2 ns an operation, a byte, or an output in the loss."""
    found = subject("sgd")
    rows, nanosecond = found.batch / 2, 2e-9
    first, last = 2 * rows * 64 * 100, 2 * rows * 100 * 10
    activation, weights = 4 * 200 * rows, 4 * 3 * 7510
    gradient = 2 * first + 3 * last + 3 * activation
    compute = nanosecond * (gradient + rows * 10 + weights * 6 / 3) + 3 * 100e-6
    prediction = predict(found, machine, 2, 2)
    assert prediction.compute == pytest.approx(compute, rel=1e-3)
    assert (prediction.calls, prediction.bytes) == (2, 4 * (7510 + 32) + 8)
    assert prediction.seconds == prediction.compute + prediction.communication + prediction.waiting
    assert [(row["label"], row["kind"], row["calls"]) for row in prediction.messages] == [
        ("gradient", "allreduce", 1),
        ("scalars", "broadcast", 1),
    ]


def test_one_rank_spends_nothing_on_communication(machine: Machine) -> None:
    found = predict(subject("trust_region"), machine, 1, 2)
    assert (found.communication, found.waiting, found.hosts) == (0, 0, 1)
    assert found.compute > 0


def test_ranks_wait_at_every_call_by_what_they_compute_before_it(tmp_path: Path) -> None:
    """A tenth of it: two calls in a step of SGD, which wait a tenth of its computing together."""
    waits = [[1e-6, 1e-7], [1.0, 0.1]]
    some = [rates(1, ONE_A_NANOSECOND), rates(2, TWICE, waits)]
    found = predict(subject("sgd"), read(written(tmp_path / "m.json", rates=some)), 2, 2)
    assert found.waiting == pytest.approx(0.1 * found.compute)
    assert found.seconds == found.compute + found.communication + found.waiting


@pytest.mark.parametrize("name", ["apts", "nlcg", "newton", "adam"])
def test_more_ranks_compute_less_each_and_communicate_longer(machine: Machine, name: str) -> None:
    few, many = (predict(subject(name), machine, ranks, 2) for ranks in (4, 64))
    assert many.compute < few.compute
    assert many.communication > few.communication
    assert many.hosts == 32
    assert many.memory < few.memory


def test_ranks_beyond_the_cores_compute_no_faster(machine: Machine) -> None:
    found = subject("sgd", "data.limit=1700")
    two, eight = predict(found, machine, 2, 8), predict(found, machine, 8, 8)
    assert eight.compute > 0.9 * two.compute
    assert any("8 ranks on a host were not measured" in note for note in machine.unsure)


def test_more_ranks_than_samples_are_said_to_be_refused_by_a_run(machine: Machine) -> None:
    found = subject("sgd")
    for ranks, refused in ((found.objective.samples, False), (found.objective.samples + 1, True)):
        predict(found, machine, ranks, 2)
        assert any("are refused by hpcopt run" in note for note in machine.unsure) == refused


def test_sharded_state_is_divided_by_the_ranks(machine: Machine) -> None:
    whole, cut = (
        predict(subject("adam", f"parallel.state={state}"), machine, 8, 2) for state in ("replicated", "sharded")
    )
    assert whole.memory - cut.memory == pytest.approx(7 / 8 * 3 * 4 * 7510)
    assert {row["kind"] for row in cut.messages} == {"allgather", "reduce_scatter", "allreduce"}


def test_variables_cut_over_a_grid_take_a_part_of_the_memory(machine: Machine) -> None:
    """A rank of a 2 x 2 grid holds a quarter of the weights, and its factors of the Jacobian."""
    settings = ("parallel.layout=variables", "solver.direction=block", "solver.cg_iterations=4")
    found = subject("newton", *settings, widths="[400, 400]")
    one, four = predict(found, machine, 1, 2), predict(found, machine, 4, 2)
    assert four.memory < 0.6 * one.memory
    assert {row["label"] for row in four.messages} >= {"forward", "backward", "block", "curvatures"}
    assert {row["ranks"] for row in four.messages} == {2, 4}
    assert predict(found, machine, 4, 2, trials=8).compute > four.compute


def test_conjugate_gradients_are_expected_to_take_as_many_products_as_were_measured(machine: Machine) -> None:
    found = subject("newton", "solver.preconditioner=none")
    products = {row["label"]: row["calls"] for row in predict(found, machine, 2, 2).messages}["product"]
    assert products == PRODUCTS
    assert {row["label"]: row["calls"] for row in predict(found, machine, 2, 2, 5).messages}["product"] == 5
    factors = {row["label"]: row["calls"] for row in predict(subject("newton"), machine, 2, 2).messages}
    assert (factors["product"], factors["factors"]) == (1, pytest.approx(0.2))


def test_mini_batches_end_epochs_and_look_back(machine: Machine) -> None:
    whole, batches = subject("apts"), subject("apts", "data.batch=100")
    assert (whole.per_epoch, batches.batch) == (1, round(batches.objective.samples / batches.per_epoch))
    labels = [{row["label"] for row in predict(each, machine, 2, 2).messages} for each in (whole, batches)]
    assert labels[1] - labels[0] == {"value"}


@pytest.mark.parametrize(
    ("solver", "settings", "words"),
    [
        ("newton", ("parallel.layout=variables", "parallel.mapping=paper"), "over one grid"),
        ("newton", ("parallel.layout=variables", "parallel.data=2"), "over one grid"),
    ],
)
def test_what_there_are_no_formulas_for_is_refused(solver: str, settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        subject(solver, *settings)


def test_a_method_of_the_users_own_is_refused() -> None:
    job = parse_job(f'{DIGITS}[solver]\nname = "sgd"\n', [], name="a")
    with pytest.raises(UsageError, match="no cost model"):
        subject_of(replace(job, solver=replace(job.solver, name="package.module:Method")))


def test_ranks_that_do_not_fit_the_network_are_refused(machine: Machine) -> None:
    found = subject("sgd", "parallel.layout=variables", widths="[3]")
    with pytest.raises(UsageError, match="No grid"):
        predict(found, machine, 1009, 2)


def test_inverses_of_kronecker_factors_are_shared_and_their_products_are_every_ranks(machine: Machine) -> None:
    """65-100 and 101-10 at 2 ns an operation: more ranks leave the inverse of 101 and all products."""
    found = subject("newton")
    products = 2 * (65 * 100 * 165 + 101 * 10 * 111)
    many, more = (predict(found, machine, ranks, 2).compute for ranks in (256, 1024))
    assert many > more > 2e-9 * (products + (100**3 + 65**3) / 5)


def test_a_mini_batch_is_copied_for_every_pass(machine: Machine) -> None:
    """64 + 1 numbers a sample, of a set of twice as many."""
    whole, batches = subject("sgd"), subject("sgd", "data.batch=100")
    same = replace(batches, per_epoch=1, batch=batches.batch)
    alone = [predict(each, machine, 1, 2).compute for each in (batches, same)]
    assert alone[0] - alone[1] == pytest.approx(1e-9 * 2 * 65 * 4 * batches.batch, rel=1e-6)
    assert whole.batch > batches.batch
