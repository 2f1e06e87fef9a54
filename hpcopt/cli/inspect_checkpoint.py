"""``hpcopt inspect CHECKPOINT``: what stands in the tensors of one checkpoint, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpcopt.analysis.checkpoint import open_checkpoint
from hpcopt.analysis.tensors import checkpoint_summary, difference
from hpcopt.cli.format import NONE, console, grid, in_bytes, number, share, table, whole

TENSOR = (("norm", "norm", number), ("mean", "mean", number), ("min", "min", number), ("max", "max", number))
SPECTRUM = (
    ("largest", "largest", number),
    ("smallest", "smallest", number),
    ("condition", "condition", number),
    ("effective\nrank", "effective_rank", number),
)


def inspect_checkpoint(path: str, which: str, as_json: bool, spectra: bool, other: str | None) -> None:
    """Print what is in a checkpoint, with the keys of ``analysis.tensors`` as JSON or as tables.

    Args:
        path: a checkpoint, or a run, of which the newest whole one is taken.
        which: ``"latest"`` or ``"best"`` parameters.
        as_json: print JSON.
        spectra: also the singular values of layers.
        other: a checkpoint or run to compare with.
    """
    with open_checkpoint(path, which) as checkpoint:
        facts = checkpoint_summary(checkpoint, spectra)
        if other is not None:
            with open_checkpoint(other) as reference:
                facts["difference"] = difference(checkpoint, reference)
    if as_json:
        print(json.dumps(facts, indent=2, allow_nan=False))
        return
    out = console()
    out.print(_header(facts))
    out.print(_tensors(facts["tensors"]))
    if spectra:
        out.print(_spectra(facts["tensors"]))
    if facts["scalars"]:
        out.print(grid((escape(name), _scalar(value)) for name, value in facts["scalars"].items()))
    if other is not None:
        _print_difference(out, facts["difference"])


def _header(facts: Mapping[str, Any]) -> Table:
    saved_by = "1 rank" if facts["ranks"] == 1 else f"{facts['ranks']} ranks"
    return grid(
        [
            ("checkpoint", escape(facts["checkpoint"])),
            ("step", whole(facts["step"])),
            ("saved", f"{facts['created']}  [dim]by {saved_by}, {in_bytes(facts['bytes'])}[/]"),
            ("tensors", f"{len(facts['tensors'])}  [dim]{whole(facts['elements'])} elements, {facts['which']}[/]"),
        ]
    )


def _tensors(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [
        [
            escape(row["name"]),
            _shape(row["shape"]),
            row["dtype"],
            *(show(row[name]) for _, name, show in TENSOR),
            share(row["zeros"]) if row["zeros"] else NONE,
            whole(row["not_finite"]) if row["not_finite"] else NONE,
        ]
        for row in rows
    ]
    return table(["tensor", "shape", "type", *(title for title, _, _ in TENSOR), "zeros", "not\nfinite"], cells, keep=3)


def _spectra(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [
        [escape(row["name"]), *(show(row["spectrum"][name]) for _, name, show in SPECTRUM)]
        for row in rows
        if row["spectrum"] is not None
    ]
    return table(["singular values of", *(title for title, _, _ in SPECTRUM)], cells)


def _print_difference(out: Console, found: Mapping[str, Any]) -> None:
    out.print(
        f"[bold]Against step {found['other_step']}[/] [dim]{escape(found['other'])}[/]", soft_wrap=True, highlight=False
    )
    cells = [
        [
            escape(row["name"]),
            number(row["relative_change"]),
            number(row["largest_change"]),
            "same" if row["equal_bits"] else "differ",
        ]
        for row in found["tensors"]
    ]
    out.print(table(["tensor", "relative\nchange", "largest\nchange", "bits"], cells, keep=4))
    for row in found["reshaped"]:
        out.print(f"{escape(row['name'])}: shape {_shape(row['shape'])} here, {_shape(row['other_shape'])} there")
    for names, where in ((found["missing"], "there"), (found["extra"], "here")):
        for name in names:
            out.print(f"{escape(name)}: only {where}")
    for name, (here, there) in found["scalars"].items():
        out.print(f"{escape(name)}: {_scalar(here)} here, {_scalar(there)} there", soft_wrap=True)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) if shape else "1 number"


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.8g}"
    return NONE if value is None else escape(str(value))
