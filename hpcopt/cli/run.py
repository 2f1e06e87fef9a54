"""``hpcopt run JOB.toml``: one job from its file to its result, on every rank of the launch."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from hpcopt.comm.communicator import Communicator
    from hpcopt.comm.launch import Threads
    from hpcopt.config import Job
    from hpcopt.train.job import PreparedJob
    from hpcopt.train.progress import Display, Harmless
    from hpcopt.train.protocol import Result
    from hpcopt.train.run.requests import Requests


def run(job_file: Path, run_dir: Path | None, settings: list[str], fresh: bool, quiet: bool) -> int:
    """Train as the job file says and return the exit status. *Collective*.

    Args:
        job_file: the job file; read on rank 0 only.
        run_dir: the run directory; runs/NAME when None.
        settings: ``table.key=value`` overrides.
        fresh: move an earlier run in that directory aside.
        quiet: print nothing but errors.
    """
    from hpcopt.train.run.requests import Requests

    with closing(Requests().listen(last=True)) as requests:
        return _run(job_file, run_dir, settings, fresh, quiet, requests)


def _run(
    job_file: Path, run_dir: Path | None, settings: list[str], fresh: bool, quiet: bool, requests: Requests
) -> int:
    from hpcopt.comm.communicator import Communicator
    from hpcopt.comm.launch import check_launch, choose_threads
    from hpcopt.comm.mpi_library import library_name

    comm = Communicator()
    check_launch(comm.size, library=library_name())
    job = _read(job_file, settings, comm)
    if not job.checkpoint.save:
        requests.decline()
    threads = choose_threads(comm)

    from hpcopt.train.job import PreparedJob
    from hpcopt.train.run.output import ENDS

    prepared = PreparedJob(job, comm)
    directory = run_dir or Path("runs") / job.run.name
    display = _Display(prepared, directory, threads, comm, quiet)
    try:
        result = prepared.run(
            directory,
            fresh=fresh,
            requests=requests,
            listeners=display.listeners,
            announce=display.announce,
            watched=True,
        )
    finally:
        display.close()
    display.summarise(result)
    return ENDS.get(result.stop, ("finished", 0))[1]


def _read(job_file: Path, settings: list[str], comm: Communicator) -> Job:
    """The job that rank 0 has read, checked by every rank. *Collective*."""
    from hpcopt.config import parse_job, read_job

    with comm.together("reading the job file"):
        text = read_job(job_file) if comm.rank == 0 else ""
    text = comm.broadcast_object(text)
    with comm.together("reading the job file"):
        return parse_job(text, settings, name=job_file.stem)


class _Display:
    """Header, progress and table on rank 0; nothing on the others or when quiet. Its failure does not end the run."""

    def __init__(
        self, prepared: PreparedJob, directory: Path, threads: Threads, comm: Communicator, quiet: bool
    ) -> None:
        from rich.console import Console

        from hpcopt.train.progress import Harmless
        from hpcopt.train.terminal import terminal_columns

        columns = terminal_columns() if comm.rank == 0 else None
        console = Console(force_terminal=columns is not None, width=columns)
        self._console = None if quiet or comm.rank else console
        self._directory, self._prepared = directory, prepared
        self._progress: Harmless | None = None
        if self._console is not None:
            self._progress = Harmless()
            self._progress.attempt(lambda: self._header(console, threads, comm))
            self._progress.start(lambda: self._bar_or_lines(console))

    @property
    def listeners(self) -> list[Harmless]:
        """The progress display, where there is one."""
        return [self._progress] if self._progress else []

    def announce(self, iteration: int) -> None:
        """Say that an earlier run goes on."""
        if self._progress is not None and self._console is not None:
            console, text = self._console, f"going on after iteration {iteration}"
            self._progress.attempt(lambda: console.print(text, highlight=False))

    def close(self) -> None:
        """Stop the progress display."""
        if self._progress:
            self._progress.close()

    def summarise(self, result: Result) -> None:
        """The table at the end."""
        if self._progress is not None and self._console is not None:
            console = self._console
            self._progress.attempt(lambda: self._end(console, result))

    def _bar_or_lines(self, console: Console) -> Display:
        from hpcopt.train.progress import PlainProgress, TerminalProgress

        kind = TerminalProgress if console.is_terminal else PlainProgress
        return kind(console, *self._prepared.length())

    def _end(self, console: Console, result: Result) -> None:
        from hpcopt.train.progress import final_table, last_lines

        console.print(final_table(result, self._prepared.job.run.name))
        for line in last_lines(result, self._directory):
            console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _header(self, console: Console, threads: Threads, comm: Communicator) -> None:
        from rich.text import Text

        prepared = self._prepared
        job, data, objective = prepared.job, prepared.data, prepared.objective
        ranks = "1 rank" if comm.size == 1 else f"{comm.size} ranks"
        # As text, since names may hold brackets, which rich would read as markup.
        header = Text.assemble(
            ("hpcopt", "bold"),
            f" {job.run.name}: {job.solver.name} on {data.name} "
            f"({objective.samples} samples, {data.outputs} outputs), {job.model.name} with {objective.parameters} "
            f"parameters, {ranks} of {threads.threads} thread{'s' if threads.threads > 1 else ''}",
        )
        console.print(header, highlight=False, soft_wrap=True)
