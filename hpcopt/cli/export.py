"""``hpcopt export CHECKPOINT -o FILE``: the parameters in a file that other programs read."""

from __future__ import annotations

from pathlib import Path

from hpcopt.analysis.checkpoint import open_checkpoint
from hpcopt.analysis.export import check_target, export
from hpcopt.cli.format import in_bytes


def export_checkpoint(path: str, output: Path, which: str, force: bool) -> None:
    """Write the parameters of a checkpoint, or of the newest one of a run, and say what was written."""
    check_target(output, force)
    with open_checkpoint(path, which) as checkpoint:
        count = export(checkpoint, output, force)
        print(
            f"{output}: {count} tensor{'s' * (count != 1)}, {in_bytes(output.stat().st_size)}, the {which} parameters "
            f"of {checkpoint.path}"
        )
