"""From the [solver] table to a method."""

import sys

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


OWN = """
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Method:
    PRESETS = {"bold": {"rate": 2.0}}
    rate: float
    horizon_epochs: float | None = None

    def init(self, objective): ...
    def step(self, objective, state, batch): ...

class Plain:
    def init(self, objective): ...
    def step(self, objective, state, batch): ...

@dataclass(frozen=True)
class Half:
    def init(self, objective): ...

def function(): ...
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_methods"
    sys.modules.pop("own_methods", None)


def test_a_method_of_the_users_own_has_its_fields_as_keys(module):
    solver = make_solver(f"{module}:Method", {"name": f"{module}:Method", "rate": 0.5}, 20.0)
    assert (type(solver).__name__, solver.rate, solver.horizon_epochs) == ("Method", 0.5, 20.0)
    assert make_solver(f"{module}:Method", {"preset": "bold"}).rate == 2.0
    with pytest.raises(UsageError, match=r"solver.rat is not an option .* did you mean 'rate'"):
        make_solver(f"{module}:Method", {"rat": 0.5})


@pytest.mark.parametrize("preset", ["papers", ["paper"]])
def test_what_is_no_preset_is_refused(preset):
    with pytest.raises(UsageError, match=r"solver.preset = .*paper.* is not a preset of the method 'apts'"):
        make_solver("apts", {"preset": preset})


def test_a_field_without_a_default_must_be_given(module):
    with pytest.raises(UsageError, match=r"solver.rate is missing: the method 'own_methods:Method' has no default"):
        make_solver(f"{module}:Method", {})


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("Plain", "is not a dataclass"),
        ("Half", "has no step"),
        ("function", "has no init and no step"),
        ("Methood", "has no function 'Methood'; did you mean 'Method'"),
    ],
)
def test_what_is_no_method_is_refused(module, name, what):
    with pytest.raises(UsageError, match=f"solver.name = 'own_methods:{name}'.* {what}"):
        make_solver(f"{module}:{name}", {})
