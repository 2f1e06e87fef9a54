"""An objective whose batch is fixed, for a trust-region method that works within one iteration of another method."""

from __future__ import annotations

from hpcopt.objective.protocol import Batch, Objective, Vector

WHOLE = Batch(None, 1, 1)
"""The batch named to a solver that works on an objective whose batch is fixed."""


class FixedBatch:
    """An objective on one batch, for the trust-region method of the global pass. *Collective* in its evaluations.

    Attributes:
        own: this rank's loss and gradient (n,) of the latest evaluation, where the next iteration may need them.
    """

    deterministic = True

    def __init__(self, objective: Objective, batch: Batch) -> None:
        self._objective, self._batch = objective, batch
        self.own: tuple[float, Vector] | None = None
        self.dot, self.inner, self.agree = objective.dot, objective.inner, objective.agree

    def value_and_gradient(self, w: Vector, _: Batch = WHOLE) -> tuple[float, Vector]:
        """f(w) and its gradient on the batch."""
        if self._batch.indices is not None:
            return self._objective.value_and_gradient(w, self._batch)
        loss, gradient, own_loss, own_gradient = self._objective.value_and_gradients(w, self._batch)
        self.own = own_loss, own_gradient
        return loss, gradient
