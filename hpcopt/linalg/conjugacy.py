"""beta in d = -P g + beta d_prev: the update rules of nonlinear conjugate gradients, with a preconditioner P.

    fr   g^T P g / g_prev^T P g_prev                                                    (Fletcher and Reeves 1964)
    pr   g^T P y / g_prev^T P g_prev                                          (Polak and Ribiere 1969, "PR+" here)
    hs   g^T P y / d_prev^T y                                                           (Hestenes and Stiefel 1952)
    dy   g^T P g / d_prev^T y                                                                  (Dai and Yuan 1999)
    hz   (g^T P y - 2 y^T P y g^T d_prev / d_prev^T y) / d_prev^T y                        (Hager and Zhang 2005)

with y = g - g_prev. All are 0 at least, except hz, which may fall to the floor of the authors' own code. On a quadratic
with exact steps and a P that stays, all five are the beta of the linear method. Where P changes from step to step,
fr and pr keep their meaning and the others need not: d_prev^T y does not follow the change of variables.
(Hager and Zhang 2006, "A survey of nonlinear conjugate gradient methods".)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FLOOR = 0.01
"""eta of the floor of hz: -1 / (|d_prev| min(eta, |g_prev|)) (Hager and Zhang 2005, eq. 1.6)."""


@dataclass(frozen=True)
class Pack:
    """The inner products of one iteration that decide, all of one reduction: those a rule has no use for may be 0.

    Attributes:
        gz: g^T P g.
        gz_before: g_prev^T P g_prev, with the P of then.
        zy: g^T P y.
        dy: d_prev^T y.
        gd: g^T d_prev.
        yz: y^T P y.
        dd: d_prev^T d_prev.
        gg_before: g_prev^T g_prev.
    """

    gz: float
    gz_before: float
    zy: float = 0.0
    dy: float = 0.0
    gd: float = 0.0
    yz: float = 0.0
    dd: float = 0.0
    gg_before: float = 0.0


def _hager_zhang(pack: Pack, epsilon: float) -> float:
    beta = _ratio(pack.zy - 2 * _ratio(pack.yz * pack.gd, pack.dy, epsilon), pack.dy, epsilon)
    floor = math.sqrt(pack.dd) * min(FLOOR, math.sqrt(pack.gg_before))
    return max(beta, -1 / floor) if floor > 0 else max(beta, 0.0)


RULES: dict[str, Callable[[Pack, float], float]] = {
    "fr": lambda pack, epsilon: _ratio(pack.gz, pack.gz_before, epsilon),
    "pr": lambda pack, epsilon: max(0.0, _ratio(pack.zy, pack.gz_before, epsilon)),
    "hs": lambda pack, epsilon: max(0.0, _ratio(pack.zy, pack.dy, epsilon)),
    "dy": lambda pack, epsilon: max(0.0, _ratio(pack.gz, pack.dy, epsilon)),
    "hz": _hager_zhang,
}
"""Name -> beta from the pack and what is added to denominators."""


def conjugacy(rule: str, pack: Pack, most: float = math.inf, epsilon: float = 0.0) -> float:
    """The beta of the rule of that name, at most ``most``; 0, a restart, where it is not defined or not finite."""
    beta = RULES[rule](pack, epsilon)
    return min(beta, most) if math.isfinite(beta) else 0.0


def _ratio(numerator: float, denominator: float, epsilon: float) -> float:
    """The quotient, 0 where the denominator is not positive."""
    return numerator / (denominator + epsilon) if denominator > 0 else 0.0
