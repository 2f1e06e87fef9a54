"""Fetching from an HTTP server on this machine: every byte is checked, and nothing broken is left behind."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hpcopt.data.catalog import CATALOG, Entry, RemoteFile
from hpcopt.data.fetch import fetch, known_set
from hpcopt.errors import UsageError

CONTENT = {"images.gz": b"pixels" * 300_000, "labels.gz": b"labels"}


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a word, and notes what it was asked for."""

    asked: list[str]

    def log_message(self, *arguments: Any) -> None:
        self.asked.append(self.path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, list[str]]]:
    """Address, folder and requests of a server on the loopback."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    Handler.asked = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder, Handler.asked
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def entry(*mirrors: str, name: str = "tiny") -> Entry:
    remote = tuple(RemoteFile(file, hashlib.sha256(content).hexdigest()) for file, content in CONTENT.items())
    return Entry(name, "two files", "classification", 1, 1, (1,), 2, "nobody", remote=remote, mirrors=mirrors)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.exists() else {}


def test_files_come_into_a_folder_of_the_sets_name(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    progress: list[tuple[str, int, int | None]] = []
    results = fetch(entry(server[0] + "/"), tmp_path / "new" / "root", progress=lambda *a: progress.append(a))
    assert listing(tmp_path / "new" / "root" / "tiny") == CONTENT
    assert [result.origin for result in results] == [f"{server[0]}/images.gz", f"{server[0]}/labels.gz"]
    assert progress[-1] == ("labels.gz", 6, 6)


def test_files_that_are_there_and_whole_are_not_fetched_again(
    server: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    """In the set's folder or in the root itself; one that is damaged is replaced."""
    root = tmp_path / "root"
    (root / "tiny").mkdir(parents=True)
    (root / "labels.gz").write_bytes(CONTENT["labels.gz"])
    (root / "tiny" / "images.gz").write_bytes(CONTENT["images.gz"][:-1] + b"?")
    results = fetch(entry(server[0]), root)
    assert [result.origin is None for result in results] == [False, True]
    assert server[2] == ["/images.gz"]
    assert (root / "tiny" / "images.gz").read_bytes() == CONTENT["images.gz"]
    assert all(result.origin is None for result in fetch(entry(server[0]), root))
    assert server[2] == ["/images.gz"]


def test_wrong_content_is_refused_and_removed(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    (server[1] / "labels.gz").write_bytes(b"evil")
    with pytest.raises(
        UsageError, match=r"'labels.gz' of 'tiny' could not be fetched.*SHA-256 [0-9a-f]{64} instead of"
    ):
        fetch(entry(server[0]), tmp_path / "root")
    assert listing(tmp_path / "root") == {"images.gz": CONTENT["images.gz"]}


def test_a_damaged_file_is_kept_until_a_whole_one_is_there(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    (server[1] / "images.gz").write_bytes(b"evil")
    (tmp_path / "root").mkdir()
    mine = tmp_path / "root" / "tiny" / "images.gz"
    mine.parent.mkdir()
    mine.write_bytes(b"half")
    with pytest.raises(UsageError, match="SHA-256"):
        fetch(entry(server[0]), tmp_path / "root")
    assert listing(tmp_path / "root") == {"images.gz": b"half"}


def test_the_next_address_is_tried(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    addresses = ("http://127.0.0.1:9/nobody", f"{server[0]}/nothing/", server[0])
    results = fetch(entry(*addresses), tmp_path)
    assert results[0].origin == f"{server[0]}/images.gz"
    with pytest.raises(UsageError, match=r"127.0.0.1:9/nobody/images.gz: .*refused.*nothing/images.gz: HTTP Error 404"):
        fetch(entry(*addresses[:2]), tmp_path / "other")
    assert listing(tmp_path / "other") == {}


def test_a_mirror_takes_the_place_of_all_addresses(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    results = fetch(entry("http://127.0.0.1:9/nobody"), tmp_path / "root", mirror=server[0])
    assert all(result.origin for result in results)
    with pytest.raises(UsageError, match="--mirror is 'ftp://x'; it must be an address that begins with http://"):
        fetch(entry(server[0]), tmp_path / "root2", mirror="ftp://x")
    local = fetch(entry("http://127.0.0.1:9/"), tmp_path / "root3", mirror=server[1].as_uri())
    assert all(result.origin for result in local)


def test_a_transfer_that_breaks_off_leaves_nothing(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the user's Ctrl-C, too."""

    def interrupt(name: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(entry(server[0]), tmp_path / "root", progress=interrupt)
    assert listing(tmp_path / "root") == {}


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(
    server: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    """As in a container, whose processes are numbered alike at every start."""
    (tmp_path / "root" / "tiny").mkdir(parents=True)
    for name in CONTENT:
        (tmp_path / "root" / "tiny" / f".{name}.{os.getpid()}.part").write_bytes(b"half")
    fetch(entry(server[0]), tmp_path / "root")
    assert CONTENT.items() <= listing(tmp_path / "root").items()


def test_a_folder_that_cannot_be_made_is_named(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot be written: Not a directory. Give another with --root"):
        fetch(entry(server[0]), tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "message"),
    [("digits", "pip install"), ("peaks", "made on the fly"), ("letter", "put letter.csv.gz into the data folder")],
)
def test_sets_without_an_address_are_refused_with_what_to_do(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        fetch(CATALOG[name], tmp_path)


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'mnits' is no set that hpcopt knows; did you mean 'mnist'\?"):
        known_set("mnits")
