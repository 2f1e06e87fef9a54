"""Errors at the outputs: their second moments are the Hessians of the losses, whoever draws them."""

from __future__ import annotations

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.objective.curvature.fisher import OutputErrors, check_kind
from hpcopt.objective.losses import Loss, make_loss

DRAWS = 40_000


def loss_named(name: str) -> Loss:
    if name == "smoothed":
        return make_loss(torch.nn.CrossEntropyLoss(label_smoothing=0.2))
    return make_loss(torch.nn.HuberLoss(delta=0.7) if name == "huber" else name)


def problem(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same outputs and the same target for ``count`` samples."""
    outputs = torch.tensor([[1.0, -0.5, 0.2]], dtype=torch.float64).expand(count, 3).clone()
    if name in ("cross_entropy", "smoothed"):
        return outputs, torch.full((count,), 2)
    return outputs, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).expand(count, 3).clone()


def hessian(loss: Loss, name: str) -> torch.Tensor:
    outputs, targets = problem(name, 3)
    return loss.hessian_product(outputs, targets, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["cross_entropy", "squared", "smoothed", "huber"])
def test_true_errors_have_mean_0_and_the_hessian_as_covariance(name: str) -> None:
    loss = loss_named(name)
    e = OutputErrors(loss, "true", 0, 0).draw(*problem(name, DRAWS), 0)
    bound = 4 / DRAWS**0.5
    torch.testing.assert_close(e.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=bound)
    torch.testing.assert_close(e.T @ e / DRAWS, hessian(loss, name), rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["cross_entropy", "squared", "smoothed"])
def test_empirical_errors_are_the_gradients_with_random_signs(name: str) -> None:
    loss, (outputs, targets) = loss_named(name), problem(name, DRAWS)
    e = OutputErrors(loss, "empirical", 0, 0).draw(outputs, targets, 0)
    o = outputs[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(loss.sum(o, targets[:1]), o)
    torch.testing.assert_close(e.abs(), gradient.abs().expand_as(e))
    torch.testing.assert_close(e.T @ e / DRAWS, gradient.T @ gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(e.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=4 / DRAWS**0.5)


@pytest.mark.parametrize("kind", ["true", "empirical"])
@pytest.mark.parametrize("name", ["cross_entropy", "squared", "smoothed"])
def test_a_sample_draws_by_its_position_whoever_evaluates_it(name: str, kind: str) -> None:
    errors, (outputs, targets) = OutputErrors(loss_named(name), kind, 3, 7), problem(name, 20)
    whole = errors.draw(outputs, targets, 0)
    parts = [errors.draw(outputs[a:b], targets[a:b], a) for a, b in ((0, 6), (6, 6), (6, 20))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    again = OutputErrors(loss_named(name), kind, 3, 8).draw(outputs, targets, 0)
    assert not torch.allclose(again, whole)


@pytest.mark.parametrize(("name", "kind"), [("cross_entropy", "true"), ("smoothed", "true"), ("squared", "empirical")])
def test_outputs_that_are_not_finite_show_in_the_errors(name: str, kind: str) -> None:
    outputs, targets = problem(name, 4)
    outputs[1] = torch.nan
    assert not bool(OutputErrors(loss_named(name), kind, 0, 0).draw(outputs, targets, 0)[1].isfinite().any())


def test_a_loss_without_a_distribution_and_with_many_outputs_is_refused() -> None:
    loss = make_loss(torch.nn.HuberLoss())
    with pytest.raises(UsageError, match=r'HuberLoss of 129 outputs.*fisher = "empirical"'):
        check_kind(loss, "true", 129)
    check_kind(loss, "true", 128)
    check_kind(loss, "empirical", 129)
    check_kind(make_loss("squared"), "true", 1000)
