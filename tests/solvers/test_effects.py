"""Options that a method does not read, as its others are: refused where a user sets them, left out of presets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from hpcopt.solvers.registry import SOLVERS, make_solver, solver_class
from tests.support.checks import run
from tests.support.last_layers import data, network

FREE = {"direction": "block", "block_solver": "gram"}
CONTROL = {"step_rule": "control", "preconditioner": "identity"}
SEARCH = {"step_rule": "strong_wolfe", "preconditioner": "identity"}
FIXED = {"selection": "fixed", "deliver": "iterate"}

SCHEDULED: list[tuple[dict[str, Any], str, object]] = [
    ({}, "warmup", "sqrt"),
    ({}, "warmup_start", 1e-3),
    ({}, "decay_epochs", 2.0),
    ({}, "decay_epochs", [1, 2]),
    ({}, "decay_factor", 0.5),
    ({"schedule": "linear"}, "decay_factor", 0.5),
]

UNREAD: dict[str, list[tuple[dict[str, Any], str, object]]] = {
    "adam": SCHEDULED,
    "lars": SCHEDULED,
    "lbfgs": [],
    "sgd": [*SCHEDULED, ({}, "nesterov", True)],
    "trust_region": [
        ({"model": "first_order"}, "memory", 3),
        ({"model": "lbfgs"}, "curvature_outside", 0.1),
        ({"model": "first_order"}, "curvature_outside", 0.1),
    ],
    "apts": [
        ({"local_solver": "first_order"}, "local_memory", 2),
        ({"local_solver": "adam"}, "local_memory", 2),
        ({"global_solver": "first_order"}, "global_memory", 2),
        ({"global_iterations": 0}, "shared_radius", True),
        *(({"radius_control": "batch"}, key, 2.0) for key in ("next_grow_above", "next_grow")),
        ({"radius_control": "batch"}, "next_shrink_below", -2.0),
    ],
    "newton": [
        ({}, "blocks", "layer"),
        ({}, "block_solver", "cg"),
        ({"preconditioner": "none"}, "preconditioned_iterations", 3),
        ({"preconditioner": "none"}, "factor_damping", 0.5),
        ({"preconditioner": "kronecker"}, "cg_iterations", 1),
        (FREE, "cg_tolerance", 0.5),
        (FREE, "cg_iterations", 1),
        (FREE, "preconditioned_iterations", 3),
        (FREE, "factor_damping", 0.5),
    ],
    "nlcg": [
        *((CONTROL | with_, key, value) for with_, key, value in SCHEDULED),
        *((SEARCH, key, value) for _, key, value in SCHEDULED),
        *(({}, key, value) for key, value in (("learning_rate", 0.5), ("schedule", "linear"), ("warmup_epochs", 3.0))),
        *(({}, key, value) for key, value in (("beta", "fr"), ("beta_max", 0.5), ("safeguards", False))),
        *((SEARCH, key, value) for key, value in (("control", "none"), ("layer_trust", 1.0), ("weight_average", 0.9))),
        (SEARCH, "control_tolerance", 0.1),
        (CONTROL | {"control": "none"}, "control_tolerance", 0.1),
        ({}, "evaluations", 2),
        (CONTROL, "evaluations", 2),
        (CONTROL, "average", 0.9),
        (CONTROL, "damping", 0.5),
        (SEARCH, "damping", 0.5),
        *((CONTROL, key, value) for key, value in (("subset", 0.5), ("subset_least", 2), ("damping_control", "batch"))),
        *((SEARCH, key, value) for key, value in (("damping_increase", 3.0), ("damping_decrease", 0.1))),
        (SEARCH, "next_increase_below", 0.4),
        *(({"damping_control": "batch"}, f"next_{key}", 0.45) for key in ("increase_below", "decrease_above")),
        ({"preconditioner": "identity"}, "fisher", "empirical"),
        *(({"preconditioner": "gauss_newton_diagonal"}, f"factor_{key}", 1) for key in ("samples", "every")),
        ({"preconditioner": "diagonal_bfgs"}, "factor_memory", 0.1),
    ],
    "slimtrain": [
        *(({"deliver": "iterate", "schedule": "constant"} | with_, key, value) for with_, key, value in SCHEDULED),
        (FIXED, "lambda_min", 1e-5),
        (FIXED, "lambda_max", 1.0),
        (FIXED, "candidates", 3),
        ({"selection": "fixed"}, "negative", False),
        ({}, "noise", 3.0),
        ({"selection": "fixed"}, "noise_factor", 0.1),
        ({"theta_solver": "sgd"}, "betas", [0.5, 0.5]),
        ({"theta_solver": "lars"}, "epsilon", 1.0),
        ({}, "momentum", 0.5),
        ({"theta_solver": "lars"}, "nesterov", True),
        ({"theta_solver": "sgd"}, "nesterov", True),
        ({"theta_solver": "sgd"}, "trust", 1.0),
        *(({"deliver": "iterate"}, key, value) for key, value in (("average", 0.9), ("rate_growth", 3.0))),
        ({"deliver": "iterate"}, "rate_tolerance", 3.0),
    ],
}
"""Method -> options that say that another one is not read, that one, and a value of it other than its default."""

CASES = [(method, *case) for method, cases in UNREAD.items() for case in cases]
BATCHES = [Batch(torch.arange(k, 12, 2), 6, 6, (0, k)) for k in range(2)]


def parameters(method: str, options: dict[str, Any]) -> torch.Tensor:
    """Where two epochs of two batches each end."""
    objective: Any = DataParallelObjective(network("dense"), "squared", *data("dense"), Communicator())
    state, _ = run(make_solver(method, options, 2.0), objective, 4, batches=BATCHES, positions=[0.0, 0.5, 1.0, 1.5])
    return torch.cat([state["parameters"], state.get("average", torch.empty(0, dtype=torch.float64))])


@pytest.mark.parametrize(("method", "others", "key", "value"), CASES)
def test_an_option_that_is_not_read_is_refused_and_changes_nothing(
    method: str, others: dict[str, Any], key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_solver(method, others, 2.0)
    with pytest.raises(UsageError, match=rf"{key} = .* has no effect with .* or remove solver\.{key}\.$"):
        make_solver(method, others | {key: value}, 2.0)
    monkeypatch.setattr(solver_class(method), "NEEDS", {}, raising=False)
    if others.get("direction") != "block":
        for name in ("adam", "sgd", "lars"):
            monkeypatch.setattr(solver_class(name), "NEEDS", {})
        torch.testing.assert_close(
            parameters(method, others | {key: value}), parameters(method, others), rtol=0, atol=0
        )


@pytest.mark.parametrize("method", SOLVERS)
def test_every_option_with_a_condition_is_among_these(method: str) -> None:
    conditions = {key for key, needs in getattr(solver_class(method), "NEEDS", {}).items() if needs}
    assert conditions == {key for _, key, _ in UNREAD[method]}


def test_the_error_says_what_the_option_is_for() -> None:
    with pytest.raises(
        UsageError, match=r'fisher = .* has no effect with preconditioner = "identity"\. Set solver\.precon'
    ):
        make_solver("nlcg", {"preconditioner": "identity", "fisher": "empirical"})
    words = (
        r'with step_rule = "control" and preconditioner = "identity"\. Set solver\.step_rule to "plane", or solver\.'
    )
    with pytest.raises(UsageError, match=words):
        make_solver("nlcg", CONTROL | {"damping": 0.5})
    with pytest.raises(
        UsageError, match=r"nesterov = True .* momentum = 0\.0\. Set solver\.momentum above 0, or remove"
    ):
        make_solver("sgd", {"nesterov": True})


def test_the_default_value_is_no_wish() -> None:
    assert make_solver("slimtrain", {"theta_solver": "sgd", "betas": [0.9, 0.999]}).theta_solver == "sgd"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "options", "dropped"),
    [
        ("nlcg", {"step_rule": "strong_wolfe", "preconditioner": "identity"}, {"schedule": "constant", "beta": "fr"}),
        ("nlcg", {"schedule": "constant"}, {"decay_epochs": None, "warmup_epochs": 25.0}),
        ("nlcg", {"warmup_epochs": 0.0}, {"warmup": "linear", "warmup_start": None}),
        ("apts", {"global_iterations": 0}, {"shared_radius": False, "local_start": 1.0}),
    ],
)
def test_what_a_preset_says_is_dropped_where_the_users_own_options_leave_it_without_effect(
    method: str, options: dict[str, Any], dropped: dict[str, object]
) -> None:
    solver = make_solver(method, {"preset": "paper", **options}, 2.0)
    assert {key: getattr(solver, key) for key in dropped} == dropped
