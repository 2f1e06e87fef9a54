"""A device's recording of work, simulated: what is recorded is not done, and is then done again on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hpcopt.kernels.graphs import Work
from hpcopt.kernels.launch import Argument, Launcher

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")
"""Operations that need numbers of the device at once; a device refuses them while it records."""


class SimulatedCapture:
    """``hpcopt.kernels.graphs.Capture`` on the processor, also a ``Launcher`` whose kernels it records.

    Attributes:
        done: what was asked, in order: "warm", "record", "replay".
    """

    def __init__(self, launch: Launcher) -> None:
        self._launch, self.shared_limit = launch, launch.shared_limit
        self._tape: _Tape | None = None
        self.done: list[str] = []

    def warm(self, work: Work) -> None:
        """Do it."""
        self.done.append("warm")
        work()

    def record(self, work: Work) -> Work:
        """Note the operations; whatever they did to memory that was there before is undone."""
        self.done.append("record")
        tape = self._tape = _Tape()
        try:
            with tape:
                work()
        finally:
            self._tape = None
            tape.undo()

        def replay() -> None:
            """All operations again, without the code between them."""
            self.done.append("replay")
            for step in tape.steps:
                step()

        return replay

    def __call__(
        self, name: str, real: torch.dtype, blocks: int, threads: int, *arguments: Argument, **options: Any
    ) -> None:
        """Start a kernel, or note it as well."""

        def start() -> None:
            self._launch(name, real, blocks, threads, *arguments, **options)

        with _disable_current_modes():
            if self._tape is not None:
                self._tape.keep(arguments)
                self._tape.steps.append(start)
            start()


class _Tape(TorchDispatchMode):
    """Operations of torch in a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do and note one."""
        given = dict(kwargs or {})
        if func._schema.name in WAITS:
            raise RuntimeError(f"{func._schema.name} waits for the device while it records")
        self.keep([*args, *given.values()])
        out = func(*args, **given)
        self._made += [each for each in _tensors([out]) if _memory(each) not in self._before]

        def again() -> None:
            for old, new in zip(_tensors([out]), _tensors([func(*args, **given)]), strict=True):
                if _memory(old) != _memory(new):
                    old.copy_(new)

        self.steps.append(again)
        return out

    def keep(self, arguments: Sequence[Any]) -> None:
        """Remember memory that was there before, as it was."""
        made = {_memory(each) for each in self._made}
        for each in _tensors(arguments):
            if _memory(each) not in self._before and _memory(each) not in made:
                whole = torch.empty(0, dtype=each.dtype).set_(each.untyped_storage())
                self._before[_memory(each)] = (whole, whole.clone())

    def undo(self) -> None:
        """Memory that was there before as it was."""
        for whole, before in self._before.values():
            whole.copy_(before)


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
