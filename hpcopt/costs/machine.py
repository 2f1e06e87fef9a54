"""Rates of a machine as ``hpcopt doctor --measure`` found them, and what they say of calls that were not measured.

A reduction of n bytes over p ranks takes, by the cheaper of recursive doubling and of Rabenseifner's algorithm
(Thakur, Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521),

    ceil(log2 p) (alpha + n beta)      or      2 ceil(log2 p) alpha + 2 (p - 1) / p n beta

alpha and beta are those of the measured rank count that is nearest to p, and the result is scaled so that it is the
measured time there. Gathering and scattering are the halves of Rabenseifner's algorithm; a broadcast is measured too.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcopt.costs.messages import Message
from hpcopt.errors import UsageError

FORMAT = 1
COMMAND = "mpirun -n RANKS hpcopt doctor --measure"


@dataclass(frozen=True)
class Curve:
    """Seconds by size, from measured points: straight in logarithms between them, constant below, in proportion above.

    Attributes:
        points: (size, seconds), sizes ascending.
    """

    points: Sequence[tuple[float, float]]

    def __call__(self, size: float) -> float:
        """Seconds for ``size``."""
        first, last = self.points[0], self.points[-1]
        if size <= first[0]:
            return first[1]
        if size >= last[0]:
            return last[1] * size / last[0]
        after = next(i for i, (x, _) in enumerate(self.points) if x >= size)
        (a, s), (b, t) = self.points[after - 1 : after + 1]
        part = math.log(size / a) / math.log(b / a)
        return math.exp(math.log(s) + part * math.log(t / s))


@dataclass(frozen=True)
class Calls:
    """Measured calls of one group of ranks.

    Attributes:
        ranks: in the group.
        hosts: on which they ran.
        allreduce: seconds by bytes.
        broadcast: seconds by bytes.
    """

    ranks: int
    hosts: int
    allreduce: Curve
    broadcast: Curve

    def seconds(self, kind: str, nbytes: float, ranks: int) -> float:
        """Of one call over ``ranks``, which may be others than were measured."""
        curve = self.broadcast if kind == "broadcast" else self.allreduce
        half = 0.5 if kind in ("allgather", "reduce_scatter") else 1.0
        return half * curve(nbytes) * self._model(kind, nbytes, ranks) / self._model(kind, nbytes, self.ranks)

    def _model(self, kind: str, nbytes: float, ranks: int) -> float:
        rounds, across = math.ceil(math.log2(ranks)), (ranks - 1) / ranks
        if kind == "broadcast":
            return float(rounds)
        alpha, beta = self._constants
        return min(rounds * (alpha + nbytes * beta), 2 * rounds * alpha + 2 * across * nbytes * beta)

    @property
    def _constants(self) -> tuple[float, float]:
        """Seconds of a message and of a byte."""
        rounds, across = math.ceil(math.log2(self.ranks)), (self.ranks - 1) / self.ranks
        (_, short), (size, long) = self.allreduce.points[0], self.allreduce.points[-1]
        alpha = short / rounds
        return alpha, max(long - 2 * rounds * alpha, 0.1 * long) / (2 * across * size)


@dataclass(frozen=True)
class Rates:
    """What a rank computes while all ranks of its host do the same.

    Attributes:
        on_host: ranks on the host.
        threads: of each.
        products: seconds of a matrix product by its operations, for each precision.
        memory: seconds by the bytes that are read or written.
        solves: seconds of "eigen" and "inverse" of a symmetric matrix by the cube of its order.
        copies: seconds of a copy of every other sample of so many bytes.
        loss: seconds of an output of a sample in the loss and its gradient.
        module: seconds of a module forward and backward in which there is nothing to do.
        waits: seconds that a call waits for ranks that come later, by those that they compute before it; None for one.
        slower: what all is multiplied with, where cores are shared by more ranks than were measured.
    """

    on_host: int
    threads: int
    products: Mapping[str, Curve]
    memory: Curve
    solves: Mapping[str, Curve]
    copies: Curve
    loss: float
    module: float
    waits: Curve | None = None
    slower: float = 1.0

    def waiting(self, compute: float, calls: float) -> float:
        """Seconds that a rank waits for others in an iteration with so many calls, between which it computes."""
        return 0.0 if self.waits is None or not calls else calls * self.waits(compute / calls)


@dataclass(frozen=True)
class Machine:
    """A measurement.

    Attributes:
        path: the file it was read from.
        about: date, host, versions.
        cores: of a host, that its ranks may use.
        device: "cpu" or "cuda".
        calls: of groups of ranks.
        rates: by ranks on a host.
    """

    path: Path
    about: Mapping[str, Any]
    cores: int
    device: str
    calls: Sequence[Calls]
    rates: Sequence[Rates]
    unsure: set[str] = field(default_factory=set)
    """Sentences on what was not measured, of the predictions made so far."""

    @property
    def on_host(self) -> int:
        """Most ranks that were measured on a host."""
        return max(rates.on_host for rates in self.rates)

    def rates_of(self, on_host: int) -> Rates:
        """Those of so many ranks on a host; ranks beyond the cores share them."""
        fitting = [rates for rates in self.rates if rates.on_host <= on_host]
        found = max(fitting, key=lambda rates: rates.on_host)
        if found.on_host == on_host:
            return found
        self.unsure.add(f"{on_host} ranks on a host were not measured: their rates are those of {found.on_host}.")
        slower = self._share(on_host) / self._share(found.on_host)
        return replace(found, on_host=on_host, slower=slower)

    def seconds(self, message: Message, on_host: int) -> float:
        """Of the calls of a message whose group lies on as many hosts as it needs at least."""
        if message.ranks < 2:
            return 0.0
        hosts = math.ceil(message.ranks / on_host)
        each = self._nearest(message.ranks, hosts).seconds(
            message.kind, message.bytes / max(message.calls, 1e-9), message.ranks
        )
        return each * message.calls

    def _share(self, on_host: int) -> float:
        return max(1.0, on_host / self.cores)

    def _nearest(self, ranks: int, hosts: int) -> Calls:
        if not self.calls:
            raise UsageError(
                f"{self.path} holds no communication, since it was measured on one rank, but {ranks} ranks are to "
                f"communicate. Measure on at least two: {COMMAND}"
            )
        alike = [calls for calls in self.calls if (calls.hosts > 1) == (hosts > 1)]
        if not alike:
            self.unsure.add(
                "Communication between hosts was not measured: that within one host stands for it."
                if hosts > 1
                else "Communication within a host was not measured: that between hosts stands for it."
            )
        found = min(alike or self.calls, key=lambda calls: (abs(math.log(calls.ranks / ranks)), -calls.ranks))
        if ranks > max(calls.ranks for calls in alike or self.calls):
            self.unsure.add(
                f"Calls over more than {found.ranks} ranks were not measured: they follow from those by the formulas "
                "of the algorithms, on a network without congestion."
            )
        return found


def default_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a measurement of this host lies unless it is told otherwise: in the user's cache."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hpcopt" / f"measured-{socket.gethostname()}.json"


def find(path: Path | None) -> Path:
    """The measurement to use: ``path``, that of this host, or the newest in the user's cache.

    Raises:
        UsageError: there is none.
    """
    wanted = path or default_path()
    if wanted.is_file():
        return wanted
    others = [] if path else sorted(wanted.parent.glob("measured-*.json"), key=lambda each: each.stat().st_mtime)
    if others:
        return others[-1]
    raise UsageError(
        f"there is no measurement of a machine in {wanted}. Make one where jobs will run, on as many ranks of a host "
        f"as they will have, and on two hosts if they will have several: {COMMAND} [--output FILE]"
    )


def read(path: Path) -> Machine:
    """A measurement.

    Raises:
        UsageError: the file cannot be read, or is no such measurement.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        about = {key: data[key] for key in ("date", "host", "hosts", "ranks")}
        calls = [Calls(each["ranks"], each["hosts"], *map(_curve, _pick(each))) for each in data["calls"]]
        return Machine(path, about, data["cores"], data["device"], calls, [_rates(each) for each in data["rates"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no measurement that this version can read ({type(error).__name__}: {error}). Measure again: "
            f"{COMMAND} --output {path}"
        ) from error


def _pick(calls: Mapping[str, Any]) -> tuple[Any, Any]:
    return calls["allreduce"], calls["broadcast"]


def _rates(data: Mapping[str, Any]) -> Rates:
    products = {name: _curve(points) for name, points in data["products"].items()}
    solves = {name: _curve(points) for name, points in data["solves"].items()}
    curves = products, _curve(data["memory"]), solves, _curve(data["copies"])
    fixed, waits = (float(data["loss"]), float(data["module"])), data["waits"]
    return Rates(data["on_host"], data["threads"], *curves, *fixed, _curve(waits) if waits else None)


def _curve(points: Sequence[Sequence[float]]) -> Curve:
    pairs = [(float(size), float(seconds)) for size, seconds in points]
    if not pairs or min(min(pair) for pair in pairs) <= 0:
        raise ValueError("sizes and seconds must be above 0")
    return Curve(sorted(pairs))
