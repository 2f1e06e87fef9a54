"""What a whole run needs of an objective besides what a method needs: its model, its samples and its figures.

Shapes: n parameters of this rank, N training samples, b samples of a set on this rank, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.layout.partitioned import Partitioned
from hpcopt.objective.protocol import Batch, Objective, Vector

Samples = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets of a set, as this rank holds them."""


class Sums(NamedTuple):
    """Over the samples of a set: losses, right predictions, squared errors (0 where a figure does not apply)."""

    loss: float = 0.0
    correct: float = 0.0
    squared_error: float = 0.0


class Model(Protocol):
    """The model that is trained: which point it is at, and what is saved of it."""

    @property
    def name(self) -> str:
        """For the record."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Precision of w."""
        ...

    @property
    def device(self) -> torch.device:
        """Where w lies on this rank."""
        ...

    def bind(self, w: Vector) -> None:
        """The model is at w (n,) from now on. *Collective* where a rank gets the whole of w for it."""
        ...

    def tensors(self) -> dict[str, torch.Tensor | Partitioned]:
        """All that the model is now, by the names of a torch ``state_dict()``."""
        ...

    def tensors_at(self, w: Vector, buffers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | Partitioned]:
        """As ``tensors``, of another point and with other running statistics; what is neither may be left out."""
        ...

    def blocks(self, tensor: torch.Tensor) -> dict[str, Partitioned] | None:
        """Views of a tensor (..., n) as this rank's blocks of whole arrays, by the names of the model's tensors.

        None where every rank holds all of a vector.
        """
        ...

    def stored(self, tensor: torch.Tensor) -> torch.Tensor | Partitioned | dict[str, Partitioned]:
        """A tensor (..., n) of a method's state as it is saved: as a whole, or its ``blocks``."""
        ...

    def load(self, tensors: Mapping[str, torch.Tensor]) -> Vector:
        """Become what ``tensors`` told once; returns a fresh copy of w. *Collective* as ``bind``."""
        ...

    def read(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Vector, list[torch.Tensor]]:
        """W (n,) and the running statistics that ``tensors_at`` told once."""
        ...

    def copy_buffers(self) -> list[torch.Tensor]:
        """What the model holds besides parameters, such as running statistics."""
        ...

    def restore_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Put back what ``copy_buffers`` gave."""
        ...

    def synchronize_buffers(self) -> None:
        """Make the running statistics the same on all ranks. *Collective*."""
        ...


class Problem(Objective, Protocol):
    """An objective that can be trained, evaluated and saved.

    Attributes:
        comm: all ranks of the run.
        samples: N.
        weight_decay: coefficient of |w|^2 / 2.
        flag, flags_seen: what this rank asks for, and the sum of what all asked, which travels with reductions.
    """

    comm: Communicator
    samples: int
    weight_decay: float
    flag: float
    flags_seen: float

    @property
    def model(self) -> Model:
        """What is trained."""
        ...

    @property
    def layout(self) -> dict[str, Any]:
        """How samples and variables are spread over the ranks, for the record."""
        ...

    @property
    def parameters(self) -> int:
        """Variables of the whole model, wherever they lie."""
        ...

    @property
    def classification(self) -> bool:
        """Whether the targets are labels."""
        ...

    @property
    def full_batch(self) -> Batch:
        """All samples."""
        ...

    def shards(self) -> tuple[int, int]:
        """Position of this rank's first sample in the whole set, and how many it holds. *Collective*."""
        ...

    def evaluate(self, w: Vector, test: Samples | None) -> tuple[Sums, Sums]:
        """Over the training set and over the test set (zeros without one). *Collective*, one reduction of scalars."""
        ...

    def estimate_statistics(self, w: Vector) -> None:
        """Let running statistics of normalisations be those of this rank's samples at w (n,), a mean of iterates.

        These leave others behind. Evaluating and saving average over the ranks. *Collective* as ``Model.bind``.
        """
        ...

    def moments(self, targets: torch.Tensor) -> tuple[float, float]:
        """Number of a set's samples, and the sum of squared distances of its targets from their mean. *Collective*."""
        ...
