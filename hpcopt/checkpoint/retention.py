"""Which checkpoints stay: the last ones, the best, and one in every so many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcopt.errors import UsageError


@dataclass(frozen=True)
class Retention:
    """What is kept. The rest is deleted, each only after its successor was published.

    Attributes:
        last: how many of the newest, at least 2: the newest may turn out to be damaged.
        best: whether the best one stays, however old.
        every: also the first in every so many steps, for ever; 0 for none.
    """

    last: int = 2
    best: bool = True
    every: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: fewer than 2 are to be kept, or ``every`` is negative.
        """
        if self.last < 2:
            raise UsageError(
                f"Keeping {self.last} checkpoint{'s' * (self.last != 1)} is too few: keep 2 or more, so that one is "
                "left when the newest turns out to be damaged."
            )
        if self.every < 0:
            raise UsageError(f"Keeping a checkpoint in every {self.every} steps is impossible: give 0 or more.")

    def survivors(self, steps: Sequence[int], best: int | None = None) -> set[int]:
        """Of the published ``steps`` those that stay; ``best`` is the step of the best one, if known.

        >>> sorted(Retention(last=2, every=100).survivors([40, 80, 120, 160, 200, 240], best=80))
        [80, 120, 200, 240]
        """
        ordered = sorted(steps)
        kept = set(ordered[-self.last :])
        if self.best and best in steps:
            kept |= {step for step in steps if step == best}
        first: dict[int, int] = {}
        for step in ordered:
            if self.every and step >= self.every:
                first.setdefault(step // self.every, step)
        return kept | set(first.values())
