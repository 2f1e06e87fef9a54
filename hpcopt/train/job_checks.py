"""What can be refused in a job before there are ranks and data. Loads no MPI, so that a login node can do it too."""

from __future__ import annotations

from dataclasses import fields

from hpcopt.config import DebugOptions, Job
from hpcopt.errors import UsageError
from hpcopt.layout.blocks import variable_grid
from hpcopt.layout.grid import ProcessGrid
from hpcopt.models.registry import make_options
from hpcopt.parallel_options import ParallelOptions
from hpcopt.solvers.registry import make_solver, option_names
from hpcopt.solvers.solver import Solver


def check_before_data(job: Job, ranks: int) -> tuple[Solver, ProcessGrid | None]:
    """What can be checked before the data are known.

    Args:
        job: the job.
        ranks: how many it will have.

    Returns:
        The method, without the length of the run, and the grid of ranks as ``shard_grid`` has it.

    Raises:
        UsageError: options that the method or the network does not have, or that do not fit together or the ranks.
    """
    solver = make_solver(job.solver.name, job.solver.options, 1.0)
    check_pace(job.parallel, job.debug, solver)
    check_blocks(job.parallel, solver)
    grid = shard_grid(job, ranks)
    if ":" not in job.model.name:
        make_options(job.model.name, job.model.options)
    return solver, grid


def has_local_phase(job: Job) -> bool:
    """Whether the ranks work on their own between the reductions of the job's method."""
    return "local_iterations" in option_names(job.solver.name)


def shard_grid(job: Job, ranks: int) -> ProcessGrid | None:
    """The grid of ranks whose rows share samples while they are loaded; None when every rank has samples of its own.

    Raises:
        UsageError: the ranks do not form it, or the layout's options do not fit the method or the model.
    """
    parallel = job.parallel
    if parallel.layout != "variables":
        return None
    if has_local_phase(job):
        key = "grid" if parallel.grid is not None else "mapping"
        if parallel.grid is not None or parallel.mapping != "grid":
            raise UsageError(
                f"parallel.{key} = {getattr(parallel, key)!r} is for networks whose layers are cut over the ranks, but "
                f'solver.name = "{job.solver.name}" varies whole layers on each rank. Remove parallel.{key}; '
                "parallel.data says how many shards the samples have."
            )
        return variable_grid(ranks, parallel.data)
    replicas = variable_grid(ranks, parallel.data)
    if parallel.grid is not None and parallel.grid[0] * parallel.grid[1] != replicas.columns:
        raise UsageError(
            f"parallel.grid = {parallel.grid} does not fit {ranks} ranks with parallel.data = {parallel.data}: every "
            f"replica of the network is cut over ranks / parallel.data = {replicas.columns} of them, rows times "
            "columns. Leave parallel.grid out for the squarest that fits the network."
        )
    _check_network(job)
    return None


def check_blocks(parallel: ParallelOptions, solver: Solver) -> None:
    """Refuse directions by blocks, or a choice of the Jacobian, that the layout or the method does not have.

    Raises:
        UsageError: see above.
    """
    direction = getattr(solver, "direction", None)
    if parallel.jacobian != "explicit" and (direction is None or parallel.layout != "variables"):
        raise UsageError(
            f'parallel.jacobian = "{parallel.jacobian}" has no effect here: it is for solver.name = "newton" with '
            'parallel.layout = "variables". Use these, or remove parallel.jacobian.'
        )
    explicit = direction is not None and parallel.layout == "variables" and parallel.jacobian != "implicit"
    if parallel.factors != "full" and not explicit:
        raise UsageError(
            f'parallel.factors = "{parallel.factors}" has no effect here: there are factors of the Jacobian with '
            'solver.name = "newton", parallel.layout = "variables" and parallel.jacobian = "explicit" or "auto". Use '
            "these, or remove parallel.factors."
        )
    if direction == "block" and parallel.jacobian == "implicit":
        raise UsageError(
            'solver.direction = "block" needs the factors of the Jacobian, which parallel.jacobian = "implicit" does '
            'not make. Use parallel.jacobian = "explicit", or solver.direction = "full".'
        )
    if direction == "block" and parallel.layout != "variables":
        raise UsageError(
            f'solver.direction = "block" needs variables that are cut over the ranks, but parallel.layout = '
            f'"{parallel.layout}". Use parallel.layout = "variables", or solver.direction = "full".'
        )


def check_pace(parallel: ParallelOptions, debug: DebugOptions, solver: Solver) -> None:
    """Refuse a pace for a method whose ranks never work on their own.

    Raises:
        UsageError: an option would have no effect.
    """
    asked = {"parallel.quorum": parallel.quorum, "parallel.replay": parallel.replay, "debug.slow_rank": debug.slow_rank}
    key = next((key for key, value in asked.items() if value is not None), None)
    if key is None or on_blocks(solver):
        return
    if any(field.name == "local_iterations" for field in fields(solver)):  # type: ignore[arg-type]
        if parallel.termination == "asynchronous":
            return
        raise UsageError(
            f'parallel.termination = "{parallel.termination}" is for solver.name = "newton"; {type(solver).__name__} '
            "ends its phases by a counter that busy ranks need not answer. Remove parallel.termination; a run can be "
            "repeated bit for bit by parallel.replay."
        )
    with_these = " with these options" if hasattr(solver, "has_own_phase") else ""
    raise UsageError(
        f"{key} = {asked[key]!r} has no effect here: it is about phases in which the ranks iterate on their own, "
        f'and {type(solver).__name__} has none{with_these}. Use solver.name = "apts", or "newton" with '
        f'solver.direction = "block" and another solver.block_solver than "gram", or remove {key}.'
    )


def on_blocks(solver: Solver | None) -> bool:
    """Whether every rank of the method iterates on its own block of the variables."""
    return bool(getattr(solver, "has_own_phase", False))


def _check_network(job: Job) -> None:
    """Refuse a model that cannot be cut over the ranks."""
    name = job.model.name
    if name != "mlp":
        raise UsageError(
            f'parallel.layout = "variables" with solver.name = "{job.solver.name}" cuts a fully connected network over '
            f'the ranks, but model.name = "{name}". Use model.name = "mlp", or parallel.layout = "data".'
        )
    if job.data.augment != "none":
        raise UsageError(
            f'data.augment = "{job.data.augment}" needs whole images on every rank, but with parallel.layout = '
            f'"variables" and solver.name = "{job.solver.name}" the pixels are cut over the ranks. Remove '
            'data.augment, or use parallel.layout = "data".'
        )
    options = make_options(name, job.model.options)
    for key, allowed in (("activation", ("relu", "tanh", "sigmoid")), ("init", ("he", "xavier", "sparse"))):
        if getattr(options, key) not in allowed:
            raise UsageError(
                f'model.{key} = "{getattr(options, key)}" is not possible where the network is cut over the ranks '
                f'(parallel.layout = "variables" with solver.name = "{job.solver.name}"). Set it to one of '
                f'{", ".join(allowed)}, or use parallel.layout = "data".'
            )
    if options.dropout or not options.bias:
        raise UsageError(
            'a network that is cut over the ranks (parallel.layout = "variables") has biases and no dropout: remove '
            "model.dropout and model.bias."
        )
