"""The keys of the job file's [parallel] table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpcopt.checks import check_number
from hpcopt.errors import UsageError


@dataclass(frozen=True)
class ParallelOptions:
    """``[parallel]``: how the work is spread over the ranks."""

    layout: Literal["data", "variables"] = "data"
    """data: every rank varies all variables on its shard of the samples. variables: groups of ranks share the samples
    of a shard. With APTS each rank of a group varies a block of the variables in the local phase; with other methods
    the network is cut over the ranks as ``mapping`` says, and none of them holds all of its weights or features."""
    state: Literal["replicated", "sharded"] = "replicated"
    """With layout = "data": every rank keeps all of w and of the method's vectors (replicated), or one slice of each
    (sharded), which takes less memory and time for steps; w is gathered for every evaluation."""
    grid: list[int] | None = None
    """With layout = "variables" and a method other than APTS: rows and columns of the grid. None: the squarest that
    fits the network."""
    mapping: Literal["grid", "paper"] = "grid"
    """With layout = "variables" and a method other than APTS: every rank holds a block of every layer (grid), or every
    layer is on ranks of its own (paper)."""
    split: list[int] | None = None
    """With mapping = "paper": the numbers of groups that the features and the neurons of each layer are cut in. None:
    the split of the ranks that has the smallest blocks."""
    pipeline: int | None = None
    """With mapping = "paper": blocks in which the samples of a sweep go through the layers. None: 4 a layer."""
    data: int = 1
    """With layout = "variables": number of shards of the samples. With APTS the variables are divided among the ranks /
    data ranks of each; with other methods each has a replica of the network, cut over so many ranks."""
    quorum: float | None = None
    """The phase in which ranks work on their own, the local phase of APTS or the blocks of Newton, ends when this part
    of the ranks has finished it; the others contribute what they have. Off by default."""
    termination: Literal["asynchronous", "lock_step"] = "asynchronous"
    """How ranks of Newton learn that enough have finished. asynchronous: when the others tell, which saves time.
    lock_step: by a count in every iteration, so that every run ends on the same iterations."""
    replay: str | None = None
    """A run directory: every local phase ends where the record there says that it did."""
    jacobian: Literal["auto", "explicit", "implicit"] = "explicit"
    """With Newton on a network that is cut over the ranks: products by factors of the Jacobian, by sweeps through the
    network, or what a measurement at the start finds faster. Blocks need the factors."""
    factors: Literal["full", "bfloat16"] = "full"
    """With factors of the Jacobian: kept in the precision of the run, or rounded to half or a quarter of its bytes."""
    gpu_aware: bool | str = False
    """Hand device buffers to MPI directly; only for an MPI built for it. Off: staged through the host. "auto": what a
    job of its own finds out at the start, where ranks have GPUs."""
    nccl: bool | str = False
    """Sum large vectors of devices by NCCL, through CuPy, where every rank has a GPU of its own. "auto": where that can
    be had."""

    def __post_init__(self) -> None:
        for key in ("gpu_aware", "nccl"):
            given = getattr(self, key)
            if not isinstance(given, bool) and given != "auto":
                raise UsageError(f'parallel.{key} = {given!r} is not allowed: it is true, false or "auto".')
        check_number("parallel.data", self.data, "at least 1", lambda x: x >= 1)
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise UsageError(f"parallel.grid = {self.grid} must be [rows, columns], two whole numbers of at least 1.")
        self._check_quorum()
        self._check_mapping()
        self._check_layout()

    def _check_quorum(self) -> None:
        """Refuse keys of a phase that ends early that break their rule, or do not go together.

        Raises:
            UsageError: see above.
        """
        check_number("parallel.quorum", self.quorum, "a part of the ranks above 0 and at most 1", lambda x: 0 < x <= 1)
        if self.quorum is not None and self.replay is not None:
            raise UsageError(
                f"parallel.quorum = {self.quorum} and parallel.replay = {self.replay!r} are both given; a replay ends "
                "every local phase where the record says, so remove parallel.quorum."
            )
        if self.termination != "asynchronous" and self.quorum is None:
            raise UsageError(
                f'parallel.termination = "{self.termination}" has no effect without parallel.quorum, the part of the '
                "ranks that must have finished. Give parallel.quorum, or remove parallel.termination."
            )

    def _check_layout(self) -> None:
        """Refuse keys that are for the other layout.

        Raises:
            UsageError: see above.
        """
        if self.layout == "data" and self.grid is not None:
            raise UsageError(
                f'parallel.grid = {self.grid} needs parallel.layout = "variables", which cuts the network over a '
                "grid of ranks. Remove parallel.grid or change the layout."
            )
        if self.layout != "data" and self.state != "replicated":
            raise UsageError(
                f'parallel.state = "{self.state}" needs parallel.layout = "data"; with layout = "{self.layout}" ranks '
                "hold parts of the variables as that layout says. Remove parallel.state or change the layout."
            )
        if self.layout == "data" and self.data != 1:
            raise UsageError(
                f'parallel.data = {self.data} needs parallel.layout = "variables"; with layout = "data" every rank has '
                "a shard of its own. Remove parallel.data or change the layout."
            )

    def _check_mapping(self) -> None:
        """Refuse keys of a mapping that break their rule, or are for another one than is asked for.

        Raises:
            UsageError: see above.
        """
        check_number("parallel.pipeline", self.pipeline, "at least 1", lambda x: x >= 1)
        if self.split is not None and (len(self.split) < 2 or min(self.split) < 1):
            raise UsageError(
                f"parallel.split = {self.split} must be the numbers of groups of the features and of the neurons of "
                "each layer, whole numbers of at least 1."
            )
        if self.layout == "data" and self.mapping != "grid":
            raise UsageError(
                f'parallel.mapping = "{self.mapping}" needs parallel.layout = "variables", which cuts the network over '
                "the ranks. Remove parallel.mapping or change the layout."
            )
        others = ("grid",) if self.mapping == "paper" else ("split", "pipeline")
        for key in others:
            if getattr(self, key) is not None:
                raise UsageError(
                    f'parallel.{key} = {getattr(self, key)} has no effect with parallel.mapping = "{self.mapping}". '
                    f"Remove parallel.{key}, or change the mapping."
                )
