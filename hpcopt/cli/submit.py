"""``hpcopt submit JOB.toml``: one line from a job file to a job of Slurm, or to the script that a person can edit."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcopt.cluster.launcher import choose_launcher
from hpcopt.cluster.options import SlurmOptions
from hpcopt.cluster.queue import Follower, submit
from hpcopt.cluster.script import Script, passed_on
from hpcopt.cluster.sweep import make_tasks
from hpcopt.config import Job, parse_job, read_job
from hpcopt.errors import UsageError
from hpcopt.train.run.directory import write_atomically

OVERRIDES = {field.name for field in fields(SlurmOptions)}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of the job file.", show_default=False),
]
Sweeps = Annotated[
    list[str] | None,
    typer.Option(
        "--array",
        metavar="TABLE.KEY=V1,V2",
        help="A task for each value; given several times, for each combination.",
        show_default=False,
    ),
]
Directory = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Where the run is recorded.", show_default=False)
]


def _of_table(*names: str, metavar: str = "N", text: str) -> Any:
    """An option that stands for a key of [slurm]."""
    return typer.Option(*names, metavar=metavar, help=text, show_default=False)


@app.command(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "allow_extra_args": True,
        "ignore_unknown_options": True,
    }
)
def _submit(
    context: typer.Context,
    job: JobFile,
    nodes: Annotated[int | None, _of_table("--nodes", "-N", text="Hosts.")] = None,
    ntasks_per_node: Annotated[int | None, _of_table("--ntasks-per-node", text="Ranks on each of them.")] = None,
    time: Annotated[str | None, _of_table("--time", "-t", metavar="HH:MM:SS", text="Time limit of one start.")] = None,
    partition: Annotated[str | None, _of_table("--partition", "-p", metavar="NAME", text="Partition.")] = None,
    account: Annotated[str | None, _of_table("--account", "-A", metavar="NAME", text="Account.")] = None,
    cpus_per_task: Annotated[int | None, _of_table("--cpus-per-task", "-c", text="Cores of each rank.")] = None,
    gpus_per_task: Annotated[int | None, _of_table("--gpus-per-task", text="GPUs of each rank.")] = None,
    launcher: Annotated[
        str | None,
        _of_table("--launcher", metavar="COMMAND", text="What starts the ranks; auto: what fits."),
    ] = None,
    save_before: Annotated[
        int | None,
        _of_table("--save-before", metavar="SECONDS", text="When to save, before the limit."),
    ] = None,
    max_requeues: Annotated[
        int | None, _of_table("--max-requeues", text="How often it starts again by itself.")
    ] = None,
    settings: Settings = None,
    sweeps: Sweeps = None,
    run_dir: Directory = None,
    show: Annotated[bool, typer.Option("--print", help="Print the script; submit nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit status is the job's.")] = False,
) -> None:
    """Submit a job to Slurm: it saves itself before its time limit, and goes on by itself until it has finished.

    What is not given is taken from the table slurm of the job file. All other options are handed to sbatch, such as
    --mem=8G or --qos=long; they stand after JOB.toml.
    """
    if "--fresh" in context.args:
        raise UsageError(
            "--fresh is not for a job that starts more than once: it would begin anew each time. Give another "
            "--run-dir, or move the old run aside before."
        )
    given = {key: value for key, value in context.params.items() if key in OVERRIDES and value is not None}
    checked = _check(job, settings or [], given, passed_on(context.args))
    base = run_dir or Path("runs") / checked.run.name
    tasks = make_tasks(sweeps or [], str(base))
    for task in tasks:
        _check(job, [*(settings or []), *task.settings], given, [])
    launcher_chosen = choose_launcher(checked.slurm)
    run, folder = _run_command(job, checked.slurm, settings or [], None if tasks else run_dir)
    command = shlex.join(["hpcopt", "submit", *(word for word in context.obj if word not in ("--print", "--wait"))])
    script = Script(checked.run.name, checked.slurm, launcher_chosen, run, str(base), command, folder, tasks)
    if show:
        sys.stdout.write(script.text())
    else:
        raise typer.Exit(_hand_in(script, base.parent / f"{base.name or checked.run.name}.sbatch", wait))


def submit_from(arguments: Sequence[str]) -> None:
    """Run the command with these words of the command line; the script quotes them."""
    app(args=list(arguments), prog_name="hpcopt submit", obj=tuple(arguments))


def _check(job_file: Path, settings: list[str], given: Mapping[str, Any], passed: list[str]) -> Job:
    """The job, refused for all that can be known to be wrong before it has its ranks and data."""
    from hpcopt.train.job_checks import check_before_data

    job = parse_job(read_job(job_file), settings, name=job_file.stem)
    job = replace(job, slurm=replace(job.slurm, **given, extra=[*job.slurm.extra, *passed]))
    check_before_data(job, job.slurm.ranks)
    return job


def _run_command(
    job_file: Path, options: SlurmOptions, settings: list[str], run_dir: Path | None
) -> tuple[list[str], str]:
    """What each rank runs, and the folder in which a shell would not find it by itself."""
    beside = Path(sys.executable).with_name("hpcopt")
    found = shutil.which("hpcopt")
    folder = "" if not beside.exists() or (found and Path(found).samefile(beside)) else str(beside.parent)
    program = ["hpcopt"] if beside.exists() else [sys.executable, "-m", "hpcopt"]
    moved = any(option.startswith(("--chdir", "-D")) for option in options.extra)
    words = [*program, "run", str(job_file.absolute() if moved else job_file)]
    words += [word for setting in settings for word in ("--set", setting)]
    return words + ([] if run_dir is None else ["--run-dir", str(run_dir)]), folder


def _hand_in(script: Script, path: Path, wait: bool) -> int:
    """Write the script, submit it, and return the exit status."""
    text = script.text()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(
            f"The script {path} cannot be written: {error.strerror or error}. Submit from a folder in which you may "
            "write, or give another --run-dir: the script is put beside it."
        ) from error
    number = submit(path)
    launcher = script.launcher
    print(f"job {number}: submitted, from {path}", flush=True)
    print(f"job {number}: {launcher.words[0]} starts the ranks: {launcher.reason}", flush=True)
    if not wait:
        return 0
    return Follower(number, lambda line: print(line, flush=True)).wait()
