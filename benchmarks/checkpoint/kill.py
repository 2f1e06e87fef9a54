"""Does a run whose ranks are killed again and again come to the same end as an undisturbed one?

    python benchmarks/checkpoint/kill.py --kills 20 [--seed 1] [--output benchmarks/results/checkpoint-kill.md]

A job of APTS on mini-batches of the packaged digits, 2 ranks, saved every five iterations. In every start a random rank
gets signal 9: in one start of four at a random moment of the first two seconds, in the others at a random moment of the
half second after a checkpoint that is chosen in advance, one for each kill, evenly over the whole job. In that half
second the job goes on and is saved again; should it come to the second checkpoint, it waits there for the kill. The
same command is given again until the job is done. Weights, the state of the method and all columns of the record but
times are then compared, bit by bit, with those of a run that nobody disturbed. Some minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.checkpoint.folder import FOLDER, set_aside
from tests.fault.test_resume import run_until_done
from tests.support.held import JOB, assert_equal_runs, write_job

ITERATIONS = 300
RANKS = 2
"""Ranks of the job; this process starts it and is none of them."""


def prepare(path: Path) -> Path:
    """A folder with the job."""
    path.mkdir()
    job = JOB.replace("iterations = 60", f"iterations = {ITERATIONS}")
    return write_job(path, job.replace("evaluate_every = 2", "evaluate_every = 20"))


def main() -> None:
    """Kill, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calm, killed = prepare(Path(folder) / "calm"), prepare(Path(folder) / "killed")
        run_until_done(calm, options.seed, 0, ITERATIONS)
        steps = run_until_done(killed, options.seed, options.kills, ITERATIONS)
        assert_equal_runs(killed / "out", calm / "out")
        damaged = len(set_aside(killed / "out" / FOLDER))
    kills = len(steps)
    assert len(set(steps)) > kills / 2, "the run must have gone on between the kills"
    rows = [[str(number + 1), str(step)] for number, step in enumerate(steps)]
    lines = [
        f"Seed {options.seed}, {RANKS} ranks: {kills} kills with signal 9, then the job was done.",
        f"After {ITERATIONS} iterations weights, state and record (but for times) are those of the undisturbed run",
        f"to the last bit. Checkpoints found damaged: {damaged}.",
        "",
        *table(["kill", "newest checkpoint after it"], rows),
    ]
    print("\n".join(lines))
    if options.output:
        command = f"python benchmarks/checkpoint/kill.py{spelled(options)}"
        write_report(options.output, "Killing a run again and again", command, lines, RANKS)


if __name__ == "__main__":
    main()
