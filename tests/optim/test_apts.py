"""hpcopt.optim.APTS on one rank, used as ``torch.optim.LBFGS``. tests/mpi has what takes several ranks."""

import io

import pytest
import torch
from sklearn.datasets import load_digits

import hpcopt
from hpcopt.errors import UsageError
from hpcopt.optim import APTS
from hpcopt.solvers.solver import StopReason
from tests.support.closures import closure_of, values_of
from tests.support.problems import samples, small_network


def mini_batches(parts=3):
    inputs, targets = samples()
    return [(inputs[k::parts], targets[k::parts]) for k in range(parts)]


def train(model, optimizer, steps, first=0):
    """Steps on mini-batches in turn; returns the losses."""
    batches, losses = mini_batches(), []
    for number in range(first, first + steps):
        inputs, targets = batches[number % len(batches)]
        losses.append(optimizer.step(closure_of(model, inputs, targets), samples=len(inputs)))
    return losses


def test_a_network_is_trained_without_any_option(comm):
    torch.manual_seed(0)
    inputs, labels = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(inputs / 8 - 1, dtype=torch.float32), torch.tensor(labels).long()
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = hpcopt.optim.APTS(model.parameters(), comm=comm)
    losses = []
    for number in range(40):
        part = slice(number % 4, None, 4)
        losses.append(optimizer.step(closure_of(model, inputs[part], labels[part], optimizer)))
    assert all(isinstance(loss, float) for loss in losses)
    assert losses[-1] < 0.3 * losses[0]
    assert float((model(inputs).argmax(1) == labels).float().mean()) > 0.9


def test_the_report_tells_of_the_last_step(comm):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm)
    assert optimizer.report is None
    before = values_of(model)
    (loss,) = train(model, optimizer, 1)
    report = optimizer.report
    assert report.accepted
    assert report.loss == loss > report.loss_after
    assert report.rho > 0.1
    assert report.radius > 0
    assert 1 <= report.local_iterations[0] <= 5
    assert report.step_norm == pytest.approx(float(torch.linalg.vector_norm(values_of(model) - before)), rel=1e-12)


def test_no_gradient_is_left_and_none_of_an_earlier_call_is_added(comm):
    ends = []
    for zeroes in (True, False):
        model = small_network()
        optimizer = APTS(model.parameters(), comm=comm)
        for _ in range(3):
            optimizer.step(closure_of(model, *samples(), optimizer if zeroes else None))
        assert all(p.grad is None for p in model.parameters())
        ends.append(values_of(model))
    assert torch.equal(*ends)


def test_the_parameters_keep_their_memory(comm):
    model = small_network()
    before = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    train(model, APTS(model.parameters(), comm=comm), 3)
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == before


def test_frozen_parameters_are_left_alone(comm):
    model = small_network()
    model[0].weight.requires_grad_(False)
    frozen, moving = model[0].weight.clone(), model[0].bias.clone()
    train(model, APTS(model.parameters(), comm=comm), 2)
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[0].bias, moving)


