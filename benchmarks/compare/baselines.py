"""What a user would take instead: methods of other packages, with the rates that are tried.

``torch.optim`` runs under DistributedDataParallel over gloo, which sums gradients; so does ``ncg-optimizer``. The value
that a line search sees is summed here, by one reduction more: without it the ranks evaluate different numbers of
trials and wait for each other for ever. ``torch-levenberg-marquardt`` knows one process only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from hpcopt.objective.protocol import Batch

Samples = tuple[torch.Tensor, torch.Tensor]
Optimizer = Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Baseline:
    """A method of another package.

    Attributes:
        title: as it stands in tables.
        rates: the learning rates that are tried; others are at the ``default``.
        default: the package's own.
        make: an optimizer of torch's kind; None for Levenberg and Marquardt.
        values: whether it compares values of the loss.
        full: whether it wants full batches.
        alone: whether it knows one process only and forms the Jacobian of a batch, so that the network must be modest.
        falls: whether the rate falls in a line to nothing over the budget.
    """

    title: str
    rates: tuple[float, ...]
    default: float
    make: Optimizer | None = None
    values: bool = False
    full: bool = False
    alone: bool = False
    falls: bool = False


def _sgd(parameters: Iterable[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def _adam(parameters: Iterable[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate)


def _ncg(parameters: Iterable[torch.nn.Parameter], rate: float) -> Any:
    return importlib.import_module("ncg_optimizer").BASIC(parameters, lr=rate)


def _lbfgs(search: str | None) -> Optimizer:
    """A step is one iteration, so that it can be looked at; the state goes on from step to step."""
    return lambda parameters, rate: torch.optim.LBFGS(
        parameters, lr=rate, max_iter=1, max_eval=26, line_search_fn=search
    )


SGD_RATES = (1e-3, 1e-2, 3e-2, 0.1, 0.3)
ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

BASELINES = {
    "sgd": Baseline("SGD, momentum 0.9", SGD_RATES, 1e-3, _sgd),
    "adam": Baseline("Adam", ADAM_RATES, 1e-3, _adam),
    "sgd-falling": Baseline("SGD, falling rate", SGD_RATES, 1e-3, _sgd, falls=True),
    "adam-falling": Baseline("Adam, falling rate", ADAM_RATES, 1e-3, _adam, falls=True),
    "lbfgs": Baseline("L-BFGS", (0.03, 0.1, 0.3, 1.0, 3.0), 1.0, _lbfgs(None), values=True, full=True),
    "lbfgs-wolfe": Baseline(
        "L-BFGS, strong Wolfe", (0.1, 0.3, 1.0, 3.0, 10.0), 1.0, _lbfgs("strong_wolfe"), values=True, full=True
    ),
    "ncg": Baseline("ncg-optimizer", (0.03, 0.1, 0.3, 1.0, 3.0), 1.0, _ncg, values=True),
    "marquardt": Baseline("torch-levenberg-marquardt", (0.03, 0.1, 0.3, 0.6, 1.0), 1.0, alone=True),
}


class Differentiated:
    """Steps of an optimizer of torch's kind on the gradients of all ranks.

    Args:
        baseline: the method.
        rate: its learning rate.
        module: the network, which is trained in place.
        data: this rank's inputs and targets.
        weight_decay: coefficient of |w|^2 / 2.
        ranks: of the process group; no group is needed for one.

    Attributes:
        work: gradients so far, in samples of all ranks.
    """

    def __init__(
        self, baseline: Baseline, rate: float, module: torch.nn.Module, data: Samples, weight_decay: float, ranks: int
    ) -> None:
        assert baseline.make is not None
        self.parameters = list(module.parameters())
        self._network = torch.nn.parallel.DistributedDataParallel(module) if ranks > 1 else module
        self._optimizer = baseline.make(self.parameters, rate)
        self._data, self._decay, self._ranks, self._values = data, weight_decay, ranks, baseline.values
        self._batch: Batch | None = None
        self._seen: tuple[tuple[int, int] | None, torch.Tensor] | None = None
        self._last = torch.zeros(())
        self.work = 0.0

    def set_rate(self, rate: float) -> None:
        """Of the steps that follow."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def step(self, batch: Batch) -> None:
        """One step on a batch. *Collective*."""
        self._batch = batch
        if self._values:
            self._optimizer.step(self._once)
        else:
            self._closure()
            self._optimizer.step()

    def _once(self) -> torch.Tensor:
        """The closure; where it was called last on the same samples, its value and gradients are still there."""
        assert self._batch is not None
        point = torch.cat([p.detach().flatten() for p in self.parameters])
        samples = None if self._batch.indices is None else self._batch.key
        if self._seen is None or self._seen[0] != samples or not torch.equal(self._seen[1], point):
            self._last, self._seen = self._closure(), (samples, point)
        return self._last

    def _closure(self) -> torch.Tensor:
        """Gradients, and where they are wanted the value, of all ranks' samples of the batch. *Collective*."""
        assert self._batch is not None
        for p in self.parameters:
            p.grad = None
        inputs, targets = (part if self._batch.indices is None else part[self._batch.indices] for part in self._data)
        # DistributedDataParallel takes the mean over the ranks, whose parts of the batch need not be equal.
        loss = mean_loss(self._network(inputs), targets, self._batch.total) * self._ranks
        loss.backward()
        self.work += self._batch.total
        with torch.no_grad():
            torch._foreach_add_([p.grad for p in self.parameters], self.parameters, alpha=self._decay)
            return self._value(loss.detach() / self._ranks)

    def _value(self, local: torch.Tensor) -> torch.Tensor:
        if not self._values:
            return local
        if self._ranks > 1:
            torch.distributed.all_reduce(local)
        squares = sum((p * p).sum() for p in self.parameters)
        return local + self._decay / 2 * squares


class Marquardt:
    """Steps of torch-levenberg-marquardt, alone on all samples; it has no weight decay. As ``Differentiated``."""

    def __init__(self, rate: float, module: torch.nn.Module, data: Samples) -> None:
        package = importlib.import_module("torch_levenberg_marquardt")
        labels = not data[1].is_floating_point()
        loss = package.loss.CrossEntropyLoss() if labels else package.loss.MSELoss()
        self._module = package.training.LevenbergMarquardtModule(module, loss, learning_rate=rate)
        self.parameters, self._data = list(module.parameters()), data
        self._residuals = 1 if labels else data[1].shape[1]
        self.work = 0.0

    def step(self, batch: Batch) -> None:
        """One step: outputs, a backward pass a residual, and a value an attempt."""
        chosen = [part if batch.indices is None else part[batch.indices] for part in self._data]
        _, _, _, facts = self._module.training_step(*chosen)
        self.work += batch.total * (2 + 2 * self._residuals + facts["attempts"]) / 3


def mean_loss(outputs: torch.Tensor, targets: torch.Tensor, total: int) -> torch.Tensor:
    """Cross-entropy of labels, half the squared distance of values; summed, over ``total`` samples."""
    if targets.is_floating_point():
        return functional.mse_loss(outputs, targets, reduction="sum") / (2 * total)
    return functional.cross_entropy(outputs, targets, reduction="sum") / total
