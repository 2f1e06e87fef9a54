"""hpcopt.optim.Newton on one rank. tests/mpi has what takes several ranks."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Batch
from hpcopt.optim import Newton
from hpcopt.solvers import Newton as NewtonSolver
from hpcopt.solvers.solver import StopReason
from tests.support.closures import values_of
from tests.support.problems import samples, sharded, small_network

OPTIONS: dict[str, Any] = {"subset": 0.5, "subset_least": 1}


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, targets)


def mean_loss(model: torch.nn.Module) -> float:
    with torch.no_grad():
        return float(cross_entropy(model(samples()[0]), samples()[1]))


@pytest.mark.parametrize("full_batch", [True, False])
@pytest.mark.parametrize("loss", ["cross_entropy", cross_entropy])
def test_its_steps_are_those_of_the_method(comm: Communicator, full_batch: bool, loss: Any) -> None:
    model, inputs, targets = small_network(), *samples()
    # The factors of a loss that is not known by name are drawn in another way.
    options = OPTIONS | ({} if isinstance(loss, str) else {"preconditioner": "none"})
    optimizer = Newton(model, loss, comm=comm, weight_decay=0.01, full_batch=full_batch, **options)
    objective, solver = sharded(comm, model=small_network(), weight_decay=0.01), NewtonSolver(**options)
    state = solver.init(objective)
    for number in range(6):
        indices = None if full_batch else torch.arange(len(inputs))
        batch = Batch(indices, len(inputs), len(inputs), (0, number))
        decay = 0.005 * objective.dot(state["parameters"], state["parameters"])  # type: ignore[arg-type]
        state, report = solver.step(objective, state, batch)
        assert optimizer.step(inputs, targets) == pytest.approx(report.loss - decay, rel=1e-10)
        assert optimizer.report is not None
        assert optimizer.report.inner_iterations == report.inner_iterations
        torch.testing.assert_close(values_of(model), state["parameters"], rtol=1e-8, atol=1e-9)


def test_a_loop_with_batches_of_different_sizes_trains(comm: Communicator) -> None:
    model, inputs = small_network(), samples()[0]
    targets = inputs[:, :3].argmax(1)
    optimizer = Newton(model, "cross_entropy", comm=comm)
    losses = [optimizer.step(inputs[part], targets[part]) for _ in range(4) for part in (slice(0, 15), slice(15, 37))]
    assert losses[-1] + losses[-2] < 0.5 * (losses[0] + losses[1])


def test_the_loss_it_returns_is_that_at_the_start_without_weight_decay(comm: Communicator) -> None:
    model = small_network()
    optimizer, before = Newton(model, "cross_entropy", comm=comm, weight_decay=0.1), mean_loss(model)
    assert optimizer.step(*samples()) == pytest.approx(before, rel=1e-12)


def test_tensors_keep_their_memory_and_gradients_and_hooks_are_left_alone(comm: Communicator) -> None:
    model = small_network()
    addresses = [p.data_ptr() for p in model.parameters()]
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    optimizer = Newton(model, "cross_entropy", comm=comm)
    before = values_of(model)
    optimizer.step(*samples())
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert not torch.equal(values_of(model), before)
    assert [p.grad is not None for p in model.parameters()] == [True, False, False, False]
    assert all(p._post_accumulate_grad_hooks is None for p in model.parameters())


def test_parameters_without_gradient_are_left_alone(comm: Communicator) -> None:
    model = small_network()
    model[0].weight.requires_grad_(False)
    fixed = model[0].weight.clone()
    optimizer = Newton(model, "cross_entropy", comm=comm)
    before = mean_loss(model)
    for _ in range(3):
        optimizer.step(*samples())
    assert torch.equal(model[0].weight, fixed)
    assert mean_loss(model) < before


def test_modes_of_modules_are_as_the_user_left_them(comm: Communicator) -> None:
    model = small_network(batch_norm=True)
    model[2].eval()
    running = model[2].running_mean.clone()  # type: ignore[operator, union-attr]
    optimizer = Newton(model, "cross_entropy", comm=comm)
    optimizer.step(*samples())
    assert [module.training for module in model] == [True, True, False, True]
    assert torch.equal(model[2].running_mean, running)  # type: ignore[arg-type]
    model.eval()
    optimizer.step(*samples())
    assert not any(module.training for module in model.modules())


def test_dropout_leaves_torchs_random_numbers_alone(comm: Communicator) -> None:
    model = small_network(dropout=0.3)
    optimizer = Newton(model, "cross_entropy", comm=comm)
    before = torch.get_rng_state()
    losses = [optimizer.step(*samples()) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[-1] < losses[0]


def test_a_batch_in_pieces_gives_the_same_step(comm: Communicator) -> None:
    models = small_network(), small_network()
    for model, micro_batch in zip(models, (None, 5), strict=True):
        optimizer = Newton(model, "cross_entropy", comm=comm, micro_batch=micro_batch)
        for _ in range(3):
            optimizer.step(*samples())
    torch.testing.assert_close(values_of(models[0]), values_of(models[1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("full_batch", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_saved_optimiser_goes_on_to_the_last_bit(comm: Communicator, full_batch: bool, dropout: float) -> None:
    def made() -> tuple[torch.nn.Module, Newton]:
        model = small_network(dropout=dropout)
        return model, Newton(model, "cross_entropy", comm=comm, full_batch=full_batch, **OPTIONS)

    model, optimizer = made()
    for _ in range(3):
        optimizer.step(*samples())
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = [optimizer.step(*samples()) for _ in range(3)]
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = made()
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert [other.step(*samples()) for _ in range(3)] == expected
    assert torch.equal(values_of(again), values_of(model))


def test_parameters_that_the_user_changed_are_where_the_next_step_starts(comm: Communicator) -> None:
    model = small_network()
    optimizer = Newton(model, "cross_entropy", comm=comm, full_batch=True)
    optimizer.step(*samples())
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    expected = mean_loss(model)
    assert optimizer.step(*samples()) == pytest.approx(expected, rel=1e-12)


def test_a_full_batch_is_evaluated_once_a_step_while_nothing_changes(comm: Communicator) -> None:
    model, calls = small_network(), []
    optimizer = Newton(model, "cross_entropy", comm=comm, full_batch=True)
    optimizer.step(*samples())
    model.register_forward_hook(lambda *_: calls.append(1))
    optimizer.step(*samples())
    assert optimizer.report is not None
    # For the factors and the linearisation, and one for each trial; none for the start.
    assert len(calls) == 2 + 1 - int(math.log2(optimizer.report.step_size))


def test_a_stationary_point_is_told(comm: Communicator) -> None:
    model = torch.nn.Linear(2, 1).double()
    inputs = torch.eye(2, dtype=torch.float64)
    optimizer = Newton(model, "squared", comm=comm, full_batch=True)
    for _ in range(60):
        optimizer.step(inputs, torch.ones(2, 1, dtype=torch.float64))
        assert optimizer.report is not None
        if optimizer.report.stop is not StopReason.RUNNING:
            break
    assert optimizer.report.stop is StopReason.GRADIENT_SMALL


class Fails(torch.nn.Module):
    """A network that raises at one of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls, self.at = small_network(), 0, -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise ValueError("no more memory")
        found: torch.Tensor = self.inner(x)
        return found


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_exception_of_the_model_leaves_the_parameters_of_the_last_step(comm: Communicator, at: int) -> None:
    """In the gradient at the start, the memory estimate, the linearisation, and the first trial."""
    model = Fails()
    optimizer = Newton(model, "cross_entropy", comm=comm)
    optimizer.step(*samples())
    before, model.at = values_of(model), model.calls + at
    with pytest.raises(ValueError, match="no more memory"):
        optimizer.step(*samples())
    assert torch.equal(values_of(model), before)
    assert optimizer.step(*samples()) == pytest.approx(mean_loss_before(before), rel=1e-10)


