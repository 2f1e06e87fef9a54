"""Losses as sums over samples, with the product of their Hessian in output space.

Shapes: b samples, C outputs. A loss is a sum of one term a sample, so its Hessian in output space is block diagonal
with one (C, C) block H_i a sample. Sums run in float64, since a decision about a step hangs on their difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch.nn import functional

from hpcopt.errors import UsageError, nearest

LossFunction: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What torch calls a loss: (outputs, targets) -> scalar, the mean over the samples."""


@runtime_checkable
class Loss(Protocol):
    """One term a sample, summed."""

    name: str

    def terms(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Numbers that add up to the losses of b samples, differentiable, in the outputs' precision and any shape."""
        ...

    def sum(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of b samples, a differentiable scalar in float64; 0 for no sample."""
        return self.terms(outputs, targets).sum(dtype=torch.float64)

    def hessian_product(self, outputs: torch.Tensor, targets: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
        """H_i t_i for each sample, not averaged; ``tangents`` and the result have the shape of ``outputs``."""
        ...

    def check(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Refuse targets that do not fit the model's outputs.

        Args:
            outputs: of one sample or more, (>= 1, C).
            targets: all targets of this rank; their number need not be that of ``outputs``.

        Raises:
            UsageError: shape, type or a value of the targets does not fit.
        """
        ...


class CrossEntropy(Loss):
    """-log softmax(o)[y] for class scores o of shape (b, C) and integer labels y of shape (b,)."""

    name = "cross_entropy"

    def terms(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One a sample."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def hessian_product(self, outputs: torch.Tensor, targets: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
        """(diag(p) - p p^T) t with p = softmax(o) (Schraudolph 2002, doi:10.1162/08997660260028683, table 1)."""
        p = outputs.softmax(dim=1)
        return p * (tangents - (p * tangents).sum(dim=1, keepdim=True))

    def check(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Refuse outputs that are not one score a class and labels that are not one of them.

        Raises:
            UsageError: see above.
        """
        if outputs.ndim != 2:
            raise UsageError(
                f"the model's output for one sample has shape {_shape(outputs)}, but cross_entropy needs one score a "
                "class, shape (classes,). Flatten the output in the model, or give the objective a loss of your own."
            )
        _check_labels(self.name, outputs.shape[1], targets)


class Squared(Loss):
    """|o - y|^2 / 2, summed over the outputs; integer labels y stand for one-hot vectors."""

    name = "squared"

    def terms(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One an output."""
        return (outputs - target_values(outputs, targets)).square() / 2

    def hessian_product(self, outputs: torch.Tensor, targets: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
        """H is the identity: ``tangents`` themselves."""
        return tangents

    def check(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Refuse target vectors that are not as wide as the output, and labels outside it.

        Raises:
            UsageError: see above.
        """
        if not targets.is_floating_point():
            _check_labels(self.name, outputs.shape[1] if outputs.ndim == 2 else 0, targets)
        elif outputs[0].numel() != targets[:1].numel() and len(targets):
            raise UsageError(
                f"the model's output for one sample has shape {_shape(outputs)}, but a target has shape "
                f"{_shape(targets)}; the squared loss needs as many outputs as target values. "
                "Change the width of the model's last layer, or the target columns of the data."
            )
        elif not targets.isfinite().all():
            bad = int((~targets.reshape(len(targets), -1).isfinite().all(1)).nonzero()[0])
            raise UsageError(f"target {bad} of this rank is not finite; every target value must be a finite number.")


class CallableLoss(Loss):
    """A torch loss that returns the mean over the samples, for instance ``torch.nn.HuberLoss()``.

    Its Hessian products come from differentiating it twice, so it must be a mean of one term a sample.
    """

    def __init__(self, function: LossFunction) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)

    def terms(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The callable's mean times the number of samples."""
        if not len(outputs):
            return outputs.sum()  # the mean of nothing is NaN, its sum is not
        return self.function(outputs, targets) * len(outputs)

    def hessian_product(self, outputs: torch.Tensor, targets: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
        """Derivative of g(o)^T t, with g the gradient of the sum; zero where the loss is linear."""
        with torch.enable_grad():
            o = outputs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.sum(o, targets), o, create_graph=True)
            if not gradient.requires_grad:
                return torch.zeros_like(tangents)
            product = (gradient * tangents.detach()).sum()
            (result,) = torch.autograd.grad(product, o, materialize_grads=True)
            return result

    def check(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Refuse a callable that fails on one sample, or does not return the mean.

        Raises:
            UsageError: see above.
        """
        if not len(targets):
            return
        with torch.no_grad():
            one = self._try(outputs[:1], targets[:1])
            two = self._try(outputs[:1].repeat_interleave(2, 0), targets[:1].repeat_interleave(2, 0))
        if one != two and torch.isclose(two, 2 * one, rtol=1e-4):
            raise UsageError(
                f"the loss {self.name} of a sample taken twice is twice the loss of that sample ({float(two):.6g} and "
                f"{float(one):.6g}): it returns a sum, and a mean over the samples is needed. Use reduction='mean'."
            )

    def _try(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        try:
            value = self.function(outputs, targets)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UsageError(
                f"the loss {self.name} does not take an output of shape {_shape(outputs)} with a target of shape "
                f"{_shape(targets)} and type {targets.dtype}: {error}. Model, loss and data must fit together."
            ) from error
        if not isinstance(value, torch.Tensor) or value.ndim:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise UsageError(
                f"the loss {self.name} returned {got}; it must return one number, the mean over the samples, as a "
                "tensor without dimensions. Use reduction='mean'."
            )
        return value


LOSSES: dict[str, Callable[[], Loss]] = {"cross_entropy": CrossEntropy, "squared": Squared}
"""The losses a job file can name."""


def make_loss(loss: str | Loss | LossFunction) -> Loss:
    """Return the loss of that name, a loss as it is, or a torch callable that returns a mean as a loss.

    Raises:
        UsageError: there is no loss of that name, or the argument is none of the three.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            hint = nearest(loss, LOSSES)
            raise UsageError(f"loss.name = {loss!r} is not a loss{hint} Known losses: {', '.join(LOSSES)}.")
        return LOSSES[loss]()
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return CallableLoss(loss)
    raise UsageError(
        f"{loss!r} is not a loss: it must be one of {', '.join(LOSSES)} or a callable (outputs, targets) -> mean loss."
    )


def predictions_correct(outputs: torch.Tensor, targets: torch.Tensor) -> int:
    """Number of samples whose largest output, of (b, C), is the one that the labels (b,) name."""
    return int((outputs.argmax(dim=1) == targets).sum())


def target_values(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Targets in the shape of ``outputs``, so that (b,) and (b, 1) never broadcast to (b, b)."""
    if targets.is_floating_point():
        return targets.reshape(outputs.shape)
    return functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)


def _check_labels(loss: str, width: int, targets: torch.Tensor) -> None:
    """Refuse anything but integers 0 to ``width`` - 1 of shape (samples,)."""
    if targets.is_floating_point() or targets.ndim != 1:
        raise UsageError(
            f"{loss} needs one integer label a sample, but the targets are {targets.dtype} of shape "
            f"{_shape(targets)} a sample. Set data.task = 'classification', or loss.name = 'squared' for regression."
        )
    wrong = (targets < 0) | (targets >= width)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise UsageError(
            f"label {int(targets[first])} of sample {first} of this rank is out of range: with {width} outputs of the "
            f"model a label must be 0 to {width - 1}. Check data.target, give the model more outputs, or turn "
            "targets of a regression into floating point numbers."
        )


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Shape of one sample."""
    return tuple(tensor.shape[1:])
