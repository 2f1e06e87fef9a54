import pytest

from hpcopt.cli.format import NONE, duration, in_bytes, number, share, table, whole


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((0.0, "0"), (0.12345, "0.1235"), (1e-5, "1.000e-05"), (9999.4, "9999"), (9999.6, "10,000")),
        *((-9999.6, "-10,000"), (123456.0, "123,456"), (1e9, "1.000e+09"), (None, NONE)),
    ],
)
def test_numbers_have_four_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 30, "3.0 GiB"), (1 << 60, "1048576.0 TiB"), (None, NONE)],
)
def test_bytes_have_a_unit(value: int | None, shown: str) -> None:
    assert in_bytes(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (90000, "1 d 1 h"), (None, NONE)],
)
def test_times_have_two_units(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_counts_have_commas_and_shares_are_percentages() -> None:
    assert (whole(1234567), whole(None)) == ("1,234,567", NONE)
    assert (share(0.98765), share(None)) == ("98.77 %", NONE)


def test_columns_without_any_value_are_left_out() -> None:
    made = table(["run", "a", "b"], [["x", NONE, "1"], ["y", NONE, NONE]])
    assert [column.header for column in made.columns] == ["run", "b"]
