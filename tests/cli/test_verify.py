from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpcopt.checkpoint.folder import move_aside
from hpcopt.cli.main import main
from tests.support.checkpoints import write_small
from tests.support.fresh import modules_after_command
from tests.support.refusals import denied


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_small(tmp_path / "run" / "checkpoints", [1, 2])
    return tmp_path / "run"


def damage(file: Path) -> None:
    os.truncate(file, 1000)


def test_whole_checkpoints_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run, run / "checkpoints"):
        assert main(["verify", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [
            ["whole", str(run / "checkpoints" / name)] for name in ("step-00000001", "step-00000002")
        ]
        assert "2 files, 1.5 MiB" in lines[0]
    assert main(["verify", str(run / "checkpoints" / "step-00000002")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_damaged_one_is_named_with_its_file_and_the_status_is_4(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "checkpoints" / "step-00000002" / "rank0001.h5")
    assert main(["verify", str(run)]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["whole", "damaged", "rank0001.h5"]
    assert "has 1000 bytes instead of" in lines[2]
    assert main(["verify", str(run / "checkpoints" / "step-00000002")]) == 4
    assert main(["verify", str(run / "checkpoints" / "step-00000001")]) == 0


def test_json_says_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "step-00000002"
    (path / "rank0000.h5").unlink()
    (path / "notes").write_text("")
    assert main(["verify", str(run), "--json"]) == 4
    first, second = json.loads(capsys.readouterr().out)
    assert first == {"checkpoint": str(path.with_name("step-00000001")), "verdict": "whole", "findings": []}
    assert second == {
        "checkpoint": str(path),
        "verdict": "damaged",
        "findings": [
            {"file": str(path / "notes"), "what": "is no part of the checkpoint", "damage": False},
            {"file": str(path / "rank0000.h5"), "what": "is missing", "damage": True},
        ],
    }


def test_one_that_was_set_aside_counts_only_when_none_is_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 1):
        path = run / "checkpoints" / f"step-0000000{step}"
        damage(path / "rank0000.h5")
        move_aside(path)
        assert main(["verify", str(run)]) == (0 if step == 2 else 4)
        assert capsys.readouterr().out.count("set aside") == 3 - step
    assert main(["verify", str(run / "checkpoints" / "step-00000001.bad")]) == 4


def test_without_checkpoints_the_status_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "checkpoints" / "step-00000009"):
        assert main(["verify", str(path)]) == 2
        assert "There are no checkpoints in" in capsys.readouterr().err


def test_it_needs_neither_mpi_nor_torch_nor_hdf5(run: Path) -> None:
    assert not {"torch", "mpi4py", "h5py", "numpy"} & modules_after_command("verify", run)


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_folder_that_cannot_be_looked_into_is_one_paragraph(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (run / "status.json").write_text("{}")
    monkeypatch.setattr(Path, "iterdir", denied)
    assert main([command, str(run)]) == 74
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith("hpcopt: error: The folder")
    assert "cannot be looked into: Permission denied." in shown
