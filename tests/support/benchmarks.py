"""Benchmarks in this process instead of under mpirun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.analysis.history import open_run
from hpcopt.analysis.summary import summary
from hpcopt.comm.communicator import Communicator
from hpcopt.config import parse_job
from hpcopt.data.cifar import LAYOUTS
from hpcopt.train.job import PreparedJob


def in_process(comm: Communicator, made: list[str]) -> Callable[..., dict[str, Any]]:
    """What stands in for ``benchmarks._runs.trained``; the names of the runs it makes are added to ``made``."""

    def trained(job: Path, ranks: int, parent: Path, name: str, root: str, settings: Any, **_: Any) -> dict[str, Any]:
        if not (parent / name).exists():
            made.append(name)
            text = parse_job(job.read_text(), [f"data.root={root}", "run.device=cpu", *settings])
            PreparedJob(text, comm).run(parent / name)
        return summary(open_run(parent / name))

    return trained


def write_images(folder: Path, source: str) -> Path:
    """Eight images at random in each file of "cifar10" or "cifar100"; returns the folder."""
    draw = np.random.default_rng(0)
    for name in LAYOUTS[source].npz:
        images, labels = (
            draw.integers(0, 256, (8, 3, 32, 32), np.uint8),
            draw.integers(0, LAYOUTS[source].classes, 8, np.uint8),
        )
        np.savez(folder / name, images=images, labels=labels)
    return folder
