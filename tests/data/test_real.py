"""The real sets, where the variable HPCOPT_DATA names a folder with their files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.data.catalog import CATALOG
from hpcopt.data.dataset import DataSet
from hpcopt.data.load import load
from hpcopt.data.options import DataOptions
from hpcopt.data.sources import is_there

ROOT = os.environ.get("HPCOPT_DATA", "")
IN_FOLDER = [name for name, entry in CATALOG.items() if entry.where == "data folder"]


def real(name: str, comm: Communicator) -> DataSet:
    if not ROOT:
        pytest.skip("HPCOPT_DATA names no folder with data sets")
    if not is_there(name, Path(ROOT)):
        pytest.skip(f"the folder of HPCOPT_DATA does not hold {name}")
    return load(DataOptions(name), comm, 0)


@pytest.mark.parametrize("name", IN_FOLDER)
def test_a_set_is_what_the_catalogue_says(comm: Communicator, name: str) -> None:
    data, entry = real(name, comm), CATALOG[name]
    assert (data.train.total, data.test.total if data.test else 0) == (entry.train, entry.test)
    assert (data.input_shape, data.outputs, data.task) == (entry.features, entry.outputs, entry.task)
    if data.facts["standardize"] == "feature":
        deviations = data.train.inputs.std(0, dtype=np.float64)
        np.testing.assert_allclose(deviations[deviations > 0], 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mean", "scale"),
    [
        ("mnist", [0.1307], [0.3081]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("cifar100", [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ],
)
def test_images_have_the_known_mean_and_deviation(
    comm: Communicator, name: str, mean: list[float], scale: list[float]
) -> None:
    facts = real(name, comm).facts
    assert facts["input_mean"] == pytest.approx(mean, abs=6e-5)
    assert facts["input_scale"] == pytest.approx(scale, abs=6e-5)


def test_classes_are_as_many_as_published(comm: Communicator) -> None:
    counts = np.bincount(real("mnist", comm).train.targets)
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    counts = np.bincount(real("a9a", comm).train.targets)
    assert counts.tolist() == [24720, 7841]


def test_the_sums_of_the_official_files_are_right(comm: Communicator) -> None:
    files = real("mnist", comm).facts["files"]
    sums = {file.name: file.sha256 for file in CATALOG["mnist"].remote}
    for file in map(Path, files):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sums[file.name]
