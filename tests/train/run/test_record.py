import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcopt.errors import UsageError
from hpcopt.train.run import record
from hpcopt.train.run.record import EVALUATION_COLUMNS, ITERATION_COLUMNS, LOCAL_ITERATIONS, RANK_COLUMNS, Recorder
from hpcopt.train.run.record_reader import read_tables

ROOT = Path(record.__file__).parents[3]


def iteration_row(number: int) -> dict[str, float]:
    return {column.name: 1000.0 * number for column in ITERATION_COLUMNS} | {"iteration": number, "accepted": 1}


def evaluation_row(number: int) -> dict[str, float]:
    return {column.name: 1000.0 * number for column in EVALUATION_COLUMNS} | {"iteration": number}


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path, ranks=3)
    yield recorder
    recorder.close()


def open_reader(directory: Path) -> h5py.File:
    return h5py.File(directory / "metrics.h5", "r", swmr=True, libver="latest")


def test_the_file_names_its_schema_and_every_column_its_unit_and_meaning(tmp_path: Path, recorder: Recorder) -> None:
    with open_reader(tmp_path) as file:
        assert (file.attrs["schema"], file.attrs["format"]) == (1, "hpcopt metrics")
        iterations = (*ITERATION_COLUMNS, LOCAL_ITERATIONS)
        tables = {"iterations": iterations, "evaluations": EVALUATION_COLUMNS, "ranks": RANK_COLUMNS}
        assert set(file) == set(tables)
        for name, columns in tables.items():
            assert set(file[name]) == {column.name for column in columns}
            for column in columns:
                assert file[name][column.name].attrs["unit"] == column.unit
                assert file[name][column.name].attrs["meaning"] == column.meaning
                assert file[name][column.name].fletcher32


def test_what_was_recorded_is_read_back(tmp_path: Path, recorder: Recorder) -> None:
    for number in range(1, 200):
        recorder.iteration(**iteration_row(number))
    recorder.evaluation(**evaluation_row(199))
    recorder.rank_times(199, [1.0, 2.0, 3.0], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2])
    recorder.close()
    with open_reader(tmp_path) as file:
        assert file["iterations/iteration"][:].tolist() == list(range(1, 200))
        assert file["iterations/loss"][:].tolist() == [1000.0 * number for number in range(1, 200)]
        assert file["evaluations/test_loss"][:].tolist() == [199000.0]
        assert file["ranks/seconds_step"][:].tolist() == [[1.0, 2.0, 3.0]]
        assert file["ranks/seconds_waited"][:].tolist() == [[0.1, 0.2, 0.3]]
        assert file["ranks/seconds_for_others"][:].tolist() == [[0.0, 0.1, 0.2]]
        assert file["ranks/iteration"][:].tolist() == [199]


@pytest.mark.parametrize("column", RANK_COLUMNS[1:], ids=lambda column: column.name)
def test_a_column_that_an_older_record_lacks_is_unknown_and_all_others_are_read(
    tmp_path: Path, recorder: Recorder, column: record.Column
) -> None:
    recorder.rank_times(9, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    recorder.close()
    with h5py.File(tmp_path / "metrics.h5", "r+") as file:
        del file["ranks"][column.name]
    ranks = read_tables(tmp_path / "metrics.h5")["ranks"]
    assert ranks["iteration"].tolist() == [9]
    for each in RANK_COLUMNS[1:]:
        np.testing.assert_equal(ranks[each.name], [[np.nan] * 3 if each is column else [1.0, 2.0, 3.0]])


def test_a_reader_that_has_the_file_open_sees_new_rows(tmp_path: Path, recorder: Recorder) -> None:
    with open_reader(tmp_path) as file:
        for number in range(2000):
            recorder.iteration(**iteration_row(number))
        recorder.flush()
        for name in ("iteration", "loss"):
            file["iterations"][name].refresh()
            assert file["iterations"][name].shape == (2000,)


def test_rows_wait_for_1024_of_them_or_2_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    now = 100.0
    monkeypatch.setattr(record.time, "monotonic", lambda: now)

    def rows() -> int:
        with open_reader(tmp_path) as file:
            return int(file["iterations/iteration"].shape[0])

    recorder.iteration(**iteration_row(1))
    assert rows() == 1, "the first row shows at once that the run is going"
    for number in range(1023):
        recorder.iteration(**iteration_row(number))
    assert rows() == 1
    recorder.iteration(**iteration_row(1024))
    assert rows() == 1025
    recorder.iteration(**iteration_row(1025))
    now += 1.9
    recorder.evaluation(**evaluation_row(1024))
    assert rows() == 1025
    now += 0.1
    recorder.evaluation(**evaluation_row(1025))
    assert rows() == 1026


@pytest.mark.parametrize("method", ["iteration", "evaluation"])
def test_an_unknown_or_a_missing_column_is_a_type_error(recorder: Recorder, method: str) -> None:
    row = iteration_row(1) if method == "iteration" else evaluation_row(1)
    with pytest.raises(TypeError, match="unknown: lss"):
        getattr(recorder, method)(**row, lss=1.0)
    del row["epoch"]
    with pytest.raises(TypeError, match="missing: epoch"):
        getattr(recorder, method)(**row)


def test_figures_of_another_number_of_ranks_are_a_type_error(recorder: Recorder) -> None:
    with pytest.raises(TypeError, match="3 ranks"):
        recorder.rank_times(1, [1.0, 2.0], [1.0, 2.0], [1.0, 2.0])
    with pytest.raises(TypeError, match="3 ranks"):
        recorder.iteration(local_iterations=(1, 2), **iteration_row(1))


def test_local_iterations_have_a_column_for_each_rank(tmp_path: Path, recorder: Recorder) -> None:
    for number in range(1, 200):
        recorder.iteration(local_iterations=(5, number, 0), **iteration_row(number))
    recorder.close()
    with open_reader(tmp_path) as file:
        assert file["iterations/local_iterations"][:].tolist() == [[5, number, 0] for number in range(1, 200)]


def test_local_iterations_take_no_room_in_a_run_without_local_phases(tmp_path: Path, recorder: Recorder) -> None:
    for number in range(1, 200):
        recorder.iteration(**iteration_row(number))
    recorder.close()
    with open_reader(tmp_path) as file:
        assert file["iterations/local_iterations"].shape == (0, 3)


@pytest.mark.parametrize("without", [{1}, {1, 2, 3}, {4}, {2, 6}])
def test_an_iteration_without_a_local_phase_has_minus_one(
    tmp_path: Path, recorder: Recorder, without: set[int]
) -> None:
    for number in range(1, 7):
        recorder.iteration(local_iterations=() if number in without else (number,) * 3, **iteration_row(number))
        if number % 2 == 0:
            recorder.flush()
    recorder.close()
    expected = [[-1 if number in without else number] * 3 for number in range(1, 7)]
    with open_reader(tmp_path) as file:
        assert file["iterations/local_iterations"][:].tolist() == expected


def test_a_row_costs_microseconds(recorder: Recorder) -> None:
    row = iteration_row(1)
    times = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(1280):
            recorder.iteration(**row)
        times.append((time.thread_time() - start) / 1280)
    # 9 us on a laptop core; a library call for every value of a row would take more than 200.
    assert min(times) < 100e-6


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="could not be created"):
        Recorder(tmp_path / "missing", ranks=1)


