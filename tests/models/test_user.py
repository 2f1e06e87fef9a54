"""A user's own network is called with what it asks for, and errors say what to mend."""

import sys

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.models import build

MODULE = """
import torch
from torch import nn

calls = []

def simple(outputs):
    return nn.Linear(6, outputs)

def full(input_shape, outputs, seed, width=3, *, depth):
    calls.append((input_shape, outputs, seed, width, depth))
    return nn.Linear(input_shape[0], outputs)

def anything(**options):
    calls.append(options)
    return nn.Linear(6, options["outputs"])

class Net(nn.Module):
    def __init__(self, input_shape, outputs):
        super().__init__()
        self.layer = nn.Linear(*input_shape, outputs)

    def forward(self, x):
        return self.layer(x)

def wide(outputs):
    return nn.Linear(6, outputs + 1)

def narrow(outputs):
    return nn.Linear(5, outputs)

def two(outputs):
    class Two(nn.Linear):
        def forward(self, x):
            return x, x
    return Two(6, outputs)

def none(outputs):
    return None

def empty():
    return nn.Identity()

def broken(outputs):
    raise ZeroDivisionError("inside")

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module of its own for each test, in the current directory and not in Python's path."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def make(name, options=None, seed=5):
    return build(name, options or {}, (6,), 4, seed)


def test_the_current_directory_is_searched(mine):
    assert make(f"{mine}:simple")(torch.zeros(1, 6)).shape == (1, 4)


def test_a_function_is_given_what_it_asks_for_and_its_options(mine):
    make(f"{mine}:full", {"depth": 2})
    make(f"{mine}:anything", {"depth": 7})
    assert sys.modules[mine].calls == [
        ((6,), 4, 5, 3, 2),
        {"input_shape": (6,), "outputs": 4, "seed": 5, "depth": 7},
    ]


def test_a_class_works_like_a_function(mine):
    assert type(make(f"{mine}:Net")).__name__ == "Net"


def test_the_weights_are_seeded(mine):
    first, second, other = (make(f"{mine}:simple", seed=seed).weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("simpel", {}, r"has no function 'simpel'; did you mean 'simple'\?"),
        ("number", {}, "has no function 'number'"),
        ("full", {"depth": 1, "widht": 4}, r"model\.widht is not an option .* did you mean 'width'\?"),
        ("full", {}, r"needs model\.depth"),
        ("full", {"depth": 1, "seed": 4}, r"model\.seed is not an option"),
        ("simple", {"a": 1}, "Known options: none"),
        ("wide", {}, r"maps two samples to \(2, 5\), but this data needs \(2, 4\)"),
        ("narrow", {}, r"does not take a batch of two samples of shape \(6,\)"),
        ("two", {}, "maps two samples to tuple"),
        ("none", {}, "returned NoneType, but it must return a torch.nn.Module"),
        ("empty", {}, "no parameter that requires a gradient"),
    ],
)
def test_what_does_not_fit_is_refused(mine, function, options, message):
    with pytest.raises(UsageError, match=message):
        make(f"{mine}:{function}", options)


def test_a_module_that_is_not_there_is_refused_with_the_nearest_file(mine):
    with pytest.raises(UsageError, match=rf"no module '{mine}s' in the current directory .* did you mean '{mine}'\?"):
        make(f"{mine}s:simple")
    with pytest.raises(UsageError, match="no module"):
        make(f"{mine}.deeper:simple")
    with pytest.raises(UsageError, match="must have the form"):
        make(f"{mine}:")


@pytest.mark.parametrize(
    ("text", "message"), [("import hpcopt_missing_thing", "hpcopt_missing_thing"), ("def f(:", "invalid syntax")]
)
def test_a_module_that_cannot_be_imported_is_refused_with_the_reason(mine, tmp_path, text, message):
    (tmp_path / f"{mine}_bad.py").write_text(text)
    with pytest.raises(UsageError, match=f"importing '{mine}_bad' failed: .*{message}"):
        make(f"{mine}_bad:f")


def test_an_error_inside_the_function_keeps_its_own_trace(mine):
    with pytest.raises(ZeroDivisionError, match="inside"):
        make(f"{mine}:broken")
