"""Small objectives in one process with known minimisers, for the tests of solvers. n is the number of variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sklearn.datasets import load_digits

from hpcopt.objective.curvature.signs import signs
from hpcopt.objective.protocol import Batch, Linearization, Work
from hpcopt.objective.subsets import Subsets

FULL = Batch(indices=None, count=1, total=1)
"""The whole training set."""


class SerialObjective:
    """What every objective here shares: one process, one tensor, no communication."""

    def __init__(self, start: torch.Tensor, slices: list[slice] | None = None) -> None:
        self.start = start
        self.size = start.numel()
        self.work = Work()
        self.deterministic = True
        self.blocks = [0]
        self.slices = slices or [slice(0, self.size)]

    def function(self, w: torch.Tensor, batch: Batch) -> torch.Tensor:
        """f(w), a scalar tensor that autograd can follow."""
        raise NotImplementedError

    def initial_vector(self) -> torch.Tensor:
        """A copy of the start."""
        return self.start.clone()

    def value(self, w: torch.Tensor, batch: Batch) -> float:
        """f(w)."""
        self.work.values += 1
        return float(self.function(w.detach(), batch))

    def value_and_gradient(self, w: torch.Tensor, batch: Batch) -> tuple[float, torch.Tensor]:
        """f(w) and its gradient by autograd."""
        self.work.gradients += 1
        point = w.detach().clone().requires_grad_()
        loss = self.function(point, batch)
        (gradient,) = torch.autograd.grad(loss, point)
        return float(loss.detach()), gradient.contiguous()

    def value_and_gradients(self, w: torch.Tensor, batch: Batch) -> tuple[float, torch.Tensor, float, torch.Tensor]:
        """f(w) and its gradient, twice: there is one process."""
        loss, gradient = self.value_and_gradient(w, batch)
        return loss, gradient, loss, gradient.clone()

    @property
    def local(self) -> SerialObjective:
        """This objective itself."""
        return self

    def share(self, batch: Batch) -> float:
        """All of it."""
        return 1.0

    def combine(
        self, vector: torch.Tensor, scalars: Sequence[float], own: Sequence[float] = ()
    ) -> tuple[torch.Tensor, list[float], torch.Tensor]:
        """A copy of the vector, the scalars, and this process's row."""
        return vector.clone(), list(scalars), torch.tensor([list(own)], dtype=torch.float64)

    def begin(self, w: torch.Tensor) -> None:
        """A local phase begins."""

    def goes_on(self, done: int) -> bool:
        """Always."""
        return True

    def end(self) -> None:
        """A local phase ends."""

    def take(self, vector: torch.Tensor) -> torch.Tensor:
        """All variables."""
        return vector

    def put(self, own: torch.Tensor) -> torch.Tensor:
        """All variables."""
        return own

    def subset(self, batch: Batch, size: int, number: int) -> Batch:
        """Of a batch with indices; the whole set named by ``FULL`` is its own subset."""
        return Subsets(0, torch.device("cpu")).take(batch, size, number, 0)

    def signs(self, number: int) -> torch.Tensor:
        """Random signs by counters."""
        return signs(0, number, torch.arange(self.size), self.start)

    def linearize(self, w: torch.Tensor, batch: Batch) -> Linearization:
        """The Hessian of f at w in place of the Gauss-Newton matrix; on convex quadratics they are the same."""
        return SecondDerivative(self, w, batch)

    def dot(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """x^T y in float64."""
        return float(x.double() @ y.double())

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X Y^T in float64."""
        return (x.double() @ y.double().T).cpu()

    def agree(self, *values: float) -> tuple[float, ...]:
        """The values: there is one process."""
        return tuple(float(value) for value in values)

    def release(self, gradient: torch.Tensor) -> None:
        """Spoil the gradient, so that a solver that uses it after all is found out."""
        gradient.fill_(torch.nan)

    def parameter_tensors(self) -> list[tuple[slice, torch.Size]]:
        """The slices given at construction, or one, as matrices of one column."""
        return [(part, torch.Size([part.stop - part.start, 1])) for part in self.slices]


class SecondDerivative:
    """Products with the Hessian of f, or of whatever convex function of the same outputs a subclass takes."""

    def __init__(self, objective: SerialObjective, w: torch.Tensor, batch: Batch) -> None:
        self.objective, self.w, self.batch = objective, w.detach().clone(), batch

    def jvp(self, v: torch.Tensor) -> torch.Tensor:
        """Not offered here."""
        raise NotImplementedError

    vjp = jvp

    def gauss_newton(self, v: torch.Tensor) -> torch.Tensor:
        """The second derivative along v."""
        self.objective.work.curvature_products += 1
        point = self.w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.objective.function(point, self.batch), point, create_graph=True)
        (product,) = torch.autograd.grad(gradient @ v, point, materialize_grads=True)
        return product

    def curvatures(self, directions: torch.Tensor) -> torch.Tensor:
        """D G D^T by products."""
        products = torch.stack([self.gauss_newton(each) for each in directions])
        return directions.double() @ products.double().T


class GaussNewton(SecondDerivative):
    """(1/B) J^T H J for the mean cross entropy of an ``MlpObjective``."""

    def gauss_newton(self, v: torch.Tensor) -> torch.Tensor:
        """By forward and backward mode."""
        chosen = slice(None) if self.batch.indices is None else self.batch.indices
        inputs = self.objective.inputs[chosen]  # type: ignore[attr-defined]
        outputs, pull = torch.func.vjp(lambda w: self.objective.outputs(w, inputs), self.w)  # type: ignore[attr-defined]
        tangents = torch.func.jvp(lambda w: self.objective.outputs(w, inputs), (self.w,), (v,))[1]  # type: ignore[attr-defined]
        p = outputs.softmax(1)
        bent = p * (tangents - (p * tangents).sum(1, keepdim=True))
        return pull(bent / len(inputs))[0]  # type: ignore[no-any-return]


class QuadraticObjective(SerialObjective):
    """f(w) = 1/2 sum_i c_i (w_i - 1)^2 with curvatures c from 1 to ``condition``; the minimum is 0 at (1, ..., 1)."""

    def __init__(self, size: int = 12, condition: float = 1e3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(torch.linspace(-2, 3, size, dtype=dtype))
        self.curvatures = torch.logspace(0, torch.log10(torch.tensor(condition)), size, dtype=dtype)

    def function(self, w: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The quadratic."""
        return 0.5 * (self.curvatures * (w - 1) ** 2).sum()


class RosenbrockObjective(SerialObjective):
    """f(w) = sum_i 100 (w_{i+1} - w_i^2)^2 + (1 - w_i)^2; the minimum is 0 at (1, ..., 1)."""

    def __init__(self, size: int = 2, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(torch.tensor([-1.2, 1.0] * (size // 2), dtype=dtype))

    def function(self, w: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The chained Rosenbrock function."""
        return (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()


class FunctionObjective(SerialObjective):
    """f(w) = any function of w and the batch."""

    def __init__(
        self,
        function: Callable[[torch.Tensor, Batch], torch.Tensor],
        start: torch.Tensor,
        slices: list[slice] | None = None,
    ) -> None:
        super().__init__(start, slices)
        self.given = function

    def function(self, w: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The given function."""
        return self.given(w, batch)


class MlpObjective(SerialObjective):
    """Mean cross entropy of a tanh network with one hidden layer on given samples: (N, d) inputs, (N,) labels."""

    def __init__(
        self, inputs: torch.Tensor, labels: torch.Tensor, hidden: int = 16, classes: int = 10, seed: int = 0
    ) -> None:
        self.inputs, self.labels = inputs, labels
        self.shapes = [(hidden, inputs.shape[1]), (hidden,), (classes, hidden), (classes,)]
        generator = torch.Generator().manual_seed(seed)
        parts = [
            torch.randn(shape, generator=generator, dtype=torch.float64).div_(shape[-1] ** 0.5) * (len(shape) > 1)
            for shape in self.shapes
        ]
        sizes = [part.numel() for part in parts]
        slices = [slice(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))]
        super().__init__(torch.cat([part.reshape(-1) for part in parts]).to(inputs.dtype), slices)

    def parameter_tensors(self) -> list[tuple[slice, torch.Size]]:
        """Slices and shapes of the weights and biases."""
        return [(part, torch.Size(shape)) for part, shape in zip(self.slices, self.shapes, strict=True)]

    def outputs(self, w: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The logits (N, classes)."""
        w1, b1, w2, b2 = (w[part].view(shape) for part, shape in zip(self.slices, self.shapes, strict=True))
        return torch.tanh(inputs @ w1.T + b1) @ w2.T + b2

    def linearize(self, w: torch.Tensor, batch: Batch) -> Linearization:
        """The Gauss-Newton matrix of the network."""
        return GaussNewton(self, w, batch)

    def function(self, w: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean loss over the batch."""
        chosen = slice(None) if batch.indices is None else batch.indices
        return torch.nn.functional.cross_entropy(self.outputs(w, self.inputs[chosen]), self.labels[chosen])


class FaultyObjective:
    """Another objective whose evaluation number ``at`` (from 0) gives NaN: in the loss, the gradient, or both.

    ``injected`` counts how often that happened, so that a test can prove that it did.
    """

    def __init__(self, inner: SerialObjective, at: int, where: str = "both", value: float = float("nan")) -> None:
        self.wrapped, self.at, self.where, self.fault = inner, at, where, value
        self.evaluations = 0
        self.injected = 0

    def __getattr__(self, name: str) -> object:
        """Everything else is the other objective's."""
        return getattr(self.wrapped, name)

    def value(self, w: torch.Tensor, batch: Batch) -> float:
        """f(w), or the fault."""
        loss = self.wrapped.value(w, batch)
        return self.fault if self._strikes() else loss

    def value_and_gradient(self, w: torch.Tensor, batch: Batch) -> tuple[float, torch.Tensor]:
        """f(w) and its gradient, or the fault in one entry."""
        loss, gradient = self.wrapped.value_and_gradient(w, batch)
        if self._strikes():
            loss = self.fault if self.where in ("both", "loss") else loss
            if self.where in ("both", "gradient"):
                gradient[0] = self.fault
        return loss, gradient

    def value_and_gradients(self, w: torch.Tensor, batch: Batch) -> tuple[float, torch.Tensor, float, torch.Tensor]:
        """Twice the same, or the fault."""
        loss, gradient = self.value_and_gradient(w, batch)
        return loss, gradient, loss, gradient.clone()

    def _strikes(self) -> bool:
        self.evaluations += 1
        strikes = self.evaluations == self.at + 1
        self.injected += strikes
        return strikes


def digits(dtype: torch.dtype = torch.float32) -> MlpObjective:
    """A small network on the 1,797 images of 8 x 8 pixels that come with scikit-learn."""
    inputs, labels = load_digits(return_X_y=True)
    return MlpObjective(torch.tensor(inputs / 8 - 1, dtype=dtype), torch.tensor(labels).long(), hidden=32)


def mini_batches(objective: MlpObjective, count: int = 4) -> list[Batch]:
    """The samples dealt out to so many batches."""
    rows = [torch.arange(k, len(objective.inputs), count) for k in range(count)]
    return [Batch(each, len(each), len(each), (0, k)) for k, each in enumerate(rows)]
