"""``hpcopt stop RUN``: ask a run to save and end, where nobody can send it a signal."""

from __future__ import annotations

from hpcopt.analysis.history import Run, open_run
from hpcopt.errors import UsageError
from hpcopt.train.run.halt import HALT, read_halt, write_halt


def stop(path: str, after_checkpoint: bool) -> None:
    """Write the halt file and say what will happen; nothing is waited for.

    Args:
        path: the run directory.
        after_checkpoint: end when the run is next saved anyway, instead of at the end of the iteration.

    Raises:
        UsageError: there is no run, it does not run or is ending already, or the file cannot be written.
    """
    run = open_run(path)
    _refuse(run)
    halt = read_halt(run.path)
    if halt is not None and halt.ends and after_checkpoint >= halt.after_checkpoint:
        when = " when it is next saved; without --after-checkpoint it ends at once" if halt.after_checkpoint else ""
        raise UsageError(f"The run in {path} is ending already, as {halt.by} asked at {halt.when}{when}.")
    try:
        write_halt(run.path, after_checkpoint)
    except OSError as error:
        raise UsageError(
            f"The file {HALT} cannot be written into {path}: {error.strerror}. Ask who owns the run to stop it."
        ) from error
    print(_announcement(run, after_checkpoint))


def _refuse(run: Run) -> None:
    facts, status = run.facts, run.status
    if status != "running":
        waiting = ""
        if status == "saved" and facts.get("job") and facts.get("exit_status") == 75:
            waiting = f" If its job waits to go on with it, cancel that: scancel {facts['job']}."
        reason = f" ({str(facts['stop_reason']).rstrip('.')})" if facts.get("stop_reason") else ""
        raise UsageError(f"The run in {run.path} is not running: {status}{reason}. There is nothing to stop.{waiting}")
    if facts.get("saves") is False:
        job = f"scancel {facts['job']}" if facts.get("job") else f"kill {facts.get('pid')} on {facts.get('host')}"
        raise UsageError(
            f"The run in {run.path} is not saved (checkpoint.save = false) and heeds no file: it can only be ended "
            f"with the loss of what it has learned: {job}."
        )


def _announcement(run: Run, after_checkpoint: bool) -> str:
    facts = run.facts
    job = f" (job {facts['job']})" if facts.get("job") else ""
    when = "as soon as it is saved anyway" if after_checkpoint else "after this iteration, at the latest after the next"
    return (
        f"The run in {run.path}{job} was asked to end. It is saved and ends {when}, with exit status 5, after which no "
        "job script requeues it. The command that started it goes on from there.\n"
        f"hpcopt status shows when it has ended. To take it back, remove {run.path / HALT}."
    )
