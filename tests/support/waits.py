"""Counts where the processor would wait for a device, with tensors of the processor standing for those of a device."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.kernels import choice
from hpcopt.solvers.solver import StepReport
from hpcopt.train.job import PreparedJob

READS = {
    *("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__array__", "__contains__"),
    *("nonzero", "masked_select", "is_nonzero", "equal", "allclose", "unique", "argwhere"),
}
"""Methods and functions that need the numbers of a tensor."""

MOVES = {"copy_", "to", "type_as", "__setitem__"}
"""Those that take tensors of two places."""

LOSSES = {"slimtrain": "squared"}
OPTIONS = {
    "sgd": "learning_rate = 0.1",
    "adam": "learning_rate = 0.01",
    "lars": "learning_rate = 1.0",
    "nlcg, paper": 'preset = "paper"',
    "newton, plain": 'preconditioner = "none"',
}
OWN = ("gram", "window")
"""In the names of a state's small matrices, which are the processor's."""


class Waits(TorchFunctionMode):
    """A ``with`` block in which ``places`` counts, by function of the package, what would wait for a device.

    ``mixed`` counts what a device would refuse: operations on its tensors together with arrays of the processor.

    A tensor counts as the processor's own when it was fetched by ``cpu``, made without naming a device, or computed
    from such ones alone, until it is sent to a device; all others stand for tensors on one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()

    def __enter__(self) -> Waits:
        """From here on; a mode is not asked about arrays of numpy, which are the processor's."""
        made = self._made = torch.from_numpy

        def from_numpy(array: np.ndarray) -> torch.Tensor:
            """With the mark of the processor's own."""
            tensor = made(array)
            tensor._own = True  # type: ignore[attr-defined]
            return tensor

        torch.from_numpy = from_numpy
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """As before."""
        torch.from_numpy = self._made
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count, call, and remember what is the processor's own."""
        given = kwargs or {}
        result = func(*args, **given)
        name = getattr(func, "__name__", "")
        tensors = [x for x in _flat([args, list(given.values())]) if isinstance(x, torch.Tensor)]
        own = all(hasattr(x, "_own") for x in tensors) and "device" not in given
        fetched = name == "cpu" or (name == "to" and "cpu" in [x for x in args[1:] if isinstance(x, str)])
        sent = name == "to" and any(isinstance(x, torch.device) for x in [*args[1:], *given.values()])
        if (name in READS or fetched) and not own:
            self.places[_place()] += 1
        arrays = {hasattr(x, "_own") for x in tensors if x.ndim and x.device.type != "meta"}
        if len(arrays) > 1 and name not in MOVES:
            self.mixed[f"{name} in {_place()}"] += 1
        if fetched or sent:
            result = result.detach()  # another tensor, also where it was there before
        if (own and not sent) or fetched:
            for each in _flat([result]):
                if isinstance(each, torch.Tensor):
                    each._own = True  # type: ignore[attr-defined]
        return result


def after_some_steps(method: str, comm: Communicator, device: str, micro_batch: int) -> Callable[[], StepReport]:
    """The fourth step of a method, for the digits and a small network on a device."""
    loss = LOSSES.get(method, "cross_entropy")
    text = (
        f'[run]\ndevice = "{device}"\niterations = 9\n[data]\nsource = "digits"\nbatch = 300\n[model]\nname = "mlp"\n'
    )
    text += f'widths = [20]\n[loss]\nname = "{loss}"\nmicro_batch = {micro_batch}\n'
    text += f'[solver]\nname = "{method.split(",")[0]}"\n{OPTIONS.get(method, "")}'
    prepared = PreparedJob(parse_job(text), comm)
    objective, solver, batches = prepared.objective, prepared.solver, prepared.sampler.begin()
    state = solver.init(objective)
    for _ in range(3):
        state, _ = solver.step(objective, state, batches.next())
    batch = batches.next()
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and any(own in name for own in OWN):
            value._own = True  # type: ignore[attr-defined]
    return lambda: solver.step(objective, state, batch)[1]


def counted(step: Callable[[], StepReport]) -> tuple[Counter[str], int]:
    """The waits of a step by module and function, and its inner iterations."""
    with Waits() as waits:
        report = step()
    assert not waits.mixed
    found = Counter({".".join(place.split(".")[-2:]): count for place, count in waits.places.items()})
    return found, report.inner_iterations


def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor does in another way, by NumPy or in C, is done as for tensors of a device."""
    monkeypatch.setattr(choice, "_on_processor", lambda: choice.TORCH)
    monkeypatch.setattr(
        "hpcopt.objective.separable.last_layer.matmul", lambda left, right: left.detach() @ right.detach()
    )


def _flat(values: Sequence[Any]) -> list[Any]:
    found = []
    for value in values:
        found += _flat(value) if isinstance(value, (list, tuple)) else [value]
    return found


def _place() -> str:
    """Module and name of the function of the package that asked."""
    frame = sys._getframe(2)
    while frame.f_back is not None and not frame.f_globals.get("__name__", "").startswith("hpcopt"):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_name}"
