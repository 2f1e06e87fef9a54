"""Counts where the processor would wait for a device, with tensors of the processor standing for those of a device."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

READS = {
    *("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__array__", "__contains__"),
    *("nonzero", "masked_select", "is_nonzero", "equal", "allclose", "unique", "argwhere"),
}
"""Methods and functions that need the numbers of a tensor."""


class Waits(TorchFunctionMode):
    """A ``with`` block in which ``places`` counts, by function of the package, what would wait for a device.

    A tensor counts as the processor's own when it was fetched by ``cpu``, made without naming a device, or computed
    from such ones alone; all others stand for tensors on a device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count, call, and remember what is the processor's own."""
        given = kwargs or {}
        result = func(*args, **given)
        name = getattr(func, "__name__", "")
        tensors = [x for x in _flat([args, list(given.values())]) if isinstance(x, torch.Tensor)]
        own = all(hasattr(x, "_own") for x in tensors) and "device" not in given
        if name in READS and not own:
            self.places[_place()] += 1
        if name == "cpu":
            result = result.detach()  # another tensor, also where it was on the processor before
        if own or name == "cpu":
            for each in _flat([result]):
                if isinstance(each, torch.Tensor):
                    each._own = True  # type: ignore[attr-defined]
        return result


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
