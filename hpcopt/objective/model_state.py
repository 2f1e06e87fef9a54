"""The module of an objective whose ranks all hold all of it: which point it is at, and what else it has."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.layout.partitioned import Partitioned
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Vector

T = TypeVar("T")


class ReplicatedModel:
    """A torch module over the flat vector w (n,) of its parameters, the same on all ranks.

    Attributes:
        module: the network; its parameters are views of the vector it was last bound to.
        parameters: the flat vector over them.
    """

    def __init__(self, module: torch.nn.Module, parameters: FlatParameters, comm: Communicator) -> None:
        self.module, self.parameters, self._comm = module, parameters, comm

    @property
    def name(self) -> str:
        """The module's class."""
        return type(self.module).__name__

    @property
    def dtype(self) -> torch.dtype:
        """Precision of w."""
        return self.parameters.dtype

    @property
    def device(self) -> torch.device:
        """Where w lies."""
        return self.parameters.device

    def bind(self, w: Vector) -> None:
        """The module is at w from now on, without a copy."""
        self.parameters.bind(w)

    def tensors(self) -> dict[str, torch.Tensor | Partitioned]:
        """All that the module is now, by the names of its ``state_dict()``."""
        return dict(self.module.state_dict())

    def tensors_at(self, w: Vector, buffers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | Partitioned]:
        """As ``tensors``, of another point and with other running statistics; without what is neither."""
        values = zip(self.parameters.tensors, self.parameters.views(w), strict=True)
        return self.named({id(tensor): value for tensor, value in values}) | self.named_buffers(buffers)

    def named(self, values: Mapping[int, T]) -> dict[str, T]:
        """Values that are given for some of the module's tensors, known by their ``id``, by the tensors' names."""
        # By object, not by name: a tensor that two layers share has two names, and both are needed to load it.
        named = self.module.state_dict(keep_vars=True).items()
        return {name: values[id(tensor)] for name, tensor in named if id(tensor) in values}

    def named_buffers(self, buffers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | Partitioned]:
        """What ``copy_buffers`` gave, by the names of those that the module's ``state_dict()`` has."""
        return self.named({id(buffer): kept for buffer, kept in zip(self.module.buffers(), buffers, strict=True)})

    def blocks(self, tensor: torch.Tensor) -> None:
        """None: every rank holds all of a vector."""

    def stored(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor (..., n) of a method's state as it is saved: itself."""
        return tensor

    def load(self, tensors: Mapping[str, torch.Tensor]) -> Vector:
        """Become what ``tensors`` told once; returns a fresh copy of w."""
        self.copy_named({name: tensors[name] for name in self.module.state_dict()})
        return self.parameters.copy()

    def copy_named(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy into some of the module's tensors."""
        own = self.module.state_dict()
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def read(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Vector, list[torch.Tensor]]:
        """W and the running statistics that ``tensors_at`` told once; what is missing of the latter is as it is."""
        w = torch.cat([tensors[name].reshape(-1).to(self.device, self.dtype) for name in self.parameters.names])
        return w, self.read_buffers(tensors)

    def read_buffers(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The running statistics of ``read``."""
        named = zip((name for name, _ in self.module.named_buffers()), self.copy_buffers(), strict=True)
        return [tensors[name].to(kept) if name in tensors else kept for name, kept in named]

    def copy_buffers(self) -> list[torch.Tensor]:
        """What the module holds besides parameters, such as running statistics."""
        return [buffer.clone() for buffer in self.module.buffers()]

    def restore_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Put back what ``copy_buffers`` gave."""
        for buffer, kept in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(kept)

    def broadcast(self) -> None:
        """All ranks get rank 0's parameters, those that are not trained too, and buffers. *Collective*.

        Raises:
            UsageError: on all ranks, when their models are not of one form.
        """
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        form = zlib.crc32(repr([(name, tuple(each.shape), str(each.dtype)) for name, each in named]).encode())
        most, least = self._comm.reduce_scalars([form, -form], op="max", label="parameters")
        if most != -least:
            raise UsageError(
                f"the ranks were given different models {self.name}: parameters and buffers must have the same names, "
                "shapes and types on all of them. Build the model in the same way everywhere; its numbers may differ, "
                "as all ranks get rank 0's.",
                collective=True,
            )
        self.bind(self._comm.bcast(self.parameters.copy(), label="parameters"))
        frozen = [p.detach() for p in self.module.parameters() if not p.requires_grad]
        for tensor in (*frozen, *self.module.buffers()):
            if tensor.numel() and not tensor.is_complex():
                sent = tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64).contiguous()
                tensor.copy_(self._comm.bcast(sent, label="parameters"))

    def synchronize_buffers(self) -> None:
        """Average the module's running statistics over the ranks. *Collective*."""
        buffers = [b for b in self.module.buffers() if b.is_floating_point() and b.numel()]
        if not buffers or self._comm.size == 1:
            return
        flat = torch.cat([b.reshape(-1).to(torch.float64) for b in buffers])
        self._comm.allreduce(flat, label="statistics").div_(self._comm.size)
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view(buffer.shape))
