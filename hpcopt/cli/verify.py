"""``hpcopt verify RUN``: whether every byte of every checkpoint is what was written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape

from hpcopt.checkpoint.folder import FOLDER, published, reading, set_aside, step_of
from hpcopt.checkpoint.manifest import FILE_NAME, read_manifest
from hpcopt.checkpoint.verify import Finding, damaged, verify
from hpcopt.cli.format import console, in_bytes
from hpcopt.errors import CheckpointError, UsageError

DAMAGED = 4
"""Exit status when a checkpoint is damaged."""


class Verdict(NamedTuple):
    """A checkpoint and what is wrong with it; ``aside`` when it was found damaged and renamed before."""

    path: Path
    findings: Sequence[Finding]
    aside: bool = False

    @property
    def word(self) -> str:
        """What to call it."""
        if self.aside or damaged(list(self.findings)):
            return "set aside" if self.aside else "damaged"
        # The only thing about a manifest that is no damage is that a later version wrote it.
        return "unknown" if any(found.path.name == FILE_NAME for found in self.findings) else "whole"


def check(path: str, as_json: bool) -> int:
    """Print what is wrong with the checkpoints of a run, or with one of them.

    Returns:
        0 when all are whole; 4 when one is damaged or was written by a later version, or when those that were damaged
        were set aside and none is left.

    Raises:
        UsageError: there are no checkpoints.
    """
    given = Path(os.path.abspath(path))
    places, bad = _checkpoints(given)
    if not places and not bad:
        raise UsageError(
            f"There are no checkpoints in {given}. Give a run directory, its folder {FOLDER!r}, or a checkpoint in it."
        )
    verdicts = [Verdict(place, verify(place)) for place in places]
    # A running job may have removed a checkpoint meanwhile.
    verdicts = [verdict for verdict in verdicts if verdict.path.exists()]
    verdicts += [Verdict(place, verify(place), aside=True) for place in bad]
    if as_json:
        print(json.dumps([_as_mapping(verdict) for verdict in verdicts], indent=2))
    else:
        _show(verdicts)
    words = [verdict.word for verdict in verdicts]
    return DAMAGED if {"damaged", "unknown"} & set(words) or (bad and "whole" not in words) else 0


def _checkpoints(given: Path) -> tuple[list[Path], list[Path]]:
    """The published checkpoints that ``given`` means, and those set aside."""
    with reading(given):
        if step_of(given) is not None or (given / FILE_NAME).exists():
            return ([given] if given.is_dir() else []), []
        directory = given / FOLDER if (given / FOLDER).is_dir() else given
    return published(directory), set_aside(directory)


def _as_mapping(verdict: Verdict) -> dict[str, object]:
    findings = [{"file": str(found.path), "what": found.what, "damage": found.damage} for found in verdict.findings]
    return {"checkpoint": str(verdict.path), "verdict": verdict.word, "findings": findings}


def _show(verdicts: Sequence[Verdict]) -> None:
    out = console()
    for verdict in verdicts:
        colour = {"whole": "green", "damaged": "bold red"}.get(verdict.word, "yellow")
        out.print(f"[{colour}]{verdict.word:<9}[/] {escape(str(verdict.path))}{_size(verdict)}", soft_wrap=True)
        for found in verdict.findings:
            name = found.path.name if found.path != verdict.path else "the folder"
            out.print(f"          {escape(name)} {escape(found.what)}", soft_wrap=True)


def _size(verdict: Verdict) -> str:
    try:
        manifest = read_manifest(verdict.path)
    except CheckpointError:
        return ""
    return f"  [dim]{manifest.ranks} file{'s' * (manifest.ranks > 1)}, {in_bytes(manifest.bytes)}[/]"
