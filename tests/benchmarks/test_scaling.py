"""The benchmarks of scaling: what their figures mean, what their jobs are, and that hosts leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import _network, hosts
from benchmarks.scaling._jobs import JOB
from benchmarks.scaling._network import Hosts, Link, NotPossibleError, mpirun
from benchmarks.scaling._split import Split, split, strong, weak
from benchmarks.scaling.run import METHODS, Row, images_of, lines, plan, rows
from hpcopt.config import parse_job


def told(
    step: float = 4.0, waited: float = 1.0, others: float | None = None, accuracy: float = 0.9, bytes: int = 2**20
) -> dict[str, Any]:
    """A run of 2 ranks and 10 steps; the first rank takes ``step`` seconds, the second half as long again."""
    ranks = {"step": [step, 1.5 * step], "waited": [waited, waited + 2.0]}
    return {
        "iterations": 10,
        "time": {
            "all": 9.0,
            "evaluation": 0.5,
            "record": 0.25,
            "checkpoints": 0.125,
            "by_rank": {**ranks, "for_others": None if others is None else [others, others + 1.0]},
        },
        "final": {"test_accuracy": accuracy},
        "communication": {"bytes": bytes, "calls": 30},
    }


def test_a_step_is_split_into_computing_communication_and_waiting() -> None:
    assert split(told(others=0.5)) == pytest.approx(Split(0.3, 0.1, 0.1, 0.5, 0.375))
    assert split(told(others=0.5)).step == pytest.approx(0.5)
    assert split(told()) == pytest.approx(Split(0.3, 0.2, 0.0, 0.5, 0.375))


def test_the_gain_is_measured_against_what_the_cores_allow() -> None:
    assert strong(6.0, 4.0, ranks=2, cores=2) == (1.5, 0.75)
    assert strong(6.0, 4.0, ranks=8, cores=2) == (1.5, 0.75)
    assert weak(6.0, 8.0, ranks=2, cores=4) == (1.5, 0.75)
    assert weak(6.0, 24.0, ranks=8, cores=2) == (2.0, 1.0)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_the_jobs_are_valid_and_the_weak_one_grows_to_the_strong_one(ranks: int) -> None:
    jobs = plan(METHODS, ranks)
    assert images_of("strong", ranks) == images_of("weak", 8) == 4000
    assert images_of("weak", ranks) == 500 * ranks
    assert len(jobs) == len(METHODS) * (2 if ranks == 8 else 4)
    for settings in jobs.values():
        job = parse_job(JOB, settings)
        assert job.data.batch == "full" or job.data.batch * 4 == job.data.limit
    assert sum(parse_job(JOB, settings).debug.barriers for settings in jobs.values()) == len(jobs) / 2


def test_the_table_says_which_ranks_share_cores() -> None:
    runs = {
        ranks: {name: told(step=seconds, others=0.5) for name in plan(["sgd"], ranks)}
        for ranks, seconds in ((1, 4.0), (2, 2.0), (8, 4.0))
    }
    found = rows(runs, ["sgd"])
    assert [row.ranks for row in found if row.kind == "weak"] == [1, 2, 8]
    cells = [[cell.strip() for cell in line.split("|")[1:6]] for line in lines("strong", found, cores=2)[2:]]
    assert cells == [
        ["sgd", "1", "500.0", "1.00", "100 %"],
        ["sgd", "2", "250.0", "2.00", "100 %"],
        ["sgd", "8 on 2 cores", "500.0", "1.00", "50 %"],
    ]
    assert found[0] == Row("strong", "sgd", 1, pytest.approx(0.5), split(told(others=0.5)), 2**20 / 10)


def test_the_jobs_over_networks_are_valid() -> None:
    for settings in hosts.plan(hosts.METHODS, 0.9, 40.0).values():
        stop = parse_job(JOB, settings).run.stop
        assert (stop.test_accuracy, stop.seconds) == (0.9, 40.0)


def test_a_method_is_compared_with_the_faster_sgd_that_reached_the_accuracy() -> None:
    small, large = hosts.BASELINES
    fast, slow = hosts.row(small, told(step=2.0), 0.9), hosts.row(large, told(step=4.0), 0.9)
    assert (fast.seconds, fast.communication, fast.steps) == (pytest.approx(2.5), pytest.approx(2.0), 10)
    apts, failed = hosts.row("apts", told(step=1.0), 0.9), hosts.row("nlcg", told(step=0.1, accuracy=0.8), 0.9)
    table = hosts.lines([fast, slow, apts, failed])
    assert [line.split("|")[3].strip() for line in table[2:6]] == ["1.00", "2.00", "0.50", "-"]
    assert "not in 0: 80.0 %" in table[5]
    assert table[-1] == "First: apts, in 0.50 of the time of the faster SGD."
    assert "every other" in hosts.verdict([fast, slow], fast.seconds)
    assert "SGD did not reach" in hosts.verdict([apts], None)
    assert "No method" in hosts.verdict([failed], None)


def test_a_link_has_a_rate_and_a_burst_that_is_short_against_a_message() -> None:
    assert [Link(rate).burst for rate in (1, 100, 1000)] == [16384, 50000, 65536]
    assert " ".join(Link(2.5).rate("eth0")).endswith("tbf rate 2.5mbit burst 16384 latency 400ms")
    assert Link(8).seconds(1000) == pytest.approx(1e-3)
    assert "delay 1.5ms" in " ".join(Link(10, 1.5).late("eth0"))


def test_no_launcher_binds_the_ranks_of_two_hosts_to_the_same_core() -> None:
    ours = mpirun("mpirun (Open MPI) 5.0.11", ["node0", "node1"], 2, Path("agent"))
    assert "--host node0:2,node1:2 --map-by ppr:2:node:oversubscribe --bind-to none -n 4" in " ".join(ours)
    hydra = mpirun("HYDRA build details:", ["node0", "node1"], 2, Path("agent"))
    assert "-hosts node0,node1 -ppn 2 -launcher rsh -launcher-exec agent -n 4" in " ".join(hydra)
    assert "-bind-to" not in hydra, "what MPICH does by itself"


def test_without_root_it_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["hosts.py", "--rates", "10"])
    assert hosts.main() == 0
    assert "Skipped: It takes root" in capsys.readouterr().out


def test_the_worker_tells_what_inspect_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlxtend")
    from benchmarks.scaling import _worker

    monkeypatch.setattr(_worker, "choose_threads", lambda comm: None)
    settings = [*METHODS["sgd"].settings, "run.iterations=3", "data.limit=100", "debug.barriers=true"]
    (tmp_path / "plan.json").write_text(json.dumps({"a": settings}), encoding="utf-8")
    _worker.main(tmp_path / "plan.json", tmp_path / "told.json")
    found = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert list(found["runs"]) == ["a"]
    assert found["runs"]["a"]["iterations"] == 3
    shares = split(found["runs"]["a"])
    assert min(shares.computing, shares.evaluation, shares.files) > 0
    assert shares.communication == shares.waiting == 0, "a rank that is alone sends nothing"
    assert (len(found["hosts"]), list(found["allreduce"])) == (1, ["8", "262144"])


def spaces() -> str:
    return subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def two_hosts() -> Hosts:
    if os.geteuid() or any(shutil.which(tool) is None for tool in _network.TOOLS):
        pytest.skip("takes root and iproute2")
    try:
        with Hosts(1, Link(100)):
            pass
    except NotPossibleError as error:
        pytest.skip(str(error))
    return Hosts(2, Link(100))


def test_hosts_have_their_own_names_and_are_gone_after_an_error(two_hosts: Hosts) -> None:
    with suppress(KeyError), two_hosts:
        agent = two_hosts.environment["PRTE_MCA_plm_ssh_agent"]
        names = [subprocess.run([agent, name, "hostname"], capture_output=True, text=True) for name in two_hosts.names]
        assert [found.stdout.strip() for found in names] == ["node0", "node1"]
        assert two_hosts._prefix in spaces()
        left = subprocess.Popen([agent, "node1", "sleep 600"])
        raise KeyError
    assert left.wait(30) != 0
    assert two_hosts._prefix not in spaces()
    assert not list(_network.SETTINGS.glob(f"{two_hosts._prefix}*"))
    assert not Path(agent).exists()


def test_what_a_killed_process_left_is_removed(two_hosts: Hosts) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = f"{_network.PREFIX}{ended.pid}-node0"
    subprocess.run(["ip", "netns", "add", left], check=True)
    with two_hosts:
        assert left not in spaces()
        assert two_hosts._prefix in spaces()


def test_a_switch_that_cannot_be_built_leaves_nothing_behind(two_hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_hosts.link, "rate", lambda device: ["tc", "qdisc", "add", "dev", device, "root", "none"])
    with pytest.raises(NotPossibleError, match="tc qdisc"), two_hosts:
        pass
    assert two_hosts._prefix not in spaces()
