"""From the name of a source to readers: sets known by name, files, sets found by name in the data folder, functions."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from hpcopt.data import arrays, cifar, functions, hdf5, idx, packaged, user
from hpcopt.data.catalog import CATALOG
from hpcopt.data.files import SUFFIXES, data_root, find_set, places, suffix_of
from hpcopt.data.options import INPUTS, DataOptions
from hpcopt.data.reader import Reader, Source
from hpcopt.data.text import CsvReader, LibsvmReader
from hpcopt.errors import UsageError, nearest

BUILT_IN = ("mnist-5k", "digits", "mnist", "cifar10", "cifar100", "cdr", "burgers", "peaks")


def open_source(options: DataOptions, seed: int, rank: int, size: int) -> Source:
    """Open the source of the options without reading samples.

    Raises:
        UsageError: it is unknown, its files are missing or damaged, or a key does not apply to it.
    """
    name = options.source
    if options.target == INPUTS:
        options = replace(options, target=None)
    if name in BUILT_IN:
        for key in ("target", "inputs"):
            if getattr(options, key) is not None:
                raise UsageError(
                    f"data.{key} is {getattr(options, key)!r}, but the set {name!r} has its inputs and"
                    f" targets fixed. Leave data.{key} out, or name a file as data.source."
                )
        source = _open_built_in(name, options.root, seed)
    elif suffix_of(name):
        source = _open_path(name, options)
    elif ":" in name:
        source = user.open_user(name, _root_or_none(options), seed, rank, size)
    else:
        source = _open_by_name(name, options)
    if isinstance(options.test, str):
        source.test = open_file(_resolve(options.test, options, "data.test"), options)[0]
    _match_widths(source)
    return source


def open_file(path: Path, options: DataOptions) -> tuple[Reader, Reader | None]:
    """The training set of a file, and its test set if the file has both.

    Raises:
        UsageError: the file cannot be read as what its suffix says, or an option is not for such files.
    """
    suffix = suffix_of(path) or ""
    if suffix.startswith((".csv", ".libsvm")) and options.inputs is not None:
        raise UsageError(
            f"data.inputs is {options.inputs!r}, which names an array of a .h5, .npz or .mat file; in"
            f" {str(path)!r} all columns but the target are inputs. Leave data.inputs out."
        )
    if suffix.startswith(".csv"):
        return CsvReader(path, options.target), None
    if suffix.startswith(".libsvm"):
        if options.target not in (None, "first"):
            raise UsageError(
                f"data.target is {options.target!r}, but in the libsvm file {str(path)!r} the label is"
                " always the first. Leave data.target out."
            )
        return LibsvmReader(path), None
    if suffix in (".h5", ".hdf5"):
        return hdf5.open_hdf5(path, options.inputs, options.target)
    if suffix == ".npz":
        return arrays.open_npz(path, options.inputs, options.target)
    if suffix == ".mat":
        return arrays.open_mat(path, options.inputs, options.target)
    raise UsageError(f"The file {str(path)!r} has an ending that is not known. Files end in {', '.join(SUFFIXES)}.")


def _open_built_in(name: str, root: str | None, seed: int) -> Source:
    if name == "mnist-5k":
        return packaged.open_mnist_5k()
    if name == "digits":
        return packaged.open_digits()
    if name == "peaks":
        return functions.open_peaks(seed)
    folder = data_root(root, name)
    if name == "mnist":
        return idx.open_mnist(folder)
    if name == "cdr":
        return functions.open_cdr(folder)
    if name == "burgers":
        return functions.open_burgers(folder)
    return cifar.open_cifar(name, folder)


def _open_path(name: str, options: DataOptions) -> Source:
    path = _resolve(name, options, "data.source")
    train, test = open_file(path, options)
    files = [str(path)]
    partner = _partner(path)
    if test is None and partner is not None and options.test is None:
        test = open_file(partner, options)[0]
        files.append(str(partner))
    return _with_task(Source(train, test, facts={"files": files}))


def is_there(name: str, root: Path) -> bool:
    """Whether the files of a set of the catalogue lie in a data folder. They are not opened."""
    if not root.is_dir():
        return False
    try:
        if name == "mnist":
            idx.find_mnist(root)
        elif name in cifar.LAYOUTS:
            cifar.find_cifar(name, root)
        elif name in ("cdr", "burgers"):
            find_set(root, name, [CATALOG[name].files])
        else:
            return _named_file(name, root) is not None
    except UsageError:
        return False
    return True


def _open_by_name(name: str, options: DataOptions) -> Source:
    """A set that is no built-in one: NAME.csv.gz and the like, or NAME_train.* and NAME_test.*, in the data folder."""
    root = _root_or_none(options)
    if root is None:
        hint = nearest(name, [*BUILT_IN, *CATALOG])
        raise UsageError(
            f"data.source is {name!r}, which is no set that hpcopt knows{hint} Known are"
            f" {', '.join(BUILT_IN)}; files ending in {', '.join(SUFFIXES)}; 'package.module:function';"
            " and the files of a data folder by their names, once data.root or HPCOPT_DATA names one."
        )
    folder = data_root(root, name)
    path = _named_file(name, folder)
    if path is not None:
        return _with_customs(_open_path(str(path), _with_target(options, name)), name)
    found = sorted(
        {_stem(file) for place in places(folder, name) if place.is_dir() for file in place.iterdir() if suffix_of(file)}
    )
    hint = nearest(name, [*BUILT_IN, *found])
    raise UsageError(
        f"data.source is {name!r}, which is no set that hpcopt knows, and {str(folder)!r} has no file of"
        f" that name{hint} Known are {', '.join(BUILT_IN)}"
        f"{'; found there: ' + ', '.join(found[:30]) if found else ''}."
    )


def _named_file(name: str, root: Path) -> Path | None:
    """The file NAME.csv.gz, NAME_train.csv.gz or the like in the data folder, or None."""
    stems = [f"{stem}{suffix}" for stem in (name, f"{name}_train") for suffix in SUFFIXES]
    candidates = (place / file for place in places(root, name) for file in stems)
    return next((path for path in candidates if path.is_file()), None)


def _with_target(options: DataOptions, name: str) -> DataOptions:
    """The options with the catalogue's target columns where the user names none."""
    entry = CATALOG.get(name)
    if entry is None or entry.target is None or options.target is not None:
        return options
    return replace(options, target=list(entry.target))


