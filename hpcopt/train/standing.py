"""Where a run stands: all that the loop counts, so that a run which goes on counts on."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcopt.objective.protocol import Work
from hpcopt.train.evaluation import Metrics


@dataclass
class Standing:
    """Counted since the first start of the run, times and communication as rank 0 sees them.

    Attributes:
        iterations: steps done.
        accepted, rejected: how many of them changed w, or did not.
        not_finite: steps in a row, up to now, that met a number that is not finite.
        batch: samples of the latest batch, over all ranks.
        seconds: in steps.
        wall_seconds: altogether, without pauses between two starts.
        calls, bytes_moved, seconds_waited: communication, without that of saving.
        work: evaluations.
        initial, latest, best: figures before the first step, of the latest evaluation and of the best one.
        best_epoch, best_iteration: when that was.
        method_stop: name of the reason for which the method ended the run; empty as long as it has not.
    """

    iterations: int = 0
    accepted: int = 0
    rejected: int = 0
    not_finite: int = 0
    batch: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    calls: int = 0
    bytes_moved: int = 0
    seconds_waited: float = 0.0
    work: Work = field(default_factory=Work)
    initial: Metrics = field(default_factory=Metrics)
    latest: Metrics = field(default_factory=Metrics)
    best: Metrics = field(default_factory=Metrics)
    best_epoch: float = 0.0
    best_iteration: int = 0
    method_stop: str = ""
