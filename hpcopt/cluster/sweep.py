"""A sweep: one task of a job array for every combination of values of some keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from hpcopt.errors import UsageError

_FORM = "It must be of the form table.key=value1,value2, such as --array solver.learning_rate=0.1,0.01."


@dataclass(frozen=True)
class Task:
    """One task: the settings that make it, and the run directory that is its own."""

    settings: tuple[str, ...]
    directory: str


def make_tasks(sweeps: Sequence[str], base: str) -> list[Task]:
    """The tasks of all combinations, the last key varying fastest; none for no sweeps.

    Args:
        sweeps: each ``table.key=value1,value2``; commas in brackets and quotes do not separate.
        base: what the run directories begin with.

    Raises:
        UsageError: not of that form, a key or a value twice, an empty value.
    """
    axes = [_axis(sweep) for sweep in sweeps]
    keys = [key for key, _ in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--array has the key {key} twice; give it once, with all its values.")
    short = [key.rpartition(".")[2] for key in keys]
    names = short if len(set(short)) == len(keys) else keys
    combinations = list(product(*(values for _, values in axes))) if axes else []
    endings = [
        "-".join(f"{name}={_for_a_path(value)}" for name, value in zip(names, chosen, strict=True))[:120]
        for chosen in combinations
    ]
    if len(set(endings)) < len(endings):
        endings = [f"{number}-{ending}" for number, ending in enumerate(endings, 1)]
    return [
        Task(tuple(f"{key}={value}" for key, value in zip(keys, chosen, strict=True)), f"{base}-{ending}")
        for chosen, ending in zip(combinations, endings, strict=True)
    ]


def _axis(sweep: str) -> tuple[str, list[str]]:
    key, equals, text = sweep.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", key):
        raise UsageError(f"--array {sweep!r} does not say which key takes which values. {_FORM}")
    if key.startswith("slurm."):
        raise UsageError(f"--array {sweep!r}: all tasks ask the batch system for the same. Submit them one by one.")
    values = [value.strip() for value in _split(text)]
    for value in values:
        if not value:
            raise UsageError(f"--array {sweep!r} has an empty value. {_FORM}")
        if values.count(value) > 1:
            raise UsageError(f"--array {sweep!r} has the value {value} twice: two tasks would do the same.")
    return key, values


def _for_a_path(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", value).strip("_")


def _split(text: str) -> list[str]:
    """At the commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts
