import json
from pathlib import Path

import pytest

from hpcopt.analysis.history import open_run
from hpcopt.analysis.summary import summary
from tests.support.runs import set_status, write_run, write_start

KEYS = [
    "run", "status", "stop_reason", "solver", "model", "data", "ranks", "layout", "parameters", "iterations",
    "epochs", "seconds", "checkpoints", "initial", "final", "best", "work", "communication", "time", "steps",
    "local_iterations", "history",
]  # fmt: skip


def test_the_keys_are_the_promised_ones(tmp_path: Path) -> None:
    facts = summary(open_run(write_run(tmp_path / "a")))
    assert list(facts) == KEYS
    assert {"train_loss", "test_loss", "test_accuracy"} <= set(facts["final"])
    assert {"train_loss", "test_loss", "test_accuracy", "epoch"} <= set(facts["best"])
    assert set(facts["work"]) == {
        "values", "gradients", "curvature_products", "inner_iterations", "gradient_equivalents",
    }  # fmt: skip
    assert set(facts["communication"]) == {"calls", "bytes", "seconds_waited"}
    assert set(facts["steps"]) == {"accepted", "rejected"}
    promised = {
        "epoch", "iteration", "seconds", "train_loss", "test_loss", "test_accuracy", "gradient_norm", "radius",
    }  # fmt: skip
    assert all(promised <= set(row) for row in facts["history"])


def test_the_figures_of_a_run_are_those_of_its_record(tmp_path: Path) -> None:
    facts = summary(open_run(write_run(tmp_path / "a", epochs=10, per_epoch=4)))
    assert (facts["run"], facts["status"], facts["ranks"]) == ("a", "finished", 2)
    assert (facts["iterations"], facts["epochs"], facts["seconds"]) == (40, 10.0, pytest.approx(4.0))
    assert facts["steps"] == {"accepted": 32, "rejected": 8}
    assert facts["communication"] == {"calls": 120, "bytes": 40000, "seconds_waited": pytest.approx(0.4)}
    assert facts["initial"]["train_loss"] == pytest.approx(2.302585)
    assert facts["final"]["epoch"] == 10.0
    assert facts["best"]["epoch"] == 7.0
    assert facts["best"]["test_accuracy"] > facts["final"]["test_accuracy"]


def test_the_time_is_split_by_what_it_went_into_and_by_rank(tmp_path: Path) -> None:
    spent = {"all": 9.0, "evaluation": 2.0, "record": 0.5, "checkpoints": 1.0}
    path = write_run(tmp_path / "a", epochs=3, others=0.005, summary={"time": spent})
    ranks = {"step": [0.4, 0.4], "waited": [0.04, 0.048], "for_others": [0.02, 0.02]}
    found = summary(open_run(path))["time"]
    assert {name: pytest.approx(found["by_rank"].pop(name)) for name in ranks} == ranks
    assert found == spent | {"by_rank": {}}
    unknown = summary(open_run(write_run(tmp_path / "b")))["time"]
    assert unknown["all"] is unknown["by_rank"]["for_others"] is None


def test_local_iterations_are_the_mean_of_each_rank_over_its_phases(tmp_path: Path) -> None:
    assert summary(open_run(write_run(tmp_path / "a", local_iterations=(5, 2))))["local_iterations"] == [5.0, 2.0]
    assert summary(open_run(write_run(tmp_path / "b")))["local_iterations"] is None


def test_a_curvature_product_counts_what_the_run_measured(tmp_path: Path) -> None:
    work = summary(open_run(write_run(tmp_path / "a", epochs=10)))["work"]
    assert work["gradient_equivalents"] == pytest.approx(10 / 3 + 10 + 20 * 1.5)
    assert work["inner_iterations"] == 120


def test_best_is_by_test_loss_in_regression_and_by_train_loss_without_a_test_set(tmp_path: Path) -> None:
    by_test = open_run(write_run(tmp_path / "a", epochs=20, task="regression"))
    lowest = by_test.evaluations[by_test.evaluations.test_loss.argmin()]
    assert summary(by_test)["best"]["epoch"] == lowest.epoch < 20
    assert summary(open_run(write_run(tmp_path / "b", epochs=20, test=False)))["best"]["epoch"] == 20.0


def test_of_equal_accuracies_the_one_with_the_lowest_loss_is_best(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "a", epochs=6))
    run.evaluations.test_accuracy[:] = 0.5
    run.evaluations.test_loss[:] = [5, 4, 3, 2, 2, 3, float("nan")]
    assert summary(run)["best"]["epoch"] == 3.0


@pytest.mark.parametrize("make", [write_start, write_run])
def test_it_is_valid_json_with_null_for_what_is_unknown(tmp_path: Path, make: object) -> None:
    facts = summary(open_run(make(tmp_path / "a")))  # type: ignore[operator]
    read = json.loads(json.dumps(facts, allow_nan=False))
    assert read["best"]["test_explained_variance"] is None
    assert read == facts


def test_a_run_that_has_just_started_has_no_points(tmp_path: Path) -> None:
    facts = summary(open_run(write_start(tmp_path / "a")))
    assert (facts["iterations"], facts["epochs"], facts["history"]) == (0, 0.0, [])
    assert set(facts["final"].values()) == {None}
    assert list(facts) == KEYS


def test_the_task_is_guessed_from_the_figures_when_the_status_does_not_say(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", epochs=10)
    set_status(path, task=None)
    assert summary(open_run(path))["best"]["epoch"] == 7.0
