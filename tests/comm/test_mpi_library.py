"""Which MPI library there is, asked without loading one, and which launchers belong to it."""

from __future__ import annotations

import pytest

from hpcopt.comm.mpi_library import fits, library_of_child, vendor


def test_another_process_says_which_library_would_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vendor(library_of_child())
    monkeypatch.setenv("MPI4PY_LIBMPI", "/there/is/none")
    assert library_of_child() == ""


@pytest.mark.parametrize(
    ("launcher", "library", "together"),
    [
        ("Open MPI", "Open MPI", True),
        ("Open MPI", "MPICH", False),
        ("MPICH", "Intel MPI", True),
        ("", "MPICH", False),
        ("", "", False),
    ],
)
def test_a_launcher_fits_the_libraries_of_its_family(launcher: str, library: str, together: bool) -> None:
    assert fits(launcher, library) is together
