from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI

from hpcopt.comm.communicator import Communicator
from hpcopt.costs.facts import case_of
from hpcopt.costs.layers import Layer
from hpcopt.costs.machine import read
from hpcopt.costs.methods import Case
from hpcopt.costs.work import GRADIENT, VALUE, Evaluations, Worker, evaluations_of
from hpcopt.kernels.lags import CompiledLags, compiled_lags
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Work
from hpcopt.objective.separable import design, last_layer
from hpcopt.solvers.registry import make_solver
from tests.support.last_layers import KINDS, data, network
from tests.support.measurements import written
from tests.support.problems import SAMPLES, loss_for, sharded

SMALL = {"radius_initial": 1e-3, "radius_max": 1e-3}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("adam", {}),
        ("lars", {}),
        ("lbfgs", {}),
        ("trust_region", SMALL),
        ("apts", {**SMALL, "global_iterations": 2, "local_start": 0.01}),
        ("nlcg", {"preconditioner": "diagonal_bfgs", "subset": 1.0}),
        ("nlcg", {"preconditioner": "identity", "subset": 1.0, "damping_control": "batch"}),
        ("nlcg", {"step_rule": "strong_wolfe", "preconditioner": "identity"}),
        ("nlcg", {"preset": "paper", "learning_rate": 1e-3}),
        ("newton", {"preconditioner": "none", "cg_iterations": 3, "subset": 1.0, "damping": 1e3, "combine": False}),
        ("slimtrain", {"deliver": "iterate"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_evaluations_are_those_that_the_objective_counts(name: str, options: dict[str, Any], whole: bool) -> None:
    objective = sharded(Communicator(MPI.COMM_SELF), loss_for(name))
    solver = make_solver(name, options, 100.0)
    state, tried = solver.init(objective), 0
    for number in range(10):
        if number == 5:
            objective.work = Work()
        batch = objective.full_batch if whole else replace(objective.full_batch, indices=rows(), key=(number, 0))
        state, report = solver.step(objective, state, batch)
        assert report.accepted
        tried += report.inner_iterations if number >= 5 else 0
    case = case_of(objective, solver, SAMPLES, per_epoch=1 if whole else 5, trials=tried / 5)
    said, counted = evaluations_of(name, solver, case), objective.work
    found = (5 * said.values, 5 * said.gradients, 5 * said.products)
    assert found == pytest.approx((counted.values, counted.gradients, counted.curvature_products))


def rows() -> torch.Tensor:
    """All samples, as a batch that is not the whole set says so."""
    return torch.arange(SAMPLES)


def test_a_gradient_is_a_product_forward_and_two_backward_but_in_the_first_layer(tmp_path: Path) -> None:
    """At an operation a nanosecond, where twenty samples are enough for memory to be the faster."""
    rates = replace(read(written(tmp_path / "m.json")).rates[0], module=0.0)
    worker = Worker([Layer(1.0, 400, 800, 400, 800), Layer(1.0, 800, 200, 800, 200)], 20, 0.1, "float32")
    first, second = 2e-9 * 20 * 400 * 800, 2e-9 * 20 * 800 * 200
    case = Case(whole=True, batch=20)
    assert worker.seconds(VALUE, case, rates) == pytest.approx(first + second, rel=1e-6)
    assert worker.seconds(GRADIENT, case, rates) == pytest.approx(2 * first + 3 * second, rel=1e-6)
    products = worker.seconds(Evaluations(products=3.0), case, rates)
    assert products == pytest.approx(4 * (2 * first + 3 * second), rel=1e-6)


def test_memory_traffic_and_the_fixed_cost_of_modules_are_added(tmp_path: Path) -> None:
    """100 us a module; an activation of 50 numbers reads and writes 400 bytes a sample."""
    rates = read(written(tmp_path / "m.json")).rates[0]
    worker = Worker([Layer(0.0, 0, 0, 50.0, 50.0)], 10, 1000, "float32")
    case = Case(whole=True, batch=10)
    assert worker.seconds(Evaluations(values=1.0), case, rates) == pytest.approx(4e-6)
    assert worker.seconds(Evaluations(gradients=1.0), case, rates) == pytest.approx(12e-6)
    assert worker.seconds(Evaluations(calls=2.0), case, rates) == pytest.approx(200e-6)
    assert worker.seconds(Evaluations(sweeps=6.0), case, rates) == pytest.approx(24e-6)
    assert worker.seconds(Evaluations(values=1.0), case, replace(rates, slower=4.0)) == pytest.approx(16e-6)


def normal_equations(kind: str) -> float:
    """Make the normal equations of all samples, and return what their operations are said to be.

    The decoder makes 6 x 8 outputs of inputs of 3 x 4, from 3 channels by kernels of 4 x 4 with stride 2.
    """
    objective = DataParallelObjective(network(kind), "squared", *data(kind), Communicator(MPI.COMM_SELF))
    w, solver = objective.initial_vector(), make_solver("slimtrain", {}, 1.0)
    weights = objective.separable.weights(w)
    objective.separable.features(w, objective.full_batch, weights).normal()
    found = case_of(objective, solver, SAMPLES).design
    assert found is not None
    return found.operations(SAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_normal_equations_are_those_of_the_products_of_rows(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, product = [], last_layer.matmul

    def counted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Of a Gram matrix one half is made."""
        half = left.data_ptr() == right.data_ptr()
        made.append((1 if half else 2) * left.shape[0] * left.shape[1] * right.shape[1])
        return product(left, right)

    monkeypatch.setattr(last_layer, "matmul", counted)
    monkeypatch.setattr(design, "compiled_lags", lambda: None)
    said = normal_equations(kind)
    assert said == sum(made) > 0


@pytest.mark.skipif(compiled_lags() is None, reason="the sums are not compiled")
def test_operations_of_a_transposed_convolution_are_those_of_its_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five lags, in nine pieces of the inputs; four blocks of four taps, of which each is in pairs, and 12 positions.

    On an axis a tap that begins at the first input sees all three pieces, the one before or behind it two. Of four taps
    in their order the first takes part as the first one in four pairs, the next in three, two and one.
    """
    made, sums = [], CompiledLags.sums

    def counted(self: CompiledLags, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = sums(self, *given)
        made.append(tuple(found[0].shape))
        return found

    monkeypatch.setattr(CompiledLags, "sums", counted)
    said = normal_equations("decoder")
    assert made == [(5, 9, 3, 3)]
    products, seen, pieces = 5 * 12 * SAMPLES, 4 * 4 * 12 * SAMPLES, ((2, 3), (3, 2))
    taken = [[a * b for a, b in product(down, across)] for down, across in product(pieces, pieces)]
    added = sum(pairs * own for block in taken for pairs, own in zip((4, 3, 2, 1), block, strict=True))
    assert said == 9 * (2 * products + added) + 4 * seen * 3 * 2
