"""A closure that computes a loss and its gradients, evaluated at any point with the same random numbers.

Shapes: n parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import TypeAlias

import torch

from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Vector
from hpcopt.optim.tensors import ParameterTensors

Closure: TypeAlias = Callable[[], "torch.Tensor | float"]
"""As ``torch.optim.LBFGS`` has it: computes the loss, calls ``backward`` and returns the loss."""


class ClosureEvaluation:
    """Evaluates the closure of one step at the points the method asks for. Never communicates.

    An exception in the closure is kept, since the other ranks would wait for this one: from then on every loss is NaN
    and the closure is not called again. The next reduction tells all ranks.

    Attributes:
        failure: what the closure of this step raised.
        draws: whether any closure so far drew from torch's generators.
    """

    def __init__(self, tensors: ParameterTensors) -> None:
        self.tensors = tensors
        self.failure: Exception | None = None
        self.draws = False
        self._closure: Closure | None = None
        self._first: list[torch.Tensor] = []
        self._after: list[torch.Tensor] | None = None

    def begin(self, closure: Closure) -> None:
        """A step begins: its evaluations draw the random numbers that torch would draw next."""
        self._closure, self.failure = closure, None
        self._first, self._after = self._read_generators(), None

    def end(self, w: Vector) -> None:
        """The step ended at w (n,): the tensors get it, no gradient is left, one evaluation's numbers are used up."""
        self._closure = None
        self._write_generators(self._after or self._first)
        self.tensors.clear_gradients()
        self.tensors.write(w)

    def value(self, w: Vector) -> float:
        """The loss at w; its gradient, which the closure computes too, is of no use."""
        return self._guarded(w, None)

    def value_and_gradient(self, w: Vector, out: Vector) -> float:
        """The loss at w; its gradient is written into ``out`` (n,)."""
        return self._guarded(w, out)

    def _guarded(self, w: Vector, out: Vector | None) -> float:
        if self.failure is None:
            try:
                loss = self._evaluate(w)
                if out is not None:
                    self.tensors.read_gradient(out)
                return loss
            except Exception as error:
                self.failure = error
        if out is not None:
            out.zero_()
        return math.nan

    def _evaluate(self, w: Vector) -> float:
        assert self._closure is not None
        self.tensors.write(w)
        self.tensors.clear_gradients()
        self._write_generators(self._first)
        with torch.enable_grad():
            loss = _as_number(self._closure())
        if self._after is None:
            self._after = self._read_generators()
            self.draws |= not all(map(torch.equal, self._first, self._after))
        if math.isfinite(loss) and not self.tensors.has_gradient():
            raise UsageError(
                "the closure left no gradient in any of the optimiser's parameters; it must call loss.backward() on a "
                "loss that is computed from them, and return that loss"
            )
        return loss

    def _read_generators(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _write_generators(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def _generators(self) -> list[torch.Generator]:
        """Those that a model on the parameters' device draws from."""
        device = self.tensors.device
        if device.type != "cuda":
            return [torch.default_generator]
        return [torch.default_generator, torch.cuda.default_generators[device.index]]


def _as_number(found: object) -> float:
    if isinstance(found, torch.Tensor) and found.numel() == 1 and not found.is_complex():
        return float(found.detach())
    if isinstance(found, Real) and not isinstance(found, bool):
        return float(found)
    what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else repr(found)
    raise UsageError(
        f"the closure returned {what}; it must return the mean loss over this rank's samples, one number. End it with "
        "'return loss'"
    )
