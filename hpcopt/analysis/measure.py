"""Rates of the machine for ``hpcopt predict``: what a rank computes while others do too, and what calls take.

Groups of 1, 2, 4 ... ranks are measured in turn, and one rank of each host where there are several; the other ranks
sleep meanwhile. Every figure is a mean over repetitions, and of that the slowest rank's.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcopt.comm.communicator import Communicator
from hpcopt.comm.launch import affinity, choose_threads
from hpcopt.comm.mpi_library import library_name
from hpcopt.costs.machine import FORMAT
from hpcopt.errors import UsageError
from hpcopt.train.devices import choose_device
from hpcopt.train.run.directory import write_atomically
from hpcopt.train.run.environment import environment

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}

NAP = 1e-3
"""Seconds that a rank sleeps between looks at whether it is needed again."""

BLOCKS = 3
"""Means of which the median is taken."""

COPIED_ROW = 1024
"""Bytes of a sample where copies are measured."""

LEAST_WAIT = 1e-9
"""Seconds: a wait that cannot be told from nothing."""

LOSS_ROWS, LOSS_CLASSES = 2048, 10

WORK_ORDER = 64
"""Of the layer that ranks compute before they meet."""

PROBE_LAYERS = 4
"""With an activation behind each."""


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        orders: m of layers of m inputs and m/8 outputs on 8 m rows, which take 2 m^3 operations a product.
        solves: orders of symmetric matrices that are decomposed and inverted.
        memory: bytes of a vector that is added to another one.
        messages: bytes of a reduction.
        work: seconds that ranks compute before they meet in a call.
        seconds: about so long for each figure, at least ``least`` repetitions of each mean.
    """

    orders: tuple[int, ...] = (16, 64, 256, 512, 1024)
    solves: tuple[int, ...] = (16, 128, 512)
    memory: tuple[int, ...] = (4 << 10, 128 << 10, 2 << 20, 16 << 20)
    messages: tuple[int, ...] = (8, 1 << 10, 32 << 10, 256 << 10, 2 << 20, 16 << 20)
    work: tuple[float, ...] = (1e-3, 1e-2)
    seconds: float = 0.2
    least: int = 1


def measure(comm: Communicator, sizes: Sizes | None = None) -> dict[str, Any]:
    """Measure on the ranks of ``comm``, those of a host next to each other. *Collective*; a minute at most by default.

    Returns:
        What ``hpcopt.costs.machine.read`` reads, the same on all ranks.
    """
    sizes = sizes or Sizes()
    device, hosts = choose_device("auto", comm, share=True), comm.allgather_objects(comm.host)
    threads, found = torch.get_num_threads(), []
    for count in [*(2**power for power in range(comm.size.bit_length()) if 2**power < comm.size), comm.size]:
        found.append(_of_group(comm, list(range(count)), hosts, device, sizes))
    if 1 < len(set(hosts)) < comm.size:
        found.append(_of_group(comm, [hosts.index(host) for host in dict.fromkeys(hosts)], hosts, device, sizes))
    torch.set_num_threads(threads)
    rates = {each["rates"]["on_host"]: each["rates"] for each in found}
    cores = comm.reduce_scalars([_cores_of_host(comm)], op="min")[0]
    return comm.broadcast_object(  # type: ignore[no-any-return]
        {
            "format": FORMAT,
            **environment(library_name(), hosts),
            "host": hosts[0],
            "hosts": len(set(hosts)),
            "ranks": comm.size,
            "device": device.type,
            "cores": int(cores),
            "rates": [rates[count] for count in sorted(rates)],
            "calls": [each["calls"] for each in found if each["calls"]],
        }
    )


