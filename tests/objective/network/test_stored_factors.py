"""Factors kept in bfloat16: products with a matrix that is nearly the same, and is symmetric all the same."""

from __future__ import annotations

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.errors import UsageError
from hpcopt.linalg.conjugate_gradient import conjugate_gradients
from hpcopt.objective.network.explicit import ExplicitLinearization
from hpcopt.objective.network.objective import NetworkObjective
from hpcopt.objective.vectors import inner
from hpcopt.solvers.block_direction import BlockSolver
from hpcopt.solvers.newton import Newton
from hpcopt.solvers.solver import State
from hpcopt.train.job import PreparedJob


def linearized(comm: Communicator, factors: str) -> tuple[NetworkObjective, ExplicitLinearization]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(40, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (40,), generator=generator)
    objective = NetworkObjective([6, 8, 5, 3], "tanh", "cross_entropy", inputs, labels, comm, factors=factors)
    linear = objective.linearize(objective.initial_vector(), objective.full_batch)
    assert isinstance(linear, ExplicitLinearization)
    return objective, linear


def dense(linear: ExplicitLinearization, size: int, block: bool) -> torch.Tensor:
    product = linear.block_product if block else linear.gauss_newton
    return torch.stack([product(each) for each in torch.eye(size, dtype=torch.float64)])


@pytest.mark.parametrize("block", [True, False])
def test_the_matrix_is_symmetric_semidefinite_and_close(comm: Communicator, block: bool) -> None:
    (objective, full), (_, rounded) = linearized(comm, "full"), linearized(comm, "bfloat16")
    exact, found = dense(full, objective.size, block), dense(rounded, objective.size, block)
    difference = float((found - exact).norm() / exact.norm())
    assert 1e-6 < difference < 1e-2
    torch.testing.assert_close(found, found.T, rtol=1e-10, atol=1e-14)
    assert float(torch.linalg.eigvalsh(found)[0]) > -1e-12


def test_the_factors_take_a_quarter_of_the_bytes_of_float64(comm: Communicator) -> None:
    sizes = [
        sum(units.nbytes for piece in linear.block_factors() for units in piece.units.values())
        for _, linear in (linearized(comm, "full"), linearized(comm, "bfloat16"))
    ]
    assert sizes[0] == 4 * sizes[1] > 0


def test_both_solutions_of_a_block_agree(comm: Communicator) -> None:
    objective, linear = linearized(comm, "bfloat16")
    w = objective.initial_vector()
    _, gradient = objective.value_and_gradient(w, objective.full_batch)
    by_cg = conjugate_gradients(linear.block.product, gradient, 0.1, inner, tolerance=1e-12, most=500).direction
    solver = BlockSolver("rank", "gram", 1e-12, 500)
    by_gram = solver.solve(linear.block, gradient, float(gradient.norm()), 0.1, 0.0).direction
    torch.testing.assert_close(by_gram, by_cg, rtol=1e-8, atol=1e-10)


def job(solver: str, **keys: str) -> str:
    lines = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    text = '[run]\niterations = 4\ndevice = "cpu"\n[data]\nsource = "digits"\nbatch = "full"\n'
    return text + f'[model]\nwidths = [16]\ninit = "he"\n[solver]\nname = "{solver}"\n[parallel]\n{lines}'


