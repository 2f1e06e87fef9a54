"""What every solver must do, as functions the tests of each solver call."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch

from hpcopt.objective.protocol import Batch
from hpcopt.solvers.solver import Solver, State, StepReport, StopReason
from tests.support.objectives import FULL, FaultyObjective, SerialObjective


def run(
    solver: Solver,
    objective: SerialObjective,
    steps: int,
    state: State | None = None,
    batches: list[Batch] | None = None,
    positions: list[float] | None = None,
) -> tuple[State, list[StepReport]]:
    """At most ``steps`` steps, until the solver asks to stop; ``batches`` in turn, at the epochs ``positions``."""
    state = solver.init(objective) if state is None else state
    reports = []
    for number in range(steps):
        batch = batches[number % len(batches)] if batches else FULL
        state, report = solver.step(
            objective, state, replace(batch, position=positions[number]) if positions else batch
        )
        reports.append(report)
        if report.stop is not StopReason.RUNNING:
            break
    return state, reports


def assert_state_is_complete(
    solver: Solver, objective: SerialObjective, steps: int = 6, batches: list[Batch] | None = None
) -> None:
    """Continuing from a deep copy of the flat state gives the same bits as never having stopped."""
    state, _ = run(solver, objective, steps, batches=batches)
    assert all(isinstance(value, (torch.Tensor, float, int, bool)) for value in state.values()), state.keys()
    restored = copy.deepcopy(state)
    rotated = batches[steps % len(batches) :] + batches[: steps % len(batches)] if batches else None
    onward, reports = run(solver, objective, steps, state, rotated)
    again, reports_again = run(solver, objective, steps, restored, rotated)
    assert onward.keys() == again.keys()
    for key, value in onward.items():
        same = torch.equal(value, again[key]) if isinstance(value, torch.Tensor) else value == again[key]
        assert same or (value != value and again[key] != again[key]), key
    assert [report.loss for report in reports] == [report.loss for report in reports_again]


def assert_survives_fault(solver: Solver, objective: SerialObjective, at: int, where: str, steps: int = 12) -> None:
    """A NaN at evaluation ``at`` is reported, never reaches the parameters, and the run goes on downhill after it."""
    faulty = FaultyObjective(objective, at, where)
    state = solver.init(faulty)
    bad = 0
    for _ in range(steps):
        before = state["parameters"].clone()
        struck = faulty.injected
        state, report = solver.step(faulty, state, FULL)
        if faulty.injected > struck:
            assert not report.finite
            bad += 1
        else:
            assert report.finite
        if not report.accepted:
            assert torch.equal(before, state["parameters"])
        assert bool(torch.isfinite(state["parameters"]).all())
    assert faulty.injected == bad == 1
    end = objective.value(state["parameters"], FULL)
    assert math.isfinite(end)
    assert end < objective.value(objective.initial_vector(), FULL)


def torch_reference(
    optimizer_class: type[torch.optim.Optimizer], objective: SerialObjective, steps: int, **options: object
) -> torch.Tensor:
    """The parameters after ``steps`` steps of an optimizer of torch."""
    w = objective.initial_vector().requires_grad_()
    optimizer = optimizer_class([w], **options)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.function(w, FULL).backward()
        optimizer.step()
    return w.detach()
