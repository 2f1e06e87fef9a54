"""Finding files and reading them whole, with errors that tell a user what to do."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpcopt.errors import UsageError

SUFFIXES = (".csv", ".csv.gz", ".csv.xz", ".libsvm", ".libsvm.gz", ".libsvm.xz", ".h5", ".hdf5", ".npz", ".mat")
"""Endings of the files that can be a source."""

FOLDERS = ("tabular", "regression", "pde", "text")
"""Sub-folders of the root, besides one of the set's name, in which a set is looked for."""


def suffix_of(name: str | Path) -> str | None:
    """The ending of a file's name among ``SUFFIXES``, the longest that fits, or None."""
    fitting = [suffix for suffix in SUFFIXES if str(name).lower().endswith(suffix)]
    return max(fitting, key=len) if fitting else None


def data_root(root: str | None, needed_for: str, environ: Mapping[str, str] | None = None) -> Path:
    """The folder with data sets: ``root``, else the variable HPCOPT_DATA; there is no default.

    Raises:
        UsageError: neither is given, or the folder does not exist.
    """
    value = root or (os.environ if environ is None else environ).get("HPCOPT_DATA")
    if not value:
        raise UsageError(
            f"The files of {needed_for!r} are not part of any package, and neither data.root nor the"
            " variable HPCOPT_DATA says where they are. Set data.root (or --set data.root=DIR) to the"
            f" folder that holds them; `hpcopt data info {needed_for}` names the files and says whether"
            ' they can be fetched. source = "mnist-5k" needs no files.'
        )
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"The data folder {str(folder)!r} (from {'data.root' if root else 'HPCOPT_DATA'}) does not"
            f" exist, or is not a folder. Give the folder that holds the files of {needed_for!r}."
        )
    return folder


def places(root: Path, name: str) -> list[Path]:
    """The folders in which the files of a set may lie, in order: the root, NAME/, then the usual sub-folders."""
    return [root, root / name, *(root / folder for folder in FOLDERS)]


def find_set(root: Path, name: str, alternatives: Iterable[tuple[str, ...]], extra: Iterable[str] = ()) -> list[Path]:
    """The files of a set: those of the first alternative of which all are found in one folder.

    Raises:
        UsageError: no folder has all the files of any alternative.
    """
    folders = [*places(root, name), *(root / folder for folder in extra)]
    listed = [tuple(names) for names in alternatives]
    for folder in folders:
        for names in listed:
            if all((folder / file).exists() for file in names):
                return [folder / file for file in names]
    raise UsageError(
        f"The files of {name!r} are not in {str(root)!r} nor in its sub-folder {name!r}. Needed:"
        f" {'; or '.join(', '.join(names) for names in listed)}. Set data.root to the folder that holds"
        f" them, or see `hpcopt data info {name}`."
    )


def read_bytes(path: Path) -> bytes:
    """The whole content of a file, decompressed by its ending (.gz, .xz).

    Raises:
        UsageError: the file is missing, not readable, or damaged.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                return stream.read()
        if path.suffix == ".xz":
            with lzma.open(path, "rb") as stream:
                return stream.read()
        return path.read_bytes()
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def damaged(path: Path, reason: object) -> UsageError:
    """The error for a file whose content is broken."""
    return UsageError(f"The data file {str(path)!r} is damaged: {str(reason).rstrip('.')}. Copy or fetch it again.")


def unreadable(path: Path, error: OSError) -> UsageError:
    """The error for a file that the operating system does not give us."""
    return UsageError(
        f"The data file {str(path)!r} cannot be read: {error.strerror or error}. Check data.source,"
        " data.root and data.test, and that every rank's machine sees the file."
    )
