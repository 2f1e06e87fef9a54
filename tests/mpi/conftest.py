"""Tests that run on every rank of one job: ``mpirun -n 3 pytest --with-mpi tests/mpi``.

A test must pass or fail on all ranks. When it fails on some ranks only, the others learn it after the test and fail
too, naming the rank; when they are stuck in a collective the failing rank ends the job after showing its report.
A test that hangs is ended after HPCOPT_TEST_TIMEOUT seconds (60) with the stacks of every rank.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcopt.comm.communicator import Communicator

LIMIT = float(os.environ.get("HPCOPT_TEST_TIMEOUT", "60"))
# Every rank shows its stacks before the first one ends, which makes mpirun end the rest.
GRACE = 5
PATIENCE = min(10.0, LIMIT / 4)

_stderr = [2]
_verdicts: list[Any] = []


def pytest_configure(config: pytest.Config) -> None:
    """Keep the real standard error, which pytest replaces while a test runs."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        _stderr[0] = os.dup(2)
        return
    with capture.global_and_fixture_disabled():
        _stderr[0] = os.dup(2)


def say(text: str) -> None:
    """Write to the real standard error, whatever pytest captures."""
    os.write(_stderr[0], text.encode())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Arm the watchdog for set-up, test and tear-down together."""
    # The signal's default action ends the process even if it is stuck in C code that never returns to Python.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, LIMIT + GRACE)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Show the stacks of this rank when the test takes too long. In a fixture, as pytest arms a timer of its own."""
    faulthandler.dump_traceback_later(LIMIT, file=_stderr[0])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """A set-up that fails on one rank fails on all."""
    return (yield from _agreed(item, "set-up"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that fails on one rank fails on all."""
    return (yield from _agreed(item, "test"))


def _agreed(item: pytest.Item, phase: str) -> Generator[None, Any, Any]:
    if item.get_closest_marker("mpi") is None:
        return (yield)
    failure: BaseException | None = None
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        failure = error
    except pytest.skip.Exception:
        _verdict(item, phase, None)
        raise
    _verdict(item, phase, failure)
    if failure is not None:
        raise failure
    return None


def _verdict(item: pytest.Item, phase: str, failure: BaseException | None) -> None:
    """Learn how the other ranks did. *Collective*, but a failing rank does not wait for ever."""
    world = _own_world()
    if world.Get_size() == 1:
        return
    mine = "" if failure is None else f"{type(failure).__name__}: {failure}"
    request = world.Ibarrier()
    deadline = time.monotonic() + PATIENCE
    while not request.Test():
        if failure is not None and time.monotonic() > deadline:
            _end_job(world, item, phase, failure)
        time.sleep(0.0005)
    others = {rank: text for rank, text in enumerate(world.allgather(mine)) if text}
    if others and failure is None:
        lines = "\n".join(f"rank {rank}: {text}" for rank, text in others.items())
        pytest.fail(f"the {phase} failed on other ranks\n{lines}", pytrace=False)


def _end_job(world: Any, item: pytest.Item, phase: str, failure: BaseException) -> None:
    trace = "".join(traceback.format_exception(failure))
    say(f"\n[rank {world.Get_rank()}] {item.nodeid}: the {phase} failed here, the others did not come back\n{trace}\n")
    sys.stdout.flush()
    time.sleep(1.0)
    world.Abort(1)


def _own_world() -> Any:
    """A duplicate of the world for the verdicts, which must not mix with the messages of a test. *Collective*."""
    if not _verdicts:
        from mpi4py import MPI

        _verdicts.append(MPI.COMM_WORLD.Dup())
    return _verdicts[0]


@pytest.fixture
def comm() -> Communicator:
    """All ranks of the job, with an empty ledger."""
    return Communicator()


@pytest.fixture
def alone() -> Communicator:
    """This rank on its own."""
    from mpi4py import MPI

    return Communicator(MPI.COMM_SELF)


@pytest.fixture
def shared_path(comm: Communicator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One empty folder, the same on all ranks. *Collective*."""
    made = str(tmp_path_factory.mktemp("shared")) if comm.rank == 0 else None
    return Path(comm.broadcast_object(made))


@pytest.fixture(params=[1, 2, 3, 4])
def grid(request: pytest.FixtureRequest, comm: Communicator) -> tuple[int, int]:
    """Every grid of the job's ranks with at most 4 rows and columns."""
    rows, columns = request.param, comm.size // request.param
    if rows * columns != comm.size or columns > 4:
        pytest.skip(f"{comm.size} ranks are no such grid of {rows} rows")
    return rows, columns