def test_a_parameter_that_the_loss_does_not_see_stays(comm):
    model, unused = small_network(), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, closure = APTS([*model.parameters(), unused], comm=comm), closure_of(model, *samples())
    losses = [optimizer.step(closure) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert torch.equal(unused, torch.ones_like(unused))


def test_a_known_full_batch_is_not_evaluated_again(comm):
    calls = {}
    for full_batch in (True, False):
        model = small_network()
        optimizer = APTS(model.parameters(), comm=comm, full_batch=full_batch)
        closure, inner = closure_of(model, *samples()), 0
        for _ in range(6):
            optimizer.step(closure)
            inner += optimizer.report.inner_iterations
        calls[full_batch] = closure.calls - inner
    # Start (or only once), preconditioned step and global pass; the new batch at the old point from the second step on.
    assert calls == {True: 1 + 6 * 2, False: 6 * 3 + 5}


def test_a_full_batch_run_says_when_it_is_done(comm):
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64))
    optimizer = APTS([w], comm=comm, full_batch=True)

    def closure():
        loss = 1 + (w - 0.3).square().sum()
        loss.backward()
        return loss

    for _ in range(200):
        optimizer.step(closure)
        if optimizer.report.stop is not StopReason.RUNNING:
            break
    assert optimizer.report.stop is StopReason.GRADIENT_SMALL
    torch.testing.assert_close(w.detach(), torch.full_like(w, 0.3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["values", "samples"])
def test_what_is_known_is_forgotten_when_something_changed(comm, change):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, full_batch=True)
    optimizer.step(closure_of(model, *samples()), samples=37)
    inputs, targets = samples()
    if change == "values":
        model.load_state_dict(small_network(seed=5).state_dict())
    else:
        inputs, targets = inputs[:20], targets[:20]
    with torch.no_grad():
        expected = float(torch.nn.functional.cross_entropy(model(inputs), targets))
    assert optimizer.step(closure_of(model, inputs, targets), samples=len(inputs)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("full_batch", [True, False])
def test_dropout_draws_the_same_masks_in_all_evaluations_of_a_step(comm, full_batch):
    model = small_network(dropout=0.5)
    optimizer, masks, drawn = APTS(model.parameters(), comm=comm, full_batch=full_batch), [], []
    model[2].register_forward_hook(lambda _, args, out: drawn.append((out == 0) & (args[0] != 0)))
    torch.manual_seed(7)
    for _ in range(4):
        drawn.clear()
        optimizer.step(closure_of(model, *samples()))
        assert len(drawn) >= 4
        assert all(torch.equal(mask, drawn[0]) for mask in drawn)
        masks.append(drawn[0])
    torch.manual_seed(7)
    for mask in masks:  # they are those of a loop that calls the closure once a step
        drawn.clear()
        model(samples()[0])
        assert torch.equal(drawn[0], mask)


def test_full_batches_with_dropout_are_evaluated_in_every_step(comm):
    model = small_network(dropout=0.5)
    optimizer = APTS(model.parameters(), comm=comm, full_batch=True)
    for _ in range(3):
        closure = closure_of(model, *samples())
        optimizer.step(closure)
        assert closure.calls == 1 + optimizer.report.inner_iterations + 2


def test_weight_decay_is_in_the_objective_and_not_in_the_loss_returned(comm):
    model = small_network()
    decay = 0.5 * 0.3 * float(values_of(model).square().sum())
    optimizer = APTS(model.parameters(), comm=comm, weight_decay=0.3)
    (loss,) = train(model, optimizer, 1)
    assert optimizer.report.loss == pytest.approx(loss + decay, rel=1e-14)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(small_network()(mini_batches()[0][0]), mini_batches()[0][1])
    assert loss == pytest.approx(float(expected), rel=1e-13)


def test_the_running_mean_is_there_for_an_evaluation_and_gone_after_it(comm):
    model, undisturbed = small_network(), small_network()
    optimizer, other = (APTS(m.parameters(), comm=comm, average=1.0) for m in (model, undisturbed))
    for number in range(4):
        train(undisturbed, other, 1, number)
        train(model, optimizer, 1, number)
        iterate = values_of(model)
        with optimizer.averaged():
            mean = values_of(model)
        assert torch.equal(mean, optimizer.state_dict()["state"][0]["average"])
        assert torch.equal(mean, iterate) == (number == 0)
        assert torch.equal(values_of(model), iterate)
    assert torch.equal(values_of(model), values_of(undisturbed))


@pytest.mark.parametrize("options", [{"full_batch": True}, {"average": 0.0}])
def test_without_an_average_the_running_mean_is_the_iterate(comm, options):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, **options)
    for _ in range(3):
        optimizer.step(closure_of(model, *samples()))
    iterate = values_of(model)
    with optimizer.averaged():
        assert torch.equal(values_of(model), iterate)


def test_the_running_mean_starts_again_from_parameters_that_were_changed(comm):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, average=1.0)
    train(model, optimizer, 3)
    model.load_state_dict(small_network(seed=5).state_dict())
    train(model, optimizer, 1)
    iterate = values_of(model)
    with optimizer.averaged():
        assert torch.equal(values_of(model), iterate)


