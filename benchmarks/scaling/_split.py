"""The seconds of a run, split by what they went into, and what more ranks gained."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any, NamedTuple


class Split(NamedTuple):
    """Seconds a step, means over the ranks, and seconds of the whole run outside its steps, on rank 0."""

    computing: float
    communication: float
    waiting: float
    evaluation: float
    files: float

    @property
    def step(self) -> float:
        """All of a step."""
        return self.computing + self.communication + self.waiting


def split(told: Mapping[str, Any]) -> Split:
    """From what ``hpcopt inspect --json`` tells; without barriers the wait for others is part of communication."""
    spent, steps = told["time"], told["iterations"]
    ranks = spent["by_rank"]
    step, waited = mean(ranks["step"]) / steps, mean(ranks["waited"]) / steps
    others = mean(ranks["for_others"]) / steps if ranks["for_others"] else 0.0
    return Split(
        step - waited, waited - others, others, spent["evaluation"], (spent["record"] or 0.0) + spent["checkpoints"]
    )


class Gain(NamedTuple):
    """What R ranks gained over one: speed, and the part of it that R ranks on so many cores could have."""

    speed: float
    of_possible: float


def strong(alone: float, together: float, ranks: int, cores: int) -> Gain:
    """For the same job: seconds a step on one rank over those on all; at best as many as there are ranks and cores."""
    speed = alone / together
    return Gain(speed, speed / min(ranks, cores))


def weak(alone: float, together: float, ranks: int, cores: int) -> Gain:
    """For a job that grows with the ranks: samples a second over those of one rank; at best as for ``strong``."""
    speed = ranks * alone / together
    return Gain(speed, speed / min(ranks, cores))
