"""The objective on one rank, against plain torch in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.data_parallel import DataParallelObjective
from hpcopt.objective.protocol import Batch
from tests.support.problems import CLASSES, FEATURES, SAMPLES, samples, sharded, small_network


def plain_loss(loss: str, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if loss == "squared":
        return 0.5 * (outputs - targets).square().sum(1).mean()
    return torch.nn.functional.cross_entropy(outputs, targets)


def reference(loss: str, indices: list[int], decay: float = 0.0) -> tuple[float, torch.Tensor]:
    model = small_network()
    inputs, targets = samples(loss)
    value = plain_loss(loss, model(inputs[indices]), targets[indices])
    value = value + 0.5 * decay * sum((p.square().sum() for p in model.parameters()), torch.tensor(0.0))
    gradient = torch.autograd.grad(value, list(model.parameters()))
    return float(value.detach()), torch.cat([g.reshape(-1) for g in gradient])


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("micro_batch", [None, 1, 5, 100])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_value_and_gradient_are_means_over_the_batch(
    comm: Communicator, loss: str, micro_batch: int | None, decay: float
) -> None:
    objective = sharded(comm, loss, micro_batch=micro_batch, weight_decay=decay)
    indices = [0, 3, 4, 11, 36]
    batch = Batch(torch.tensor(indices), len(indices), len(indices))
    w = objective.initial_vector()
    value, gradient = objective.value_and_gradient(w, batch)
    expected, expected_gradient = reference(loss, indices, decay)
    assert value == pytest.approx(expected, rel=1e-13)
    assert objective.value(w, batch) == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)


def test_the_gradient_agrees_with_finite_differences(comm: Communicator) -> None:
    objective = sharded(comm, weight_decay=0.1)
    w, batch = objective.initial_vector(), objective.full_batch
    _, gradient = objective.value_and_gradient(w, batch)
    direction = torch.randn(w.shape, generator=torch.Generator().manual_seed(2), dtype=w.dtype)
    h = 1e-6
    slope = (objective.value(w + h * direction, batch) - objective.value(w - h * direction, batch)) / (2 * h)
    assert slope == pytest.approx(objective.dot(gradient, direction), rel=1e-8)


def test_an_evaluation_leaves_the_vector_and_earlier_gradients_alone(comm: Communicator) -> None:
    objective = sharded(comm)
    w = objective.initial_vector()
    before = w.clone()
    _, first = objective.value_and_gradient(w, objective.full_batch)
    kept = first.clone()
    objective.value_and_gradient(w + 1, objective.full_batch)
    assert torch.equal(w, before)
    assert torch.equal(first, kept)


def test_work_is_counted_in_passes_over_the_training_set(comm: Communicator) -> None:
    objective = sharded(comm)
    w = objective.initial_vector()
    half = Batch(torch.arange(SAMPLES // 2), SAMPLES // 2, SAMPLES // 2)
    objective.value(w, objective.full_batch)
    objective.value_and_gradient(w, half)
    assert objective.work.values == 1
    assert objective.work.gradients == pytest.approx(18 / 37)
    linear, part = objective.linearize(w, half), 18 / 37
    assert objective.work.curvature_products == 0
    for number in range(3):  # the graphs are made once: a forward pass, and one backward
        linear.gauss_newton(w)
        assert objective.work.values == pytest.approx(1 + part)
        assert objective.work.curvature_products == pytest.approx((number + 1.5) * part)
    assert objective.work.gradient_equivalents == pytest.approx(1 / 3 + part * (1 + 1 / 3 + 3.5 * 4 / 3))


def test_a_curvature_is_counted_as_a_forward_pass_with_tangents(comm: Communicator) -> None:
    objective = sharded(comm)
    w = objective.initial_vector()
    linear = objective.linearize(w, objective.full_batch)
    linear.curvatures(torch.stack([w, -w]))
    assert (objective.work.values, objective.work.curvature_products) == (1, 1)
    linear.gauss_newton(w)
    linear.curvatures(w[None])
    assert (objective.work.values, objective.work.curvature_products) == (2, 3)


def test_the_loss_of_a_float32_run_has_float64_digits(comm: Communicator) -> None:
    inputs, targets = samples()
    objective = DataParallelObjective(small_network().float(), "cross_entropy", inputs, targets, comm)
    w = objective.initial_vector()
    value, _ = objective.value_and_gradient(w, objective.full_batch)
    assert value == objective.value(w, objective.full_batch)
    assert float(np.float32(value)) != value


def test_a_value_that_is_not_finite_is_reported_as_such(comm: Communicator) -> None:
    objective = sharded(comm)
    w = objective.initial_vector()
    w[0] = math.nan
    value, _ = objective.value_and_gradient(w, objective.full_batch)
    assert not math.isfinite(value)
    assert not math.isfinite(objective.value(w, objective.full_batch))


def test_dropout_masks_stay_the_same_within_a_batch_and_differ_between_batches(comm: Communicator) -> None:
    objective = sharded(comm, model=small_network(dropout=0.5))
    w = objective.initial_vector()
    first, second = (Batch(None, SAMPLES, SAMPLES, key=(0, number)) for number in (0, 1))
    assert objective.value(w, first) == objective.value(w, first)
    assert objective.value(w, first) == pytest.approx(objective.value_and_gradient(w, first)[0], rel=1e-14)
    assert objective.value(w, first) != objective.value(w, second)
    assert not objective.deterministic


def test_a_model_that_draws_no_random_numbers_is_found_out_and_one_that_hides_them_too(comm: Communicator) -> None:
    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(self.inner(x), 0.5, self.training)

    plain, hidden = sharded(comm), sharded(comm, model=Hidden())
    for objective in (plain, hidden):
        w = objective.initial_vector()
        assert objective.value(w, objective.full_batch) == objective.value(w, objective.full_batch)
    assert plain.deterministic
    assert not hidden.deterministic


def test_the_global_random_state_is_left_as_it_was(comm: Communicator) -> None:
    objective = sharded(comm, model=small_network(dropout=0.5))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    objective.value(objective.initial_vector(), objective.full_batch)
    assert torch.equal(torch.rand(3), expected)


def test_losses_of_any_size_that_a_float32_can_hold_come_through(comm: Communicator) -> None:
    inputs, targets = samples("squared")
    objective = DataParallelObjective(small_network().float(), "squared", inputs, 1e9 * targets, comm)
    w = objective.initial_vector()
    value, _ = objective.value_and_gradient(w, objective.full_batch)
    assert value == pytest.approx(objective.value(w, objective.full_batch), rel=1e-14)
    assert value > 1e17


def test_a_value_that_is_not_finite_leaves_the_running_statistics_as_they_were(comm: Communicator) -> None:
    model = small_network(batch_norm=True)
    objective = sharded(comm, model=model)
    w, before = objective.initial_vector(), [b.clone() for b in model.buffers()]
    objective.value_and_gradient(torch.full_like(w, math.nan), objective.full_batch)
    assert all(map(torch.equal, before, model.buffers()))


def test_running_statistics_move_once_a_batch_and_not_with_trial_evaluations(comm: Communicator) -> None:
    model = small_network(batch_norm=True)
    objective = sharded(comm, model=model)
    w, statistics = objective.initial_vector(), model[2].running_mean
    batch = Batch(None, SAMPLES, SAMPLES, key=(0, 0))
    before = statistics.clone()
    objective.value(w, batch)
    assert torch.equal(statistics, before)
    objective.value_and_gradient(w, batch)
    moved = statistics.clone()
    assert not torch.equal(moved, before)
    objective.value_and_gradient(w + 1, batch)
    objective.linearize(w, batch).gauss_newton(w)
    assert torch.equal(statistics, moved)
    objective.value_and_gradient(w, Batch(None, SAMPLES, SAMPLES, key=(0, 1)))
    assert not torch.equal(statistics, moved)


def test_the_model_need_not_use_all_its_parameters(comm: Communicator) -> None:
    model = small_network()
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(4, dtype=torch.float64)))
    objective = sharded(comm, model=model)
    _, gradient = objective.value_and_gradient(objective.initial_vector(), objective.full_batch)
    where = objective.shard.parameters.slices()[objective.shard.parameters.names.index("unused")]
    assert torch.equal(gradient[where], torch.zeros(4, dtype=torch.float64))


def test_a_torch_callable_is_a_loss(comm: Communicator) -> None:
    inputs, targets = samples()
    ours = DataParallelObjective(small_network(), "cross_entropy", inputs, targets, comm)
    theirs = DataParallelObjective(small_network(), torch.nn.CrossEntropyLoss(), inputs, targets, comm)
    w = ours.initial_vector()
    assert theirs.value(w, theirs.full_batch) == pytest.approx(ours.value(w, ours.full_batch), rel=1e-13)


class TestWhatDoesNotFit:
    """Refused before anything is computed, in words."""

    def test_a_model_that_does_not_take_the_samples(self, comm: Communicator) -> None:
        inputs, targets = samples()
        with pytest.raises(UsageError, match=r"does not take a sample of shape \(4,\)"):
            DataParallelObjective(small_network(), "cross_entropy", inputs[:, :4], targets, comm)

    def test_labels_beyond_the_outputs(self, comm: Communicator) -> None:
        inputs, targets = samples()
        targets[7] = CLASSES
        with pytest.raises(UsageError, match="3"):
            DataParallelObjective(small_network(), "cross_entropy", inputs, targets, comm)

    def test_targets_of_another_width(self, comm: Communicator) -> None:
        inputs, targets = samples("squared")
        with pytest.raises(UsageError):
            DataParallelObjective(small_network(), "squared", inputs, targets[:, :2], comm)

    def test_inputs_without_targets(self, comm: Communicator) -> None:
        inputs, targets = samples()
        with pytest.raises(UsageError, match="37 inputs but 36 targets"):
            DataParallelObjective(small_network(), "cross_entropy", inputs, targets[:-1], comm)

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (lambda outputs: outputs[:, 0].squeeze(), r"a tensor of shape \(\)"),
            (lambda outputs: outputs.flatten(), r"a tensor of shape \(3,\)"),
            (lambda outputs: (outputs, outputs), "a tuple"),
        ],
    )
    def test_outputs_that_are_not_one_row_a_sample(self, comm: Communicator, change: Any, found: str) -> None:
        class Changed(torch.nn.Sequential):
            def forward(self, x: torch.Tensor) -> Any:
                return change(super().forward(x))

        with pytest.raises(UsageError, match=f"the model Changed returned {found} for one sample"):
            sharded(comm, "squared", Changed(small_network()))

    def test_outputs_without_a_gradient(self, comm: Communicator) -> None:
        class Detached(torch.nn.Sequential):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                outputs: torch.Tensor = super().forward(x)
                return outputs.detach()

        with pytest.raises(UsageError, match="the outputs of the model Detached have no gradient in its parameters"):
            sharded(comm, "squared", Detached(small_network()))

    def test_a_single_sample_for_batch_normalisation(self, comm: Communicator) -> None:
        objective = sharded(comm, model=small_network(batch_norm=True), micro_batch=SAMPLES - 1)
        for evaluate in (objective.value, objective.value_and_gradient):
            with pytest.raises(UsageError, match="batch normalisation was given a single sample"):
                evaluate(objective.initial_vector(), objective.full_batch)

    @pytest.mark.parametrize("options", [{"micro_batch": 0}, {"micro_batch": -3}, {"weight_decay": math.nan}])
    def test_options_that_break_their_rule(self, comm: Communicator, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="is not allowed; it must be a"):
            sharded(comm, **options)

    def test_no_sample_at_all(self, comm: Communicator) -> None:
        nothing = torch.zeros(0, FEATURES, dtype=torch.float64)
        with pytest.raises(UsageError, match="no rank has a training sample"):
            DataParallelObjective(small_network(), "cross_entropy", nothing, torch.zeros(0, dtype=torch.int64), comm)
