"""The order of the house: who may import whom, how long files are, and what a short command must not load."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.fresh import modules_after

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hpcopt"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

LAYERS = (
    *(
        "errors",
        "checks",
        "importing",
        "random",
        "layout",
        "comm",
        "data",
        "models",
        "kernels",
        "objective",
        "linalg",
        "solvers",
        "optim",
        "costs",
    ),
    *("checkpoint", "cluster", "parallel_options", "config", "train", "analysis", "cli", "__main__"),
)
"""A layer knows the layers before it, never those behind it. The public names in hpcopt/__init__.py know all."""


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, also inside functions; also the names taken from packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(package: str) -> list[str]:
    """The files of hpcopt that import ``package``, as paths from the root."""
    uses = [any(f"{module}.".startswith(f"{package}.") for module in imported(path)) for path in FILES]
    return [name for name, use in zip(NAMES, uses, strict=True) if use]


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 350, 30
"""What fits in a head; a function without its docstring. A test tells a story, which may be longer."""


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, comments included, the docstring not."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("folder", ["hpcopt", "benchmarks", "tests"])
def test_files_are_short(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    for path in paths:
        lines = len(path.read_text().splitlines())
        assert lines <= LINES_OF_A_FILE, f"{path.relative_to(ROOT)}: give a part of it a file of its own"


@pytest.mark.parametrize("folder", ["hpcopt", "benchmarks"])
def test_functions_are_short(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert lines_of(node) <= LINES_OF_A_FUNCTION, f"{name}: {node.name} does several things"


def test_only_comm_imports_mpi4py():
    assert [name for name in importers("mpi4py") if not name.startswith("hpcopt/comm/")] == []


def test_only_kernels_and_staging_import_cupy():
    allowed = ("hpcopt/kernels/", "hpcopt/comm/staging.py")
    assert [name for name in importers("cupy") if not name.startswith(allowed)] == []


@pytest.mark.parametrize(
    "path", [p for p in FILES if p != PACKAGE / "__init__.py"], ids=lambda p: layer(p) + "/" + p.stem
)
def test_a_layer_knows_only_the_layers_before_it(path):
    assert layer(path) in LAYERS, "give the new layer its place in LAYERS"
    own = LAYERS.index(layer(path))
    used = {module.split(".")[1] for module in imported(path) if module.startswith("hpcopt.")}
    assert [other for other in used if other in LAYERS[own + 1 :]] == []


def test_solvers_and_linear_algebra_know_nothing_of_ranks():
    for path in FILES:
        if layer(path) in ("linalg", "solvers"):
            known = {module.split(".")[1] for module in imported(path) if module.startswith("hpcopt.")}
            assert known <= {"checks", "errors", "importing", "kernels", "linalg", "objective", "solvers"}, path


@pytest.mark.parametrize(
    "module",
    [
        "hpcopt",
        "hpcopt.cli.main",
        "hpcopt.cli.inspect",
        "hpcopt.cli.submit",
        "hpcopt.cli.verify",
        "hpcopt.checkpoint.store",
        "hpcopt.checkpoint.stored",
        "hpcopt.analysis.summary",
        "hpcopt.solvers",
    ],
)
def test_what_must_start_fast_loads_neither_torch_nor_mpi(module):
    loaded = modules_after(f"import {module}")
    assert module in loaded
    assert loaded & {"torch", "mpi4py", "matplotlib", "scipy", "pandas", "sklearn"} == set()
