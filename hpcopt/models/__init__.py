"""Networks: ``build`` makes one by the name it has in a job file."""

from __future__ import annotations

from typing import Any


def __getattr__(attribute: str) -> Any:
    """``build`` and ``count_parameters``, imported when first asked for since they need torch."""
    if attribute in ("build", "count_parameters"):
        from hpcopt.models import registry

        return getattr(registry, attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
