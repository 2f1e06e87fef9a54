"""Paces of local phases that only tests have."""

from __future__ import annotations

import random
import time

from hpcopt.train.pace import RunPace


class Erratic:
    """Ranks that take a random time for every local iteration, another one in every run."""

    def __init__(self, inner: RunPace, rank: int) -> None:
        self._inner, self._draw, self._most = inner, random.Random(), 0.004 * (rank + 1)

    def begin(self) -> None:
        """Some time after the phase begins."""
        self._inner.begin()
        time.sleep(self._draw.uniform(0.0, self._most))

    def goes_on(self, done: int) -> bool:
        """Asked after some time."""
        time.sleep(self._draw.uniform(0.0, self._most))
        return self._inner.goes_on(done)

    def end(self) -> None:
        """At once."""
        self._inner.end()

    def close(self) -> None:
        """The inner one's."""
        self._inner.close()
