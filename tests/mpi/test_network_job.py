"""Jobs whose network is cut over a grid of ranks: one run on any number of them, that goes on on any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcopt.analysis.export import export
from hpcopt.analysis.history import open_run
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import HpcoptError, UsageError
from hpcopt.models.registry import build
from hpcopt.objective.network.objective import NetworkObjective
from tests.support.network_jobs import prepared

pytestmark = pytest.mark.mpi

SOLVERS = {
    "newton": ["solver.cg_iterations=12"],
    "nlcg": ["solver.preconditioner=identity"],
    "sgd": ["solver.learning_rate=0.1", "solver.momentum=0.9"],
    "adam": [],
    "lbfgs": [],
    "trust_region": [],
}


def settings_of(solver: str) -> list[str]:
    return [f"solver.name={solver}", *SOLVERS[solver]]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_is_the_same_on_any_number_of_ranks(comm: Communicator, alone: Communicator, solver: str) -> None:
    ours = prepared(comm, *settings_of(solver))
    theirs = prepared(alone, *settings_of(solver)).run(None)
    found = ours.run(None)
    assert isinstance(ours.objective, NetworkObjective)
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        wanted = [row[name] for row in theirs.history]
        np.testing.assert_allclose([row[name] for row in found.history], wanted, rtol=1e-9)
    assert comm.reduce_scalars([float(ours.objective.size)])[0] == ours.objective.parameters == len(theirs.parameters)


@pytest.mark.parametrize("preconditioner", ["identity", "gauss_newton_diagonal"])
def test_a_method_with_few_products_does_not_make_factors_for_them(comm: Communicator, preconditioner: str) -> None:
    """A linearisation is one value, and not as many again as the network has outputs; trials are gradients here."""
    job = prepared(comm, "solver.name=nlcg", f"solver.preconditioner={preconditioner}")
    job.run(None)
    assert job.objective.work.values == (5 if preconditioner == "identity" else 10)


def test_values_are_evaluated_as_labels_are(comm: Communicator, alone: Communicator) -> None:
    """The squared loss of targets that are cut over the ranks, with its explained variance."""
    settings = ["data.source=peaks", "data.test=0.3", *settings_of("sgd")]
    ours, theirs = (prepared(c, *settings).run(None) for c in (comm, alone))
    for name in ("train_loss", "test_loss", "test_explained_variance"):
        wanted = getattr(theirs.final, name)
        assert np.isfinite(wanted)
        assert getattr(ours.final, name) == pytest.approx(wanted, rel=1e-9)


def test_a_test_set_of_one_sample_is_evaluated_on_any_number_of_ranks(comm: Communicator, alone: Communicator) -> None:
    ours, theirs = (prepared(c, "data.test=1", *settings_of("sgd")).run(None) for c in (comm, alone))
    assert ours.final.test_loss == pytest.approx(theirs.final.test_loss, rel=1e-9)


def test_the_ranks_prove_that_they_decide_alike(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*settings_of("sgd"), "debug.check_agreement=true"]
    prepared(comm, *settings).run(None)
    total = NetworkObjective._total
    monkeypatch.setattr(NetworkObjective, "_total", lambda self, *given: total(self, *given) + 1e-9 * self.comm.rank)
    if comm.size > 1:
        with pytest.raises(HpcoptError, match="no longer agree"):
            prepared(comm, *settings).run(None)


def test_no_rank_holds_all_features(comm: Communicator) -> None:
    job = prepared(comm, "solver.name=sgd")
    assert isinstance(job.objective, NetworkObjective)
    rows = job.objective.partition.grid.rows
    assert job.objective.inputs.shape[1] <= -(-64 // rows)
    assert len(job.objective.inputs) == job.objective.samples


@pytest.mark.parametrize("solver", ["newton", "nlcg", "sgd", "lbfgs"])
def test_a_run_saved_on_one_grid_goes_on_on_another(comm: Communicator, shared_path: Path, solver: str) -> None:
    """From each of some numbers of ranks to the next, one iteration each, to the curve of a run in one go."""
    settings = settings_of(solver)
    whole = prepared(comm, *settings).run(None)
    numbers = [comm.size, 1, max(comm.size - 1, 1), comm.size, comm.size]
    for iterations, ranks in enumerate(numbers, 1):
        part = comm.split(int(comm.rank >= ranks))
        if comm.rank < ranks:
            result = prepared(part, *settings, f"run.iterations={iterations}").run(shared_path / "run")
            assert result.resumed_from == (iterations - 1 or None)
        part.free()
        comm.barrier()
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        assert getattr(result.final, name) == pytest.approx(getattr(whole.final, name), rel=1e-9)


def test_what_is_saved_is_what_torch_loads(comm: Communicator, alone: Communicator, shared_path: Path) -> None:
    result = prepared(comm, "solver.name=sgd").run(shared_path / "run")
    if comm.rank == 0:
        with open_run(shared_path / "run").checkpoint() as checkpoint:
            export(checkpoint, shared_path / "model.pt")
        model = build("mlp", {"widths": [12, 11, 13], "activation": "tanh"}, (64,), 10, 0).double()
        model.load_state_dict(torch.load(shared_path / "model.pt"))
        whole = prepared(alone, "solver.name=sgd").objective
        assert isinstance(whole, NetworkObjective)
        loss = torch.nn.functional.cross_entropy(model(whole.inputs), whole.targets)
        assert float(loss.detach()) == pytest.approx(result.final.train_loss, rel=1e-12)
    comm.barrier()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.name=cnn"], 'model.name = "cnn". Use model.name = "mlp"'),
        (["model.init=torch"], 'model.init = "torch" is not possible'),
        (["model.activation=gelu"], "Set it to one of relu, tanh, sigmoid"),
        (["model.dropout=0.5"], "remove model.dropout"),
        (["parallel.data=7"], "parallel.data = 7 does not fit"),
        (["parallel.grid=[7, 7]"], "parallel.grid = [7, 7] does not fit"),
        (["parallel.grid=[0, 1]"], "must be [rows, columns]"),
        (["parallel.layout=data", "parallel.grid=[1, 1]"], 'needs parallel.layout = "variables"'),
        (["solver.name=apts", "parallel.grid=[1, 1]"], "varies whole layers on each rank"),
    ],
)
def test_what_cannot_be_cut_is_refused_on_all_ranks(comm: Communicator, settings: list[str], words: str) -> None:
    with pytest.raises(UsageError) as found:
        prepared(comm, "solver.name=sgd", *settings)
    assert words in str(found.value)
    comm.barrier()