def write(measured: dict[str, Any], path: Path) -> None:
    """Keep a measurement in a file, whose folder is made; one that is there stays as it was where that fails.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measured, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror or error}). Give another --output.") from error


def _of_group(
    comm: Communicator, members: list[int], hosts: list[str], device: torch.device, sizes: Sizes
) -> dict[str, Any]:
    """What a group of ranks finds while the others sleep. *Collective*."""
    inside = comm.rank in members
    group = comm.split(int(inside))
    found: dict[str, Any] = {}
    if inside:
        on_host = max(sum(hosts[rank] == host for rank in members) for host in set(hosts))
        found["rates"] = {"on_host": on_host, **_rates(group, device, sizes)}
        among = len({hosts[rank] for rank in members})
        found["calls"] = {"ranks": group.size, "hosts": among, **_calls(group, device, sizes)} if group.size > 1 else {}
    _sleep_until_all_are_here(comm)
    group.free()
    return comm.broadcast_object(found, root=members[0])  # type: ignore[no-any-return]


def _rates(group: Communicator, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """What each rank computes while all ranks of the group do the same. *Collective*."""
    threads, products = choose_threads(group).threads, {}

    def seconds(run: Callable[[], object]) -> float:
        return _mean(group, run, device, sizes, together=False)

    for name, precision in PRECISIONS.items():
        points = []
        for order in sizes.orders:
            points.append((2.0 * order**3, seconds(_layer(order, precision, device)) / 3))
        products[name] = points
    memory = []
    for nbytes in sizes.memory:
        x, y = (torch.ones(nbytes // 8, dtype=torch.float64, device=device) for _ in range(2))
        memory.append((3.0 * nbytes, seconds(lambda x=x, y=y: y.add_(x, alpha=1e-9))))  # type: ignore[misc]
    return {
        "threads": threads,
        "products": products,
        "memory": memory,
        "solves": {name: [(float(n**3), seconds(run(n))) for n in sizes.solves] for name, run in SOLVES.items()},
        "copies": [(float(nbytes), seconds(_copy(nbytes, device))) for nbytes in sizes.memory],
        "loss": seconds(_loss(device)) / (LOSS_ROWS * LOSS_CLASSES),
        "module": _module(seconds, device),
        "waits": _waits(group, seconds, device, sizes) if group.size > 1 else [],
    }


def _copy(nbytes: int, device: torch.device) -> Callable[[], object]:
    """Every other row of a set of so many bytes, in memory of its own."""
    rows = torch.ones(max(2, nbytes // COPIED_ROW), COPIED_ROW // 4, device=device)
    chosen = torch.arange(0, len(rows), 2, device=device)
    return lambda: rows[chosen]


def _loss(device: torch.device) -> Callable[[], object]:
    """Cross-entropy and its gradient."""
    outputs = torch.ones(LOSS_ROWS, LOSS_CLASSES, device=device, requires_grad=True)
    labels = torch.zeros(LOSS_ROWS, dtype=torch.int64, device=device)
    return lambda: torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, labels), outputs)


def _layer(order: int, precision: torch.dtype, device: torch.device) -> Callable[[], object]:
    """The three products of a linear layer, forward and backward, as torch makes them."""
    x = torch.rand(8 * order, order, dtype=precision, device=device)
    weights = torch.rand(max(1, order // 8), order, dtype=precision, device=device)
    errors = torch.rand(8 * order, len(weights), dtype=precision, device=device)
    return lambda: (torch.nn.functional.linear(x, weights), errors.T @ x, errors @ weights)


def _decomposition(order: int) -> Callable[[], object]:
    matrix = np.cov(np.random.default_rng(0).random((order, 2 * order))) + np.eye(order)
    return lambda: np.linalg.eigh(matrix)


def _inversion(order: int) -> Callable[[], object]:
    matrix = torch.eye(order) + torch.ones(order, order) / order
    return lambda: torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix)[0])


SOLVES: dict[str, Callable[[int], Callable[[], object]]] = {"eigen": _decomposition, "inverse": _inversion}
"""What methods do with a symmetric matrix on the host: its eigenvectors in float64, its inverse in float32."""


def _module(seconds: Callable[[Callable[[], object]], float], device: torch.device) -> float:
    """Seconds of a module, forward and backward, that is so small that there is next to nothing to compute."""
    parts = [part for _ in range(PROBE_LAYERS) for part in (torch.nn.Linear(4, 4), torch.nn.Tanh())]
    model, inputs = torch.nn.Sequential(*parts).to(device), torch.ones(2, 4, device=device)
    weights = list(model.parameters())
    return seconds(lambda: torch.autograd.grad(model(inputs).sum(), weights)) / len(parts)


def _waits(
    group: Communicator, seconds: Callable[[Callable[[], object]], float], device: torch.device, sizes: Sizes
) -> list[tuple[float, float]]:
    """Seconds that a call takes longer where ranks come from computing, by the seconds of that. *Collective*.

    Ranks that have cores of their own come at different times, and ranks that share them wait for their turns.
    """
    once = _layer(WORK_ORDER, torch.float32, device)
    each, call = seconds(once), seconds(lambda: group.reduce_scalars([0.0]))
    found = []
    for wanted in sizes.work:

        def work(repeats: int = max(1, round(wanted / each))) -> None:
            """The same on all ranks."""
            for _ in range(repeats):
                once()

        alone = seconds(work)
        met = seconds(lambda work=work: (work(), group.reduce_scalars([0.0])))  # type: ignore[misc]
        found.append((alone, max(met - alone - call, LEAST_WAIT)))
    return found


def _calls(group: Communicator, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Seconds of reductions and broadcasts by their bytes. *Collective*."""
    found: dict[str, list[tuple[int, float]]] = {"allreduce": [], "broadcast": []}
    for nbytes in sizes.messages:
        buffer = torch.zeros(nbytes // 8, dtype=torch.float64, device=device)
        scalars = [0.0] * (nbytes // 8)
        for name, call in (("allreduce", group.allreduce), ("broadcast", group.bcast)):
            run = (lambda call=call, buffer=buffer: call(buffer)) if nbytes > 8 else _scalars(group, name, scalars)
            found[name].append((nbytes, _mean(group, run, device, sizes, together=True)))
    return found


def _scalars(group: Communicator, name: str, values: list[float]) -> Callable[[], object]:
    """A call of scalars, which do not go by way of tensors."""
    if name == "allreduce":
        return lambda: group.reduce_scalars(values)
    return lambda: group.broadcast_scalars(values)


def _mean(group: Communicator, run: Callable[[], object], device: torch.device, sizes: Sizes, together: bool) -> float:
    """Mean seconds of ``run``, the slowest rank's; ``together``: all ranks begin each at once. *Collective*.

    The median of a few means: single interruptions are left out, but not those by ranks that share cores.
    """

    def mean(repeats: int) -> float:
        """Of this rank."""
        spent = 0.0
        for _ in range(repeats):
            if together:
                group.barrier()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spent += time.perf_counter() - start
        return spent / repeats

    mean(1)
    start = time.perf_counter()
    mean(1)
    # With the barrier, which takes longer than the call where ranks share cores.
    once = group.reduce_scalars([time.perf_counter() - start], op="max")[0]
    repeats = max(sizes.least, int(sizes.seconds / BLOCKS / max(once, 1e-7)))
    group.barrier()
    return group.reduce_scalars([statistics.median(mean(repeats) for _ in range(BLOCKS))], op="max")[0]


def _sleep_until_all_are_here(comm: Communicator) -> None:
    """A barrier in which ranks that wait leave their cores to those that work. *Collective*."""
    request = comm.iallreduce(np.zeros(1), label="barrier")
    while not request.test():
        time.sleep(NAP)


def _cores_of_host(comm: Communicator) -> float:
    """Cores that the ranks of this host may use together. *Collective*."""
    group = comm.split_shared()
    masks = group.allgather_objects(sorted(affinity()))
    group.free()
    return float(len({core for mask in masks for core in mask}))
