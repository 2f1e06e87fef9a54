"""The comparison of predictions with runs: its jobs are valid, and what its figures mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling._jobs import JOB
from benchmarks.scaling.predict import CUT, FAR, METHODS, Row, draw, far, lines, settings, trials
from hpcopt.config import parse_job
from hpcopt.costs.machine import read
from tests.support.measurements import written


def test_the_jobs_are_valid() -> None:
    for method in METHODS:
        job = parse_job(JOB, settings(method))
        assert job.run.iterations
        assert (job.parallel.layout == "variables") == (METHODS[method][2:4] == CUT)


def test_inner_iterations_are_those_of_the_run_where_nobody_can_know_them() -> None:
    told: dict[str, Any] = {"work": {"inner_iterations": 40}, "iterations": 5}
    assert trials("lbfgs", told, 4) == 8
    assert trials("newton, blocks", told, 4) == 2
    assert trials("newton", told, 4) is None


def test_the_report_has_runs_curves_and_what_they_rest_on(tmp_path: Path) -> None:
    machine = read(written(tmp_path / "m.json"))
    rows = [Row("sgd", 1, 0.9, 1.0, (1, 1)), Row("sgd", 2, 0.7, 1.0, (2, 2)), Row("sgd", 8, 2.0, 1.0, (2, 2))]
    assert [row.error for row in rows] == pytest.approx([0.1, 0.3, 1.0])
    curves = far(["sgd"], machine)
    assert [each.ranks for each in curves["sgd"] if each] == list(FAR)
    text = "\n".join(lines(rows, curves, machine))
    for words in ("Median error 30 %, largest 100 %", "8 on 2 cores", "more than 2 ranks were not measured"):
        assert words in text
    draw(rows, curves, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