def mean_loss_before(values: torch.Tensor) -> float:
    model = small_network()
    torch.nn.utils.vector_to_parameters(values, model.parameters())
    return mean_loss(model)


def test_a_loss_that_is_not_finite_changes_nothing(comm: Communicator) -> None:
    model, (inputs, targets) = small_network(), samples()
    optimizer, before = Newton(model, "cross_entropy", comm=comm), values_of(model)
    assert math.isnan(optimizer.step(inputs * math.nan, targets))
    assert optimizer.report is not None
    assert not optimizer.report.finite
    assert torch.equal(values_of(model), before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_decay": -1.0}, "weight_decay = -1.0 must be a number of at least 0"),
        ({"full_batch": 1}, "full_batch = 1 must be True or False"),
        ({"micro_batch": 0}, "micro_batch = 0 must be a whole number"),
        ({"preset": "papers"}, "did you mean 'paper'"),
        ({"subsets": 0.1}, "did you mean 'subset'"),
    ],
)
def test_wrong_options_are_refused(comm: Communicator, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Newton(small_network(), "cross_entropy", comm=comm, **options)


def test_directions_by_blocks_are_refused_where_every_rank_has_all_variables(comm: Communicator) -> None:
    model = small_network()
    optimizer, before = Newton(model, "cross_entropy", comm=comm, direction="block"), values_of(model)
    with pytest.raises(UsageError, match=r'direction = "block" needs variables that are cut.*Use direction = "full"'):
        optimizer.step(*samples())
    assert torch.equal(values_of(model), before)


def test_something_else_than_a_model_is_refused(comm: Communicator) -> None:
    with pytest.raises(UsageError, match="needs the model itself"):
        Newton(small_network().parameters(), "cross_entropy", comm=comm)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="without trainable parameters"):
        Newton(torch.nn.ReLU(), "cross_entropy", comm=comm)
    with pytest.raises(UsageError, match="did you mean 'squared'"):
        Newton(small_network(), "squarred", comm=comm)


