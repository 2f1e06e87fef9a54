"""``hpcopt doctor``: what this allocation will do, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from hpcopt.analysis.doctor import Report, examine
from hpcopt.cli.format import console
from hpcopt.comm.faults import launcher_rank
from hpcopt.errors import UsageError
from hpcopt.train.run.directory import plain

SIGNS = {"green": "[green]ok[/]", "yellow": "[yellow]care[/]", "red": "[bold red]FAIL[/]"}


def doctor(as_json: bool, directory: Path, measure: bool = False, output: Path | None = None) -> int:
    """Examine the allocation for runs in ``directory``, and print on rank 0. *Collective*.

    Args:
        as_json: print JSON instead of lines.
        directory: where runs are to be written.
        measure: also measure what ``hpcopt predict`` needs.
        output: file for the measurement; None for that of this host in the user's cache.

    Raises:
        UsageError: there is an output but no measurement, or nothing works on which one could be made.

    Returns:
        2 when something will not work, else 0.
    """
    if output is not None and not measure:
        raise UsageError("--output is the file of a measurement: give --measure too.")
    report = examine(directory)
    kept = _measured(report, output) if measure else None
    # Without a common MPI every process is a rank 0 of its own: the first of the launch speaks for all.
    if report is not None and launcher_rank() == 0:
        try:
            if as_json:
                added = {} if kept is None else {"measurement": str(kept)}
                print(json.dumps({**_as_mapping(report), **added}, indent=2, allow_nan=False))
            else:
                _show(report)
                if kept is not None:
                    console().print(f"measured for hpcopt predict: {kept}", soft_wrap=True, markup=False)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader left, which is no failure of a rank; without this Python would complain again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _same_everywhere(0 if report is None or report.healthy else 2)


def _measured(report: Report | None, output: Path | None) -> Path:
    """Measure, and keep it on rank 0; the file. *Collective*."""
    from hpcopt.comm.communicator import Communicator
    from hpcopt.costs.machine import default_path

    if report is not None and (refused := report.facts["mpi"]["error"] or report.facts["mpi"]["launch_error"]):
        raise UsageError(f"nothing can be measured here: {refused}")
    from hpcopt.analysis.measure import measure, write

    comm, path = Communicator(), output or default_path()
    found = measure(comm)
    with comm.together("keeping the measurement"):
        if comm.rank == 0:
            write(found, path)
    return path


def _as_mapping(report: Report) -> dict[str, object]:
    mapping: dict[str, object] = plain(
        {"healthy": report.healthy, "findings": [asdict(finding) for finding in report.findings], **report.facts}
    )
    return mapping


def _show(report: Report) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in report.findings:
        advice = f"\n[dim]{escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(SIGNS[finding.level], finding.topic, escape(finding.text) + advice)
    console().print(table)


def _same_everywhere(status: int) -> int:
    """The status of rank 0 on all ranks. *Collective*."""
    from hpcopt.comm.mpi_library import initialised_mpi

    if initialised_mpi() is None:
        return status
    from hpcopt.comm.communicator import Communicator

    return int(Communicator().broadcast_object(status))
