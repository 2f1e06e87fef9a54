"""The methods, one module each. ``hpcopt.solvers.SGD`` and its like are imported when first asked for."""

from __future__ import annotations

from typing import Any

from hpcopt.solvers.registry import SOLVERS, solver_class

_NAMES = {target.partition(":")[2]: name for name, target in SOLVERS.items()}


def __getattr__(attribute: str) -> Any:
    """The solver class of that name."""
    if attribute in _NAMES:
        return solver_class(_NAMES[attribute])
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def __dir__() -> list[str]:
    """The solver classes and what the module has itself."""
    return sorted([*globals(), *_NAMES])
