"""Commands of README.md and docs/*.md, each tried in a folder as far as it can be without a cluster or a network."""

from __future__ import annotations

import contextlib
import glob
import io
import re
import runpy
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from hpcopt.cli.data import app as data
from hpcopt.cli.main import app, main
from hpcopt.cli.submit import app as submit
from tests.support import measurements
from tests.support.pages import ROOT, without_launcher
from tests.support.runs import write_live

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SMALL = ["run.device=cpu", "debug.silence_seconds=0"]
"""What every job is told beside its length. The data of the pages are small."""

ELSEWHERE = {
    r"make test": "it runs these very tests",
    r"make demo( PIP_OPTIONS=.*)?": "it installs from the network; what it runs is the quick start",
    r"module load \w+": "a cluster has it",
    r"python3 -m venv \w+": "Python has it",
    r"\. [\w.-]+/bin/activate": "so has a virtual environment",
    r"export \w+=\S+": "a shell has it",
    r"touch runs/\w+/halt": "tests/fault/test_stop.py",
    r"slurm/test-cluster \w+": "the tests on Slurm use it",
    r"hpcopt data fetch .*": "it needs the network, and is parsed; tests/data/test_fetch.py",
    r"scancel .*": "tests/slurm",
}
"""What is not run here -> where it is tried, or why it need not be."""


_known: set[tuple[str, ...]] = set()
"""What has been tried; the doctor says the same on every page."""


def run_command(command: str) -> None:
    """Try one command in the current directory, which has jobs, data and a run; one that is not known fails."""
    words = [name for word in without_launcher(command) for name in sorted(glob.glob(word)) or [word]]
    if words[0] == "hpcopt":
        parse(words[1:])
    if any(re.fullmatch(pattern, shlex.join(words)) for pattern in ELSEWHERE):
        return
    tries: dict[str, Callable[[list[str]], None]] = {"hpcopt": _hpcopt, "python": _python, "pip": _pip}
    assert words[0] in tries, f"{command!r} is in the documentation, but no test knows how to try it"
    tries[words[0]](words[1:])


def parse(arguments: list[str]) -> None:
    """Read a command line by the real parser, without doing what it says; refuses what ``hpcopt`` would refuse."""
    command, rest = _command(arguments)
    context = command.make_context("hpcopt", rest)
    unknown = [word for word in context.args if re.match(r"--(?!mem|qos|exclusive|gres)", word)]
    assert unknown == [], f"neither hpcopt nor sbatch knows {unknown}"


def check_options(arguments: list[str]) -> None:
    """The command is there and has these options, whatever else is lacking."""
    command, rest = _command(arguments)
    known = [name for parameter in command.params for name in parameter.opts]
    unknown = [word for word in rest if word.startswith("-") and word.split("=")[0] not in (*known, "--help")]
    assert unknown == [], f"hpcopt {arguments[0]} has no option {unknown}"


def _command(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command of the real parser that is meant, and the words behind its name."""
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    if name == "data":
        return typer.main.get_command(data).commands[rest[0]], rest[1:]  # type: ignore[attr-defined]
    return typer.main.get_command(submit) if name == "submit" else group.commands[name], rest


def run_python(path: str | Path, *arguments: str) -> str:
    """Run a file as Python does, in this process, and return what it printed."""
    said, before = io.StringIO(), (sys.argv, sys.excepthook)
    sys.argv = [str(path), *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.excepthook = before
    return said.getvalue()


def _hpcopt(words: list[str]) -> None:
    if words[0] == "doctor" and tuple(words) in _known:
        return
    _known.add(tuple(words))
    with _signals(), _live(words) as given:
        assert main([*given, *_added(given)]) == 0, words


def _added(words: list[str]) -> list[str]:
    """What makes a command possible here."""
    if words[0] == "run":
        length = "iterations" if re.search(r"^iterations", Path(words[1]).read_text(), re.MULTILINE) else "epochs"
        return ["--fresh", *(word for setting in (*SMALL, f"run.{length}=2") for word in ("--set", setting))]
    if words[0] == "predict":
        return ["--measured", str(measurements.written(Path("measured.json")))]
    if words[0] == "submit":
        return ["--print", "--launcher", "mpirun"]
    return []


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextlib.contextmanager
def _live(words: list[str]) -> Iterator[list[str]]:
    """For ``hpcopt stop``, a run that is going on; all other commands have runs that are finished."""
    if words[0] != "stop":
        yield words
        return
    run = write_live(Path("live"), epochs=1, saves=True)
    try:
        yield [words[0], str(run), *words[2:]]
    finally:
        shutil.rmtree(run)


def _python(words: list[str]) -> None:
    """A file of the page is run. A benchmark takes too long: it must have the options that it is given."""
    path = Path(words[0])
    if not words[0].startswith("benchmarks/"):
        run_python(path, *words[1:])
        return
    text = run_python(ROOT / path, "--help")
    assert [word for word in words[1:] if word.startswith("--") and word not in text] == [], text


def _pip(words: list[str]) -> None:
    """Every extra that is to be installed is one of the package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    named = [name for word in words for found in re.findall(r"\[(.*)\]", word) for name in found.split(",")]
    assert set(named) <= set(extras), f"{named} are not all of {list(extras)}"
