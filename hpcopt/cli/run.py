"""``hpcopt run JOB.toml``: one job from its file to its result, on every rank of the launch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from hpcopt.comm.communicator import Communicator
    from hpcopt.comm.launch import Threads
    from hpcopt.train.job import PreparedJob
    from hpcopt.train.loop import Result
    from hpcopt.train.progress import PlainProgress, TerminalProgress


def run(job_file: Path, run_dir: Path | None, settings: list[str], fresh: bool, quiet: bool) -> int:
    """Train as the job file says and return the exit status. *Collective*.

    Args:
        job_file: the job file; read on rank 0 only.
        run_dir: the run directory; runs/NAME when None.
        settings: ``table.key=value`` overrides.
        fresh: move an earlier run in that directory aside.
        quiet: print nothing but errors.
    """
    from hpcopt.comm.communicator import Communicator
    from hpcopt.comm.launch import check_launch, choose_threads
    from hpcopt.comm.library import library_name
    from hpcopt.config import parse_job, read_job
    from hpcopt.solvers.solver import StopReason

    comm = Communicator()
    check_launch(comm.size, library=library_name())
    with comm.together("reading the job file"):
        text = read_job(job_file) if comm.rank == 0 else ""
    text = comm.broadcast_object(text)
    with comm.together("reading the job file"):
        job = parse_job(text, settings, name=job_file.stem)
    threads = choose_threads(comm)

    from hpcopt.train.job import PreparedJob

    prepared = PreparedJob(job, comm)
    directory = run_dir or Path("runs") / job.run.name
    display = _Display(prepared, directory, threads, comm, quiet)
    try:
        result = prepared.run(directory, fresh=fresh, listeners=display.listeners)
    finally:
        display.close()
    display.summarise(result)
    return 3 if result.stop is StopReason.NOT_FINITE else 0


class _Display:
    """Header, progress and table on rank 0; nothing on the others or when quiet."""

    def __init__(
        self, prepared: PreparedJob, directory: Path, threads: Threads, comm: Communicator, quiet: bool
    ) -> None:
        from rich.console import Console

        from hpcopt.train.progress import PlainProgress, TerminalProgress
        from hpcopt.train.terminal import terminal_columns

        columns = terminal_columns() if comm.rank == 0 else None
        console = Console(force_terminal=columns is not None, width=columns)
        self._console = None if quiet or comm.rank else console
        self._directory, self._prepared = directory, prepared
        self._progress: TerminalProgress | PlainProgress | None = None
        if self._console is not None:
            self._header(self._console, threads, comm)
            kind = TerminalProgress if columns else PlainProgress
            self._progress = kind(self._console, prepared.criteria.iterations)

    @property
    def listeners(self) -> list[TerminalProgress | PlainProgress]:
        """The progress display, where there is one."""
        return [self._progress] if self._progress else []

    def close(self) -> None:
        """Stop the progress display."""
        if self._progress:
            self._progress.close()

    def summarise(self, result: Result) -> None:
        """The table at the end."""
        from hpcopt.train.progress import final_table

        if self._console is not None:
            self._console.print(final_table(result, self._prepared.job.run.name))
            self._console.print(f"run directory: {self._directory}", highlight=False, soft_wrap=True)

    def _header(self, console: Console, threads: Threads, comm: Communicator) -> None:
        prepared = self._prepared
        job, data, objective = prepared.job, prepared.data, prepared.objective
        ranks = "1 rank" if comm.size == 1 else f"{comm.size} ranks"
        console.print(
            f"[bold]hpcopt[/bold] {job.run.name}: {job.solver.name} on {data.name} "
            f"({objective.samples} samples, {data.outputs} outputs), {job.model.name} with {objective.size} "
            f"parameters, {ranks} of {threads.threads} thread{'s' if threads.threads > 1 else ''}",
            highlight=False,
            soft_wrap=True,
        )
