"""Losses are sums over samples whose Hessian products equal those of the dense Hessian."""

import math

import pytest
import torch
from torch.nn import functional

from hpcopt.errors import UsageError
from hpcopt.objective.losses import CallableLoss, CrossEntropy, Loss, Squared, make_loss, predictions_correct


def classification(samples=7, classes=4, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    outputs = scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return outputs.to(dtype), torch.randint(classes, (samples,), generator=generator)


def regression(samples=7, width=3):
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(samples, width, generator=generator, dtype=torch.float64) for _ in range(2))


def log_cosh(outputs, targets):
    return (outputs - targets).cosh().log().sum(1).mean()


CASES = {
    "cross_entropy": (CrossEntropy(), classification()),
    "cross_entropy, saturated": (CrossEntropy(), classification(scale=200.0)),
    "squared, labels": (Squared(), classification()),
    "squared, values": (Squared(), regression()),
    "squared, one value": (Squared(), (regression()[0][:, :1], regression()[1][:, 0])),
    "callable, labels": (CallableLoss(functional.cross_entropy), classification()),
    "callable, smoothed": (CallableLoss(torch.nn.CrossEntropyLoss(label_smoothing=0.1)), classification()),
    "callable, values": (CallableLoss(log_cosh), regression()),
    "callable, huber": (CallableLoss(torch.nn.HuberLoss()), regression()),
    "callable, linear": (CallableLoss(torch.nn.L1Loss()), regression()),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    loss, (outputs, targets) = CASES[request.param]
    return loss, outputs, targets


def test_a_loss_fits_the_protocol(case):
    assert isinstance(case[0], Loss)


def test_the_sum_is_the_sum_of_the_samples_losses(case):
    loss, outputs, targets = case
    each = [float(loss.sum(outputs[i : i + 1], targets[i : i + 1])) for i in range(len(outputs))]
    assert float(loss.sum(outputs, targets)) == pytest.approx(math.fsum(each), rel=1e-13)


def test_no_sample_has_no_loss(case):
    loss, outputs, targets = case
    nothing = outputs[:0].clone().requires_grad_()
    total = loss.sum(nothing, targets[:0])
    assert float(total.detach()) == 0
    assert torch.autograd.grad(total, nothing, allow_unused=True)[0] is not None
    assert loss.hessian_product(outputs[:0], targets[:0], outputs[:0]).shape == outputs[:0].shape


def test_the_hessian_product_is_that_of_the_dense_hessian(case):
    loss, outputs, targets = case
    hessian = torch.autograd.functional.hessian(lambda o: loss.sum(o, targets).to(o.dtype), outputs)
    tangents = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.einsum("icjd,jd->ic", hessian, tangents)
    with torch.no_grad():
        product = loss.hessian_product(outputs, targets, tangents)
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", [CrossEntropy(), Squared()])
def test_the_hessian_is_symmetric_and_positive_semidefinite(loss):
    outputs, targets = classification()
    x, y = torch.randn(2, *outputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    product = loss.hessian_product(outputs, targets, x)
    assert float((y * product).sum()) == pytest.approx(float((x * loss.hessian_product(outputs, targets, y)).sum()))
    assert float((x * product).sum()) >= 0


def test_cross_entropy_equals_its_formula():
    outputs, targets = classification()
    expected = -outputs.softmax(1).log()[torch.arange(len(targets)), targets].sum()
    torch.testing.assert_close(CrossEntropy().sum(outputs, targets), expected)


def test_squared_is_half_the_squared_distance():
    outputs, targets = regression()
    assert float(Squared().sum(outputs, targets)) == pytest.approx(0.5 * float((outputs - targets).square().sum()))
    labels = torch.tensor([2, 0])
    one_hot = torch.tensor([[0.0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    assert float(Squared().sum(outputs[:2], labels)) == float(Squared().sum(outputs[:2], one_hot))


def test_float32_sums_are_exact_to_the_terms_rounding():
    # A float32 sum of a million terms is off by more than the decrease of a small step
    outputs = torch.full((1_000_000, 2), 0.0)
    targets = torch.zeros(len(outputs), dtype=torch.int64)
    term = float(functional.cross_entropy(outputs[:1], targets[:1]))
    for loss in (CrossEntropy(), Squared()):
        total = loss.sum(outputs, targets)
        assert total.dtype == torch.float64
        assert float(total) == pytest.approx(len(outputs) * (term if loss.name == "cross_entropy" else 0.5), rel=1e-13)


def test_large_scores_give_finite_loss_and_product():
    outputs, targets = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([1, 1])
    assert float(CrossEntropy().sum(outputs, targets)) == 2e4
    assert CrossEntropy().hessian_product(outputs, targets, torch.ones(2, 2)).isfinite().all()


def test_gradients_keep_the_precision_of_the_outputs():
    outputs, targets = classification(dtype=torch.float32)
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(CrossEntropy().sum(outputs, targets), outputs)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "message"),
    [
        (CrossEntropy(), torch.zeros(1, 3), torch.tensor([0, 1, 3]), r"label 3 of sample 2 .* 0 to 2"),
        (CrossEntropy(), torch.zeros(1, 3), torch.tensor([0, -1]), "label -1 of sample 1"),
        (CrossEntropy(), torch.zeros(1, 3), torch.zeros(4), "needs one integer label a sample"),
        (CrossEntropy(), torch.zeros(1, 3), torch.zeros(4, 1, dtype=torch.int64), "needs one integer label"),
        (CrossEntropy(), torch.zeros(1, 3, 2, 2), torch.tensor([0]), r"\(3, 2, 2\).* one score a class"),
        (Squared(), torch.zeros(1, 3), torch.zeros(4, 2), r"\(3,\), but a target has shape \(2,\)"),
        (Squared(), torch.zeros(1, 3), torch.zeros(4), "needs as many outputs as target values"),
        (Squared(), torch.zeros(1, 1), torch.tensor([0.0, math.nan]), "target 1 .* not finite"),
        (Squared(), torch.zeros(1, 3), torch.tensor([3]), "label 3 of sample 0"),
        (Squared(), torch.zeros(1, 1), torch.tensor([40]), "turn targets of a regression into floating"),
        (CallableLoss(torch.nn.MSELoss(reduction="sum")), torch.ones(1, 2), torch.zeros(4, 2), "returns a sum"),
        (CallableLoss(torch.nn.MSELoss(reduction="none")), torch.ones(1, 2), torch.zeros(4, 2), "one number"),
        (CallableLoss(lambda o, t: 1.0), torch.ones(1, 2), torch.zeros(4, 2), "must return one number"),
        (CallableLoss(functional.cross_entropy), torch.ones(1, 2), torch.tensor([5]), "does not take an output"),
    ],
)
def test_targets_that_do_not_fit_are_refused(loss, outputs, targets, message):
    with pytest.raises(UsageError, match=message):
        loss.check(outputs, targets)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (CrossEntropy(), torch.zeros(1, 3), torch.tensor([0, 1, 2])),
        (CrossEntropy(), torch.zeros(1, 3), torch.zeros(0, dtype=torch.int64)),
        (Squared(), torch.zeros(1, 3), torch.zeros(5, 3)),
        (Squared(), torch.zeros(1, 3), torch.zeros(0, 3)),
        (Squared(), torch.zeros(1, 1), torch.zeros(5)),
        (CallableLoss(torch.nn.MSELoss()), torch.ones(1, 3), torch.zeros(5, 3)),
        (CallableLoss(torch.nn.MSELoss()), torch.ones(0, 3), torch.zeros(0, 3)),
    ],
)
def test_targets_that_fit_pass(loss, outputs, targets):
    loss.check(outputs, targets)


def test_losses_are_made_by_name_from_callables_and_from_losses():
    assert make_loss("cross_entropy").name == "cross_entropy"
    assert make_loss("squared").name == "squared"
    assert make_loss(log_cosh).name == "log_cosh"
    assert make_loss(torch.nn.HuberLoss()).name == "HuberLoss"
    mine = Squared()
    assert make_loss(mine) is mine


def test_an_unknown_loss_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"'crossentropy' is not a loss; did you mean 'cross_entropy'\?"):
        make_loss("crossentropy")
    with pytest.raises(UsageError, match="3 is not a loss"):
        make_loss(3)


def test_predictions_are_counted():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert predictions_correct(outputs, torch.tensor([1, 0, 0])) == 2
    assert predictions_correct(outputs[:0], torch.zeros(0, dtype=torch.int64)) == 0
