from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from hpcopt.analysis.checkpoint import Checkpoint, open_checkpoint
from hpcopt.analysis.export import ExportError, export
from hpcopt.errors import CheckpointError, UsageError
from tests.support.refusals import files_up_to
from tests.support.saved_models import contents, damage, equal, network, save

SUFFIXES = [".pt", ".safetensors", ".npz"]


def load_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


LOADERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".safetensors": load_file,
    ".npz": load_npz,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a best point beside its own."""
    (saved,) = save(tmp_path_factory.mktemp("checkpoints"), {4: contents(network(1), best=network(2))}, ranks=3)
    return saved


@pytest.fixture
def checkpoint(path: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(path) as opened:
        yield opened


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_holds_the_state_dict_to_the_last_bit(suffix: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / f"model{suffix}"
    assert export(checkpoint, target) == len(network().state_dict())
    assert equal(LOADERS[suffix](target), network(1))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_best_is_another_point(suffix: str, path: Path, tmp_path: Path) -> None:
    target = tmp_path / f"model{suffix}"
    with open_checkpoint(path, "best") as checkpoint:
        export(checkpoint, target)
    assert equal(LOADERS[suffix](target), network(2))


def test_torch_loads_a_pt_file_strictly_and_computes_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "model.pt")
    model = network(9)
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    sample = torch.randn(3, 1, 4, 4)
    assert torch.equal(model(sample), network(1)(sample))


def test_a_safetensors_file_says_that_its_names_are_those_of_torch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_type_that_a_checkpoint_holds_can_be_exported(tmp_path: Path) -> None:
    kinds = [np.bool_, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64]
    content = {f"model/layer/{np.dtype(kind).name}": np.arange(3).astype(kind) for kind in kinds}
    content |= {"model/empty": np.zeros((0, 2)), "model/one": np.array(2.5), "model/file": np.ones(2)}
    (path,) = save(tmp_path, {1: content})
    with open_checkpoint(path) as checkpoint:
        for suffix in SUFFIXES:
            export(checkpoint, tmp_path / f"model{suffix}")
            found = {name: np.asarray(value) for name, value in LOADERS[suffix](tmp_path / f"model{suffix}").items()}
            assert found.keys() == checkpoint.parameters.keys()
            for name, array in checkpoint.parameters.items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
                assert found[name].tobytes() == array.tobytes()


def test_an_unknown_suffix_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'\.onnx' is none of \.pt, \.safetensors, \.npz"):
        export(checkpoint, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_replaced_only_by_force(checkpoint: Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        export(checkpoint, target)
    assert target.read_text() == "mine"
    export(checkpoint, target, force=True)
    assert equal(torch.load(target, weights_only=True), network(1))


def test_a_place_that_can_take_no_file_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no directory"):
        export(checkpoint, tmp_path / "none" / "model.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        export(checkpoint, tmp_path / "folder.pt", force=True)


def test_a_checkpoint_without_a_model_is_refused(tmp_path: Path) -> None:
    (path,) = save(tmp_path, {1: {"solver/radius": 1.0}})
    with open_checkpoint(path) as checkpoint, pytest.raises(UsageError, match="holds no model"):
        export(checkpoint, tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_others_may_read_the_file_as_the_umask_says(suffix: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        export(checkpoint, tmp_path / f"model{suffix}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"model{suffix}").stat().st_mode) == 0o640


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_space_an_earlier_file_stays_and_nothing_is_left(suffix: str, tmp_path: Path) -> None:
    (path,) = save(tmp_path / "checkpoints", {1: {"model/w": np.random.default_rng(0).random(1_000_000)}})
    target = tmp_path / "out" / f"model{suffix}"
    target.parent.mkdir()
    target.write_text("earlier")
    with (
        files_up_to(1 << 16),
        open_checkpoint(path) as checkpoint,
        pytest.raises(ExportError, match=r"could not be written: .*[Ff]ile too l"),
    ):
        export(checkpoint, target, force=True)
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]
    assert target.read_text() == "earlier"


def test_of_a_damaged_checkpoint_nothing_is_written(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "checkpoints", {1: {"model/w": np.arange(100.0)}}, ranks=1)
    raw = (path / "rank0000.h5").read_bytes()
    damage(path / "rank0000.h5", (raw.index(np.arange(100.0).tobytes()) + 9) / len(raw))
    (tmp_path / "out").mkdir()
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match=r"rank0000\.h5") as caught:
        export(checkpoint, tmp_path / "out" / "model.npz")
    assert caught.value.exit_status == 4
    assert list((tmp_path / "out").iterdir()) == []


def test_without_the_package_for_safetensors_the_error_says_so(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UsageError, match="pip install safetensors"):
        export(checkpoint, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
