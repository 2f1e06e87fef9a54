"""Fetching the files of a set from its publisher or a mirror, with a check of every byte."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from hpcopt.data.catalog import CATALOG, Entry, RemoteFile
from hpcopt.errors import UsageError, nearest

CHUNK = 2**20
TIMEOUT = 30.0
"""Seconds without an answer after which an address is given up."""

Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes fetched so far and their total, if the server says."""


@dataclass(frozen=True)
class Fetched:
    """What became of one file.

    Attributes:
        path: where it is.
        origin: the address it came from; None if it was there already and whole.
    """

    path: Path
    origin: str | None


def known_set(name: str) -> Entry:
    """The entry of a set by name.

    Raises:
        UsageError: hpcopt knows no such set.
    """
    if name not in CATALOG:
        raise UsageError(
            f"{name!r} is no set that hpcopt knows{nearest(name, list(CATALOG))} `hpcopt data list` shows the names."
        )
    return CATALOG[name]


def fetch(entry: Entry, root: Path, mirror: str | None = None, progress: Progress | None = None) -> list[Fetched]:
    """Bring the files of a set into the folder ``root``/NAME; files that are there and whole are left alone.

    A file is written under a temporary name, checked against its SHA-256 and then renamed, so that a file of the
    final name is always whole.

    Args:
        entry: the set.
        root: the data folder; made if it does not exist.
        mirror: address that holds the files by name; else the known addresses, one after the other.
        progress: told about every chunk.

    Raises:
        UsageError: the set cannot be fetched, no address gives the right content, or the folder cannot be written.
    """
    if not entry.remote:
        raise UsageError(_why_not(entry))
    if mirror is not None and urlsplit(mirror).scheme not in ("http", "https", "file"):
        raise UsageError(f"--mirror is {mirror!r}; it must be an address that begins with http://, https:// or file://")
    mirrors = (mirror,) if mirror is not None else entry.mirrors
    return [_one_file(entry, file, root, mirrors, progress or _silent) for file in entry.remote]


def _one_file(entry: Entry, file: RemoteFile, root: Path, mirrors: tuple[str, ...], progress: Progress) -> Fetched:
    folder = root / entry.name
    for place in (folder, root):
        if _is_whole(place / file.name, file.sha256):
            return Fetched(place / file.name, None)
    failures = []
    for mirror in mirrors:
        address = f"{mirror.rstrip('/')}/{file.name}"
        failure = _download(address, folder / file.name, file.sha256, progress)
        if failure is None:
            return Fetched(folder / file.name, address)
        failures.append(f"{address}: {failure}")
    raise UsageError(
        f"The file {file.name!r} of {entry.name!r} could not be fetched. {'; '.join(failures)}. No part of it was"
        " kept. Try --mirror with the address of a folder that holds it, or copy it there yourself."
    )


def _download(address: str, path: Path, sha256: str, progress: Progress) -> str | None:
    """Fetch one address to ``path``; the reason in words if that fails, and then nothing is left behind."""
    # Not the number of the process: where a container is killed, the next one begins with the same.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as out:
            found = _copy(address, out, path.name, progress)
        if found == sha256:
            os.replace(partial, path)
            return None
        return f"the content has the SHA-256 {found} instead of {sha256}, so it is not the official file"
    except urllib.error.HTTPError as error:
        error.close()
        return str(error)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    except OSError as error:
        raise UsageError(
            f"The folder {str(path.parent)!r} cannot be written: {error.strerror or error}. Give another with --root."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _copy(address: str, out: BinaryIO, name: str, progress: Progress) -> str:
    """Copy the content of an address to an open file, down to the disk; returns its SHA-256."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(address, headers={"User-Agent": "hpcopt"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        while chunk := answer.read(CHUNK):
            digest.update(chunk)
            out.write(chunk)
            done += len(chunk)
            progress(name, done, total)
    out.flush()
    os.fsync(out.fileno())
    return digest.hexdigest()


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == sha256


def _why_not(entry: Entry) -> str:
    if entry.where.startswith("package"):
        return (
            f"The set {entry.name!r} needs no fetching: it comes with the Python {entry.where}. Run"
            " `pip install 'hpcopt[demo]'` if that is not installed."
        )
    if entry.where == "made on the fly":
        return f'The set {entry.name!r} needs no fetching: it is {entry.where}. Use data.source = "{entry.name}".'
    return (
        f"The set {entry.name!r} has no address from which it can be fetched in the form needed. It comes from"
        f" {entry.origin}; put {', '.join(entry.files)} into the data folder, or into its sub-folder {entry.name!r}."
    )


def _silent(name: str, done: int, total: int | None) -> None:
    """No progress display."""
