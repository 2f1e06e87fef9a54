"""What stands in README.md and docs/*.md in fences, and the commands in it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAUNCH = re.compile(r"^(?:\w+=\S+ )*(?:mpirun|srun)(?: -n (?P<ranks>\d+))? ")
FILE = re.compile(r"^# (?P<name>[\w.-]+\.(?:py|toml))\b")


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, the number of its first line, its language, and what stands in it."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is to be, from a comment in its first line."""
        found = FILE.match(self.text)
        return found["name"] if found else None

    @property
    def commands(self) -> list[str]:
        """Its lines without comments, where one that ends in a backslash goes on in the next."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        commands = (re.sub(r"(?:^|\s)#.*", "", line).strip() for line in lines)
        return [command for command in commands if command]


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in their order."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [Block(page, text[: m.start()].count("\n") + 2, m[1], m[2]) for m in FENCE.finditer(text)]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", PAGES[page].read_text(encoding="utf-8"))


def without_launcher(command: str) -> list[str]:
    """The words of a command, without what starts its ranks."""
    return shlex.split(LAUNCH.sub("", command))


def write_files(page: str, folder: Path) -> None:
    """Write each block that is a file to be into a folder."""
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