def test_presets_and_options_are_those_of_the_method(comm):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, preset="paper", local_iterations=2, radius_initial=0.5)
    train(model, optimizer, 1)
    assert optimizer.report.local_iterations[0] <= 2
    with pytest.raises(UsageError, match="did you mean 'local_iterations'"):
        APTS(model.parameters(), comm=comm, local_iteration=2)
    with pytest.raises(UsageError, match=r"solver\.lr is not an option"):
        APTS(model.parameters(), comm=comm, lr=0.1)


def saved(model, optimizer):
    """What a user writes to a file, read back by torch's safe loader."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"full_batch": True}, {"local_solver": "adam", "global_solver": "lsr1", "window": 3}, {"preset": "paper"}],
    ids=["default", "full", "other", "paper"],
)
def test_a_resumed_run_goes_on_to_the_last_bit(comm, options, model_first, dtype):
    def fresh(seed):
        model = small_network(seed, dropout=0.2).to(dtype)
        return model, APTS(model.parameters(), comm=comm, **options)

    def steps(model, optimizer, first):
        inputs, targets = samples()
        losses = []
        for number in range(first, first + 5):
            part = slice(None) if options.get("full_batch") else slice(number % 3, None, 3)
            losses.append(optimizer.step(closure_of(model, inputs[part].to(dtype), targets[part])))
        return losses

    model, optimizer = fresh(0)
    steps(model, optimizer, 0)
    state = saved(model, optimizer)
    expected = steps(model, optimizer, 5)
    again, resumed = fresh(1)
    parts = [(again, "model"), (resumed, "optimizer")]
    for part, name in parts if model_first else reversed(parts):
        part.load_state_dict(state[name])
    torch.set_rng_state(state["rng"])
    assert steps(again, resumed, 5) == expected
    assert torch.equal(values_of(model), values_of(again))
    assert resumed.report.radius == optimizer.report.radius


def test_a_resumed_full_batch_is_still_known(comm):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, full_batch=True)
    optimizer.step(closure_of(model, *samples()))
    again = APTS(model.parameters(), comm=comm, full_batch=True)
    again.load_state_dict(saved(model, optimizer)["optimizer"])
    closure = closure_of(model, *samples())
    again.step(closure)
    assert closure.calls == again.report.inner_iterations + 2


def test_a_state_of_another_rank_keeps_what_is_the_same_on_all(comm):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, average=1.0)
    train(model, optimizer, 3)
    with optimizer.averaged():
        mean = values_of(model)
    state = saved(model, optimizer)
    state["optimizer"]["state"][0] |= {"rank": 1, "ranks": 2}
    again = small_network(seed=1)
    resumed = APTS(again.parameters(), comm=comm, average=1.0)
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    train(again, resumed, 1, first=3)
    iterate = values_of(again)
    with resumed.averaged():
        torch.testing.assert_close(values_of(again), mean + (iterate - mean) / 4, rtol=1e-12, atol=1e-12)


def test_a_full_batch_is_evaluated_again_with_a_state_of_another_rank(comm):
    model = small_network()
    optimizer = APTS(model.parameters(), comm=comm, full_batch=True)
    closure = closure_of(model, *samples())
    optimizer.step(closure, samples=37)
    state = saved(model, optimizer)
    state["optimizer"]["state"][0] |= {"rank": 1, "ranks": 2}
    optimizer.load_state_dict(state["optimizer"])
    comm.ledger.clear()
    for expected in (1, 0):
        closure.calls = 0
        optimizer.step(closure, samples=12)  # that rank had another number of samples
        assert closure.calls == expected + optimizer.report.inner_iterations + 2
    assert "parameters" not in {row.label for row in comm.ledger.rows()}


def test_a_state_that_does_not_fit_is_refused(comm):
    model = small_network()
    state = APTS(model.parameters(), comm=comm).state_dict()
    with pytest.raises(UsageError, match=r"in pairs, gram\); it must come from APTS with the same"):
        APTS(model.parameters(), comm=comm, global_memory=2).load_state_dict(state)
    with pytest.raises(UsageError, match="does not fit"):
        APTS(small_network().float().parameters(), comm=comm).load_state_dict(state)
    with pytest.raises(UsageError, match="not what state_dict"):
        APTS(model.parameters(), comm=comm).load_state_dict(torch.optim.SGD(model.parameters()).state_dict())
