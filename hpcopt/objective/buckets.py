"""Long gradients, reduced in pieces while the backward pass is still producing the rest.

The last layers' gradients come first, so buckets are cut from the end of w. Non-blocking collectives must be posted in
the same order on all ranks: a bucket waits for those behind it, and a rank without samples posts them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.objective.protocol import Batch, Vector
from hpcopt.objective.shard import Shard


def cut(counts: list[int], most: int) -> list[list[int]]:
    """Group tensors, last first, into buckets of at least ``most`` numbers; every tensor is in exactly one."""
    buckets: list[list[int]] = []
    group: list[int] = []
    for index in reversed(range(len(counts))):
        group.append(index)
        if sum(counts[i] for i in group) >= most:
            buckets.append(group)
            group = []
    return [*buckets, group] if group else buckets


def cut_forward(counts: list[int], most: int) -> list[list[int]]:
    """The same from the first tensor to the last."""
    last = len(counts) - 1
    return [[last - index for index in group] for group in cut(counts[::-1], most)]


class BucketedGradient:
    """Sums a gradient over the ranks in buckets that overlap with the backward pass.

    Args:
        shard: module, loss and samples of this rank.
        comm: the ranks.
        bucket_bytes: least size of a bucket; gradients shorter than two buckets are not worth the calls.
    """

    def __init__(self, shard: Shard, comm: Communicator, bucket_bytes: int) -> None:
        parameters = shard.parameters
        self._shard, self._comm = shard, comm
        self._slices = parameters.slices()
        itemsize = torch.empty(0, dtype=parameters.dtype).element_size()
        self._buckets = cut(parameters.counts, max(1, bucket_bytes // itemsize))
        self._long = comm.size > 1 and len(self._buckets) > 1
        self._bucket_of = {index: k for k, bucket in enumerate(self._buckets) for index in bucket}
        self._buffer: Vector | None = None
        self._missing: list[int] = []
        self._ready: set[int] = set()
        self._requests: list[Any] = []
        if self._long:
            for index, tensor in enumerate(parameters.tensors):
                tensor.register_post_accumulate_grad_hook(self._hook(index))

    def wanted(self, batch: Batch) -> bool:
        """Whether gradients on ``batch`` go in buckets: long enough, and on no rank split into micro-batches."""
        micro = self._shard.micro_batch
        return self._long and (micro is None or batch.total <= micro)

    def reduce(self, w: Vector, batch: Batch, scale: float, buffer: Vector, write: Callable[[float], None]) -> None:
        """Fill ``buffer`` with the summed gradient. *Collective*.

        ``write`` is given this rank's part of the mean loss, and puts behind the gradient what is summed with it.
        """
        self._buffer, self._requests = buffer, []
        self._missing, self._ready = [len(bucket) for bucket in self._buckets], set()
        for tensor in self._shard.parameters.tensors:
            tensor.grad = None  # one that is left from elsewhere would be added to
        loss = self._shard.backward_sum(w, batch, scale)
        self._complete()
        write(loss * scale)
        self._comm.allreduce(buffer[w.numel() :], label="loss")
        for request in self._requests:
            request.wait()
        self._buffer, self._requests = None, []

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def ready(tensor: torch.Tensor) -> None:
            """Take this gradient into the buffer, and start the reduction of a bucket that is full."""
            if self._buffer is None or tensor.grad is None:
                return
            self._buffer[self._slices[index]] = tensor.grad.reshape(-1)
            tensor.grad = None
            self._mark(index)

        return ready

    def _mark(self, index: int) -> None:
        self._ready.add(index)
        self._missing[self._bucket_of[index]] -= 1
        while len(self._requests) < len(self._buckets) and self._missing[len(self._requests)] == 0:
            self._post(self._buckets[len(self._requests)])

    def _post(self, bucket: list[int]) -> None:
        assert self._buffer is not None
        for request in self._requests:
            request.test()  # lets an MPI without a progress thread move what is under way
        piece = self._buffer[self._slices[bucket[-1]].start : self._slices[bucket[0]].stop]
        self._requests.append(self._comm.iallreduce(piece, label="gradient"))

    def _complete(self) -> None:
        """Zeros for tensors that took no part in the loss, so that every rank posts every bucket."""
        assert self._buffer is not None
        for index in reversed(range(len(self._slices))):
            if index not in self._ready:
                self._buffer[self._slices[index]] = 0
                self._mark(index)
