"""A listener that cannot stop a run: a tracker may lose its connection, a callback may have a mistake."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from hpcopt.train.protocol import Listener

logger = logging.getLogger(__name__)


class Tolerated:
    """Passes everything on to ``listener`` until that raises, which is logged once; from then on it is left out."""

    def __init__(self, listener: Listener) -> None:
        self._listener: Listener | None = listener

    def iteration(self, **columns: Any) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.iteration(**columns))

    def evaluation(self, **columns: Any) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.evaluation(**columns))

    def rank_times(
        self, iteration: int, step: Sequence[float], waited: Sequence[float], others: Sequence[float]
    ) -> None:
        """Pass it on."""
        self._tell(lambda listener: listener.rank_times(iteration, step, waited, others))

    def _tell(self, what: Callable[[Listener], object]) -> None:
        listener = self._listener
        if listener is None:
            return
        try:
            what(listener)
        except Exception as error:
            self._listener = None
            name = type(listener).__name__
            logger.warning(
                "The listener %s failed and is told nothing more; the run goes on without it.", name, exc_info=error
            )
