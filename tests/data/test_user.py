"""Data from a user's function: what it is called with, what it may return, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcopt.data.reader import Source
from hpcopt.data.user import open_user
from hpcopt.errors import UsageError

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)

Opener = Callable[[str], Source]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Open the function ``load`` of a module with the given text, found in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def opener(text: str) -> Source:
        (tmp_path / "my_data.py").write_text(
            f"import numpy as np\nX, Y = np.arange(12.).reshape(6, 2), np.arange(6)\n{text}"
        )
        monkeypatch.delitem(sys.modules, "my_data", raising=False)
        return open_user("my_data:load", "/root/of/data", seed=7, rank=1, size=3)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return opener


def rows(source: Source, *numbers: int) -> list[Any]:
    return [part.tolist() for part in source.train.read(np.array(numbers, int))]


def test_a_pair_is_the_whole_set(opened: Opener) -> None:
    source = opened("def load(): return X, Y")
    assert (source.train.rows, source.train.shape, source.test, source.sharded) == (6, (2,), None, False)
    assert rows(source, 1, 5) == [[[2, 3], [10, 11]], [1, 5]]


def test_two_pairs_are_training_and_test_set_and_targets_may_be_a_column(opened: Opener) -> None:
    source = opened("def load(root): return (X, Y[:, None]), (X[:2], Y[:2, None])")
    assert source.test is not None
    assert source.test.rows == 2
    assert rows(source, 3)[1] == [3]


def test_it_gets_what_it_asks_for_by_name(opened: Opener) -> None:
    source = opened("def load(seed, root, more=5): return X * seed + (root == '/root/of/data'), Y")
    assert rows(source, 0)[0] == [[1, 8]]


def test_lists_and_tensors_are_taken(opened: Opener) -> None:
    assert rows(opened("import torch\ndef load(): return torch.tensor(X), Y.tolist()"), 2) == [[[4, 5]], [2]]


def test_rank_and_size_mean_its_own_shard(opened: Opener) -> None:
    assert opened("def load(rank, size): return X[rank::size], Y[rank::size]").sharded
    assert not opened("def load(rank): return X, Y").sharded


def test_start_and_count_are_asked_for_the_span_of_rows(opened: Opener) -> None:
    text = "asked = []\ndef load(start, count, part):\n    asked.append((part, start, count))\n"
    source = opened(text + "    return None if part == 'test' else (X[start:start + count], Y[start:start + count], 6)")
    assert (source.train.rows, source.train.shape, source.test) == (6, (2,), None)
    assert rows(source, 2, 4) == [[[4, 5], [8, 9]], [2, 4]]
    assert sys.modules["my_data"].asked == [("train", 0, 0), ("test", 0, 0), ("train", 2, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def lod(): pass", r"has no function 'load'; did you mean 'lod'\?"),
        ("load = 3", "has no function 'load'"),
        ("import not_there", "importing .* failed: No module named 'not_there'"),
        ("def load(sed): pass", r"needs a parameter 'sed'; did you mean 'seed'\? The parameters it is given are root"),
        ("def load(start): return X, Y", "'start', which is used only together with start and count"),
        ("def load(): return X", "it returned a ndarray"),
        ("def load(): return X, Y, 6", "it returned a tuple of 3"),
        ("def load(): return X, Y[:5]", "returned 6 inputs, but 5 targets"),
        ("def load(): return Y, Y", r"inputs of type int64 and shape \(6,\)"),
        ("def load(): return X, Y.astype(str)", "targets of type <U"),
        ("def load(start, count): return X, Y", r"must return \(inputs, targets, total\)"),
        ("def load(): open('/no/such/file')", "could not read its data: .*No such file"),
    ],
)
def test_what_does_not_fit_is_refused(opened: Opener, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(text)


def test_too_few_rows_are_refused(opened: Opener) -> None:
    source = opened("def load(start, count): return X[:min(count, 1)], Y[:min(count, 1)], 6")
    with pytest.raises(UsageError, match="asked for 3 rows from row 1 on, but returned 1"):
        source.train.read(np.array([1, 3]))


def test_a_bug_in_the_function_keeps_its_trace(opened: Opener) -> None:
    with pytest.raises(ZeroDivisionError):
        opened("def load(): return 1 / 0")
