"""The job file: typed tables, every key checked before anything starts.

A job file is TOML. Unknown tables and keys are refused with the nearest known one, ``--set table.key=value`` overrides,
and the resolved job is saved with the run. The keys of ``[model]`` and ``[solver]`` beyond those here belong to the
model and the method named there, and are checked by them.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hpcopt.checks import check_number
from hpcopt.cluster.options import SlurmOptions
from hpcopt.data.options import DataOptions
from hpcopt.errors import UsageError, nearest
from hpcopt.parallel_options import ParallelOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class StopOptions:
    """``[run] stop``: ends the run early, as soon as one of them is reached."""

    train_loss: float | None = None
    """Mean loss over the training set."""
    test_accuracy: float | None = None
    """Fraction of the test set classified right, 0 to 1."""
    seconds: float | None = None
    """Wall time of the whole run."""

    def __post_init__(self) -> None:
        check_number(
            "run.stop.test_accuracy", self.test_accuracy, "a fraction above 0 and at most 1", lambda x: 0 < x <= 1
        )
        check_number("run.stop.seconds", self.seconds, "a positive, finite number of seconds", lambda x: x > 0)
        rule = "finite and not negative, since no loss here goes below zero"
        check_number("run.stop.train_loss", self.train_loss, rule, lambda x: x >= 0)


@dataclass(frozen=True)
class RunOptions:
    """``[run]``: how long, in which precision, on which device."""

    name: str = ""
    """Name of the run and of its directory under runs/; the job file's name when empty."""
    seed: int = 0
    """Of initialisation, data order, splits and dropout."""
    epochs: float | None = None
    """Passes over the training set; 10 when neither epochs nor iterations is given."""
    iterations: int | None = None
    """Number of steps, instead of epochs."""
    precision: Literal["float32", "float64"] = "float32"
    """Of parameters and arithmetic; scalars that steer are float64 in either case."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where each rank computes; auto takes a GPU when there is one."""
    share_gpu: bool = False
    """Let several ranks of a host compute on one GPU."""
    stop: StopOptions = field(default_factory=StopOptions)
    """Early ends."""
    evaluate_every: float = 1.0
    """Epochs between evaluations on training and test set."""
    give_up_after: int = 20
    """Iterations in a row with a number that is not finite before the run ends as diverged."""

    def __post_init__(self) -> None:
        if not self.name.isprintable():
            raise UsageError(
                f"run.name = {self.name!r} must be text on one line, since a folder and a batch job are called so."
            )
        if self.epochs is not None and self.iterations is not None:
            raise UsageError(
                f"run.epochs = {self.epochs} and run.iterations = {self.iterations} are both given; they say the same "
                "thing in two units, so keep one of them."
            )
        check_number("run.epochs", self.epochs, "a positive, finite number", lambda x: x > 0)
        check_number("run.iterations", self.iterations, "a positive, finite number", lambda x: x > 0)
        check_number("run.evaluate_every", self.evaluate_every, "a positive, finite number of epochs", lambda x: x > 0)
        check_number("run.give_up_after", self.give_up_after, "at least 1", lambda x: x >= 1)
        check_number("run.seed", self.seed, "not negative", lambda x: x >= 0)


@dataclass(frozen=True)
class ModelOptions:
    """``[model]``: the network. All other keys go to the model's builder."""

    name: str = "mlp"
    """A key of ``hpcopt.models.registry.MODELS``, or 'package.module:function' of the user's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """The builder's own keys."""


@dataclass(frozen=True)
class LossOptions:
    """``[loss]``: what is minimised."""

    name: Literal["auto", "cross_entropy", "squared"] = "auto"
    """auto: cross_entropy for classification, squared for regression."""
    weight_decay: float = 0.0
    """Adds weight_decay/2 |w|^2."""
    decay_norms: bool = True
    """Whether that is also of scale and shift of normalisations."""
    micro_batch: int | None = None
    """Most samples in one forward pass on a rank; larger batches are accumulated."""

    def __post_init__(self) -> None:
        check_number("loss.weight_decay", self.weight_decay, "finite and not negative", lambda x: x >= 0)
        check_number("loss.micro_batch", self.micro_batch, "at least 1", lambda x: x >= 1)


