from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcopt.cli.main import main
from tests.support.fresh import modules_after_command
from tests.support.runs import write_run
from tests.support.saved_models import contents, damage, equal, network, save


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = write_run(tmp_path / "a", epochs=1)
    save(path / "checkpoints", {10: contents(network(1)), 20: contents(network(3), best=network(2))})
    return path


def test_a_run_is_exported_as_its_newest_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = run.parent / "model.pt"
    assert main(["export", str(run), "-o", str(target)]) == 0
    assert equal(torch.load(target, weights_only=True), network(3))
    shown = capsys.readouterr().out
    assert shown.startswith(f"{target}: 9 tensors, ")
    assert shown.endswith(f"the latest parameters of {run / 'checkpoints' / 'step-00000020'}\n")


def test_the_best_point_and_one_checkpoint_can_be_asked_for(run: Path) -> None:
    target = run.parent / "model.pt"
    assert main(["export", str(run), "-o", str(target), "--which", "best"]) == 0
    assert equal(torch.load(target, weights_only=True), network(2))
    one = str(run / "checkpoints" / "step-00000010")
    assert main(["export", one, "-o", str(target), "--force"]) == 0
    assert equal(torch.load(target, weights_only=True), network(1))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["-o", "model.txt"], "'.txt' is none of .pt, .safetensors, .npz"),
        (["-o", "model.pt", "--which", "first"], "say 'latest' or 'best'"),
    ],
)
def test_what_cannot_be_meant_ends_with_status_2(
    run: Path, given: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["export", str(run), *given]) == 2
    assert text in capsys.readouterr().err.replace("\n", " ")
    assert sorted(entry.name for entry in run.parent.iterdir()) == ["a"]


def test_a_run_without_checkpoints_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "a", epochs=1)
    assert main(["export", str(path), "-o", str(tmp_path / "model.pt")]) == 2
    assert "There is no checkpoint in" in capsys.readouterr().err


def test_damage_ends_with_status_4_and_names_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.glob("checkpoints/step-*/rank0001.h5"):
        damage(path)
    assert main(["export", str(run), "-o", str(run.parent / "model.pt")]) == 4
    assert "rank0001.h5" in capsys.readouterr().err
    assert not (run.parent / "model.pt").exists()


def test_only_pt_files_load_torch(run: Path) -> None:
    for suffix in (".npz", ".safetensors"):
        assert not {"torch", "mpi4py"} & modules_after_command("export", run, "-o", f"{run}{suffix}")
