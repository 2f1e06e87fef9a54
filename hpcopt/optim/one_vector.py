"""What every optimiser of torch here shares: all parameters are one vector, and what it remembers is saved with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.objective.protocol import Vector
from hpcopt.optim.saved_state import pack, restore
from hpcopt.solvers.solver import State, StepReport


class OneVectorOptimizer(torch.optim.Optimizer):
    """The state of an optimiser of one group. Subclasses set up all attributes, and make the steps.

    Attributes:
        comm: the ranks.
        report: of the last step, None before the first.
    """

    comm: Communicator
    report: StepReport | None
    _state: State
    _complete: bool
    """Whether the one group is there."""
    _steps: int
    _samples: int
    """This rank's in the last batch."""
    _changed: bool
    """Whether a step did not end, so that what is known is not to be relied on."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step needs besides the model: tensors and numbers.

        As in torch the tensors are the optimiser's own: save or copy them before the next step. What a rank of ``APTS``
        remembers of its own samples is among them, so that every rank saves its own; of other methods all ranks have
        the same.
        """
        packed = super().state_dict()
        numbers = {"steps": self._steps, "samples": self._samples, "draws": self._draws}
        packed["state"] = {0: pack(self._state, numbers, self.comm)}
        return packed

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` gave; the model's own state is loaded as ever. Local.

        On as many ranks, with this rank's own state and the same samples on each (and for ``APTS`` with torch's random
        state restored), the next steps are the same to the last bit. A state of another rank, or of another number of
        ranks, is taken without what that rank remembered of its samples; what is the same on all ranks goes on.

        Raises:
            UsageError: it is not the state of this optimiser with this model and these options.
        """
        with torch.no_grad():
            self._state, numbers, is_own = restore(state_dict, self._state, self.comm, self._name)
        self._steps, self._samples = int(numbers["steps"]), int(numbers["samples"])
        self._draws, self._changed = bool(numbers["draws"]), False
        self._take_over(is_own)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not possible after construction.

        Raises:
            UsageError: there is a group already.
        """
        if self._complete:
            raise UsageError(
                f"{self._name} treats all parameters as one vector, so no group can be added to it. Make a new "
                "optimiser with all parameters that are to be trained"
            )
        super().add_param_group(param_group)

    def _check_ranks(self, total: int, steps: int, squares: int) -> None:
        """Refuse, on all ranks, what would make them wait for each other or divide by 0.

        Args:
            total: samples of the batch.
            steps: sum of the steps done over the ranks.
            squares: sum of their squares, which tells whether they are equal.
        """
        if self.comm.size * squares != steps**2:
            problem = "the ranks are not at the same step; load the state of the same step on every rank"
        elif total == 0:
            problem = "no rank has a sample in this batch; the mean loss of nothing is not defined. Skip the step"
        else:
            return
        raise UsageError(problem, collective=True)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _parameters(self) -> Vector:
        return cast(Vector, self._state["parameters"])

    @property
    def _draws(self) -> bool:
        """Whether the loss has been seen to draw random numbers."""
        raise NotImplementedError

    @_draws.setter
    def _draws(self, draws: bool) -> None:
        raise NotImplementedError

    def _write(self, w: Vector) -> None:
        """Put w (n,) into the model."""
        raise NotImplementedError

    def _take_over(self, is_own: bool) -> None:
        """What is left to do once a state is loaded, which is this rank's own or not."""
        raise NotImplementedError


class AveragingOptimizer(OneVectorOptimizer):
    """One whose method may keep a running mean of its iterates."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the model holds the running mean of its iterates, the better point to evaluate and to keep.

        On mini-batches the mean is smoother than the last iterate; after a full batch, or with ``average=0``, it is
        that iterate. At the end of the block the parameters are those of the last step again. Local.
        """
        self._write(cast(Vector, self._state.get("average", self._parameters)))
        try:
            yield
        finally:
            self._write(self._parameters)
