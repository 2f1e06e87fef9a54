from pathlib import Path

import pytest

from hpcopt.analysis.doctor import examine
from hpcopt.comm.communicator import Communicator


@pytest.mark.mpi
def test_rank_0_hears_of_all_ranks(tmp_path: Path) -> None:
    comm = Communicator()
    report = examine(tmp_path)
    verdicts = comm.allgather_objects(report is not None)
    assert verdicts == [rank == 0 for rank in range(comm.size)]
    correct = True
    if report is not None:
        ranks = next(finding for finding in report.findings if finding.topic == "ranks")
        correct = len(report.facts["ranks"]) == comm.size and ranks.text.startswith(f"{comm.size} rank")
        correct = correct and ("communication" in [finding.topic for finding in report.findings]) == (comm.size > 1)
    assert all(comm.allgather_objects(correct))
