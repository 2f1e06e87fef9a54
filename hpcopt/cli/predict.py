"""``hpcopt predict``: time and bytes of an iteration on ranks that are not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hpcopt.checks import is_number
from hpcopt.cli.format import console, in_bytes, number, share, table, whole
from hpcopt.errors import UsageError

if TYPE_CHECKING:
    from hpcopt.analysis.predict import Prediction
    from hpcopt.config import Job
    from hpcopt.costs.machine import Machine

TITLES = (
    *("ranks", "hosts", "ms an iteration", "compute", "communication", "waiting", "share", "calls"),
    *("bytes a rank", "memory a rank"),
)


def predict(
    job_file: Path,
    ranks: str,
    settings: list[str],
    measured: Path | None,
    on_host: int | None,
    inner: float | None,
    as_json: bool,
) -> None:
    """Predict and print.

    Args:
        job_file: the job file.
        ranks: numbers of ranks, with commas between them.
        settings: ``table.key=value`` overrides.
        measured: the measurement; None for that of this host, or the newest of the user.
        on_host: most ranks on a host; None for as many as were measured.
        inner: trials of a line search or products of conjugate gradients.
        as_json: print JSON instead of a table.

    Raises:
        UsageError: there is no measurement, or the job does not fit.
    """
    counts = numbers(ranks)
    _refuse_a_launcher()
    from hpcopt.costs.machine import find, read

    machine = read(find(measured))
    if (on_host is not None and on_host < 1) or (inner is not None and not is_number(inner, 0, open_low=True)):
        raise UsageError("--ranks-per-host and --inner must be finite and above 0.")
    job = _job_for(machine, job_file, settings)
    from hpcopt.analysis.predict import ASSUMPTIONS, subject_of
    from hpcopt.analysis.predict import predict as predict_one

    subject = subject_of(job)
    found = [predict_one(subject, machine, count, on_host or machine.on_host, inner) for count in counts]
    notes = [*ASSUMPTIONS, *sorted(machine.unsure)]
    if as_json:
        about = {"measurement": str(machine.path), **machine.about, "ranks_per_host": on_host or machine.on_host}
        print(json.dumps({"machine": about, "predictions": [asdict(each) for each in found], "notes": notes}, indent=2))
        return
    _show(machine, found, notes)


def _refuse_a_launcher() -> None:
    from hpcopt.comm.launch import expected_ranks

    started = max(expected_ranks().values(), default=1)
    if started > 1:
        # The others have ended by now, and MPI, which later imports load, would wait for them.
        raise UsageError(f"predict works on one process, but {started} were started: leave out mpirun or srun.")


def _job_for(machine: Machine, job_file: Path, settings: list[str]) -> Job:
    """The job, if its device is the one that was measured."""
    from hpcopt.config import parse_job, read_job

    job = parse_job(read_job(job_file), settings, name=job_file.stem)
    if job.run.device not in ("auto", machine.device):
        raise UsageError(
            f'run.device = "{job.run.device}", but {machine.path} was measured on "{machine.device}". Measure where '
            "ranks have such devices."
        )
    return job


def numbers(text: str) -> list[int]:
    """Numbers of ranks from "8,64,1024".

    Raises:
        UsageError: it is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--ranks {text!r} must be whole numbers above 0 with commas between them, as in 8,64,1024.")
    return [int(part) for part in parts]


def _show(machine: Machine, found: Sequence[Prediction], notes: Sequence[str]) -> None:
    about = machine.about
    shown = console()
    shown.print(f"measured {about['date']} on {about['host']}, {about['ranks']} ranks: {machine.path}", soft_wrap=True)
    shown.print(
        table(
            TITLES,
            [
                (
                    *(whole(each.ranks), whole(each.hosts)),
                    *(number(1e3 * part) for part in (each.seconds, each.compute, each.communication, each.waiting)),
                    *(share(each.communication / each.seconds), number(each.calls)),
                    *(in_bytes(each.bytes), in_bytes(each.memory)),
                )
                for each in found
            ],
            keep=len(TITLES),
        )
    )
    for note in notes:
        shown.print(note, style="dim", soft_wrap=True)
