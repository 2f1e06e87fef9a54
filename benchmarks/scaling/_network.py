"""Several hosts on one machine: network namespaces behind a switch, each with its own name and a link of limited rate.

It takes root, ``ip`` and ``tc`` (package iproute2) and a kernel that allows namespaces. The switch is in a namespace of
its own too, so that nothing is left of it all once the namespaces are gone. What the hosts share is everything else:
files, cores, memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

AGENT = """#!/bin/sh
# Starts a command on a host, as ssh would: HOST COMMAND...
host=$1
shift
exec ip netns exec "{prefix}$host" unshare --uts sh -c "hostname $host; $*"
"""
PREFIX = "hpcopt-"
"""Of the names of namespaces; the number of the process follows, and the host."""
TOOLS = ("ip", "tc", "unshare", "hostname")
LEAST_BURST, MOST_BURST = 16384, 65536
SETTINGS = Path("/etc/netns")
"""Files here replace those of /etc in the namespace of their folder's name."""
ADDRESSES = "10.213.84."


class NotPossibleError(Exception):
    """Why there can be no namespaces here."""


class Link:
    """What each host's interface sends: megabits a second, and the delay of a packet in milliseconds."""

    def __init__(self, megabits: float, delay: float = 0.0) -> None:
        self.megabits, self.delay = megabits, delay

    @property
    def burst(self) -> int:
        """Bytes that may go at once: those of 4 ms, the more the less timers must be punctual, within limits."""
        return min(max(LEAST_BURST, round(500 * self.megabits)), MOST_BURST)

    def seconds(self, sent: int) -> float:
        """Least time for so many bytes."""
        return 8e-6 * sent / self.megabits

    def rate(self, device: str) -> list[str]:
        """The command that limits the rate of a device."""
        limit = ["rate", f"{self.megabits:g}mbit", "burst", str(self.burst), "latency", "400ms"]
        return ["tc", "qdisc", "add", "dev", device, "root", "handle", "1:", "tbf", *limit]

    def late(self, device: str) -> list[str]:
        """The command that adds the delay to a device of limited rate."""
        delay = ["netem", "delay", f"{self.delay:g}ms", "limit", "100000"]
        return ["tc", "qdisc", "add", "dev", device, "parent", "1:1", "handle", "10:", *delay]


class Hosts:
    """A context in which there are hosts ``node0``, ``node1``, ... with these links, and from which nothing remains.

    Attributes:
        names: of the hosts.
        remark: what of the link this kernel cannot do; empty otherwise.

    Raises:
        NotPossibleError: on entry.
    """

    def __init__(self, count: int, link: Link) -> None:
        self.names, self.link, self.remark = [f"node{i}" for i in range(count)], link, ""
        self._prefix = f"{PREFIX}{os.getpid()}-"
        self._made: list[str] = []

    def __enter__(self) -> Hosts:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing or os.geteuid() != 0:
            raise NotPossibleError(f"It takes root and the commands {', '.join(TOOLS)}; missing: {', '.join(missing)}.")
        self._term = signal.signal(signal.SIGTERM, _leave)
        _remove_those_of_the_dead()
        self._folder = Path(tempfile.mkdtemp(prefix="hpcopt-hosts-"))
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._remove()

    def launcher(self, ranks_a_host: int) -> list[str]:
        """The words before a program that start it on all hosts, mpirun being on the first one."""
        version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
        return [str(self._agent), self.names[0], *mpirun(version, self.names, ranks_a_host, self._agent)]

    @property
    def environment(self) -> dict[str, str]:
        """How Open MPI starts its daemons, and that MPICH does not notice that the hosts share memory."""
        agents = {"PRTE_MCA_plm_ssh_agent": str(self._agent), "OMPI_MCA_plm_rsh_agent": str(self._agent)}
        return agents | {"UCX_TLS": "tcp,self", "FI_PROVIDER": "tcp"}

    def _build(self) -> None:
        self._agent = self._folder / "agent"
        self._agent.write_text(AGENT.format(prefix=self._prefix), encoding="utf-8")
        self._agent.chmod(0o755)
        self._space("switch")
        self._do("switch", "ip", "link", "add", "switch", "type", "bridge")
        self._do("switch", "ip", "link", "set", "switch", "up")
        table = "".join(f"{ADDRESSES}{i + 1} {name}\n" for i, name in enumerate(self.names))
        for number, name in enumerate(self.names):
            self._space(name)
            hosts = SETTINGS / (self._prefix + name) / "hosts"
            hosts.parent.mkdir(parents=True)
            hosts.write_text("127.0.0.1 localhost\n" + table, encoding="utf-8")
            self._connect(name, f"{ADDRESSES}{number + 1}/24")

    def _space(self, name: str) -> None:
        done = subprocess.run(["ip", "netns", "add", self._prefix + name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotPossibleError(f"This machine makes no network namespaces: {done.stderr.strip()}")
        self._made.append(name)

    def _connect(self, name: str, address: str) -> None:
        peer = ["peer", "name", name, "netns", self._prefix + "switch"]
        self._do(name, "ip", "link", "add", "eth0", "type", "veth", *peer)
        self._do(name, "ip", "addr", "add", address, "dev", "eth0")
        self._do(name, "ip", "link", "set", "lo", "up")
        self._do(name, "ip", "link", "set", "eth0", "up")
        self._do("switch", "ip", "link", "set", name, "master", "switch", "up")
        self._do(name, *self.link.rate("eth0"))
        if self.link.delay:
            try:
                self._do(name, *self.link.late("eth0"))
            except NotPossibleError as error:
                self.remark = f"No delay of {self.link.delay:g} ms: {error}"

    def _do(self, name: str, *words: str) -> None:
        command = ["ip", "netns", "exec", self._prefix + name, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotPossibleError(f"{' '.join(words)}: {done.stderr.strip()}")

    def _remove(self) -> None:
        for name in self._made:
            _remove_space(self._prefix + name)
        self._made = []
        shutil.rmtree(self._folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, self._term)


def mpirun(version: str, hosts: Sequence[str], ranks_a_host: int, agent: Path) -> list[str]:
    """The launcher's own words. No rank is bound to a core: every host would take the same ones."""
    count = str(len(hosts) * ranks_a_host)
    if "Open MPI" in version:
        places = ",".join(f"{host}:{ranks_a_host}" for host in hosts)
        where = ["--host", places, "--map-by", f"ppr:{ranks_a_host}:node:oversubscribe", "--bind-to", "none"]
        return ["mpirun", *where, "-n", count]
    where = ["-hosts", ",".join(hosts), "-ppn", str(ranks_a_host), "-launcher", "rsh", "-launcher-exec", str(agent)]
    return ["mpirun", *where, "-n", count]


def _remove_space(space: str) -> None:
    _end_all(space)
    subprocess.run(["ip", "netns", "del", space], check=False)
    shutil.rmtree(SETTINGS / space, ignore_errors=True)


def _remove_those_of_the_dead() -> None:
    """What a process left that was killed."""
    told = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False)
    for line in told.stdout.splitlines():
        space = line.split()[0]
        owner = space.removeprefix(PREFIX).split("-")[0]
        if space.startswith(PREFIX) and owner.isdigit() and not Path("/proc", owner).exists():
            _remove_space(space)


def _end_all(space: str) -> None:
    """End what still runs in a namespace: after an error, daemons of MPI."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        told = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
        for process in told.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(process), number)
        if not told.stdout.split():
            return
        time.sleep(0.5)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
