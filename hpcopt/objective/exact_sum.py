"""Float64 scalars that travel in a float32 buffer and are summed exactly there.

A loss rides at the end of the gradient's buffer so that one reduction moves both. When that buffer is float32 the loss
would lose half its digits, and with it every ratio test near convergence. So each scalar is cut into digits of 12 bits
on a fixed grid; a float32 has 24 bits, which leaves room to add up to 4,096 ranks without a rounding error. The sum is
therefore exact to 2**-80, and the same whatever the order of the reduction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DIGITS = 16
_BITS = 12
_TOP = 112  # exponent of the first digit's upper end: leaves room in a float32 for the sum over 4,096 ranks
_SCALES = tuple(2.0 ** (_TOP - _BITS * (i + 1)) for i in range(DIGITS))


def split(value: float) -> list[float]:
    """Cut a float64 into ``DIGITS`` numbers that are exact in float32 and whose sum is ``value`` to 2**-80.

    A value that is not finite or not below 2**112 in magnitude becomes NaN digits, and with them a NaN sum.
    """
    if not value:
        return [0.0] * DIGITS
    if not abs(value) < 2.0**_TOP:
        return [math.nan] * DIGITS
    digits = [0.0] * DIGITS
    i = (_TOP - math.frexp(value)[1]) // _BITS  # what is before it is 0
    while value and i < DIGITS:
        rest = math.fmod(value, _SCALES[i])
        digits[i], value = value - rest, rest
        i += 1
    return digits


def split_all(values: Sequence[float]) -> list[float]:
    """The digits of several scalars, one scalar after the other."""
    digits: list[float] = []
    for value in values:
        digits += split(value)
    return digits


def join_all(digits: Sequence[float]) -> list[float]:
    """The scalars whose digits, possibly summed over ranks, are given."""
    return [math.fsum(digits[i : i + DIGITS]) for i in range(0, len(digits), DIGITS)]
