"""The errors a user can cause or meet, each with the exit status that ``hpcopt run`` ends with."""

from __future__ import annotations

from collections.abc import Iterable


class HpcoptError(Exception):
    """Base of all errors that end in one paragraph instead of a trace.

    The message says what is wrong, which value, the rule, and what to do.

    Args:
        message: the paragraph.
        collective: True when every rank raises this same error, so that none is left waiting in a collective call.
    """

    exit_status = 1

    def __init__(self, message: str, *, collective: bool = False) -> None:
        super().__init__(message)
        self.collective = collective


class UsageError(HpcoptError):
    """The job file, the data, the command line or the launch cannot work as given."""

    exit_status = 2


class CheckpointError(HpcoptError):
    """Checkpoints could not be written, or their folder not be used. What was published before is as it was."""

    exit_status = 74


class UnreadableCheckpointError(CheckpointError):
    """A checkpoint is damaged or a part of it cannot be read."""

    exit_status = 4


class NoValidCheckpointError(CheckpointError):
    """There are checkpoints to go on from, but none that is whole."""

    exit_status = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: ``"; did you mean 'x'?"`` for the closest known one, or ``"."``."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."
