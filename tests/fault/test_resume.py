"""Runs that are stopped or killed from outside, and what the same command makes of them when it is started again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from hpcopt.analysis.history import open_run
from hpcopt.checkpoint.folder import FOLDER, published, published_steps
from tests.fault import conftest
from tests.fault.conftest import Finished, other_mpi, own_mpi, run_words
from tests.fault.going import Job, started
from tests.support.held import MODELS, SAVED_EVERY, assert_equal_runs, hold, last_step, write_job
from tests.support.saved_models import damage

SIGNALS = """
class Signals(torch.nn.Linear):
    '''Sends itself a signal in a training pass, and again in the next ones.'''
    passes = 0

    def forward(self, x):
        self.passes += self.training
        if self.training and self.first <= self.passes < self.first + self.times:
            from mpi4py import MPI
            if MPI.COMM_WORLD.rank == self.rank:
                os.kill(os.getpid(), signal.SIGUSR1)
        return super().forward(x)

def signals(input_shape, outputs, rank=0, first=20, times=1):
    layer = Signals(64, outputs)
    layer.rank, layer.first, layer.times = rank, first, times
    return torch.nn.Sequential(torch.nn.Flatten(), layer)
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job that takes a second or two, and models of the user's own."""
    monkeypatch.chdir(tmp_path)
    return write_job(tmp_path, models=MODELS + SIGNALS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the job on 2 ranks when nobody disturbs it."""
    path = write_job(tmp_path_factory.mktemp("undisturbed"), models=MODELS + SIGNALS)
    words = [own_mpi().mpirun, "-n", "2", *conftest.command(run_words())]
    done = conftest.run(words, conftest.environment(None, {}), 60.0, path)
    assert done.returncode == 0, done.stderr
    return path / "out"


def goes_on_to_the_same_end(launch: Callable, path: Path, undisturbed: Path, after: int | None = None) -> Finished:
    """The same command again, until the run is finished."""
    done = launch(2, run_words(), timeout=60, cwd=path)
    assert done.returncode == 0, done.stderr
    if after is not None:
        assert f"going on after iteration {after}\n" in done.stdout
    assert_equal_runs(path / "out", undisturbed)
    return done


@pytest.mark.parametrize("whom", ["mpirun twice", "rank 1", "during start-up"])
def test_a_signal_saves_the_run_and_the_same_command_goes_on(
    workplace: Path, launch: Callable, undisturbed: Path, whom: str
) -> None:
    hold(workplace, "job.toml" if whom == "during start-up" else f"out/{FOLDER}/latest")
    with started(workplace) as job:
        job.wait_for(job.listens)
        if whom != "during start-up":
            job.wait_for(lambda: (workplace / "out" / FOLDER / "latest").exists())
        victim = job.ranks()[1] if whom == "rank 1" else job.process.pid
        for _ in range(1 + ("twice" in whom)):
            os.kill(victim, signal.SIGUSR1)
            time.sleep(0.05)
        done = job.finish()
    assert done.returncode == 75, done.stderr
    step = last_step(workplace)
    status = json.loads((workplace / "out/status.json").read_text())
    assert (status["status"], status["exit_status"], status["summary"]["iterations"]) == ("saved", 75, step)
    assert f"It is saved after iteration {step}; the same command goes on from there." in done.stdout
    if whom == "during start-up":
        assert step == 1
    goes_on_to_the_same_end(launch, workplace, undisturbed, step)


def test_another_mpi_passes_the_signal_on_too(workplace: Path) -> None:
    hold(workplace, "job.toml")
    with started(workplace, mpi=other_mpi()) as job:
        job.wait_for(job.listens)
        os.kill(job.process.pid, signal.SIGUSR1)
        done = job.finish()
    assert done.returncode == 75, done.stderr
    assert last_step(workplace) == 1


@pytest.mark.parametrize(("rank", "times"), [(0, 60), (1, 1)])
def test_a_signal_is_obeyed_at_the_end_of_the_iteration_in_which_it_came(
    workplace: Path, launch: Callable, rank: int, times: int
) -> None:
    """Also when more of them come, within the same iteration and while the run is being saved."""
    settings = ["model.name=mymodels:signals", f"model.rank={rank}", f"model.times={times}", "solver.name=lbfgs"]
    done = launch(2, run_words(*settings, "data.batch=full", "run.evaluate_every=100"), timeout=60)
    assert done.returncode == 75, done.stderr
    run = open_run(workplace / "out")
    # The request travels with the reductions of an iteration: that one's, or the next one's.
    before = int(
        np.searchsorted(np.cumsum(run.iterations.inner_iterations + (np.arange(len(run.iterations)) == 0)), 20)
    )
    assert last_step(workplace) - (before + 1) in (0, 1)


def test_a_halt_file_saves_the_run_and_is_gone_afterwards(workplace: Path) -> None:
    hold(workplace, "out/status.json")
    with started(workplace, "checkpoint.every_epochs=1000") as job:
        job.wait_for((workplace / "out/status.json").exists)
        (workplace / "out/halt").touch()
        done = job.finish()
    assert done.returncode == 75, done.stderr
    assert not (workplace / "out/halt").exists()
    assert last_step(workplace) == json.loads((workplace / "out/status.json").read_text())["summary"]["iterations"]


def test_the_clock_of_the_run_saves_it(workplace: Path, launch: Callable, undisturbed: Path) -> None:
    done = launch(2, run_words("checkpoint.limit_seconds=0.01"), timeout=60)
    assert done.returncode == 75, done.stderr
    goes_on_to_the_same_end(launch, workplace, undisturbed, 1)


def test_a_finished_run_says_so(workplace: Path, launch: Callable, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, workplace / "out")
    done = goes_on_to_the_same_end(launch, workplace, undisturbed)
    assert "There was nothing left to do: the run had come to its end before." in done.stdout


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    workplace: Path, launch: Callable, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, workplace / "out")
    *_, before, last = published_steps(workplace / "out" / FOLDER)
    damage(published(workplace / "out" / FOLDER)[-1] / "rank0000.h5")
    done = goes_on_to_the_same_end(launch, workplace, undisturbed, before)
    assert f"step-{last:08d}.bad, and the one before it is used" in done.stderr
    assert f"step-{last:08d}.bad" in (workplace / "out/log/rank0000.log").read_text()


def test_when_all_checkpoints_are_damaged_the_status_is_4_and_nothing_is_lost(
    workplace: Path, launch: Callable, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, workplace / "out")
    for path in published(workplace / "out" / FOLDER):
        damage(path / "rank0000.h5")
    done = launch(2, run_words(), timeout=60)
    assert done.returncode == 4, done.stderr
    assert "None of the checkpoints in" in done.stderr
    assert "start anew with --fresh" in " ".join(done.stderr.split())
    assert (workplace / "out/metrics.h5").read_bytes() == (undisturbed / "metrics.h5").read_bytes()


def test_another_job_is_refused_and_the_run_stays_as_it_is(
    workplace: Path, launch: Callable, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, workplace / "out")
    done = launch(2, run_words("run.seed=1"), timeout=60)
    assert done.returncode == 2
    assert "was made with run.seed = 0, the job now says 1" in " ".join(done.stderr.split())
    assert (workplace / "out/job.toml").read_bytes() == (undisturbed / "job.toml").read_bytes()
    assert_equal_runs(workplace / "out", undisturbed)


def run_until_done(path: Path, seed: int, most: int, iterations: int) -> list[int]:
    """Start the job again and again; in the first ``most`` starts a random rank is killed.

    One start in four is killed at a random moment of its first two seconds. The others are killed at a random moment of
    the half second after the run has come to a certain new checkpoint; these are spread evenly over ``iterations``.
    Meanwhile the job goes on and is saved again, up to the second checkpoint from there, where it waits for the kill.

    Returns:
        The step of the newest checkpoint after each kill, 0 without one.
    """
    draw, steps, stops = random.Random(seed), [], iterations // SAVED_EVERY
    for kill in range(most):
        # Not at the last checkpoint: the job must be held before its last iteration.
        goal = min(max(1 + kill * (stops - 3) // most, last_step(path) // SAVED_EVERY + 1), stops - 1)
        hold(path, f"out/{FOLDER}/step-{min(goal + 2, stops - 1) * SAVED_EVERY:08d}")
        with started(path) as job:
            job.wait_for(job.listens)
            if draw.random() < 0.25:
                time.sleep(draw.uniform(0.0, 2.0))
            else:
                job.wait_for(lambda step=goal * SAVED_EVERY: last_step(path) >= step)  # type: ignore[misc]
                time.sleep(draw.uniform(0.0, 0.5))
            hit = kill_one(job, draw)
            done = job.finish()
        assert hit, f"seed {seed}: ended by itself after {len(steps)} kills: {done.returncode}\n{done.stderr}"
        steps.append(last_step(path))
    (path / "hold0").unlink(missing_ok=True)
    with started(path) as job:
        done = job.finish(300.0)
    assert done.returncode == 0, f"seed {seed}: failed after {len(steps)} kills: {done.returncode}\n{done.stderr}"
    return steps


def kill_one(job: Job, draw: random.Random) -> bool:
    """Kill a rank, unless the job has ended."""
    ranks = job.ranks()
    if job.process.poll() is not None or len(ranks) < 2:
        return False
    with suppress(ProcessLookupError):
        os.kill(draw.choice(ranks), signal.SIGKILL)
        return True
    return False


def test_a_run_whose_ranks_are_killed_again_and_again_comes_to_the_same_end(workplace: Path, undisturbed: Path) -> None:
    steps = run_until_done(workplace, seed=1, most=5, iterations=60)
    assert len(set(steps) - {0}) >= 2, "the run must have gone on between the kills"
    assert steps == sorted(steps)
    assert_equal_runs(workplace / "out", undisturbed)
