"""Every command, job and Python block of README.md and docs/*.md is tried; one that nothing knows to try is refused."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcopt.cli.main import main
from hpcopt.config import parse_job
from hpcopt.models.registry import build
from hpcopt.train.job_checks import check_before_data
from tests.support.commands import SMALL, check_options, run_command
from tests.support.pages import PAGES, ROOT, Block, blocks, prose

JOB = """
[data]
source = "small.npz"
task = "classification"
test = 0.2
[model]
widths = [8]
"""
"""What a page that has no job.toml of its own means by it."""

LOOP = re.compile(r"(range\(|epochs=|iterations=|max_iter=)\d+")
"""Epochs or steps in a block of Python, of which two show as much."""

LONG = ["run.epochs=100", "run.evaluate_every=50"]

COMMAND = re.compile(r"^ *\$? *(hpcopt|mpirun|srun|sbatch|python3?|pip|make) (?!.*\. )[a-z-]", re.MULTILINE)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a job and a run of it in ``runs/quickstart``, which has a hundred steps as the real one."""
    folder = tmp_path_factory.mktemp("pages")
    random = np.random.default_rng(0)
    inputs = random.standard_normal((150, 20)).astype(np.float32)
    np.savez(folder / "small.npz", inputs=inputs, targets=inputs[:, :3].argmax(1))
    (folder / "job.toml").write_text(JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = [word for setting in (*SMALL, *LONG) for word in ("--set", setting)]
        assert main(["run", "job.toml", "--run-dir", "runs/quickstart", "--quiet", *settings]) == 0
    return folder


@pytest.fixture
def place(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own for a page: the job, its data, finished runs, and what a checkout has."""
    here = tmp_path / "here"
    shutil.copytree(finished_run, here)
    for name in ("a", "b", "digits", "sweep-1"):
        shutil.copytree(here / "runs/quickstart", here / "runs" / name)
    for name in ("jobs", "slurm", "benchmarks"):
        (here / name).symlink_to(ROOT / name)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    known = set(sys.modules)
    yield here
    for name in set(sys.modules) - known:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(here)):
            del sys.modules[name]
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is_and_no_command_hides_in_text(page: str) -> None:
    assert {block.language for block in blocks(page)} <= {"console", "python", "toml", "text"}
    assert [block for block in blocks(page) if block.language == "text" and COMMAND.search(block.text)] == []
    assert re.findall(r"\n\n(    .*)\n", prose(page)) == [], "fence it, and say what it is"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_a_sentence_is_one(page: str) -> None:
    """Up to a bar or dots, which stand for others; words in capitals stand for what the reader has."""
    for command in re.findall(r"`((?:mpirun -n \d+ )?hpcopt [a-z][^`]*)`", prose(page).replace("\n", " ")):
        check_options(re.split(r" [|(.]", re.sub(r"^mpirun -n \d+ ", "", command))[0].split()[1:])


@pytest.mark.parametrize(
    "command",
    [
        "frobnicate job.toml",
        "make nothing",
        "pip install '.[nothing]'",
        "hpcopt nonsense",
        "hpcopt run job.toml --wat",
        "hpcopt data fetch mnist --wat",
        "hpcopt submit job.toml --wat",
        "hpcopt run job.toml --set run.epochz=3",
        "hpcopt inspect runs/nothing",
        "python benchmarks/picture.py --wat",
        "python nothing.py",
    ],
)
def test_a_command_that_nothing_tries_or_that_fails_is_refused(command: str, place: Path) -> None:
    with pytest.raises(Exception, match=r"no test knows|nonsense|No such option|nothing|wat|epochz"):
        run_command(command)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_can_be_done(page: str, place: Path) -> None:
    names: dict[str, Any] = {"__name__": page, "model": build("mlp", {"widths": [8]}, (20,), 3, 0)}
    for block in blocks(page):
        try:
            _try(block, names)
        except BaseException as error:
            raise AssertionError(f"{block.page}, line {block.line}: {error}") from error


def _try(block: Block, names: dict[str, Any]) -> None:
    text = LOOP.sub(r"\g<1>2", block.text)
    if block.file is not None:
        Path(block.file).write_text(text)
    if block.language == "toml":
        lacking = [] if "[data]" in block.text else ["data.source=digits"]
        job = parse_job(block.text, lacking)
        check_before_data(job, job.slurm.ranks)
    elif block.language == "python":
        code = compile(text, f"{block.page}:{block.line}", "exec")
        if block.file is None:
            exec(code, names)
    elif block.language == "console":
        for command in block.commands:
            run_command(command)


def anchors(page: Path) -> set[str]:
    """What a link to a place in a page may end in, as hosts of repositories make it of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_what_replaces_a_loop_of_torch_comes_to_the_same_weights(place: Path) -> None:
    start, theirs, ours = blocks("migrating.md")[:3]
    (place / "start.py").write_text(start.text)
    ends = []
    for block in (theirs, ours):
        names: dict[str, Any] = {}
        exec(block.text, names)
        ends.append(torch.nn.utils.parameters_to_vector(names["model"].parameters()).detach())
    assert "torch.optim.Adam" in theirs.text
    assert "hpcopt.solvers.Adam" in ours.text
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-5)