def test_a_write_that_fails_warns_once_and_the_run_goes_on(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.iteration(**iteration_row(1))

    def full(self: record.Table) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.Table, "write", full)
    for number in range(2, 500):
        recorder.iteration(**iteration_row(number))
        recorder.evaluation(**evaluation_row(number))
    recorder.close()
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]
    assert "No space left on device" in caplog.text
    assert not recorder.active
    with open_reader(tmp_path) as file:
        assert file["iterations/iteration"][:].tolist() == [1]


FULL_DISK = """
import logging, os, resource, sys
from pathlib import Path
from hpcopt.train.run.record import Recorder
sys.path.insert(0, sys.argv[3])
from tests.train.run.test_record import iteration_row, evaluation_row
logging.basicConfig(format="%(message)s")
how, directory = sys.argv[1], Path(sys.argv[2])
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
recorder = Recorder(directory, 2)
for number in range(5000):
    recorder.iteration(**iteration_row(number))
    if number % 100 == 0:
        recorder.evaluation(**evaluation_row(number))
        recorder.rank_times(number, [1, 2], [1, 2], [1, 2])
    if number == 1000 and how == "device":
        # From here on the file can be read and not written, as on a disk that is full or gone.
        os.dup2(os.open(recorder.path, os.O_RDONLY), recorder._file.id.get_vfd_handle())
print("active", recorder.active)
recorder.close()
print("the run went on")
"""


@pytest.mark.parametrize("how", ["limit", "device"])
def test_a_full_disk_does_not_end_the_process(tmp_path: Path, how: str) -> None:
    if how == "limit" and resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("file sizes are limited here already")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, how, str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["active False", "the run went on"]
    assert len(done.stderr.splitlines()) == 1
    assert ("Bad file descriptor" if how == "device" else "ulimit -f") in done.stderr
    with open_reader(tmp_path) as file:
        numbers = file["iterations/iteration"][:]
    assert np.array_equal(numbers, np.arange(numbers.size))


def test_the_number_of_a_row_is_written_after_all_its_other_columns(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a process killed at any moment leaves only whole rows; that it does is tested with the reader."""
    real = record.Table._write_column
    lengths: list[tuple[int, int]] = []

    def watched(table: record.Table, index: int, values: Sequence[float], count: int) -> None:
        real(table, index, values, count)
        shapes = {dataset.name: dataset.shape[0] for dataset in table._sets}
        lengths.append((shapes.pop(f"/{table.name}/iteration"), min(shapes.values())))

    monkeypatch.setattr(record.Table, "_write_column", watched)
    for number in range(1, 4):
        recorder.iteration(local_iterations=(5, 5, 5), **iteration_row(number))
    recorder.evaluation(**evaluation_row(3))
    recorder.rank_times(3, [1.0] * 3, [1.0] * 3, [1.0] * 3)
    recorder.flush()
    assert len(lengths) > len(ITERATION_COLUMNS) + len(EVALUATION_COLUMNS) + len(RANK_COLUMNS)
    assert all(numbers <= others for numbers, others in lengths)
