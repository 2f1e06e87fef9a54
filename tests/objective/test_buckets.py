"""How a long gradient is cut into buckets."""

from hypothesis import given
from hypothesis import strategies as st

from hpcopt.objective.buckets import cut


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 2000))
def test_every_tensor_is_in_one_bucket_and_buckets_run_from_the_last_to_the_first(counts: list[int], most: int) -> None:
    buckets = cut(counts, most)
    assert [index for bucket in buckets for index in bucket] == list(reversed(range(len(counts))))
    assert all(sum(counts[i] for i in bucket) >= most for bucket in buckets[:-1])
