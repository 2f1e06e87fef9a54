from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from hpcopt.analysis import checkpoint as checkpoint_module
from hpcopt.analysis.checkpoint import find_checkpoint, is_checkpoint, open_checkpoint, published_checkpoints
from hpcopt.analysis.history import open_run
from hpcopt.analysis.summary import summary
from hpcopt.checkpoint import stored as stored_module
from hpcopt.checkpoint.manifest import SCHEMA
from hpcopt.errors import CheckpointError, NoValidCheckpointError, UsageError
from tests.support.checkpoints import make_later_schema, write_small
from tests.support.fresh import modules_after
from tests.support.runs import write_run
from tests.support.saved_models import contents, damage, equal, network, save

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints 10, 20 and 30, whose best is 20; 30 holds the best point beside its own."""
    path = write_run(tmp_path_factory.mktemp("runs") / "a", epochs=1)
    later = contents(network(3), best=network(2), radius=0.5, gradient=np.arange(4.0))
    save(path / "checkpoints", {10: contents(network(1)), 20: contents(network(2)), 30: later}, best=[20])
    return path


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(saved, tmp_path / "a"))


def test_parameters_are_the_models_state_dict(saved: Path) -> None:
    run = open_run(saved)
    assert equal(run.checkpoint().parameters, network(3))
    assert equal(run.checkpoint("latest").parameters, network(3))
    assert equal(run.checkpoint(10).parameters, network(1))
    assert equal(run.checkpoint(np.int64(10)).parameters, network(1))  # type: ignore[arg-type]


def test_best_is_the_best_point_up_to_the_newest_checkpoint(saved: Path) -> None:
    best = open_run(saved).checkpoint("best")
    assert best.step == 30
    assert equal(best.parameters, network(2))


def test_without_a_point_of_its_own_the_best_is_the_point_itself(saved: Path) -> None:
    assert equal(open_checkpoint(saved / "checkpoints" / "step-00000020", "best").parameters, network(2))


def test_what_training_does_not_change_is_part_of_the_best_too(tmp_path: Path) -> None:
    content = contents(network(3), best=network(2))
    frozen = {name: value for name, value in content.items() if not name.startswith("best/0/")}
    (path,) = save(tmp_path, {1: frozen})
    found = open_checkpoint(path, "best").parameters
    assert found.keys() == network().state_dict().keys()
    assert np.array_equal(found["0.weight"], network(3).state_dict()["0.weight"].numpy())
    assert np.array_equal(found["11.weight"], network(2).state_dict()["11.weight"].numpy())


def test_state_and_progress_come_by_their_keys(saved: Path) -> None:
    with open_run(saved).checkpoint() as checkpoint:
        assert checkpoint.state.keys() == {"radius", "gradient"}
        assert checkpoint.state["radius"] == 0.5
        assert checkpoint.state["gradient"].tolist() == [0, 1, 2, 3]
        assert checkpoint.progress == {"iterations": 40}
        assert checkpoint.scalars() == {"loop/iterations": 40, "solver/radius": 0.5}
        assert (checkpoint.step, checkpoint.path.name) == (30, "step-00000030")


def test_layers_stand_in_the_order_of_their_numbers(saved: Path) -> None:
    listed = open_run(saved).checkpoint().tensor_names
    assert listed[:2] == ["0.bias", "0.weight"]
    assert listed[-2:] == ["11.bias", "11.weight"]


def test_a_path_may_be_a_checkpoint_a_run_its_folder_or_a_pointer(saved: Path) -> None:
    folder = saved / "checkpoints"
    for path in (folder / "step-00000030", saved, folder, folder / "latest"):
        assert open_checkpoint(path).step == 30
    assert equal(open_checkpoint(folder / "best").parameters, network(2))
    assert is_checkpoint(folder / "step-00000030")
    assert not is_checkpoint(saved)


def test_a_run_lists_its_checkpoints_also_in_its_summary(saved: Path) -> None:
    listed = open_run(saved).checkpoints
    assert [(entry.step, entry.best) for entry in listed] == [(10, False), (20, True), (30, False)]
    sizes = [sum(file.stat().st_size for file in entry.path.glob("*.h5")) for entry in listed]
    assert [entry.bytes for entry in listed] == sizes
    first = summary(open_run(saved))["checkpoints"][0]
    assert first.keys() == {"step", "path", "bytes", "created", "best"}
    assert first["path"] == str(saved / "checkpoints" / "step-00000010")
    assert first["created"].endswith("+00:00")


def test_a_checkpoint_with_a_damaged_manifest_is_listed_without_what_it_said(run: Path) -> None:
    damage(run / "checkpoints" / "step-00000020" / "manifest.json")
    assert published_checkpoints(run / "checkpoints")[1][2:4] == (None, None)


def test_a_damaged_newest_checkpoint_is_left_out_with_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(run / "checkpoints" / "step-00000030" / "rank0000.h5")
    with caplog.at_level(logging.WARNING):
        assert equal(open_run(run).checkpoint().parameters, network(2))
    (record,) = caplog.records
    assert str(run / "checkpoints" / "step-00000030" / "rank0000.h5") in record.getMessage()
    assert (run / "checkpoints" / "step-00000030").is_dir(), "a reader renames nothing"


def test_when_all_are_damaged_the_error_names_a_file_and_has_status_4(run: Path) -> None:
    for path in run.glob("checkpoints/step-*/rank0000.h5"):
        damage(path)
    with pytest.raises(NoValidCheckpointError, match=r"step-00000030/rank0000\.h5: is damaged") as caught:
        open_run(run).checkpoint()
    assert caught.value.exit_status == 4


def test_a_later_version_of_the_format_is_no_reason_to_take_an_older_checkpoint(run: Path) -> None:
    make_later_schema(run / "checkpoints" / "step-00000030")
    with pytest.raises(CheckpointError, match=f"has schema {SCHEMA + 1}") as caught:
        open_run(run).checkpoint()
    assert caught.value.exit_status == 4


def test_damage_in_a_tensor_is_found_when_it_is_read(run: Path) -> None:
    path = run / "checkpoints" / "step-00000010"
    weights = network(1).state_dict()["11.weight"].numpy().tobytes()
    file = path / "rank0000.h5"
    damage(file, (file.read_bytes().index(weights) + 2) / file.stat().st_size)
    checkpoint = open_run(run).checkpoint(10)
    assert checkpoint.tensor("11.bias").size == 2, "what is whole can be read"
    with pytest.raises(CheckpointError, match=r"damaged at 'model/11/weight' in rank0000\.h5") as caught:
        _ = checkpoint.parameters
    assert caught.value.exit_status == 4


def test_a_missing_file_is_named_with_status_4(tmp_path: Path) -> None:
    (path,) = save(tmp_path, {1: contents(network())})
    (path / "rank0000.h5").unlink()
    with pytest.raises(CheckpointError, match=r"rank0000\.h5") as caught:
        _ = open_checkpoint(path).parameters
    assert caught.value.exit_status == 4


def test_what_is_not_there_is_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint step-00000015.*of the steps 10, 20, 30"):
        open_run(saved).checkpoint(15)
    with pytest.raises(UsageError, match="say 'latest' or 'best'"):
        open_run(saved).checkpoint("bset")
    with pytest.raises(UsageError, match=r"There is no checkpoint in .*\[checkpoint\]"):
        open_checkpoint(tmp_path)


def test_an_open_checkpoint_can_be_read_after_the_run_deleted_it(run: Path) -> None:
    checkpoint = open_run(run).checkpoint()
    shutil.rmtree(checkpoint.path)
    assert equal(checkpoint.parameters, network(3))


def test_of_many_files_those_held_can_be_read_after_the_run_deleted_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reading the others does not close them."""
    (path,) = write_small(tmp_path, ranks=5)
    monkeypatch.setattr(checkpoint_module, "MOST_HELD_FILES", 3)
    monkeypatch.setattr(stored_module, "MOST_OPEN_FILES", 1)
    with open_checkpoint(path) as checkpoint:
        for rank in (4, 3, 4, 3):
            assert checkpoint.stored.own(rank, "state").tolist() == list(range(rank + 1))
        shutil.rmtree(path)
        for rank in (0, 1, 2, 3):
            assert checkpoint.stored.own(rank, "state").tolist() == list(range(rank + 1))
        with pytest.raises(CheckpointError, match="cannot be opened"):
            checkpoint.stored.own(4, "state")


