"""CIFAR-10 and CIFAR-100: the official archive, its unpacked folder, or .npz files; only files of the shard are read.

Images are uint8, (n, 3, 32, 32).
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.data.arrays import decode_residual, load_npz
from hpcopt.data.files import damaged, find_set, read_bytes, unreadable
from hpcopt.data.reader import Source
from hpcopt.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """The names of a set's files, training then test, in each form.

    Attributes:
        classes: number of classes.
        archive: the official archive.
        folder: the folder within the archive.
        pickles: the files in it.
        npz: the same as .npz files.
        label_key: name of the labels in the pickles.
    """

    classes: int
    archive: str
    folder: str
    pickles: tuple[str, ...]
    npz: tuple[str, ...]
    label_key: bytes

    @property
    def inner(self) -> tuple[str, ...]:
        """The pickles with their folder, as they are called in the archive."""
        return tuple(f"{self.folder}/{file}" for file in self.pickles)


_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
LAYOUTS = {
    "cifar10": Layout(
        10,
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        _BATCHES,
        tuple(f"{name}.npz" for name in _BATCHES),
        b"labels",
    ),
    "cifar100": Layout(
        100,
        "cifar-100-python.tar.gz",
        "cifar-100-python",
        ("train", "test"),
        (*(f"train_{i}.npz" for i in range(1, 6)), "test.npz"),
        b"fine_labels",
    ),
}

Loader = Callable[[], tuple[np.ndarray, np.ndarray]]


class Concatenated:
    """The samples of several files one after the other; a file is decoded only when one of its rows is asked for."""

    def __init__(self, name: str, labels: list[np.ndarray], loaders: list[Loader], shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self._labels, self._loaders = np.concatenate(labels), loaders
        self._edges = np.concatenate([[0], np.cumsum([len(part) for part in labels])])
        self.rows = int(self._edges[-1])

    def column(self, feature: int) -> str:
        """The number of the pixel."""
        return f"pixel {feature}"

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The given rows, from the files that hold them."""
        out = np.empty((len(rows), *self.shape), np.uint8)
        for number, loader in enumerate(self._loaders):
            low, high = np.searchsorted(rows, self._edges[number : number + 2])
            if high > low:
                out[low:high] = loader()[0][rows[low:high] - self._edges[number]]
        return out, self._labels[rows]


def find_cifar(name: str, root: Path) -> list[Path]:
    """The files of the first form that is complete, below ``root`` or in its sub-folder of the set's name."""
    layout = LAYOUTS[name]
    return find_set(root, name, [layout.npz, layout.inner, layout.pickles, (layout.archive,)])


def open_cifar(name: str, root: Path) -> Source:
    """CIFAR in the first form found below ``root`` or in its sub-folder of the set's name.

    Raises:
        UsageError: no form is complete, or a file is damaged.
    """
    layout = LAYOUTS[name]
    paths = find_cifar(name, root)
    if paths[0].suffix == ".npz":
        parts = [(_npz_labels(path), _npz_loader(path)) for path in paths]
    elif paths[0].name == layout.archive:
        members = _archive_members(paths[0], layout.inner)
        parts = [_pickle_part(data, paths[0], layout.label_key) for data in members]
    else:
        parts = [_pickle_part(read_bytes(path), path, layout.label_key) for path in paths]
    folder = str(paths[0].parent)
    train = Concatenated(folder, [p[0] for p in parts[:-1]], [p[1] for p in parts[:-1]], (3, 32, 32))
    test = Concatenated(folder, [parts[-1][0]], [parts[-1][1]], (3, 32, 32))
    return Source(train, test, "classification", layout.classes, facts={"files": [str(path) for path in paths]})


def decode_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one .npz file: encoded as ``residual`` (see ``decode_residual``), or plain ``images``."""
    content = load_npz(path)
    if "residual" in content:
        content["images"] = decode_residual(content["residual"])
    images, labels = content.get("images"), content.get("labels")
    if images is None or labels is None or images.shape != (len(labels), 3, 32, 32) or images.dtype != np.uint8:
        raise damaged(
            path, "it must hold n labels and, in bytes, either residual (3 x n x 32 x 32) or images (n x 3 x 32 x 32)"
        )
    return images, labels


def _npz_labels(path: Path) -> np.ndarray:
    labels = load_npz(path, ("labels",)).get("labels")
    if labels is None or labels.ndim != 1:
        raise damaged(path, "it has no array labels with one number for each image")
    return labels


def _npz_loader(path: Path) -> Loader:
    return lambda: decode_npz(path)


def _archive_members(path: Path, members: tuple[str, ...]) -> list[bytes]:
    """The content of the named members, in one pass through the archive; nothing is unpacked to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                stream = archive.extractfile(member) if name in members and member.isfile() else None
                if stream is not None:
                    found[name] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise (unreadable(path, error) if error.errno else damaged(path, error)) from error
    missing = [name for name in members if name not in found]
    if missing:
        raise damaged(path, f"it has no {missing[0]}")
    return [found[name] for name in members]


def _pickle_part(data: bytes, path: Path, label_key: bytes) -> tuple[np.ndarray, Loader]:
    """The labels of an official batch file, and its images."""
    try:
        content = SafeUnpickler(io.BytesIO(data), encoding="bytes").load()
        pixels, labels = np.asarray(content[b"data"]), np.asarray(content[label_key])
        images = pixels.reshape(len(labels), 3, 32, 32)
    except UsageError:
        raise
    except Exception as error:
        # A broken pickle can raise nearly anything.
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    return labels, lambda: (images, labels)


class SafeUnpickler(pickle.Unpickler):
    """Reads pickles of dictionaries, lists, numbers, strings and NumPy arrays; anything else is refused.

    A pickle may name any function to be called while it is read, so a file from the net could run any program. The
    only names allowed here are those that NumPy's arrays of plain numbers need.
    """

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """The object of a name, if it is one of the few allowed."""
        if (module, name) not in self._ALLOWED:
            raise UsageError(
                f"The data file names {module}.{name}, which is no part of an array of numbers. A pickle"
                " that does so could run any program, so it is refused. Fetch the official file again."
            )
        if name == "_reconstruct":
            # From an array, since the module of this private function moved between NumPy 1 and 2.
            return np.empty(0).__reduce__()[0]
        return super().find_class(module, name)
