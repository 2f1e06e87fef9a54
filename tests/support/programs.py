"""Programs in the place of those that a machine may lack, such as Slurm's."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, name: str, text: str) -> None:
    """Put a program into a folder, which is made where it is missing; ``text`` is bash."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)