def _with_customs(source: Source, name: str) -> Source:
    """The task and the customary test set of a set in the catalogue."""
    entry = CATALOG.get(name)
    if entry is not None:
        source.task = entry.task
        source.test_size = entry.test_size
    return source


def _with_task(source: Source) -> Source:
    """A column called label or class settles the task."""
    if isinstance(source.train, CsvReader) and source.train.named_label:
        source.task = "classification"
    return source


def _resolve(name: str, options: DataOptions, key: str) -> Path:
    """The path of a file: as it stands (from the working directory), else below the data folder."""
    path = Path(name).expanduser()
    if path.exists() or path.is_absolute():
        found = path
    else:
        root = _root_or_none(options)
        found = Path(root).expanduser() / path if root else path
    if not found.is_file():
        kind = "is not a file" if found.exists() else "does not exist"
        also = f", nor does {str(found)!r}" if found != path else ""
        raise UsageError(
            f"{key} is {name!r}, which {kind}{also}. Give a path from the working directory"
            f" ({os.getcwd()}), from data.root, or an absolute one."
        )
    if not suffix_of(found):
        raise UsageError(f"{key} is {name!r}, whose ending is not known. Files end in {', '.join(SUFFIXES)}.")
    return found


def _partner(path: Path) -> Path | None:
    """The test file that belongs to a training file: NAME_test.* for NAME_train.*, NAME.t.libsvm for NAME.libsvm."""
    suffix = suffix_of(path) or ""
    stem = path.name[: -len(suffix)]
    other = f"{stem[:-5]}test" if stem.endswith("train") else f"{stem}.t" if ".libsvm" in suffix else None
    partner = path.with_name(f"{other}{path.name[-len(suffix) :]}") if other else None
    return partner if partner is not None and partner.is_file() else None


def _match_widths(source: Source) -> None:
    """Training and test samples of one shape; sparse files are widened to the larger one."""
    train, test = source.train, source.test
    if test is None or train.shape == test.shape or not test.rows:
        return
    if isinstance(train, LibsvmReader) and isinstance(test, LibsvmReader):
        features = max(train.shape[0], test.shape[0])
        train.widen(features)
        test.widen(features)
        return
    raise UsageError(
        f"The samples of the training set {train.name!r} have shape {train.shape}, those of the test set"
        f" {test.name!r} {test.shape}. Both need the same features."
    )


def _root_or_none(options: DataOptions) -> str | None:
    return options.root or os.environ.get("HPCOPT_DATA")


def _stem(path: Path) -> str:
    stem = path.name[: -len(suffix_of(path) or "")]
    return stem.removesuffix("_train").removesuffix("_test").removesuffix(".t")
