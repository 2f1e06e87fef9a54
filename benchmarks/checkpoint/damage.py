"""Is every kind of damage to a checkpoint found, named, and told from health?

    python benchmarks/checkpoint/damage.py [--output benchmarks/results/checkpoint-damage.md]

A checkpoint of 3 ranks is damaged in one way at a time, from a seed, and checked: 300 flipped bits, spread over HDF5's
own structures, arrays, padding and manifest; truncations; deletions; files of two ranks swapped; files of another step
and of another run in their place. Between the trials the untouched checkpoint is checked for false alarms. Half a
minute.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._report import spelled, table, write_report
from hpcopt.checkpoint.store import CheckpointStore
from hpcopt.checkpoint.verify import verify
from tests.support.checkpoints import on_ranks

RANKS, FLIPS, CUTS = 3, 300, 40

Damage = Callable[[], set[str]]
"""Does the damage and returns the names of the files of which one must be in a finding, at least."""


def save(directory: Path, shift: float) -> list[Path]:
    """Two checkpoints; returns their folders."""

    def work(comm: Any) -> list[Path]:
        store = CheckpointStore(comm, directory)
        arrays = {"model/weight": np.arange(200_000.0) + shift, "model/bias": np.arange(77.0), "solver/radius": 0.5}
        return [store.save(step, arrays, {"state": np.arange(comm.rank + 9)}).path for step in (1, 2)]

    return on_ranks(RANKS, work)[0]


def flip(path: Path, place: int, bit: int) -> set[str]:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return {path.name}


def swap(first: Path, second: Path) -> set[str]:
    """Exchange two files."""
    aside = first.with_name("aside")
    os.rename(first, aside)
    os.rename(second, first)
    os.rename(aside, second)
    return {first.name, second.name}


def trials(path: Path, others: dict[str, Path], choose: random.Random) -> Iterator[tuple[str, Damage]]:
    """Every kind of damage, by name, in order."""
    files = [path / "manifest.json", *(path / f"rank{rank:04d}.h5" for rank in range(RANKS))]
    for number in range(FLIPS):
        file = files[number % len(files)]
        size = file.stat().st_size
        # Every other flip within the first and last 6 kB, where HDF5 keeps its own, the others anywhere.
        place = choose.randrange(size) if number % 8 < 4 else choose.choice([0, size]) + choose.randrange(-6000, 6000)
        yield f"bit flipped in {file.suffix[1:]}", lambda f=file, p=place % size: flip(f, p, choose.randrange(8))
    for number in range(CUTS):
        file = files[number % len(files)]
        length = choose.randrange(file.stat().st_size)
        yield "file cut short", lambda f=file, n=length: (os.truncate(f, n), {f.name})[1]
    for file in files:
        yield "file deleted", lambda f=file: (f.unlink(), {f.name})[1]
    for first in range(1, RANKS + 1):
        for second in range(first + 1, RANKS + 1):
            yield "two ranks' files swapped", lambda a=files[first], b=files[second]: swap(a, b)
    for origin, other in others.items():
        for file in files[1:]:
            yield f"file of {origin}", lambda f=file, o=other: (shutil.copy(o / f.name, f), {f.name})[1]


def run_trials(folder: Path, seed: int) -> dict[str, Counter[str]]:
    """Counts of trials, found, named and false alarms, by kind of damage."""
    first, second = save(folder / "one", 0.0)
    foreign, _ = save(folder / "two", 1.0)
    counts: dict[str, Counter[str]] = {}
    whole = folder / "whole"
    shutil.copytree(first, whole)
    others = {"another step": second, "another run": foreign}
    for kind, damage in trials(first, others, random.Random(seed)):
        count = counts.setdefault(kind, Counter())
        count["alarms"] += bool(verify(first))
        names = damage()
        findings = verify(first)
        count["trials"] += 1
        count["found"] += any(finding.damage for finding in findings)
        count["named"] += names <= {finding.path.name for finding in findings}
        shutil.rmtree(first)
        shutil.copytree(whole, first)
    return counts


def main() -> int:
    """Damage, check and report; returns 1 when something was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", help="Markdown file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run_trials(Path(folder), options.seed)
    total = sum(counts.values(), Counter[str]())
    columns = ("trials", "found", "named", "alarms")
    rows = [[kind, *(str(count[c]) for c in columns)] for kind, count in (*counts.items(), ("all", total))]
    lines = [f"Seed {options.seed}.", "", *table(["damage", *columns[:3], "false alarms before it"], rows)]
    print("\n".join(lines))
    if options.output:
        command = f"python benchmarks/checkpoint/damage.py{spelled(options)}"
        write_report(options.output, "Damage to a checkpoint", command, lines)
    return int(total["found"] + total["named"] != 2 * total["trials"] or total["alarms"] > 0)


if __name__ == "__main__":
    sys.exit(main())
