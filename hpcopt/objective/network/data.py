"""What the user gives a rank of a cut network, checked and in one form.

Shapes: N instances, u features and v outputs of this rank, C outputs of the network.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hpcopt.comm.alike import first_difference
from hpcopt.comm.communicator import Communicator
from hpcopt.errors import UsageError, nearest
from hpcopt.kernels.interface import ACTIVATIONS
from hpcopt.layout.block import Block
from hpcopt.layout.disjoint import DisjointLayout, disjoint_split
from hpcopt.layout.grid import ProcessGrid
from hpcopt.layout.network import GridLayout, NetworkLayout, check_sizes, network_grid
from hpcopt.objective.network.first_weights import INITS
from hpcopt.objective.network.losses import SPLIT_LOSSES

Array = torch.Tensor | np.ndarray

KNOWN: dict[str, tuple[str, ...]] = {
    "activation": ACTIVATIONS,
    "loss": tuple(SPLIT_LOSSES),
    "init": tuple(INITS),
    "jacobian": ("auto", "explicit", "implicit"),
    "factors": ("full", "bfloat16"),
    "mapping": ("grid", "paper"),
}
"""The names that each option can have."""


def make_layout(
    sizes: Sequence[int],
    grid: Sequence[int] | None,
    ranks: int,
    mapping: str = "grid",
    split: Sequence[int] | None = None,
) -> NetworkLayout:
    """The layout of a network on all ranks.

    Args:
        sizes: n_0 ... n_L.
        grid: rows and columns with mapping = "grid"; None for the squarest grid that fits.
        ranks: number of them.
        mapping: one of ``KNOWN``.
        split: P_0 ... P_L with mapping = "paper"; None for the split whose largest block is smallest.

    Raises:
        UsageError: ``sizes`` is no network; grid or split do not have so many ranks, do not fit the network, or are for
            the other mapping.
    """
    check_names(mapping=mapping)
    check_sizes(sizes)
    key, given, other = ("grid", grid, "grid") if mapping == "paper" else ("split", split, "paper")
    if given is not None:
        raise UsageError(
            f'{key} = {list(given)} is for mapping = "{other}", but mapping = "{mapping}". Remove {key}, or change the '
            "mapping."
        )
    if mapping == "paper":
        return _on_own_ranks(sizes, split, ranks)
    if grid is None:
        return GridLayout(sizes, network_grid(sizes, ranks))
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != ranks:
        raise UsageError(
            f"grid = {list(grid)} does not fit {ranks} rank{'s' if ranks > 1 else ''}: it must be [rows, columns] with "
            "rows times columns equal to the number of ranks. Leave it out for the squarest grid that fits the network."
        )
    return GridLayout(sizes, ProcessGrid(*grid))


def _on_own_ranks(sizes: Sequence[int], split: Sequence[int] | None, ranks: int) -> DisjointLayout:
    layout = DisjointLayout(sizes, disjoint_split(sizes, ranks) if split is None else split)
    if layout.ranks != ranks:
        raise UsageError(
            f"split = {list(layout.split)} does not fit {ranks} rank{'s' if ranks > 1 else ''}: the products of "
            f"neighbours add up to {layout.ranks}, one rank for each block of a layer. Start {layout.ranks} ranks, or "
            "leave it out for the split that has the smallest blocks."
        )
    return layout


def check_names(**names: str) -> None:
    """Refuse names that are not known.

    Args:
        names: activation, loss, init, jacobian, factors and mapping.

    Raises:
        UsageError: see above.
    """
    for what, name in names.items():
        if name not in KNOWN[what]:
            raise UsageError(
                f"{what} = {name!r} is not known for a network that is cut over the ranks{nearest(name, KNOWN[what])} "
                f"It must be one of {', '.join(KNOWN[what])}."
            )


def check_same(comm: Communicator, options: Mapping[str, object]) -> None:
    """Refuse options that are not the same on all ranks, which would wait for each other for ever. *Collective*.

    Raises:
        UsageError: on all ranks.
    """
    if found := first_difference(comm, {name: repr(value) for name, value in options.items()}, "samples"):
        raise UsageError(
            f"{found.what} is {found.first} on rank 0 and {found.other} on rank {found.rank}: a network that is cut "
            "over the ranks needs the same options on all of them.",
            collective=True,
        )


def own_inputs(inputs: Array, layout: NetworkLayout, rank: int) -> torch.Tensor:
    """This rank's feature columns as a contiguous tensor (N, u), float64 where they are and float32 else.

    Raises:
        UsageError: the array is not (N, u), or a value is not finite.
    """
    tensor = torch.as_tensor(inputs)
    held = layout.features(rank)
    if tensor.ndim != 2 or tensor.shape[1] != held.count:
        raise UsageError(
            f"the inputs have shape {tuple(tensor.shape)}, but this rank holds {_range('features', held)} of "
            f"{layout.sizes[0]}: give it only these columns, shape (samples, {held.count}). "
            "features(rank) of the layout says which they are."
        )
    tensor = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).contiguous()
    if not bool(tensor.isfinite().all()):
        raise UsageError("an input of this rank is not finite; every feature must be a finite number.")
    return tensor


def _range(what: str, held: Block) -> str:
    return f"{what} {held.start} to {held.stop - 1}" if held.count else f"no {what}"


def is_labels(targets: Array) -> bool:
    """Whether targets are classes, (N,) integers."""
    tensor = torch.as_tensor(targets)
    return tensor.ndim == 1 and not tensor.is_floating_point()


def kind_of(targets: Array) -> str:
    """What all ranks must have alike of their targets: evaluations of labels and of values differ in their messages.

    Labels are those of all samples, in one order, and so the same to the last one.
    """
    if not is_labels(targets):
        return "values"
    labels = torch.as_tensor(targets).to("cpu", torch.int64).contiguous().numpy()
    return f"labels with CRC-32 {zlib.crc32(labels.tobytes()):08x}"


def own_targets(targets: Array, layout: NetworkLayout, rank: int, like: torch.Tensor) -> torch.Tensor:
    """This rank's target columns (N, v) in precision and place of the inputs; labels (N,) become 0 and 1.

    Raises:
        UsageError: the array is neither, there are not as many as inputs, a label is out of range or a value not
            finite.
    """
    tensor, held, width = torch.as_tensor(targets), layout.outputs(rank), layout.sizes[-1]
    if len(tensor) != len(like):
        raise UsageError(f"there are {len(like)} inputs but {len(tensor)} targets; every sample needs one of each.")
    if is_labels(tensor):
        if len(tensor) and not 0 <= int(tensor.min()) <= int(tensor.max()) < width:
            raise UsageError(
                f"labels run from {int(tensor.min())} to {int(tensor.max())}, but with {width} outputs they must be 0 "
                f"to {width - 1}. Give the network one output a class."
            )
        own = torch.arange(held.start, held.stop, device=tensor.device)
        return (tensor[:, None] == own).to(like)
    if tensor.ndim == 1:
        tensor = tensor[:, None]
    if tensor.ndim != 2 or tensor.shape[1] != held.count:
        raise UsageError(
            f"the targets have shape {tuple(tensor.shape)}, but this rank holds {_range('outputs', held)} of {width}: "
            f"give it integer labels (samples,), or these columns only, shape (samples, {held.count}). outputs(rank) "
            "of the layout says which they are."
        )
    tensor = tensor.to(like).contiguous()
    if not bool(tensor.isfinite().all()):
        raise UsageError("a target of this rank is not finite; every target value must be a finite number.")
    return tensor


def check_alike(
    comm: Communicator, groups: Communicator, loss: str, inputs: torch.Tensor, targets: torch.Tensor
) -> None:
    """Refuse ranks that hold different instances as far as can be seen, and classes that are none. *Collective*.

    Args:
        comm: all ranks.
        groups: the ranks that hold different outputs.
        loss: its name.
        inputs: this rank's (N, u).
        targets: this rank's (N, v).

    Raises:
        UsageError: on all ranks.
    """
    bits = float(torch.finfo(inputs.dtype).bits)
    most = comm.reduce_scalars([len(inputs), -len(inputs), bits, -bits], op="max", label="samples")
    if most[0] == 0 or most[0] != -most[1] or most[2] != -most[3]:
        raise UsageError(
            "the ranks over which a network is cut hold features of the same samples, in the same order and precision, "
            f"and at least one: they were given from {-most[1]:.0f} to {most[0]:.0f} samples of {-most[3]:.0f} to "
            f"{most[2]:.0f} bits. Give every rank its columns of all samples.",
            collective=True,
        )
    if loss != "cross_entropy":
        return
    total = targets.sum(dim=1)
    if groups.size > 1:
        groups.allreduce(total, label="samples")
    wrong = bool(((total - 1).abs() > 1e-3).any() or (targets < 0).any()) and targets.shape[1] > 0
    if comm.reduce_scalars([float(wrong)], op="max", label="samples")[0]:
        raise UsageError(
            "cross_entropy needs targets that are one class a sample, or probabilities of the classes: over all ranks "
            "that hold outputs a sample's target columns must be at least 0 and sum to 1. For values use loss = "
            "'squared'.",
            collective=True,
        )
