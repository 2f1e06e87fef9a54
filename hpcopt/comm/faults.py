"""How a job ends when something fails: quickly, on all ranks, with one message that names the rank.

Three kinds of failure are told apart. An error the user can mend is one paragraph; when all ranks raise it, rank 0
prints it once and every rank leaves with its status. The same error on some ranks only, and every unexpected
exception, aborts the job: the other ranks may wait in a collective that will never complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType, TracebackType
from typing import Any

from hpcopt.comm.mpi_library import initialised_mpi
from hpcopt.errors import HpcoptError

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as a shell has it."""

_WAIT_COLLECTIVE = 5.0
_WAIT_ALONE = 1.5
_TAG = 32001
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
"""In which launchers say the number of a process."""


def launcher_rank() -> int:
    """The number of this process among those of its launch, 0 outside of one. Known without starting MPI."""
    values = (os.environ.get(name, "") for name in RANK_VARIABLES)
    return next((int(value) for value in values if value.isdigit()), 0)


def mark_collective(error: BaseException, rank: int) -> None:
    """Note on ``error`` that all ranks raise it, and which rank failed first."""
    with contextlib.suppress(AttributeError):
        error.collective = True  # type: ignore[attr-defined]
        error.failed_rank = rank  # type: ignore[attr-defined]


def is_collective(error: BaseException) -> bool:
    """Whether all ranks are known to raise ``error``."""
    return bool(getattr(error, "collective", False))


def run_guarded(main: Callable[[], int]) -> int:
    """Run ``main`` and return the status to exit with; a failure on any rank ends the whole job within seconds.

    ``HpcoptError``: one paragraph on standard error and the error's ``exit_status``. Ctrl-C: status 130. Any other
    exception: its trace with ``[rank r/size host]`` before each line, then MPI's abort with status 1. ``SystemExit``
    passes. MPI is used only if ``main`` loaded it.
    """
    try:
        return main()
    except HpcoptError as error:
        return _end_with_paragraph(error)
    except KeyboardInterrupt:
        return _end_interrupted()
    except Exception as error:
        return _end_with_trace(error)


def abort_on_exception() -> None:
    """Give a script of the user's own the same ending: an exception no one catches aborts the whole job. Local."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """End as ``python -m hpcopt`` does."""
        if isinstance(error, HpcoptError):
            status = _end_with_paragraph(error)
        elif isinstance(error, Exception):
            status = _end_with_trace(error)
        else:
            status = _end_interrupted()
        if (mpi := initialised_mpi()) is not None and mpi.COMM_WORLD.size > 1:
            # The interpreter would end with status 1 here, and then wait for ranks that may never come.
            _abort(mpi, status)
        raise SystemExit(status)

    sys.excepthook = hook


def paragraph(message: str, width: int | None = None) -> str:
    """``hpcopt: error: message`` wrapped to the terminal's width, without breaking paths or options."""
    columns = width or max(40, shutil.get_terminal_size((120, 24)).columns)
    return textwrap.fill(f"hpcopt: error: {message}", columns, break_long_words=False, break_on_hyphens=False)


def labelled(text: str, rank: int, size: int, host: str) -> str:
    """``text`` with ``[rank r/size host]`` before every line."""
    return "".join(f"[rank {rank}/{size} {host}] {line}\n" for line in text.rstrip("\n").split("\n"))


def _end_with_paragraph(error: HpcoptError) -> int:
    mpi = initialised_mpi()
    if mpi is None or mpi.COMM_WORLD.size == 1:
        _print_alone(error)
        return error.exit_status
    comm = mpi.COMM_WORLD
    wait = _WAIT_COLLECTIVE if is_collective(error) else _WAIT_ALONE
    if not _all_failed(mpi, str(error), wait):
        _write(labelled(paragraph(str(error)), comm.rank, comm.size, mpi.Get_processor_name()))
        _abort(mpi, error.exit_status)
    return error.exit_status


def _joined(messages: Mapping[int, str]) -> str:
    """Each different message once, the lowest rank's first."""
    first: dict[str, int] = {}
    for rank in sorted(messages):
        first.setdefault(messages[rank], rank)
    if len(first) == 1:
        return paragraph(next(iter(first))) + "\n"
    return "".join(paragraph(f"on rank {rank}: {text}") + "\n" for text, rank in first.items())


def _print_alone(error: HpcoptError) -> None:
    """Print without MPI. The other processes of a launch most likely fail alike, so the first one speaks for them."""
    if launcher_rank() > 0:
        if is_collective(error):
            return
        # A launcher that ends the job when its first process failed does so meanwhile.
        time.sleep(_WAIT_ALONE)
    _write(paragraph(str(error)) + "\n")


def _end_interrupted() -> int:
    mpi = initialised_mpi()
    if mpi is None or mpi.COMM_WORLD.size == 1:
        _write("hpcopt: interrupted\n")
    else:
        if mpi.COMM_WORLD.rank == 0:
            _write("hpcopt: interrupted\n")
        _abort(mpi, INTERRUPTED)
    return INTERRUPTED


def _end_with_trace(error: Exception) -> int:
    mpi = initialised_mpi()
    if mpi is None:
        _write(labelled(_trace(error), launcher_rank(), 1, socket.gethostname()))
        return 1
    comm = mpi.COMM_WORLD
    if is_collective(error) and getattr(error, "failed_rank", 0) != comm.rank:
        # The rank that failed prints for all; it aborts this one too, unless it is no longer there.
        time.sleep(_WAIT_COLLECTIVE)
    _write(labelled(_trace(error), comm.rank, comm.size, mpi.Get_processor_name()))
    if comm.size > 1:
        _abort(mpi, 1)
    return 1


def _trace(error: Exception) -> str:
    # A collective error carries the failing rank's trace in its message: the chain would show it twice.
    return "".join(traceback.format_exception(type(error), error, error.__traceback__, chain=not is_collective(error)))


def _all_failed(mpi: ModuleType, message: str, seconds: float) -> bool:
    """Whether every rank comes here within ``seconds``; if so rank 0 has printed the messages of all.

    Made of point-to-point messages, as the other ranks may be inside a collective.
    """
    comm = mpi.COMM_WORLD
    deadline = time.monotonic() + seconds
    if comm.rank != 0:
        # The request holds the message's memory, and must live as long as MPI may read it.
        request = comm.isend(message, 0, _TAG)
        answered = _receive(mpi, 0, deadline) is not None
        if answered:
            request.wait()
        return answered
    messages = {0: message}
    while len(messages) < comm.size:
        found = _receive(mpi, mpi.ANY_SOURCE, deadline)
        if found is None:
            return False
        messages[found[0]] = found[1]
    # Before the others may leave: a launcher may end this rank once one of them has.
    _write(_joined(messages))
    mpi.Request.waitall([comm.isend("", rank, _TAG) for rank in range(1, comm.size)])
    return True


def _receive(mpi: ModuleType, source: int, deadline: float) -> tuple[int, Any] | None:
    status = mpi.Status()
    while True:
        message = mpi.COMM_WORLD.improbe(source, _TAG, status)
        if message is not None:
            return status.Get_source(), message.recv()
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def _abort(mpi: ModuleType, status: int) -> None:
    """End all ranks. Never returns, even if MPI's abort hangs."""
    _flush()
    # The launcher may drop what it has not read when the abort reaches it.
    time.sleep(0.2)
    last_resort = threading.Timer(5.0, os._exit, (status,))
    last_resort.daemon = True
    last_resort.start()
    mpi.COMM_WORLD.Abort(status)
    os._exit(status)


def _write(text: str) -> None:
    """In one piece, so that the lines of several ranks do not mix."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
