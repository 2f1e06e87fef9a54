"""The text of a batch script that a person can read, edit and submit by hand."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpcopt.cluster.launcher import Launcher
from hpcopt.cluster.options import SlurmOptions
from hpcopt.cluster.sweep import Task
from hpcopt.errors import UsageError, nearest

REQUEUE = 75
"""Exit status of a run that was saved and is to go on."""

_SHORT = {"-A": "--account", "-J": "--job-name", "-N": "--nodes", "-a": "--array", "-c": "--cpus-per-task"} | {
    "-p": "--partition",
    "-t": "--time",
}
"""Short names of the options that a script may have anyway."""

_HEAD = """\
#!/bin/bash
# Written by:
#   {command}
# It can be edited, and submitted by hand: sbatch FILE. The first start and every further one are the same.
"""

_WHY = {
    "--signal": (
        "So many seconds before the time limit, or a little earlier, this shell (B) gets USR1: the run saves itself."
    ),
    "--requeue": "The job may be started again, also when a node fails. Output is then added to the same file.",
    "--gpus-per-node": "mpirun starts ranks that see all GPUs of their node; each takes the one of its place there.",
    "--gpus-per-task": "Where the cluster does not know this option: --gres=gpu:N, N GPUs of each node.",
    "--array": "One task for each combination of values, see below.",
}

_NO_SETUP = (
    "# Here lines such as: module load openmpi (slurm.setup). sbatch hands on what was loaded when it was called."
)

_RUN = """\
{run} &
child=$!

# USR1 is passed on to the run, which ends with status {requeue} when it is saved. A trap ends wait, hence the loop.
trap 'kill -USR1 "$child"' USR1
while kill -0 "$child" 2> /dev/null; do wait "$child"; done
wait "$child"
status=$?
"""

_AGAIN = """
# Killed from outside, as when a node fails: the run has not said how it ended, and Open MPI's mpirun has status 0 then.
case $status in
    [1-5]) ;;
    *) if grep -qs '^  "status": "running"' {directory}/status.json; then status={requeue}; fi ;;
esac