def test_samples_that_do_not_fit_are_refused_and_the_next_ones_are_not(comm: Communicator) -> None:
    model, (inputs, targets) = small_network(), samples()
    optimizer = Newton(model, "cross_entropy", comm=comm)
    wrong = {
        "37 inputs but 36 targets": (inputs, targets[1:]),
        "does not take a sample of shape": (inputs[:, 1:], targets),
        "label 7 of sample 0": (inputs, targets.new_full((37,), 7)),
        "two tensors with one row a sample": (lambda: None, targets),
        "no rank has a sample": (inputs[:0], targets[:0]),
    }
    for number in range(2):
        for words, given in wrong.items():
            with pytest.raises(UsageError, match=words):
                optimizer.step(*given)  # type: ignore[arg-type]
        optimizer.step(inputs, targets)
        assert optimizer.state_dict()["state"][0]["steps"] == number + 1


CHANGES: dict[str, Callable[[torch.nn.Sequential], object]] = {
    "added": lambda model: model.append(torch.nn.Linear(3, 3).double()),
    "replaced": lambda model: model.__setitem__(0, torch.nn.Linear(5, 7).double()),
    "removed": lambda model: model.__delitem__(2),
    "frozen": lambda model: model[0].requires_grad_(False),
    "free": lambda model: model[2].bias.requires_grad_(True),
    "converted": lambda model: model.float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_whose_layers_have_changed_since_is_refused(comm: Communicator, change: str) -> None:
    """It would be trained in part, with numbers of its own on every rank."""
    model, given = small_network(), samples()
    model[2].bias.requires_grad_(False)
    optimizer = Newton(model, "cross_entropy", comm=comm)
    optimizer.step(*given)
    CHANGES[change](model)
    name = {"added": r"3\.bias, 3\.weight", "free": r"2\.bias", "removed": r"2\."}.get(change, r"0\.bias")
    with pytest.raises(UsageError, match=rf"has other parameters .*\(see {name}.*Make a new optimiser"):
        optimizer.step(*given)
    assert optimizer.state_dict()["state"][0]["steps"] == 1


def test_a_layer_without_parameters_may_be_changed(comm: Communicator) -> None:
    model, given = small_network(), samples()
    optimizer = Newton(model, "cross_entropy", comm=comm)
    losses = [optimizer.step(*given)]
    model[1] = torch.nn.ReLU()
    model.insert(2, torch.nn.Identity())
    losses += [optimizer.step(*given) for _ in range(6)]
    assert losses[-1] < losses[0]


def test_the_state_of_another_optimiser_is_refused(comm: Communicator) -> None:
    optimizer = Newton(small_network(), "cross_entropy", comm=comm)
    with pytest.raises(UsageError, match=r"what state_dict\(\) of hpcopt.optim.Newton gave"):
        optimizer.load_state_dict(torch.optim.SGD(small_network().parameters(), 0.1).state_dict())
    other = Newton(torch.nn.Linear(5, 3).double(), "cross_entropy", comm=comm)
    with pytest.raises(UsageError, match="must come from Newton with the same model"):
        optimizer.load_state_dict(other.state_dict())


def test_no_group_can_be_added(comm: Communicator) -> None:
    optimizer = Newton(small_network(), "cross_entropy", comm=comm)
    with pytest.raises(UsageError, match="one vector"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
