import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

import hpcopt
from hpcopt.analysis import history
from hpcopt.analysis.history import open_run
from hpcopt.errors import UsageError
from hpcopt.train.run.directory import RunDirectory
from hpcopt.train.run.record import Recorder
from hpcopt.train.run.record_reader import FLAGS
from tests.support.fresh import modules_after
from tests.support.refusals import denied
from tests.support.runs import evaluation_row, iteration_row, set_status, write_run, write_start

ROOT = Path(hpcopt.__file__).parents[1]


def test_the_history_is_a_record_array_of_the_evaluations_with_the_iteration_before_each(tmp_path: Path) -> None:
    run = hpcopt.open_run(write_run(tmp_path / "a", epochs=10, per_epoch=4))
    assert isinstance(run.history, np.recarray)
    assert run.history.iteration.tolist() == list(range(0, 41, 4))
    assert run.history.test_accuracy == pytest.approx(run.evaluations.test_accuracy)
    for name in ("loss", "rho", "predicted", "inner_iterations", "gradients", "calls"):
        assert run.history[name][1:].tolist() == run.iterations[name][3::4].tolist()
    assert np.isnan(run.history.rho[0])
    assert run.history.gradients[0] == 0.0
    assert run.history.dtype["accepted"] == np.int64


def test_the_tables_are_as_they_were_recorded(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a", epochs=3, per_epoch=4, ranks=3))
    assert run.name == "a"
    assert run.iterations.size == 12
    assert run.evaluations.size == 4
    assert run.ranks.seconds_step.shape == (4, 3)
    assert run.ranks.seconds_waited[0] == pytest.approx([0.01, 0.012, 0.014])
    assert run.iterations[4].accepted == 0


def test_local_iterations_have_a_row_for_every_iteration(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a", epochs=2, per_epoch=3, ranks=3, local_iterations=(5, 1, 4)))
    assert run.local_iterations.tolist() == [[5, 1, 4]] * 4 + [[-1, -1, -1]] + [[5, 1, 4]]


def test_a_method_without_local_phases_and_a_record_from_before_them_have_no_local_iterations(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=2, per_epoch=3)
    assert open_run(path).local_iterations.shape == (6, 0)
    with h5py.File(path / "metrics.h5", "r+", libver="latest") as file:
        del file["iterations/local_iterations"]
    run = open_run(path)
    assert run.local_iterations.shape == (6, 0)
    assert run.iterations.size == 6


def test_a_path_may_be_a_string_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a", epochs=1)
    monkeypatch.chdir(tmp_path / "a")
    assert open_run(".").name == "a"


def test_a_run_that_goes_on_is_read_and_refreshed(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a", fresh=False) as directory:
        recorder = Recorder(directory.path, 2)
        run = open_run(directory.path)
        assert (run.status, run.evaluations.size) == ("running", 0)
        for iteration in range(1, 1500):
            recorder.iteration(**iteration_row(iteration, 4, 0.3, True))
            recorder.evaluation(**evaluation_row(iteration, 4, 0.3, True, "classification", True))
        recorder.flush()
        assert run.evaluations.size == 0
        run.refresh()
        assert (run.evaluations.size, run.iterations.size) == (1499, 1499)
        recorder.close()


def test_a_run_without_a_record_has_empty_tables(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a", fresh=False) as directory:
        directory.write_status(solver="sgd")
        run = open_run(directory.path)
        assert (run.history.size, run.iterations.size, run.ranks.size) == (0, 0, 0)
        assert run.status == "running"


def test_running_without_a_living_process_reads_as_failed(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a", status="running"))
    assert run.status == "failed"
    assert "killed" in str(run.facts["stop_reason"])


@pytest.mark.parametrize("status", ["finished", "saved", "diverged"])
def test_an_end_that_was_written_is_the_status(tmp_path: Path, status: str) -> None:
    assert open_run(write_run(tmp_path / "a", epochs=1, status=status)).status == status


def test_a_status_that_is_damaged_is_no_status(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=1)
    (path / "status.json").write_text("{")
    assert open_run(path).status == "failed"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("trst", "did you mean '.*trust'"),
        ("unlike-anything", "There is no run directory"),
        (".", "runs inside: trust"),
        ("trust/job.toml", "is a file"),
    ],
)
def test_what_is_not_a_run_is_refused_with_a_hint(tmp_path: Path, given: str, words: str) -> None:
    write_start(tmp_path / "trust")
    with pytest.raises(UsageError, match=words):
        open_run(tmp_path / given if given != "trust/job.toml" else _made(tmp_path / "trust" / "job.toml"))


def test_a_folder_that_may_not_be_listed_costs_only_the_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", denied)
    for path, words in ((tmp_path, "holds no run"), (tmp_path / "a", "There is no run directory")):
        with pytest.raises(UsageError, match=words):
            open_run(path)


def test_a_folder_that_may_not_be_entered_is_not_taken_for_one_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed)
    for path in (closed, closed / "a"):
        with pytest.raises(UsageError, match=r"may not enter .*closed\. Ask its owner"):
            open_run(path)


def _made(path: Path) -> Path:
    path.write_text("")
    return path


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=1)
    (path / "metrics.h5").write_bytes(b"not HDF5")
    with pytest.raises(UsageError, match="cannot be read"):
        _ = open_run(path).history


@pytest.mark.parametrize("state", ["finished", "killed"])
def test_a_record_damaged_in_its_structure_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    close, kept = Recorder.close, tmp_path / "kept"

    def keep_as_a_kill_leaves_it(recorder: Recorder) -> None:
        recorder.flush()
        shutil.copy(recorder.path, kept)
        close(recorder)

    monkeypatch.setattr(Recorder, "close", keep_as_a_kill_leaves_it)
    path = write_run(tmp_path / "a", epochs=3) / "metrics.h5"
    if state == "killed":
        shutil.copy(kept, path)
        assert path.read_bytes()[FLAGS]
        assert len(open_run(path.parent).history) == 4
    content = bytearray(path.read_bytes())
    for found in re.finditer(b"EAHD", bytes(content)):  # where it says which chunks a column has
        content[found.start() + 10] ^= 1
    path.write_bytes(content)
    words = [sys.executable, "-c", "import sys, hpcopt; hpcopt.open_run(sys.argv[1]).history", str(path.parent)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert "UsageError: The record" in done.stderr


def test_another_hdf5_file_and_a_newer_schema_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=1)
    for attributes, words in (({}, "not a record"), ({"format": "hpcopt metrics", "schema": 2}, "Update hpcopt")):
        (path / "metrics.h5").unlink()
        with h5py.File(path / "metrics.h5", "w", libver="latest") as file:
            file.attrs.update(attributes)
        with pytest.raises(UsageError, match=words):
            _ = open_run(path).history


def test_a_chunk_that_was_torn_by_the_end_of_the_writer_loses_no_whole_rows(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=100, per_epoch=20)
    whole = open_run(path).iterations
    with h5py.File(path / "metrics.h5", "r", libver="latest", swmr=True) as file:
        loss = file["iterations/loss"]
        last = loss.id.get_chunk_info(loss.id.get_num_chunks() - 1)
    with open(path / "metrics.h5", "r+b") as raw:
        raw.seek(last.byte_offset + last.size - 6)
        raw.write(b"torn")
    torn = open_run(path).iterations
    assert np.array_equal(torn.loss, whole.loss)


def test_rows_without_their_number_do_not_count(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=5, per_epoch=4)
    with h5py.File(path / "metrics.h5", "r+", libver="latest") as file:
        for name in ("loss", "iteration"):
            file["iterations"][name].resize((25,))
        file["iterations/loss"][20:] = 7.0
    iterations = open_run(path).iterations
    assert iterations.size == 20
    assert not (iterations.loss == 7.0).any()


def test_the_reader_does_not_import_mpi_torch_or_matplotlib(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=1)
    loaded = modules_after("import sys, hpcopt; hpcopt.open_run(sys.argv[1]).history", path)
    assert not {"torch", "mpi4py", "matplotlib"} & loaded


WRITER = """
import sys
from pathlib import Path
from hpcopt.train.run.record import Recorder
from hpcopt.train.run.directory import RunDirectory
from tests.support.runs import evaluation_row, iteration_row
directory = RunDirectory.create(Path(sys.argv[1]), fresh=False)
directory.write_status(solver="trust_region")
recorder = Recorder(directory.path, 2)
print("go", flush=True)
number = 0
while True:
    number += 1
    recorder.iteration(**iteration_row(number, 4, 0.001, True))
    if number % 4 == 0:
        recorder.evaluation(**evaluation_row(number, 4, 0.001, True, "classification", True))
        recorder.rank_times(number, [0.1, 0.1], [0.01, 0.02], [0.0, 0.01])
"""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within this block another process writes a run without pause, until it is killed at the end."""
    words = [sys.executable, "-c", WRITER, str(path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "go\n"
            yield
        finally:
            child.kill()


def test_runs_killed_at_any_moment_can_be_read(tmp_path: Path) -> None:
    """Ten times kill -9 at a random moment: the run opens, all its rows are right, it reads as failed."""
    generator = np.random.default_rng(1)
    for trial in range(10):
        path = tmp_path / str(trial)
        with writing(path):
            time.sleep(generator.uniform(0.0, 0.25))
            going = open_run(path)
            assert going.status == "running"
            _check_rows(going)
        killed = open_run(path)
        assert killed.status == "failed"
        _check_rows(killed)


def _check_rows(run: history.Run) -> None:
    iterations, evaluations = run.iterations, run.evaluations
    assert iterations.iteration.tolist() == list(range(1, iterations.size + 1))
    assert np.array_equal(iterations.calls, 3 * iterations.iteration)
    assert np.array_equal(iterations.epoch, iterations.iteration / 4)
    assert np.isfinite(evaluations.train_loss).all()
    assert np.array_equal(evaluations.bytes, 1000 * evaluations.iteration)
    assert np.isfinite(run.history.loss).all(), "each evaluation finds its iteration"


def test_the_facts_are_those_of_the_status(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=1)
    set_status(path, extra=[1])
    run = open_run(path)
    assert run.facts["extra"] == [1]
    assert run.facts == {**json.loads((path / "status.json").read_text())}
    assert run.environment == {"python": "3"}
