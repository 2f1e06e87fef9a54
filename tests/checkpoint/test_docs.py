"""The ten lines of docs/checkpoints.md that read a checkpoint with h5py alone do read it."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

from tests.support.checkpoints import replicated, same, write

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_the_documented_reader_reads(tmp_path: Path) -> None:
    found = re.search(r"\n\n(    import glob.*?)\n\n(?! )", PAGE.read_text(), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(dedent(found[1]), names)
    (saved,) = write(tmp_path, ranks=3)
    for name, value in replicated(1).items():
        if hasattr(value, "shape"):
            assert same(names["read"](saved.path, name), np.asarray(value))
