"""Small jobs whose network is cut over the ranks."""

from __future__ import annotations

from typing import Any

from hpcopt.config import parse_job
from hpcopt.train.job import PreparedJob

JOB = """
[run]
iterations = 5
evaluate_every = 5
precision = "float64"
device = "cpu"
[data]
source = "digits"
limit = 200
test = 0.2
batch = "full"
[model]
widths = [12, 11, 13]
init = "he"
activation = "tanh"
[loss]
weight_decay = 1e-3
[parallel]
layout = "variables"
"""

BLOCKS = """
[solver]
name = "newton"
direction = "block"
block_solver = "cg"
subset = 0.5
subset_least = 1
cg_tolerance = 1e-2
damping = 1e-2
"""


def prepared(comm: Any, *settings: str, more: str = "") -> PreparedJob:
    """The job with these settings on top, and more tables in it. *Collective*."""
    return PreparedJob(parse_job(JOB + more, list(settings)), comm)