def test_newton_goes_down_with_them_as_without(comm: Communicator) -> None:
    losses = [
        PreparedJob(parse_job(job("newton", layout="variables", factors=factors)), comm).run(None).final.train_loss
        for factors in ("full", "bfloat16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize(
    ("solver", "keys"),
    [("newton", {}), ("nlcg", {"layout": "variables"}), ("newton", {"layout": "variables", "jacobian": "implicit"})],
)
def test_without_factors_the_key_is_refused(comm: Communicator, solver: str, keys: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r'parallel\.factors = "bfloat16" has no effect here'):
        PreparedJob(parse_job(job(solver, factors="bfloat16", **keys)), comm)


def test_products_without_the_rounding_use_the_activations_that_are_kept(comm: Communicator) -> None:
    (objective, full), (_, rounded) = linearized(comm, "full"), linearized(comm, "bfloat16")
    assert full.exact is None
    assert rounded.exact is not None
    kept = [{number: each.data_ptr() for number, each in piece.inputs.items()} for piece in rounded.block_factors()]
    shared = [piece for group in rounded.exact._pieces.groups() for piece in group]
    assert [{number: each.data_ptr() for number, each in piece.inputs.items()} for piece in shared] == kept
    for each in torch.eye(objective.size, dtype=torch.float64)[::7]:
        torch.testing.assert_close(rounded.exact.gauss_newton(each), full.gauss_newton(each), rtol=1e-10, atol=1e-13)


def test_products_without_the_rounding_are_made_anew_where_nothing_is_kept(comm: Communicator) -> None:
    objective, full = linearized(comm, "full")
    _, whole = linearized(comm, "bfloat16")
    streamed = ExplicitLinearization(whole._objective, objective.initial_vector(), objective.full_batch, 4000)
    assert not streamed._pieces.complete
    assert streamed.exact is not None
    v = torch.linspace(-1, 1, objective.size, dtype=torch.float64)
    torch.testing.assert_close(streamed.exact.gauss_newton(v), full.gauss_newton(v), rtol=1e-10, atol=1e-13)


def test_the_direction_of_newton_has_the_residual_of_the_unrounded_matrix(comm: Communicator) -> None:
    """The error against the solution in float64 is 1e-7; by conjugate gradients with rounded factors alone 1.5e-2."""
    (objective, full), (_, rounded) = linearized(comm, "full"), linearized(comm, "bfloat16")
    _, gradient = objective.value_and_gradient(objective.initial_vector(), objective.full_batch)
    damped = dense(full, objective.size, False) + 1e-3 * torch.eye(objective.size, dtype=torch.float64)
    solution = torch.linalg.solve(damped, -gradient)
    state: State = {"gradient": gradient, "damping": 1e-3}
    solver = Newton(cg_tolerance=1e-8, cg_iterations=2000)
    found, _, finite = solver._solve(objective, state, rounded)
    assert finite
    assert float((damped @ found + gradient).norm() / gradient.norm()) < 2e-8
    without = conjugate_gradients(rounded.gauss_newton, gradient, 1e-3, inner, tolerance=1e-8, most=2000).direction
    assert float((found - solution).norm()) < 1e-3 * float((without - solution).norm())


def test_a_tolerance_above_the_rounding_takes_no_product_without_it(comm: Communicator) -> None:
    objective, rounded = linearized(comm, "bfloat16")
    _, gradient = objective.value_and_gradient(objective.initial_vector(), objective.full_batch)
    state: State = {"gradient": gradient, "damping": 0.1}
    _, (first,), _ = Newton(cg_tolerance=0.01)._solve(objective, state, rounded)
    assert objective.work.curvature_products == first
    _, (second,), _ = Newton(cg_tolerance=1e-3)._solve(objective, state, rounded)
    assert objective.work.curvature_products > first + second


@pytest.mark.parametrize("direction", ["full", "block"])
def test_steps_are_judged_by_the_unrounded_model(comm: Communicator, direction: str) -> None:
    (objective, full), (_, rounded) = linearized(comm, "full"), linearized(comm, "bfloat16")
    solver = Newton(direction=direction, subset=1.0, combine=False)
    state = solver.init(objective)
    _, state["gradient"] = objective.value_and_gradient(objective.initial_vector(), objective.full_batch)
    state["gradient_square"] = float(state["gradient"].square().sum())
    objective.linearize = lambda w, batch: rounded  # type: ignore[method-assign]
    found = solver._direction(objective, state, objective.full_batch)
    (exact,) = full.curvatures(found.vector[None]).flatten().tolist()
    assert found.curvature == pytest.approx(exact, rel=1e-10)
