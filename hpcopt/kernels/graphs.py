"""Work of a device that is the same every time, recorded once and then started as a whole: a CUDA graph.

The processor then starts one thing where it started dozens, which counts where kernels are shorter than their starts.
What is recorded reads and writes the same memory every time, waits for nothing, and takes no branch on the device's
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import torch

Work: TypeAlias = Callable[[], object]
"""Puts work on torch's current stream; its result is not used."""


class Capture(Protocol):
    """How the work of a device is recorded."""

    def warm(self, work: Work) -> None:
        """Do the work as it is, where it will be recorded: libraries make what they need at their first call."""
        ...

    def record(self, work: Work) -> Work:
        """What does the recorded work, which is not done now.

        Raises:
            RuntimeError: it cannot be recorded; nothing of it was done.
        """
        ...


class Repeated:
    """Work that is called many times: recorded once it was called ``plain`` times, for few calls do not repay that.

    Args:
        work: the same kernels with the same memory and numbers at every call.
        capture: records it; None to do it as it is every time, as is done where it cannot be recorded.
        plain: calls before, at least 1.
    """

    def __init__(self, work: Work, capture: Capture | None, plain: int) -> None:
        self._work, self._capture, self._plain = work, capture, plain
        self._calls = 0
        self._recorded: Work | None = None

    def __call__(self) -> None:
        """Do it once."""
        self._calls += 1
        if self._recorded is None and self._capture is not None and self._calls > self._plain:
            self._record(self._capture)
        if self._recorded is not None:
            self._recorded()
        elif self._capture is not None and self._calls == self._plain:
            self._capture.warm(self._work)
        else:
            self._work()

    def _record(self, capture: Capture) -> None:
        try:
            self._recorded = capture.record(self._work)
        except RuntimeError:
            self._capture = None


class CudaCapture:
    """``Capture`` for kernels of torch, and all others on its streams, on one CUDA device; one recording at a time.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        # Work can be recorded on any stream but the one that torch begins with.
        self._stream = torch.cuda.Stream(device)
        # One recording after the other has the same memory; those before are not started any more.
        self._memory = torch.cuda.graph_pool_handle()

    def warm(self, work: Work) -> None:
        """Do the work on the stream of the recording."""
        with self._beside():
            work()

    def record(self, work: Work) -> Work:
        """The graph, which holds the memory of what the work makes in passing as long as it lives."""
        graph = torch.cuda.CUDAGraph()
        with self._beside():
            # Threads that do other work, such as copies of batches, may go on.
            graph.capture_begin(self._memory, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On the stream of the recording, between what is on the current one before and after."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)
