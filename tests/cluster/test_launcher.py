"""srun or mpirun: what is chosen where, and what is asked of the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hpcopt.cluster import launcher
from hpcopt.cluster.launcher import Site, choose_launcher, look_around
from hpcopt.cluster.options import SlurmOptions
from tests.support.programs import install

AUTO = SlurmOptions()
KINDS = ("pmix", "pmi2", "pmix_v4")
OPEN_MPI = Site("Open MPI v5.0.11", "mpirun", True, KINDS, "pmi2")
MPICH = Site("MPICH Version: 5.0.2", "mpirun", True, KINDS, "none")


@pytest.mark.parametrize(
    ("site", "words", "reason"),
    [
        (MPICH, ("srun", "--mpi=pmi2", "--wait=60"), "MPICH Version: 5.0.2 speaks pmi2, and so does srun here"),
        (Site("MPICH", "", True, KINDS, "pmi2"), ("srun", "--mpi=pmi2", "--wait=60"), "srun's default here"),
        (OPEN_MPI, ("mpirun",), "belongs to Open MPI v5.0.11, and it is not sure to find its ranks under srun"),
        (Site("Open MPI", "/a/mpirun", True, (), ""), ("/a/mpirun",), "default here is not known"),
        (
            Site("Open MPI", "mpirun", True, KINDS, "pmix_v4"),
            ("srun", "--mpi=pmix_v4", "--wait=60"),
            "speaks pmix_v4, srun's default here",
        ),
        (Site("Open MPI", "", True, KINDS, "none"), ("srun", "--mpi=pmix", "--wait=60"), "and so does srun here"),
        (Site("CRAY MPICH", "", True, ("cray_shasta",), "none"), ("srun", "--mpi=cray_shasta", "--wait=60"), ""),
        (Site("Intel(R) MPI", "mpirun", True, KINDS, "pmi2"), ("mpirun",), "default here is pmi2"),
        (Site("MPICH", "mpirun"), ("mpirun",), "and there is no srun here"),
        (Site("", "", True, KINDS, "pmix"), ("srun", "--wait=60"), "could not be loaded here.*the start will show"),
        (Site("MPICH", ""), ("mpirun",), "no mpirun of MPICH was found"),
    ],
)
def test_the_launcher_is_one_that_speaks_the_librarys_language(site: Site, words: tuple[str, ...], reason: str) -> None:
    chosen = choose_launcher(AUTO, site)
    assert chosen.words == words
    assert chosen.is_srun == (words[0] == "srun")
    assert re.search(reason, chosen.reason), chosen.reason


def test_a_command_of_the_users_own_is_taken_and_given_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "look_around", lambda: pytest.fail("nothing is to be asked"))
    chosen = choose_launcher(SlurmOptions(launcher="srun --mpi=pmix", cpus_per_task=4))
    assert chosen.words == ("srun", "--mpi=pmix", "--wait=60", "--cpus-per-task=4")
    own = SlurmOptions(launcher="srun --wait=5 --cpus-per-task=1", cpus_per_task=4)
    assert choose_launcher(own).words == ("srun", "--wait=5", "--cpus-per-task=1")
    assert choose_launcher(SlurmOptions(launcher="mpiexec -n 3")).words == ("mpiexec", "-n", "3")


def test_several_cores_a_rank_are_not_taken_away_by_open_mpi() -> None:
    assert choose_launcher(SlurmOptions(cpus_per_task=8), OPEN_MPI).words == ("mpirun", "--bind-to", "none")
    assert choose_launcher(SlurmOptions(cpus_per_task=1), OPEN_MPI).words == ("mpirun",)
    assert choose_launcher(SlurmOptions(cpus_per_task=8), Site("MPICH", "mpirun")).words == ("mpirun",)


@pytest.mark.parametrize("stream", ["", " >&2"], ids=["newer", "older"])
def test_the_machine_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    listed = "MPI plugin types are...\\n\\tnone\\n\\tpmi2\\nspecific pmix plugin versions available: pmix_v4"
    install(tmp_path, "srun", f"printf '{listed}\\n'{stream}")
    install(
        tmp_path, "scontrol", "printf 'MinJobAge = 300 sec\\nMpiDefault              = pmi2\\nMpiParams = (null)\\n'"
    )
    install(tmp_path, "mpirun", "echo 'HYDRA build details:'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launcher, "library_of_child", lambda: "MPICH Version: 5.0.2")
    assert look_around() == Site("MPICH Version: 5.0.2", "mpirun", True, ("pmi2", "pmix_v4"), "pmi2")


def test_a_machine_without_anything_has_nothing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(launcher, "library_of_child", lambda: "")
    assert look_around() == Site()
