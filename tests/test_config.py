"""The job file: what is accepted, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcopt.config import CheckpointOptions, parse_job, read_job
from hpcopt.data.catalog import CATALOG
from hpcopt.data.files import SUFFIXES
from hpcopt.errors import UsageError
from hpcopt.models.registry import MODELS
from hpcopt.solvers.registry import SOLVERS

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.toml"))
DATA = '[data]\nsource = "digits"\n'
PROMISED_JOBS = [
    *("quickstart", "mnist-trust-region", "mnist-apts", "mnist-newton", "mnist-nlcg", "cifar10-apts", "cifar10-nlcg"),
    *("cifar100-nlcg", "cdr-slimtrain", "peaks-slimtrain", "mnist-autoencoder-slimtrain"),
]
"""Job files that other people's scripts start."""

PROMISED = """
[run]
name = "a"
seed = 1
epochs = 2
precision = "float64"
device = "auto"
stop = { train_loss = 0.1, test_accuracy = 0.9, seconds = 60 }
evaluate_every = 0.5
[data]
source = "set.csv"
root = "sets"
target = "last"
task = "classification"
test = 0.2
batch = 100
overlap = 0.1
standardize = true
limit = 1000
[model]
name = "mlp"
widths = [8]
activation = "tanh"
[loss]
name = "cross_entropy"
weight_decay = 1e-4
[solver]
name = "apts"
preset = "default"
[parallel]
layout = "variables"
grid = [2, 1]
data = 1
quorum = 0.5
[checkpoint]
every_epochs = 1
every_seconds = 600
keep = 3
resume = true
[slurm]
partition = "fast"
account = "me"
time = "01:00:00"
nodes = 2
ntasks_per_node = 4
gpus_per_task = 1
setup = ["module load mpi"]
skip = ["--requeue"]
extra = ["--mem=8G"]
"""
"""Keys of a job file that other people's job files have."""


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_in_the_repository_is_valid(path: Path) -> None:
    parse_job(read_job(path), name=path.stem)


@pytest.mark.parametrize("name", PROMISED_JOBS)
def test_the_jobs_that_scripts_start_are_there(name: str) -> None:
    assert f"{name}.toml" in [path.name for path in JOBS]


@pytest.mark.parametrize(
    "setting",
    [
        *("run.name=b", 'run.precision="float32"', 'run.device="cpu"', 'run.device="cuda"', 'data.batch="full"'),
        *('data.target="first"', 'data.target="weight"', 'data.task="regression"', 'loss.name="squared"'),
        *('solver.preset="paper"', 'model.name="package.module:function"'),
    ],
)
def test_what_job_files_of_others_hold_is_a_job(setting: str) -> None:
    parse_job(PROMISED, [setting])


def test_the_names_in_job_files_of_others_are_known() -> None:
    assert {"apts", "newton", "nlcg", "slimtrain", "trust_region", "lbfgs", "sgd", "adam", "lars"} <= set(SOLVERS)
    assert {"mlp", "cnn", "resnet32", "autoencoder"} <= set(MODELS)
    assert {"mnist-5k", "digits", "mnist", "cifar10", "cifar100", "cdr", "burgers", "peaks"} <= set(CATALOG)
    assert {".csv", ".csv.gz", ".libsvm", ".libsvm.xz", ".h5", ".npz", ".mat"} <= set(SUFFIXES)


def test_what_is_not_said_has_a_default_and_the_name_comes_from_the_file() -> None:
    job = parse_job(DATA, name="mine")
    assert (job.run.name, job.run.precision) == ("mine", "float32")
    assert (job.solver.name, job.model.name) == ("trust_region", "mlp")


def test_keys_of_model_and_solver_are_passed_on() -> None:
    job = parse_job(DATA + '[model]\nwidths = [5]\n[solver]\nname = "sgd"\nmomentum = 0.9\n')
    assert job.model.options == {"widths": [5]}
    assert job.solver.options == {"momentum": 0.9}


def test_settings_on_the_command_line_win() -> None:
    settings = ["run.epochs=3", "data.source=mnist", "run.stop.test_accuracy=0.9", "model.widths=[4, 5]", "run.seed=7"]
    job = parse_job(DATA + "[run]\nseed = 1\n", settings)
    assert (job.run.epochs, job.run.seed, job.data.source) == (3, 7, "mnist")
    assert job.run.stop.test_accuracy == 0.9
    assert job.model.options == {"widths": [4, 5]}


