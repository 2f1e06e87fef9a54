"""A listener that cannot stop a run: a tracker may lose its connection, a callback may have a mistake."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from hpcopt.train.protocol import Listener

logger = logging.getLogger(__name__)


class Tolerated:
    """Passes everything on to ``listener`` until that raises, which is logged once; from then on it is left out."""

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener

    @property
    def seldom(self) -> bool:
        """As of the listener."""
        return getattr(self._listener, "seldom", False)

    def iteration(self, **columns: Any) -> None:
        """Pass it on."""
        self._tell("iteration", columns)

    def evaluation(self, **columns: Any) -> None:
        """Pass it on."""
        self._tell("evaluation", columns)

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        """Pass it on."""
        self._tell("rank_times", {}, iteration, step, waited, others)

    def _tell(self, what: str, columns: Mapping[str, Any], *values: Any) -> None:
        listener = self._listener
        if listener is None:
            return
        try:
            getattr(listener, what)(*values, **columns)
        except Exception as error:
            self._listener = None
            self._failed(listener, error)

    def _failed(self, listener: Listener, error: Exception) -> None:
        """It is told nothing more."""
        name = type(listener).__name__
        logger.warning(
            "The listener %s failed and is told nothing more; the run goes on without it.", name, exc_info=error
        )