# Not finished: the same job starts again, and its run goes on from what it saved. Not for ever: something may be wrong.
if [ "$status" -eq {requeue} ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then
        scontrol requeue "{job}"
    else
        echo "not finished after ${{SLURM_RESTART_COUNT:-0}} new starts, which is the most; submit it again" >&2
    fi
fi
"""


@dataclass(frozen=True)
class Script:
    """What goes into a batch script.

    Attributes:
        name: of the job in the queue.
        options: what is asked of Slurm.
        launcher: what starts the ranks.
        run: the command of a rank, without what differs between the tasks of an array.
        directory: the run directory, of what is no array.
        command: how this script was asked for.
        path: folder of the programs when the shell would not find them, else empty.
        tasks: those of an array, if it is one.
    """

    name: str
    options: SlurmOptions
    launcher: Launcher
    run: Sequence[str]
    directory: str
    command: str
    path: str = ""
    tasks: Sequence[Task] = field(default=())

    def text(self) -> str:
        """The script.

        Raises:
            UsageError: an option to skip that is not there.
        """
        parts = [
            # A word may hold a line break, and sbatch reads no directive behind the first line that is no comment.
            _HEAD.format(command=self.command.replace("\n", "\n#   ")),
            *(_directive(option, value) for option, value in self._directives().items()),
            self._setup(),
            self._cases(),
            self._start(),
        ]
        return "".join(parts)

    def _directives(self) -> dict[str, str | None]:
        """Options of sbatch and their values, None for those that have none."""
        options = self.options
        wanted: dict[str, str | int | None] = {
            "--job-name": self.name,
            "--partition": options.partition,
            "--account": options.account,
            "--nodes": options.nodes,
            "--ntasks-per-node": options.ntasks_per_node,
            "--cpus-per-task": options.cpus_per_task,
            **self._gpus(),
            "--time": options.time_text,
            "--array": f"1-{len(self.tasks)}" if self.tasks else None,
            "--signal": f"B:USR1@{options.signal_seconds}",
        }
        found: dict[str, str | None] = {key: str(value) for key, value in wanted.items() if value is not None}
        found |= {"--requeue": None, "--open-mode": "append"}
        self._skip(found)
        extra = dict(_split(option) for option in options.extra)
        if {"--ntasks", "-n"} & extra.keys() and "--ntasks-per-node" in found:
            raise UsageError(
                "The number of ranks is --nodes times --ntasks-per-node; --ntasks would contradict them. Give these "
                'two instead, or leave --ntasks-per-node out with slurm.skip = ["--ntasks-per-node"].'
            )
        return found | extra

    def _gpus(self) -> Mapping[str, int | None]:
        each, ranks = self.options.gpus_per_task, self.options.ntasks_per_node
        if each is None or self.launcher.is_srun:
            return {"--gpus-per-task": each}
        # Slurm would give the one process that starts the ranks of a node the devices of one task.
        return {"--gpus-per-node": each * ranks}

    def _skip(self, directives: dict[str, str | None]) -> None:
        for option in self.options.skip:
            name = _split(option)[0]
            if name not in directives:
                raise UsageError(
                    f"slurm.skip = {option!r} is not an option that this script has{nearest(name, directives)} It has "
                    f"{', '.join(directives)}."
                )
            del directives[name]

    def _setup(self) -> str:
        lines = []
        if self.path:
            lines += [
                "# The environment from which this was submitted.",
                f'export PATH={shlex.quote(self.path)}:"$PATH"',
            ]
        lines += self.options.setup or [_NO_SETUP]
        return "\n" + "".join(f"{line}\n" for line in lines) + "\n"

    def _cases(self) -> str:
        """What each task of an array sets."""
        if not self.tasks:
            return ""
        cases = [
            f"    {number}) task=({shlex.join(['--run-dir', task.directory, *_set(task.settings)])}) ;;\n"
            for number, task in enumerate(self.tasks, 1)
        ]
        return "".join(["case $SLURM_ARRAY_TASK_ID in\n", *cases, "esac\n\n"])

    def _start(self) -> str:
        run = shlex.join([*self.launcher.words, *self.run]) + (' "${task[@]}"' if self.tasks else "")
        # An array's own number means all of its tasks.
        job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if self.tasks else "$SLURM_JOB_ID"
        directory = '"${task[1]}"' if self.tasks else shlex.quote(self.directory)
        parts = [
            _comment(f"Why {self.launcher.words[0]}: {self.launcher.reason}."),
            _RUN.format(run=run, requeue=REQUEUE),
            _AGAIN.format(requeue=REQUEUE, most=self.options.max_requeues, job=job, directory=directory),
            'exit "$status"\n',
        ]
        return "".join(parts)


def passed_on(words: Sequence[str]) -> list[str]:
    """Options of sbatch from the words of a command line: ``--mem 8G`` and ``--mem=8G`` are one option each.

    Raises:
        UsageError: a word that belongs to no option.
    """
    options: list[str] = []
    for word in words:
        if word.startswith("-"):
            options.append(word)
        elif options and "=" not in options[-1] and " " not in options[-1]:
            options[-1] += ("=" if options[-1].startswith("--") else " ") + word
        else:
            raise UsageError(
                f"{word!r} belongs to no option. The job file comes first: hpcopt submit JOB.toml --nodes 2 ...; "
                "options of sbatch that are not among those of hpcopt submit come after it, such as --mem=8G."
            )
    return options


def _split(option: str) -> tuple[str, str | None]:
    """Name and value of an option of sbatch, ``--mem=8G``, ``-C fast``, by its long name if it is one of ours."""
    if option.startswith("--"):
        name, equals, value = option.partition("=")
        return name.strip(), value.strip() if equals else None
    name, value = option[:2], option[2:].strip()
    return _SHORT.get(name, name), value or None


def _directive(option: str, value: str | None) -> str:
    why = _comment(_WHY[option]) if option in _WHY else ""
    if value is None:
        return f"{why}#SBATCH {option}\n"
    return f"{why}#SBATCH {option}{'=' if option.startswith('--') else ' '}{shlex.quote(value)}\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"


def _set(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]