def test_a_moment_without_a_checkpoint_is_waited_out(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as it is while its only checkpoint is replaced, and after the one just seen was deleted."""
    looks: list[list[Path]] = [[], [saved / "checkpoints" / "step-00000040"]]
    listed = checkpoint_module.published
    monkeypatch.setattr(checkpoint_module, "published", lambda folder: looks.pop() if looks else listed(folder))
    assert open_run(saved).checkpoint().step == 30
    assert looks == []


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.support.saved_models import contents, network, save
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.checkpoint.retention import Retention
from tests.support.simulated import on_ranks

def work(comm):
    store = CheckpointStore(comm, Path({folder!r}), Retention(last=2))
    content = contents(network(7), best=network(8))
    for step in range(1, 100_000):
        store.save(step, content)
        if step == 2:
            print("ready", flush=True)

on_ranks(1, work)
"""


def test_a_run_that_publishes_and_deletes_without_pause_is_always_readable(tmp_path: Path) -> None:
    """The writer keeps two checkpoints and replaces both many times while the reader looks at one."""
    script = textwrap.dedent(WRITER).format(root=str(ROOT), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            steps: list[int] = []
            while len(steps) < 40 or steps[-1] < steps[0] + 10:  # a slow disk takes its time
                assert writer.poll() is None, "the writer is at work meanwhile"
                best = len(steps) % 2 == 1
                with find_checkpoint(tmp_path, "best" if best else "latest") as checkpoint:
                    assert equal(checkpoint.parameters, network(8 if best else 7))
                    steps.append(checkpoint.step)
                assert all(entry.bytes for entry in published_checkpoints(tmp_path))
        finally:
            writer.kill()
    assert steps == sorted(steps)


def test_reading_loads_neither_torch_nor_mpi(saved: Path) -> None:
    code = "import sys, hpcopt\nrun = hpcopt.open_run(sys.argv[1])\n"
    code += "assert run.checkpoint('best').parameters and run.checkpoints"
    assert not {"torch", "mpi4py"} & modules_after(code, saved)
