import resource
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import hpcopt
from hpcopt.cli import main as cli
from hpcopt.cli.main import main
from hpcopt.comm.faults import RANK_VARIABLES, launcher_rank
from hpcopt.errors import HpcoptError, UsageError
from tests.support.commands import parse
from tests.support.runs import write_run

ROOT = Path(hpcopt.__file__).parents[1]
PROMISED = [
    "run job.toml --run-dir out --set run.seed=1 --set run.epochs=2 --fresh --quiet",
    "inspect runs/a --json --history",
    "compare runs/a runs/b --json",
    "plot runs/a runs/b -o a.png",
    "verify runs/a",
    "export runs/a -o model.pt",
    "submit job.toml --nodes 2 --ntasks-per-node 4 --time 01:00:00 --print --wait --mem=8G",
    "doctor --json",
    "predict job.toml --ranks 8,64,1024 --json",
    "status runs/a runs/b",
    "stop runs/a",
    "data list",
    "data info mnist",
    "data fetch mnist --root sets --mirror http://localhost/",
]
"""Every command with its options: other people's scripts are full of them."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def replace_command(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., object]) -> None:
    module = types.ModuleType(f"hpcopt.cli.{name}")
    setattr(module, name, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["inspect", "RUN"]])
def test_a_short_command_starts_at_once_and_without_heavy_imports(tmp_path: Path, arguments: list[str]) -> None:
    run = write_run(tmp_path / "a", epochs=2)
    program = (
        "import sys, atexit\n"
        "from hpcopt.cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        "heavy = {'torch', 'mpi4py', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)\n"
    )
    command = [sys.executable, "-c", program, *(str(run) if word == "RUN" else word for word in arguments)]
    seconds = []
    for _ in range(3):
        start = cpu_seconds_of_children()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
        seconds.append(cpu_seconds_of_children() - start)
        assert done.returncode == 0, done.stderr
    # 0.15 to 0.4 s; of the processor, which a machine that is busy with other tests hardly changes.
    assert min(seconds) < 1.2


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_python_dash_m_is_the_same_command() -> None:
    command = [sys.executable, "-m", "hpcopt", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"hpcopt {hpcopt.__version__}\n")


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for line in PROMISED:
        assert f" {line.split()[0]} " in shown


@pytest.mark.parametrize("line", PROMISED)
def test_what_scripts_rely_on_is_understood(line: str) -> None:
    parse(shlex.split(line))


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "--wat"],
        ["inspect"],
        ["wat"],
        ["plot", "a"],
        ["run", "a.toml", "b.toml"],
        ["compare", "a", "--history"],
    ],
)
def test_a_mistake_on_the_command_line_ends_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert "Usage" in output.err
    assert output.out == ""


@pytest.mark.parametrize("kind", [HpcoptError, UsageError])
def test_an_error_the_user_can_mend_is_one_paragraph_with_its_status(
    kind: type[HpcoptError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> None:
        raise kind("The value is 3, but must be 2.")

    replace_command(monkeypatch, "inspect", failing)
    assert main(["inspect", "a"]) == kind.exit_status
    assert capsys.readouterr() == ("", "hpcopt: error: The value is 3, but must be 2.\n")


def test_a_bug_shows_its_trace_and_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_command(monkeypatch, "inspect", lambda *_: 1 // 0)
    assert main(["inspect", "a"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 2, 3, 75])
def test_run_hands_its_options_over_and_its_status_back(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    given: list[object] = []
    replace_command(monkeypatch, "run", lambda *arguments: given.extend(arguments) or status)
    arguments = ["run", "job.toml", "--run-dir", "d", "--set", "run.seed=1", "--set", "model.name=cnn", "--fresh"]
    assert main(arguments) == status
    assert given == [Path("job.toml"), Path("d"), ["run.seed=1", "model.name=cnn"], True, False]


def test_data_gets_its_arguments_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    replace_command(monkeypatch, "data", lambda: None)
    sys.modules["hpcopt.cli.data"].app = lambda args, prog_name: given.append((args, prog_name))  # type: ignore[attr-defined]
    assert main(["data", "fetch", "mnist", "--root", "d", "--help"]) == 0
    assert given == [(["fetch", "mnist", "--root", "d", "--help"], "hpcopt data")]


@pytest.mark.parametrize("variable", RANK_VARIABLES)
def test_the_rank_is_known_from_the_launcher(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert launcher_rank() == 0
    monkeypatch.setenv(variable, "3")
    assert launcher_rank() == 3


def test_of_many_processes_the_first_alone_inspects_and_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    assert main(["inspect", "does-not-exist"]) == 0
    assert main(["run", "--help"]) == 0
    assert capsys.readouterr() == ("", "")


def test_of_many_processes_the_first_alone_explains_a_wrong_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setattr(cli.time, "sleep", lambda _: None)
    assert main(["run", "--wat"]) == 2
    assert capsys.readouterr() == ("", "")


def test_other_ranks_get_the_status_of_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    for status in (0, 3):
        replace_command(monkeypatch, "run", lambda *_, status=status: status)
        assert main(["run", "job.toml"]) == status


def test_output_into_a_closed_pipe_is_no_bug(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", epochs=300, per_epoch=1)
    command = f"{sys.executable} -m hpcopt inspect {run} --json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr, done.stderr
