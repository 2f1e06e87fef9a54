"""Run directories as a training run would leave them, written in no time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcopt.train.run.directory import RunDirectory
from hpcopt.train.run.lock import FILE_NAME, RunLock
from hpcopt.train.run.record import Recorder

STATUS = {
    "ranks": 2,
    "layout": "data",
    "solver": "trust_region",
    "model": "mlp",
    "data": "mnist-5k",
    "parameters": 12730,
    "training_samples": 4000,
    "task": "classification",
}


def write_run(
    path: Path,
    *,
    epochs: int = 10,
    per_epoch: int = 4,
    ranks: int = 2,
    rate: float = 0.3,
    task: str = "classification",
    radius: bool = True,
    test: bool = True,
    status: str = "finished",
    local_iterations: Sequence[int] = (),
    others: float = math.nan,
    **fields: Any,
) -> Path:
    """Write a run whose test accuracy peaks before its end and in which every fifth step is rejected.

    Accepted steps have ``local_iterations``, one number a rank; rejected ones had no local phase.
    """
    with RunDirectory.create(path, fresh=False) as directory:
        directory.write_job("[run]\nepochs = 10\n")
        directory.write_environment({"python": "3"})
        directory.write_status(**{**STATUS, "task": task, "ranks": ranks, **fields})
        recorder = Recorder(directory.path, ranks)
        for iteration in range(epochs * per_epoch + 1):
            if iteration > 0:
                row = iteration_row(iteration, per_epoch, rate, radius)
                recorder.iteration(local_iterations=local_iterations if accepted(iteration) else (), **row)
            if iteration % per_epoch == 0:
                recorder.evaluation(**evaluation_row(iteration, per_epoch, rate, radius, task, test))
                waited = [0.01 + 0.002 * rank for rank in range(ranks)]
                recorder.rank_times(iteration, [0.1] * ranks, waited, [others] * ranks)
        recorder.close()
        if status != "running":
            reason = "The requested number of epochs or iterations is done."
            directory.write_status(status=status, stop_reason=reason, exit_status=0)
    return directory.path


def write_live(path: Path, **options: Any) -> Path:
    """Write a run that is going on, in this process: its directory is locked."""
    write_run(path, status="running", **options)
    RunLock.acquire(path / FILE_NAME)
    return path


def write_start(path: Path) -> Path:
    """Write a run that has made its files and not evaluated anything yet."""
    with RunDirectory.create(path, fresh=False) as directory:
        directory.write_status(**STATUS)
        Recorder(directory.path, 2).close()
    return directory.path


def set_status(path: Path, **fields: Any) -> None:
    """Change ``status.json`` from outside."""
    file = path / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def loss(iteration: int, per_epoch: int, rate: float) -> float:
    """Falls from log(10) to 0.05."""
    return 0.05 + (math.log(10) - 0.05) * math.exp(-rate * iteration / per_epoch)


def accepted(iteration: int) -> bool:
    """Every fifth step is rejected."""
    return iteration % 5 != 0


def iteration_row(iteration: int, per_epoch: int, rate: float, radius: bool) -> dict[str, float]:
    """What one step of the synthetic run recorded."""
    before, after = (loss(number, per_epoch, rate) for number in (iteration - 1, iteration))
    return {
        "iteration": iteration,
        "epoch": iteration / per_epoch,
        "seconds": 0.1 * iteration,
        "batch": 1000,
        "loss": before,
        "loss_after": after,
        "gradient_norm": before / 2,
        "step_norm": 0.1 if accepted(iteration) else 0.0,
        "step_size": math.nan if radius else 0.1 / (1 + 0.1 * iteration),
        "accepted": int(accepted(iteration)),
        "rho": 0.9 if radius else math.nan,
        "radius": 0.5 * 1.05**iteration * (0.5 if iteration % 5 == 0 else 1.0) if radius else math.nan,
        "damping": math.nan,
        "predicted": before - after,
        "inner_iterations": 3,
        "values": iteration / per_epoch,
        "gradients": iteration / per_epoch,
        "curvature_products": 2 * iteration / per_epoch,
        "calls": 3 * iteration,
        "bytes": 1000 * iteration,
        "seconds_waited": 0.01 * iteration,
    }


def evaluation_row(
    iteration: int, per_epoch: int, rate: float, radius: bool, task: str, test: bool
) -> dict[str, float]:
    """What one evaluation of the synthetic run recorded; a curvature product costs 1.5 gradients."""
    epoch, train = iteration / per_epoch, loss(iteration, per_epoch, rate)
    overfit = 0.03 * max(0.0, epoch - 7)
    classified = task == "classification"
    share = 0.98 - 0.88 * math.exp(-rate * epoch) - overfit
    step = iteration_row(iteration, per_epoch, rate, radius) if iteration else None
    return {
        "iteration": iteration,
        "epoch": epoch,
        "seconds": 0.1 * iteration,
        "wall_seconds": 0.12 * iteration,
        "train_loss": train,
        "train_accuracy": share + 0.01 if classified else math.nan,
        "test_loss": 1.1 * train + 3 * overfit if test else math.nan,
        "test_accuracy": share if classified and test else math.nan,
        "test_explained_variance": math.nan if classified or not test else 1 - train,
        "gradient_norm": step["gradient_norm"] if step else math.nan,
        "radius": step["radius"] if step else math.nan,
        "gradient_equivalents": epoch * (1 / 3 + 1 + 2 * 1.5),
        "bytes": 1000 * iteration,
        "accepted": sum(accepted(number) for number in range(1, iteration + 1)),
        "rejected": sum(not accepted(number) for number in range(1, iteration + 1)),
    }