@dataclass(frozen=True)
class SolverTable:
    """``[solver]``: the method. All other keys are its own."""

    name: str = "trust_region"
    """A key of ``hpcopt.solvers.registry.SOLVERS``, or 'package.module:Class' of the user's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """The method's own keys."""


@dataclass(frozen=True)
class CheckpointOptions:
    """``[checkpoint]``: when the run is saved, and what is kept."""

    save: bool = True
    """Whether to save at all; if so, always at the end too."""
    resume: bool = True
    """Whether a run that is in the run directory goes on from its newest valid checkpoint."""
    every_epochs: float | None = None
    """Epochs between checkpoints."""
    every_seconds: float | None = None
    """Seconds between checkpoints."""
    share: float = 0.02
    """Where neither is given: a checkpoint is due when the last one cost at most this share of the time since then."""
    keep: int = 2
    """How many of the newest are kept, at least 2; the best one is kept besides."""
    keep_every: int = 0
    """One in every so many iterations is kept for ever; 0 for none."""
    limit_seconds: float | None = None
    """The run saves and stops this long after its start, to be started again: exit status 75."""

    def __post_init__(self) -> None:
        check_number("checkpoint.every_epochs", self.every_epochs, "above 0", lambda x: x > 0)
        check_number("checkpoint.every_seconds", self.every_seconds, "above 0", lambda x: x > 0)
        check_number("checkpoint.share", self.share, "above 0 and below 1", lambda x: 0 < x < 1)
        check_number("checkpoint.keep", self.keep, "at least 2, in case the newest is damaged", lambda x: x >= 2)
        check_number("checkpoint.keep_every", self.keep_every, "at least 0", lambda x: x >= 0)
        check_number("checkpoint.limit_seconds", self.limit_seconds, "above 0", lambda x: x > 0)
        if self.limit_seconds is not None and not self.save:
            raise UsageError(
                "checkpoint.limit_seconds saves the run and stops it, but checkpoint.save is false. Remove one of "
                "them; run.stop.seconds ends a run without saving it."
            )


