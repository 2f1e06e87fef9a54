"""The state of an optimiser in a form that ``torch.save`` writes and ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError
from hpcopt.solvers.solver import State


def pack(state: State, numbers: Mapping[str, int], comm: Communicator) -> dict[str, Any]:
    """One flat mapping of the method's state, the optimiser's own numbers, and whose state it is."""
    return {**state, **numbers, "rank": comm.rank, "ranks": comm.size}


def restore(
    state_dict: Mapping[str, Any], like: State, comm: Communicator, method: str
) -> tuple[State, dict[str, Any], bool]:
    """The method's state, copied to the places of ``like``, the optimiser's numbers, and whether it is this rank's.

    Args:
        state_dict: what was saved.
        like: a state of the method as it is now.
        comm: the ranks.
        method: name of the optimiser, for messages.

    Raises:
        UsageError: it does not have the entries and shapes of ``like``.
    """
    saved = _saved(state_dict, method)
    is_own = (saved.get("rank"), saved.get("ranks")) == (comm.rank, comm.size)
    numbers = {key: saved.get(key) for key in ("steps", "samples", "draws")}
    state = {key: saved.get(key) for key in like}
    wrong = [key for key, value in state.items() if not _fits(value, like[key])]
    wrong += [key for key, value in numbers.items() if not isinstance(value, int)]
    if wrong:
        raise UsageError(
            f"the saved state does not fit this optimiser (in {', '.join(wrong)}); it must come from {method} with the "
            "same model and the same options"
        )
    return {key: _copy(value, like[key]) for key, value in state.items()}, numbers, is_own


def _saved(state_dict: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    found = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    found = found.get(0) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        raise UsageError(f"this is not what state_dict() of hpcopt.optim.{method} gave; load that")
    return found


def _fits(value: object, like: object) -> bool:
    if isinstance(like, torch.Tensor):
        return isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (like.shape, like.dtype)
    return isinstance(value, (int, float))


def _copy(value: Any, like: object) -> Any:
    return torch.empty_like(like).copy_(value) if isinstance(like, torch.Tensor) else value
