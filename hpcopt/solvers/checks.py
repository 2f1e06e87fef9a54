"""Checks of solver options: one paragraph that says which key, which value, the rule and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from hpcopt.checks import is_number, is_whole
from hpcopt.errors import UsageError, nearest

ABOVE_0: tuple[Any, ...] = ()
"""In ``Needs``: any number above 0."""

Needs = Mapping[str, tuple[Mapping[str, tuple[Any, ...]], ...]]
"""Option -> when it is read: in each of the mappings one option has one of the values. Others are read always.

A method keeps it in its class as ``NEEDS``.
"""


def fail(solver: object, key: str, rule: str, advice: str = "") -> None:
    """Raise the UsageError for one option.

    Args:
        solver: the dataclass that holds the option.
        key: name of the field.
        rule: what the value must be, as in "must be a number above 0".
        advice: what to do, a sentence.

    Raises:
        UsageError: always.
    """
    value = getattr(solver, key)
    owner = type(solver).__name__
    raise UsageError(f"{owner}: {key} = {value!r} {rule}. {advice or 'Change solver.' + key + ' in the job file.'}")


def check_number(
    solver: object,
    key: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Check that ``solver.key`` is a finite number between ``low`` and ``high``; ``open_*`` excludes the end itself.

    Raises:
        UsageError: it is not.
    """
    value = getattr(solver, key)
    if not is_number(value, low, high, open_low=open_low, open_high=open_high):
        fail(solver, key, f"must be a number{_range_words(low, high, open_low, open_high)}")


def _range_words(low: float, high: float, open_low: bool, open_high: bool) -> str:
    words = []
    if low > -math.inf:
        words.append(f"{'above' if open_low else 'of at least'} {low:g}")
    if high < math.inf:
        words.append(f"{'below' if open_high else 'at most'} {high:g}")
    return " " + " and ".join(words) if words else ""


def check_count(solver: object, key: str, low: int = 1) -> None:
    """Check that ``solver.key`` is a whole number of at least ``low``.

    Raises:
        UsageError: it is not.
    """
    value = getattr(solver, key)
    if not is_whole(value, low):
        fail(solver, key, f"must be a whole number of at least {low}")


def check_flag(solver: object, key: str) -> None:
    """Check that ``solver.key`` is true or false.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(getattr(solver, key), bool):
        fail(solver, key, "must be true or false")


def check_choice(solver: object, key: str, choices: Sequence[str]) -> None:
    """Check that ``solver.key`` is one of ``choices``.

    Raises:
        UsageError: it is not; the message names the nearest choice.
    """
    value = getattr(solver, key)
    if value not in choices:
        listing = ", ".join(repr(choice) for choice in choices)
        fail(solver, key, f"must be one of {listing}{nearest(str(value), choices).rstrip('?.')}")


def check_effects(solver: Any) -> None:
    """Check that every option that is not at its default is read with the others as they are.

    Raises:
        UsageError: one is not, by the ``NEEDS`` of the method.
    """
    value = partial(getattr, solver)
    for field in fields(solver):
        if value(field.name) == field.default:
            continue
        for need in solver.NEEDS.get(field.name, ()):
            if not is_met(need, value):
                others = " and ".join(f"{key} = {_shown(value(key))}" for key in need)
                ways = ", or ".join(_way(key, allowed) for key, allowed in need.items())
                fail(solver, field.name, f"has no effect with {others}", f"Set {ways}, or remove solver.{field.name}.")


def is_met(need: Mapping[str, tuple[Any, ...]], value: Callable[[str], Any]) -> bool:
    """Whether one of the options, whose ``value`` is told, has one of the values that it must have."""
    return any(
        value(key) in allowed if allowed else is_number(value(key), 0.0, open_low=True) for key, allowed in need.items()
    )


def _way(key: str, allowed: Sequence[Any]) -> str:
    return f"solver.{key} to {' or '.join(map(_shown, allowed))}" if allowed else f"solver.{key} above 0"


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
