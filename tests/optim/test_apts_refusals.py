"""What hpcopt.optim.APTS does with losses that are not finite, with exceptions, and with what cannot be used."""

import math
from itertools import count

import pytest
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.optim import APTS
from tests.support.closures import closure_of, values_of
from tests.support.problems import samples, small_network


def failing(model, at, kind):
    """A closure whose call number ``at`` of all, from 0, is NaN or raises."""
    plain, calls = closure_of(model, *samples()), count()

    def closure():
        if next(calls) != at:
            return plain()
        if kind == "raises":
            raise ZeroDivisionError("not today")
        return plain() * math.nan

    return closure


@pytest.mark.parametrize("at", range(12))
def test_a_loss_that_is_not_a_number_costs_a_trial_or_a_step(comm, at):
    model = small_network()
    optimizer, closure = APTS(model.parameters(), comm=comm), failing(model, at, "nan")
    losses = []
    for _ in range(6):
        before = values_of(model)
        losses.append(optimizer.step(closure))
        assert bool(values_of(model).isfinite().all())
        assert optimizer.report.accepted != torch.equal(values_of(model), before)
    assert math.isnan(losses[0]) == (at == 0)
    assert losses[-1] < 1.0 < closure_of(small_network(), *samples())()


@pytest.mark.parametrize("at", range(12))
def test_an_exception_in_the_closure_is_the_users_own(comm, at):
    model = small_network()
    optimizer, closure = APTS(model.parameters(), comm=comm), failing(model, at, "raises")
    with pytest.raises(ZeroDivisionError, match="not today"):
        [optimizer.step(closure) for _ in range(5)]
    assert all(p.grad is None for p in model.parameters())
    losses = [optimizer.step(closure) for _ in range(5)]  # a caller who goes on finds everything in order
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("full_batch", [True, False])
def test_after_an_exception_nothing_is_taken_for_known(comm, full_batch):
    """Neither loss and gradient of a full batch, nor what an earlier mini-batch promised."""
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, full_batch=full_batch)
    closure = closure_of(model, *samples())
    optimizer.step(closure)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(failing(model, 3, "raises"))
    closure.calls = 0
    optimizer.step(closure)
    assert closure.calls == 1 + optimizer.report.inner_iterations + 2


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (lambda loss: None, "returned None; it must return the mean loss"),
        (lambda loss: loss.expand(2), r"a tensor of shape \(2,\)"),
        (lambda loss: "small", "returned 'small'"),
    ],
)
def test_a_closure_must_return_one_number(comm, found, words):
    model = small_network()
    plain = closure_of(model, *samples())
    with pytest.raises(UsageError, match=words):
        APTS(model.parameters(), comm=comm).step(lambda: found(plain()))


def test_a_closure_may_return_a_plain_number(comm):
    model = small_network()
    plain = closure_of(model, *samples())
    assert APTS(model.parameters(), comm=comm).step(lambda: float(plain().detach())) > 0


def test_a_closure_that_forgot_the_backward_pass_is_told(comm):
    model, (inputs, targets) = small_network(), samples()
    with pytest.raises(UsageError, match=r"must call loss\.backward\(\)"):
        APTS(model.parameters(), comm=comm).step(lambda: torch.nn.functional.cross_entropy(model(inputs), targets))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None,), "needs a closure"),
        ((float, -1), "samples = -1 must be the number"),
        ((float, 2.5), "samples = 2.5"),
        ((float, True), "samples = True"),
        ((float, 0), "no rank has a sample in this batch"),
    ],
)
def test_wrong_arguments_of_a_step_are_refused(comm, arguments, words):
    with pytest.raises(UsageError, match=words):
        APTS(small_network().parameters(), comm=comm).step(*arguments)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda: [], "no parameters"),
        (lambda: torch.zeros(3, requires_grad=True), "was given a tensor"),
        (lambda: [torch.zeros(3)], "none of the 1 parameters is trainable"),
        (
            lambda: [torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True, dtype=torch.float64)],
            r"different precisions \(torch.float32, torch.float64\)",
        ),
        (
            lambda: [torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True, device="meta")],
            r"different devices \(cpu, meta\)",
        ),
        (lambda: [torch.zeros(3, requires_grad=True, dtype=torch.bfloat16)], r"cannot be torch\.bfloat16"),
        (lambda: [{"params": [torch.zeros(3, requires_grad=True)]} for _ in range(2)], "2 groups of parameters"),
        (lambda: [{"params": [torch.zeros(3, requires_grad=True)], "lr": 1}], "no options of its own; give lr"),
    ],
)
def test_wrong_parameters_are_refused(comm, tensors, words):
    with pytest.raises(UsageError, match=words):
        APTS(tensors(), comm=comm)


@pytest.mark.parametrize("group", [lambda p: {"params": p}, lambda p: [{"params": p}]])
def test_one_group_is_as_good_as_a_list(comm, group):
    model = small_network()
    optimizer, closure = APTS(group(list(model.parameters())), comm=comm), closure_of(model, *samples())
    losses = [optimizer.step(closure) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_no_group_is_added_later(comm):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm)
    with pytest.raises(UsageError, match="no group can be added"):
        optimizer.add_param_group({"params": [torch.zeros(3, requires_grad=True)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"weight_decay": -1}, "weight_decay = -1"), ({"full_batch": 1}, "full_batch = 1"), ({"preset": "x"}, "preset")],
)
def test_wrong_options_are_refused(comm, options, words):
    with pytest.raises(UsageError, match=words):
        APTS(small_network().parameters(), comm=comm, **options)


def test_the_communicator_may_be_of_mpi4py_or_none(comm):
    for given in (comm.mpi, None):
        assert isinstance(APTS(small_network().parameters(), comm=given).comm, Communicator)
    with pytest.raises(UsageError, match="needs an mpi4py communicator"):
        APTS(small_network().parameters(), comm="world")
