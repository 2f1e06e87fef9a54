from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcopt.analysis.checkpoint import open_checkpoint
from hpcopt.analysis.tensors import checkpoint_summary, difference
from hpcopt.cli.main import main
from tests.support.fresh import modules_after_command
from tests.support.runs import write_run
from tests.support.saved_models import contents, damage, network, save


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_run(tmp_path_factory.mktemp("runs") / "a", epochs=1)
    later = contents(network(3), best=network(2), radius=0.5)
    save(path / "checkpoints", {1000: contents(network(1), radius=0.25), 2000: later}, best=[1000])
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_run_shows_which_checkpoints_it_has(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in shown(capsys, run).splitlines() if line.startswith("checkpoints")]
    assert line.split(maxsplit=1)[1].strip() == "2  after steps 1,000 (best), 2,000"
    facts = json.loads(shown(capsys, run, "--json"))
    assert [(entry["step"], entry["best"]) for entry in facts["checkpoints"]] == [(1000, True), (2000, False)]
    assert all(Path(entry["path"]).is_dir() and entry["bytes"] > 0 for entry in facts["checkpoints"])


def test_of_many_checkpoints_the_first_and_the_last_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "a", epochs=1)
    save(path / "checkpoints", {step: {"model/w": network(1)[0].weight} for step in range(1, 11)}, ranks=1)
    assert "10  after steps 1, 2, ..., 9, 10" in shown(capsys, path)


def test_a_checkpoint_shows_every_tensor_and_scalar(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, run / "checkpoints" / "step-00002000").splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    weight = network(3).state_dict()["11.weight"]
    assert rows["11.weight"][1:6] == ["2", "x", "12", "float32", f"{weight.double().norm():.4g}"]
    assert rows["1.num_batches_tracked"][1:4] == ["1", "number", "int64"]
    assert rows["solver/radius"] == ["solver/radius", "0.5"]
    assert rows["step"] == ["step", "2,000"]
    assert not any(line.startswith("singular values") for line in lines)


def test_singular_values_come_on_request_also_for_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = shown(capsys, run, "--spectra").split("singular values of")[1].splitlines()
    rows = [line.split()[0] for line in listed if line.strip()]
    assert [name for name in rows if name.endswith("weight")] == ["0.weight", "11.weight"]


def test_a_difference_is_shown_against_another_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, run, "--difference", run / "checkpoints" / "step-00001000")
    table = found.split("Against step 1000")[1].splitlines()
    rows = {line.split()[0]: line.split() for line in table if line.strip()}
    assert rows["11.weight"][-1] == "differ"
    assert rows["1.num_batches_tracked"][-1] == "same"
    assert "solver/radius: 0.5 here, 0.25 there" in found


def test_tensors_that_cannot_be_compared_are_named_with_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = contents(network(1)), contents(network(1))
    second["model/1/bias"] = second["model/1/bias"][:2]
    second["model/12/scale"] = second.pop("model/0/bias")
    ours, theirs = save(tmp_path, {1: first, 2: second})
    lines = shown(capsys, ours, "--difference", theirs).splitlines()
    assert {"1.bias: shape 3 here, 2 there", "12.scale: only there", "0.bias: only here"} <= set(lines)


def test_the_best_point_is_compared_with_the_last_of_the_same_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads(shown(capsys, run, "--which", "best", "--difference", run, "--json"))
    assert facts["which"] == "best"
    (moved,) = [row for row in facts["difference"]["tensors"] if row["name"] == "11.weight"]
    assert not moved["equal_bits"]


def test_json_is_what_the_functions_return(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run / "checkpoints" / "step-00001000"
    facts = json.loads(shown(capsys, run, "--json", "--spectra", "--difference", first), parse_constant=pytest.fail)
    with open_checkpoint(run) as checkpoint, open_checkpoint(first) as other:
        assert facts == {
            **checkpoint_summary(checkpoint, spectra=True),
            "difference": difference(checkpoint, other),
        }


def test_what_cannot_be_meant_ends_with_status_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run / "checkpoints" / "step-00001000"), "--history"]) == 2
    assert "--history is of a run" in capsys.readouterr().err
    assert main(["inspect", str(run / "checkpoints" / "step-00003000")]) == 2
    assert "of the steps 1000, 2000" in capsys.readouterr().err.replace("\n", " ")
    assert main(["inspect", str(tmp_path), "--spectra"]) == 2


def test_damage_ends_with_status_4_and_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = save(tmp_path, {1: contents(network())})
    damage(path / "manifest.json")
    assert main(["inspect", str(path)]) == 4
    assert "manifest.json is damaged" in capsys.readouterr().err.replace("\n", " ")


def test_inspecting_a_checkpoint_loads_neither_torch_nor_mpi(run: Path) -> None:
    loaded = modules_after_command("inspect", run, "--spectra", "--difference", run)
    assert not {"torch", "mpi4py", "matplotlib", "scipy"} & loaded
