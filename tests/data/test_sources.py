"""From a name to a set: built-in names, paths, sets of the data folder, partners, and names that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from hpcopt.data.options import DataOptions
from hpcopt.data.reader import Source
from hpcopt.data.sources import is_there, open_source
from hpcopt.errors import UsageError
from tests.support.datafiles import labelled, write_cifar10, write_csv, write_mnist

TABLE = np.array([[0.0, 1, 2], [1, 3, 4], [0, 5, 6]])


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCOPT_DATA", raising=False)


def opened(name: str, **keys: Any) -> Source:
    return open_source(DataOptions(name, **keys), seed=0, rank=0, size=1)


def test_every_set_of_files_is_opened_by_its_name(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_cifar10(tmp_path)
    savemat(tmp_path / "CDR_Data.mat", {"Y": np.zeros((5, 9)), "C": np.zeros((4, 9))})
    savemat(tmp_path / "burgers_shock.mat", {"x": np.zeros((3, 1)), "t": np.zeros((2, 1)), "usol": np.zeros((3, 2))})
    shapes = {"mnist": (1, 4, 5), "cifar10": (3, 32, 32), "cdr": (5,), "burgers": (2,)}
    assert {name: opened(name, root=str(tmp_path)).train.shape for name in shapes} == shapes


@pytest.mark.parametrize("place", ["", "mine", "tabular", "regression"])
@pytest.mark.parametrize("name", ["mine.csv.gz", "mine_train.csv", "mine.npz"])
def test_a_set_is_found_by_name_in_the_data_folder(tmp_path: Path, place: str, name: str) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    np.savez(folder / name, table=TABLE) if name.endswith("npz") else write_csv(folder / name, TABLE)
    assert opened("mine", root=str(tmp_path)).train.rows == 3


def test_the_variable_names_the_folder_and_the_key_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "mine.csv", TABLE[:rows])
    monkeypatch.setenv("HPCOPT_DATA", str(tmp_path / "a"))
    assert opened("mine").train.rows == 2
    assert opened("mine", root=str(tmp_path / "b")).train.rows == 3
    assert opened("mine.csv").train.rows == 2, "a path may begin in the data folder as well"


@pytest.mark.parametrize(
    ("train", "test"), [("s_train.csv.gz", "s_test.csv.gz"), ("train.csv", "test.csv"), ("s.libsvm", "s.t.libsvm")]
)
def test_a_training_file_has_its_partner_as_test_set(tmp_path: Path, train: str, test: str) -> None:
    for name, rows in ((train, 3), (test, 2)):
        if name.endswith("libsvm"):
            (tmp_path / name).write_text("1 1:1\n" * rows)
        else:
            write_csv(tmp_path / name, TABLE[:rows])
    source = opened(str(tmp_path / train))
    assert source.test is not None
    assert (source.train.rows, source.test.rows) == (3, 2)
    assert opened(str(tmp_path / train), test=1).test is None


def test_a_test_file_may_be_named(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "a.csv", TABLE)
    test = write_csv(tmp_path / "b.csv.gz", TABLE[:1])
    source = opened(str(train), test=str(test))
    assert source.test is not None
    assert source.test.rows == 1
    with pytest.raises(UsageError, match=r"data.test is 'no.csv', which does not exist"):
        opened(str(train), test="no.csv")


def test_training_and_test_samples_need_the_same_features(tmp_path: Path) -> None:
    write_csv(tmp_path / "s_train.csv", TABLE)
    write_csv(tmp_path / "s_test.csv", TABLE[:, :2])
    with pytest.raises(UsageError, match=r"have shape \(2,\), those of the test set .* \(1,\)"):
        opened(str(tmp_path / "s_train.csv"))


def test_sparse_parts_get_the_features_of_the_wider_one(tmp_path: Path) -> None:
    (tmp_path / "s.libsvm").write_text("1 1:1 7:1\n0 2:1\n")
    (tmp_path / "s.t.libsvm").write_text("1 9:1\n")
    source = opened(str(tmp_path / "s.libsvm"))
    assert source.test is not None
    assert source.train.shape == source.test.shape == (9,)


def test_a_column_called_label_makes_it_classification(tmp_path: Path) -> None:
    assert opened(str(write_csv(tmp_path / "a.csv", TABLE, "# label,x,y"))).task == "classification"
    assert opened(str(write_csv(tmp_path / "b.csv", TABLE, "z,x,y"))).task is None


def test_the_catalogue_knows_customs(tmp_path: Path) -> None:
    """The last 5,000 letters are the test set; two targets of the ship; wine's quality is a quantity."""
    write_csv(tmp_path / "letter.csv.gz", labelled(10))
    assert opened("letter", root=str(tmp_path)).test_size == 5000
    write_csv(tmp_path / "naval_propulsion.csv.gz", TABLE)
    assert opened("naval_propulsion", root=str(tmp_path)).train.shape == (1,)
    write_csv(tmp_path / "wine_quality_red.csv.gz", TABLE)
    assert opened("wine_quality_red", root=str(tmp_path)).task == "regression"


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("mnist5k", {}, r"no set that hpcopt knows; did you mean 'mnist-5k'\? Known are mnist-5k, digits"),
        ("mnist", {}, r"neither data.root nor the variable HPCOPT_DATA says where.*data info mnist"),
        ("mnist", {"root": "/no/such/folder"}, r"'/no/such/folder' \(from data.root\) does not exist"),
        ("no/such.csv", {}, r"data.source is 'no/such.csv', which does not exist. Give a path from the working"),
        ("digits", {"target": "last"}, "data.target is 'last', but the set 'digits' has its inputs and targets fixed"),
        ("cifar10", {"inputs": "x"}, "data.inputs is 'x'"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(name, **keys)


def test_an_unknown_name_is_compared_with_what_the_folder_holds(tmp_path: Path) -> None:
    write_csv(tmp_path / "satellite_train.csv", TABLE)
    with pytest.raises(UsageError, match=r"no file of that name; did you mean 'satellite'\?.*found there: satellite"):
        opened("satelite", root=str(tmp_path))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="is not a file"):
        opened(str(tmp_path / "folder.csv"))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("a.csv", {"inputs": "x"}, "data.inputs is 'x', which names an array"),
        ("a.libsvm", {"target": "last"}, "the label is always the first"),
    ],
)
def test_keys_that_do_not_apply_to_a_file_are_refused(
    tmp_path: Path, name: str, keys: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_text("1 1:1\n")
    with pytest.raises(UsageError, match=message):
        opened(str(tmp_path / name), **keys)


def test_a_set_is_there_once_its_files_are(tmp_path: Path) -> None:
    assert not is_there("mnist", tmp_path / "none")
    assert not any(is_there(name, tmp_path) for name in ("mnist", "cifar10", "cdr", "letter"))
    write_mnist(tmp_path / "mnist")
    write_cifar10(tmp_path)
    (tmp_path / "CDR_Data.mat").touch()
    write_csv(tmp_path / "letter.csv.gz", TABLE)
    assert all(is_there(name, tmp_path) for name in ("mnist", "cifar10", "cdr", "letter"))
