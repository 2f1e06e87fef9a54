"""Checks of the keys of ``[model]``: which key, which value, the rule, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcopt.checks import is_number, is_whole
from hpcopt.errors import UsageError, nearest


def refuse(key: str, value: Any, rule: str) -> None:
    """Raise the UsageError for ``model.key = value``; ``rule`` is what it must be.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"model.{key} = {value!r}, but it must be {rule}. Change model.{key} in the job file.")


def whole(key: str, value: Any, low: int = 1) -> int:
    """``value`` as a whole number of at least ``low``.

    Raises:
        UsageError: it is not one.
    """
    if not is_whole(value, low):
        refuse(key, value, f"a whole number of at least {low}")
    return int(value)


def wholes(key: str, values: Any) -> tuple[int, ...]:
    """``values`` as a tuple of whole numbers of at least 1; it may be empty.

    Raises:
        UsageError: it is no list, or an entry is not such a number.
    """
    listed = isinstance(values, (list, tuple))
    if not listed or not all(is_whole(v, 1) for v in values):
        refuse(key, values, "a list of whole numbers of at least 1")
    return tuple(int(v) for v in values)


def fraction(key: str, value: Any) -> float:
    """``value`` as a number from 0 to below 1.

    Raises:
        UsageError: it is not one.
    """
    if not is_number(value, 0, 1, open_high=True):
        refuse(key, value, "a number from 0 to below 1")
    return float(value)


def flag(key: str, value: Any) -> bool:
    """``value`` as true or false.

    Raises:
        UsageError: it is neither.
    """
    if not isinstance(value, bool):
        refuse(key, value, "true or false")
    return bool(value)


def choice(key: str, value: Any, choices: Sequence[str]) -> str:
    """``value`` as one of ``choices``.

    Raises:
        UsageError: it is none of them; the message names the nearest.
    """
    if value not in choices:
        refuse(key, value, f"one of {', '.join(choices)}{nearest(str(value), choices).rstrip('?.')}")
    return str(value)


def known_keys(owner: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a key of ``[model]`` that ``owner`` does not have.

    Raises:
        UsageError: there is one; the message names the nearest known key.
    """
    for key in given:
        if key not in known:
            hint = nearest(key, known)
            listing = ", ".join(known) or "none"
            raise UsageError(
                f"model.{key} is not an option of the model {owner!r}{hint} Known options: {listing}. "
                "Correct or remove the key."
            )
