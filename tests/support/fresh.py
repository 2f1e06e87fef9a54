"""What a Python that has done nothing else has loaded."""

from __future__ import annotations

import subprocess
import sys

from tests.support.pages import ROOT


def modules_after(code: str, *arguments: object) -> set[str]:
    """Names of the modules that a new process has loaded after ``code``, which finds ``arguments`` in ``sys.argv``."""
    program = f"{code}\nimport sys\nprint()\nprint(*sys.modules)"
    words = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def modules_after_command(*arguments: object) -> set[str]:
    """The same for ``hpcopt`` with these arguments, which must end with status 0."""
    code = "import sys\nfrom hpcopt.cli.main import main\nassert main(sys.argv[1:]) == 0"
    loaded = modules_after(code, *arguments)
    assert "hpcopt.cli.main" in loaded
    return loaded
