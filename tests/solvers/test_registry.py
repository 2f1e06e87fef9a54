"""From the [solver] table to a method."""

import pytest

import hpcopt.solvers
from hpcopt.errors import UsageError
from hpcopt.solvers.registry import SOLVERS, make_solver, option_names
from hpcopt.solvers.sgd import SGD


def test_the_table_of_a_job_becomes_the_method():
    solver = make_solver("sgd", {"name": "sgd", "preset": "default", "learning_rate": 0.5, "momentum": 0.9}, 20)
    assert solver == SGD(learning_rate=0.5, momentum=0.9, horizon_epochs=20)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_method_is_built_without_options_and_under_its_class_name(name):
    solver = make_solver(name, {}, 10.0)
    assert getattr(hpcopt.solvers, type(solver).__name__) is type(solver)
    assert "horizon_epochs" not in option_names(name)


def test_an_unknown_method_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match="'adm' is not a method of hpcopt; did you mean 'adam'"):
        make_solver("adm", {})


def test_an_unknown_key_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match="momentun is not an option of the method 'sgd'; did you mean 'momentum'"):
        make_solver("sgd", {"momentun": 0.9})


def test_an_unknown_preset_is_refused():
    with pytest.raises(UsageError, match="Known presets: default"):
        make_solver("sgd", {"preset": "zzz"})


def test_an_unknown_attribute_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = hpcopt.solvers.Nonsense
