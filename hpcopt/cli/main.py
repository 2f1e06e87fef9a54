"""The command line. Each command is imported when it is used, so that ``hpcopt --help`` starts at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hpcopt.comm.faults import launcher_rank, run_guarded

COLLECTIVE = ("run", "doctor")
"""Commands that are meant to be started on several ranks; of the others only the first process does anything."""

HELP = ["-h", "--help"]

app = typer.Typer(
    name="hpcopt",
    help="Train networks with second-order and trust-region methods over MPI. Start ranks with mpirun or srun: "
    "mpirun -n 4 hpcopt run JOB.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP},
)

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)]
Which = Annotated[
    str | None,
    typer.Option("--which", metavar="latest|best", help="Parameters of the last or of the best point."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 2 for usage errors, else what the command says."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    rank = launcher_rank()
    if rank > 0 and given[:1] and (given[0] not in COLLECTIVE or set(HELP) & set(given)):
        return 0
    return run_guarded(lambda: _invoke(given, rank))


def _invoke(arguments: Sequence[str], rank: int) -> int:
    if rank == 0:
        try:
            app(args=arguments, prog_name="hpcopt")
        except SystemExit as end:
            return _status(end.code)
        return 0
    try:
        return _status(app(args=arguments, prog_name="hpcopt", standalone_mode=False))
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        # A mistake on the command line, which rank 0 explains. The launcher ends the job with the first process that
        # fails, so let it be rank 0.
        time.sleep(2.0)
        return int(error.exit_code)


def _status(code: object) -> int:
    return code if isinstance(code, int) else int(code is not None)


def _show_version(wanted: bool) -> None:
    if wanted:
        import hpcopt

        typer.echo(f"hpcopt {hpcopt.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("run")
def _run(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.", show_default=False)],
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="Where the run is recorded.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of the job file.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move a run that is there aside and start anew.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
) -> None:
    """Train as the job file says; on as many ranks as mpirun or srun starts."""
    from hpcopt.cli.run import run

    # In here, since typer turns an interrupt and a closed pipe into exits that would leave the other ranks waiting.
    raise typer.Exit(run_guarded(lambda: run(job, run_dir, settings or [], fresh, quiet)))


@app.command("inspect")
def _inspect(
    path: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run directory or a checkpoint in it.", show_default=False),
    ],
    as_json: Json = False,
    history: Annotated[bool, typer.Option("--history", help="Also show every evaluation of the run.")] = False,
    spectra: Annotated[
        bool, typer.Option("--spectra", help="Singular values of the layers: largest, smallest, condition, rank.")
    ] = False,
    difference: Annotated[
        str | None,
        typer.Option("--difference", metavar="OTHER", help="What differs from this one.", show_default=False),
    ] = None,
    which: Which = None,
) -> None:
    """Show what a run did, also while it is going on, or what is in a checkpoint (of a run: in its newest)."""
    from hpcopt.cli.inspect import inspect

    inspect(path, as_json, history, spectra, difference, which)


@app.command("export")
def _export(
    path: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint, or a run for its newest whole one.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A file .pt, .safetensors or .npz to write.", show_default=False
        ),
    ],
    which: Which = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write the parameters of a checkpoint for other programs: a state_dict of torch, safetensors or NumPy."""
    from hpcopt.cli.export import export_checkpoint

    export_checkpoint(path, output, which or "latest", force)


@app.command("status")
def _status_of(
    runs: Runs,
    as_json: Json = False,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", help="Again every so many seconds, until no run is running."),
    ] = None,
) -> None:
    """Show where runs stand: iteration, loss, rate, estimated end, slowest rank, last sign of life."""
    from hpcopt.cli.status import status

    raise typer.Exit(status(runs, as_json, watch))


@app.command("stop")
def _stop(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The directory of a run that is going on.")],
    after_checkpoint: Annotated[
        bool, typer.Option("--after-checkpoint", help="When it is next saved anyway, not at once.")
    ] = False,
) -> None:
    """Ask a run to save and end, so that no job script requeues it. Waits for nothing."""
    from hpcopt.cli.stop import stop

    stop(run, after_checkpoint)


@app.command("compare")
def _compare(runs: Runs, as_json: Json = False) -> None:
    """Put runs side by side, by epochs, gradient equivalents, seconds and bytes."""
    from hpcopt.cli.compare import compare

    compare(runs, as_json)


@app.command("plot")
def _plot(
    runs: Runs,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="The figure.", show_default=False)],
) -> None:
    """Draw loss, accuracy, radius and waiting of one or more runs."""
    from hpcopt.cli.plot import plot

    plot(runs, output)


@app.command("verify")
def _verify(
    path: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run directory or a checkpoint in it.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Read every byte of every checkpoint and compare it with what was written; also while the run is going."""
    from hpcopt.cli.verify import check

    raise typer.Exit(check(path, as_json))


@app.command("predict")
def _predict(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.", show_default=False)],
    ranks: Annotated[str, typer.Option("--ranks", metavar="8,64,1024", help="Numbers of ranks.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of the job file.", show_default=False),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option("--measured", metavar="FILE.json", help="A file of hpcopt doctor --measure.", show_default=False),
    ] = None,
    on_host: Annotated[
        int | None,
        typer.Option("--ranks-per-host", metavar="N", help="As many as were measured by default.", show_default=False),
    ] = None,
    inner: Annotated[
        float | None,
        typer.Option(
            "--inner", metavar="N", help="Trials of a line search, products of conjugate gradients.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time, bytes and memory of an iteration on other numbers of ranks, by rates of hpcopt doctor --measure."""
    from hpcopt.cli.predict import predict

    predict(job, ranks, settings or [], measured, on_host, inner, as_json)


@app.command("doctor")
def _doctor(
    as_json: Json = False,
    run_dir: Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Where runs are to be written.")] = Path(
        "runs"
    ),
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure the rates that hpcopt predict needs.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Where the measurement goes.", show_default=False),
    ] = None,
) -> None:
    """Say what this allocation will do: MPI, job, ranks, threads, devices, HDF5, disk. Under mpirun, srun, or alone."""
    from hpcopt.cli.doctor import doctor

    raise typer.Exit(run_guarded(lambda: doctor(as_json, run_dir, measure, output)))


@app.command(
    "data",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def _data(context: typer.Context) -> None:
    """List, describe and fetch data sets: hpcopt data list | info NAME | fetch NAME."""
    from hpcopt.cli.data import app as data

    data(args=context.args, prog_name="hpcopt data")


@app.command(
    "submit",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def _submit(context: typer.Context) -> None:
    """Submit a job to Slurm, or show its script: hpcopt submit JOB.toml --nodes N --time HH:MM:SS [--print]."""
    from hpcopt.cli.submit import submit_from

    submit_from(context.args)
