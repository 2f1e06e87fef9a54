"""Runs whose output can no longer be written: they lose what they could not write, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcopt.analysis.history import open_run
from hpcopt.checkpoint.folder import FOLDER, published_steps
from tests.fault.conftest import run_words
from tests.support.held import write_job

JOB = """
[run]
iterations = 30
evaluate_every = 2
[data]
source = "digits"
batch = 200
[solver]
name = "sgd"
[model]
name = "mymodels:network"
[checkpoint]
every_epochs = 2
"""

MODELS = """
import os, resource, shutil, signal

import torch

def fill_the_disk(stop):
    '''No file may become as long as that of a checkpoint.'''
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_400_000, -1))
    if stop:
        os.kill(os.getpid(), signal.SIGUSR1)

def remove_the_run(stop):
    shutil.rmtree("out", ignore_errors=True)

def nothing(stop):
    pass

class Loses(torch.nn.Linear):
    '''In its 20th training pass something happens to the output of the run.'''
    passes = 0

    def forward(self, x):
        self.passes += self.training
        if self.passes == 20:
            globals()[self.event](self.stop)
        return super().forward(x)

def network(input_shape, outputs, event, stop=False):
    layer = Loses(10_000, outputs)
    layer.event, layer.stop = event, stop
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10_000), layer)
"""

GOES_ON = "The run goes on, and says no more of this"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_job(tmp_path, JOB, MODELS)


@pytest.mark.parametrize(("stop", "status"), [("false", 0), ("true", 74)])
def test_on_a_full_disk_the_run_goes_on_and_fails_only_when_it_was_to_stop(
    workplace: Path, launch: Callable, stop: str, status: int
) -> None:
    done = launch(2, run_words("model.event=fill_the_disk", f"model.stop={stop}"), timeout=60)
    assert done.returncode == status, done.stderr
    assert done.stderr.count(GOES_ON) == 1
    assert "could not be saved, see out/log" in done.stdout
    assert published_steps(workplace / "out" / FOLDER) == [16], "the one before that"


def test_a_run_whose_directory_is_removed_comes_to_the_same_end_and_says_what_it_could_not_write(
    workplace: Path, launch: Callable
) -> None:
    undisturbed = launch(2, run_words("model.event=nothing", directory="whole"), timeout=60)
    done = launch(2, run_words("model.event=remove_the_run"), timeout=60)
    assert (undisturbed.returncode, done.returncode) == (0, 0), done.stderr
    assert not (workplace / "out" / "status.json").exists()
    assert done.stderr.count(GOES_ON) == 1
    assert done.stderr.count("can no longer be written") == 1, "by rank 1, whose log begins with this"
    assert done.stderr.count("The status of the run could not be written") == 1
    assert "Traceback" not in done.stderr
    accuracy = open_run(workplace / "whole").evaluations.test_accuracy[-1]
    assert f"{100 * accuracy:.2f}%" in done.stdout
