"""Pieces of a batch are in order and cover it; what is kept and what is in passing fits in the limit."""

from hypothesis import given
from hypothesis import strategies as st

from hpcopt.objective.network.memory import Streamed


@given(st.integers(0, 60), st.integers(0, 20), st.integers(1, 5), st.integers(0, 400))
def test_pieces_cover_the_batch_and_fit(count, size, bytes_each, limit):
    made = []

    def make(rows):
        made.append(rows)
        return rows

    streamed = Streamed(count, size, bytes_each, limit, make)
    kept_first = list(made)
    groups = list(streamed.groups())
    assert groups[0] == kept_first
    assert [i for group in groups for rows in group for i in range(rows.start, rows.stop)] == list(range(count))
    lengths = [[rows.stop - rows.start for rows in group] for group in groups]
    assert all(len(group) == 1 for group in groups[1:])
    most = sum(lengths[0]) + max((group[0] for group in lengths[1:]), default=0)
    assert bytes_each * most <= max(limit, bytes_each)
    if bytes_each * count <= limit:
        assert streamed.complete
        assert len(groups) == 1


def test_others_are_made_in_every_walk_and_the_kept_only_once():
    made = []
    streamed = Streamed(10, 1, 1, 5, lambda rows: made.append(rows.start))
    assert made == [0, 1, 2, 3]
    for _ in range(2):
        list(streamed.groups())
    assert made == [0, 1, 2, 3] + 2 * [4, 5, 6, 7, 8, 9]


def test_most_of_the_limit_is_used():
    kept = next(Streamed(1000, 1000, 1, 800, lambda rows: rows).groups())
    assert sum(rows.stop - rows.start for rows in kept) == 700