def test_the_resolved_job_is_a_job_file_that_says_the_same() -> None:
    job = parse_job(DATA + '[run]\nepochs = 2.5\nstop = { seconds = 60 }\n[solver]\nname = "sgd"\nnesterov = false\n')
    assert parse_job(job.to_toml()) == job


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[data", "not valid TOML"),
        ("[run]\nepochs = 1\n", "data.source is missing"),
        (DATA + "[solvr]\n", r"\[solvr\] is not a table of a job file; did you mean 'solver'"),
        (DATA + "[run]\nepoch = 3\n", "run.epoch is not a key of .run.; did you mean 'epochs'"),
        (DATA + "bach = 3\n", "data.bach is not a key of .data.; did you mean 'batch'"),
        (DATA + '[run]\nepochs = "ten"\n', "run.epochs = 'ten' is not allowed"),
        (DATA + "[run]\nepochs = 0\n", "run.epochs = 0.* positive"),
        (DATA + '[run]\nname = "a\\nb"\n', r"run\.name = 'a\\nb' must be text on one line"),
        (DATA + "[run]\niterations = 2.5\n", "run.iterations = 2.5 is not allowed"),
        (DATA + "[run]\nepochs = 1\niterations = 5\n", "both given"),
        (DATA + '[run]\nprecision = "float16"\n', "run.precision = 'float16' is not allowed.*'float32' or 'float64'"),
        (DATA + "[run]\nstop = 5\n", "run.stop = 5 must be a table"),
        (DATA + "[run]\nstop = { test_acuracy = 0.5 }\n", "run.stop.test_acuracy.*did you mean 'test_accuracy'"),
        (DATA + "[run]\nstop = { test_accuracy = 97 }\n", "test_accuracy = 97.* at most 1"),
        (DATA + "[run]\nstop = { train_loss = -1 }\n", "train_loss = -1.* not negative"),
        (DATA + "[run]\nstop = { seconds = 0 }\n", "seconds = 0.* positive"),
        (DATA + "[run]\nevaluate_every = 0\n", "evaluate_every"),
        (DATA + "[loss]\nweight_decay = -0.1\n", "weight_decay = -0.1.* not negative"),
        (DATA + "[loss]\nmicro_batch = 0\n", "micro_batch = 0"),
        (DATA + '[parallel]\nlayout = "rows"\n', "parallel.layout = 'rows' is not allowed.*'data' or 'variables'"),
        (DATA + '[parallel]\nlayout = "variables"\ndata = 0\n', "parallel.data = 0 is not allowed.* at least 1"),
        (DATA + "[parallel]\ndata = 2\n", 'parallel.data = 2 needs parallel.layout = "variables"'),
        ("data = 5\n", "data = 5 stands alone"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_the_rule(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_job(text)


@pytest.mark.parametrize("setting", ["run.epochs", "epochs=5", "=5", "run.=5"])
def test_a_setting_that_is_no_table_key_and_value_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        parse_job(DATA, [setting])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key",
    [
        *("run.epochs", "run.evaluate_every", "run.stop.train_loss", "run.stop.test_accuracy", "run.stop.seconds"),
        *("loss.weight_decay", "data.overlap", "data.test"),
    ],
)
def test_numbers_are_finite(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"{key} (=|is) {value}"):
        parse_job(DATA, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.test=[1]", r"data.test is \[1\]; it must be a file, a fraction .* or false"),
        ("data.test=true", "data.test is True; it must be a file, a fraction"),
        ("data.standardize=3", "data.standardize is 3; it must be true, false, or one of feature, channel, global"),
        ("data.standardize='features'", "data.standardize is 'features'; did you mean 'feature'"),
        ("data.batch=0.5", 'data.batch is 0.5; it must be a number of samples of at least 1, or "full"'),
        ("data.batch='ful'", "data.batch is 'ful'; it must be"),
        ("data.target=1.5", 'data.target is 1.5; it must be "first", "last", the name or the number'),
        ("data.target=[true]", r"data.target is \[True\]; it must be"),
    ],
)
def test_a_key_that_takes_values_of_several_types_names_all_of_them(setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_job(DATA, [setting])


@pytest.mark.parametrize(
    "setting",
    [
        *("run.epochs=0", "run.epochs=ten", "run.epoch=1", "run=5", "run.stop=5", "run.stop.secods=5", "solvr.name=x"),
        *("data.test=[1]", "data.task=guess", "data.limit=0", "data.root=5", "run.epochs", "run.seed.x=1", "x=1"),
    ],
)
def test_every_refusal_is_whole_sentences(setting: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_job(DATA + "[run]\nseed = 1\n", [setting])
    assert str(caught.value).endswith(".")


def test_a_setting_below_a_value_is_refused() -> None:
    with pytest.raises(UsageError, match="is not a table"):
        parse_job(DATA + "[run]\nseed = 1\n", ["run.seed.x=1"])


def test_a_mark_of_utf_8_is_no_part_of_a_job_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(DATA, encoding="utf-8-sig")
    assert read_job(tmp_path / "a.toml") == DATA


def test_a_job_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_job(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_job(tmp_path / "binary.toml")


def test_a_time_limit_needs_a_run_that_is_saved() -> None:
    with pytest.raises(UsageError, match=r"checkpoint.limit_seconds saves the run"):
        CheckpointOptions(save=False, limit_seconds=10.0)
