"""The ten lines of docs/checkpoints.md that read a checkpoint with h5py alone do read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.checkpoints import replicated, same, write
from tests.support.pages import blocks


def test_the_documented_reader_reads(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("checkpoints.md") if "def read(" in block.text]
    names: dict[str, Any] = {}
    exec(block.text, names)
    (saved,) = write(tmp_path, ranks=3)
    for name, value in replicated(1).items():
        if hasattr(value, "shape"):
            assert same(names["read"](saved.path, name), np.asarray(value))
