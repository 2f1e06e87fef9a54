"""What a system may refuse: permission, which it never refuses to root, and room for a file."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def denied(*_: Any, **__: Any) -> Any:
    """Stands for any function that the system does not permit."""
    raise PermissionError(13, "Permission denied")


def denied_for(path: Path, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Path that the system does not permit for one path."""

    def guarded(self: Path, *args: Any, **options: Any) -> Any:
        return denied() if self == path else method(self, *args, **options)

    return guarded


@contextmanager
def files_up_to(length: int) -> Iterator[None]:
    """Within this block no file may grow beyond ``length`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