@dataclass(frozen=True)
class DebugOptions:
    """``[debug]``: checks that cost time."""

    check_agreement: bool = False
    """Prove after every step, by a reduction of a hash of w, that all ranks hold the same variables."""
    slow_rank: int | None = None
    """This rank waits ``slow_seconds`` before every local iteration, to see what a straggler costs."""
    slow_seconds: float = 0.1
    """How long it waits."""
    silence_seconds: float = 300.0
    """``hpcopt run`` reports which rank is silent, and where, when none has made progress for so long; 0: never."""
    abort_on_silence: bool = False
    """Whether that report ends the job, with status 1."""
    barriers: bool = False
    """Begin every collective call that blocks with a barrier, whose time the record keeps apart."""

    def __post_init__(self) -> None:
        check_number("debug.slow_rank", self.slow_rank, "the number of a rank, from 0", lambda x: x >= 0)
        check_number(
            "debug.slow_seconds", self.slow_seconds, "a finite number of seconds, not negative", lambda x: x >= 0
        )
        check_number(
            "debug.silence_seconds", self.silence_seconds, "a finite number of seconds, not negative", lambda x: x >= 0
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A whole job file, checked."""

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    solver: SolverTable = field(default_factory=SolverTable)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    debug: DebugOptions = field(default_factory=DebugOptions)
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    def to_toml(self) -> str:
        """The resolved job as a job file that says the same thing."""
        import tomli_w

        tables = {name: _without_none(table) for name, table in asdict(self).items()}
        for name in ("model", "solver"):
            tables[name] |= tables[name].pop("options")
        return tomli_w.dumps(tables)


Table = TypeVar("Table")


def read_job(path: Path) -> str:
    """The text of a job file, without the mark that some editors begin UTF-8 with.

    Raises:
        UsageError: it is not there or is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the job file {path} cannot be read: {error}. Give the path of a TOML file.") from error


def parse_job(text: str, settings: list[str] | None = None, name: str = "job") -> Job:
    """Parse and check a job file's ``text`` with ``settings`` of the form ``table.key=value`` on top.

    Args:
        text: TOML.
        settings: overrides; the value is TOML, or a string when it is no TOML value.
        name: the run's name when the job gives none.

    Raises:
        UsageError: no TOML, or a table, key or value that is not allowed.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the job file is not valid TOML: {error}. Strings need quotes, tables [brackets].") from error
    for setting in settings or []:
        _override(tables, setting)
    known = {f.name: f for f in fields(Job)}
    types = get_type_hints(Job)
    for table, values in tables.items():
        if table not in known:
            raise UsageError(
                f"[{table}] is not a table of a job file{nearest(table, known)} Known: {', '.join(known)}."
            )
        if not isinstance(values, dict):
            raise UsageError(f"{table} = {values!r} stands alone; it must be a table, [{table}] with keys below it.")
    job = {table: _build(types[table], values, table) for table, values in ({"data": {}} | tables).items()}
    job.setdefault("run", RunOptions())
    if not job["run"].name:
        job["run"] = _build(RunOptions, {**tables.get("run", {}), "name": name}, "run")
    return Job(**job)


def _build(kind: type[Table], values: dict[str, Any], where: str) -> Table:
    """An options table from plain values; unknown keys and wrong types are refused by name.

    Raises:
        UsageError: see above.
    """
    values = _known(kind, values, where)
    hints = get_type_hints(kind)
    for key, value in values.items():
        if is_dataclass(hints.get(key)):
            if not isinstance(value, dict):
                raise UsageError(f"{where}.{key} = {value!r} must be a table such as {{ key = value }}.")
            values = {**values, key: _build(hints[key], value, f"{where}.{key}")}
    return kind(**{key: _checked(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def _known(kind: type[Table], values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values of a table that has all it needs, keys of a model's or a method's own under ``options``."""
    keys = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    known = [key for key in keys if key != "options"]
    unknown = [key for key in values if key not in known]
    if "options" in keys:
        values = {**{k: v for k, v in values.items() if k in known}, "options": {k: values[k] for k in unknown}}
    elif unknown:
        raise UsageError(
            f"{where}.{unknown[0]} is not a key of [{where}]{nearest(unknown[0], known)} Known: {', '.join(known)}."
        )
    for key, entry in keys.items():
        if entry.default is MISSING and entry.default_factory is MISSING and key not in values:
            raise UsageError(
                f"{where}.{key} is missing; [{where}] cannot do without it. See docs/jobs.md for its values."
            )
    return values


def _checked(value: Any, hint: Any, name: str) -> Any:
    """``value`` as the type that the key ``name`` is declared with."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if _says_its_own_rule(hint):
        return value
    config = None if is_dataclass(hint) else ConfigDict(strict=True, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("Input", "it")
        raise UsageError(f"{name} = {value!r} is not allowed: {message}.") from error


def _says_its_own_rule(hint: Any) -> bool:
    """Whether a key takes values of several types: pydantic would name one of them, the table's own check names all."""
    return get_origin(hint) in (Union, UnionType) and len(set(get_args(hint)) - {NoneType}) > 1


def _override(tables: dict[str, Any], setting: str) -> None:
    """Apply one ``table.key=value``."""
    path, equals, value = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UsageError(f"--set {setting} is not of the form table.key=value, such as --set run.epochs=5.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {setting}: {key} is not a table. Name a key of a table, as in --set run.epochs=5.")
    table[keys[-1]] = parsed


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not given is left out."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, (list, tuple)) else value
