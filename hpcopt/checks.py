"""Whether a value from outside is what it must be, told apart alike for every key that a user can set.

True and false count as integers in Python, but a user who writes them for a number has made a mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from hpcopt.errors import UsageError


def is_number(
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> bool:
    """Whether a value is a finite number between ``low`` and ``high``; ``open_*`` excludes the end itself."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        number = float(value)
    except OverflowError:
        return False
    above = low < number if open_low else low <= number
    below = number < high if open_high else number <= high
    return math.isfinite(number) and above and below


def is_whole(value: object, low: int | None = None) -> bool:
    """Whether a value is an integer, of at least ``low`` where that is given."""
    return isinstance(value, Integral) and not isinstance(value, bool) and (low is None or int(value) >= low)


def check_number(key: str, value: object, rule: str, fits: Callable[[Any], bool]) -> None:
    """Refuse a key's value that is not a finite number or does not fit; None stands for a key that is not given.

    Raises:
        UsageError: names the key, the value and the ``rule`` in words.
    """
    if value is not None and not (is_number(value) and fits(value)):
        raise UsageError(f"{key} = {value!r} is not allowed; it must be {rule}.")
