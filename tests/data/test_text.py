"""csv and libsvm files: what is read, which column is the target, and which line is wrong."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from hpcopt.data.text import CsvReader, LibsvmReader
from hpcopt.errors import UsageError


def csv(folder: Path, text: str, target: object = None, name: str = "set.csv") -> CsvReader:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return CsvReader(path, target)  # type: ignore[arg-type]


def everything(reader: CsvReader | LibsvmReader) -> tuple[list[object], list[object]]:
    inputs, targets = reader.read(np.arange(reader.rows))
    return inputs.tolist(), targets.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "1,2,0\n3,4,1\n",
        "a,b,label\n1,2,0\n3,4,1\n",
        "# a, b, label\n1,2,0\n3,4,1",
        "a;b;label\r\n1;2;0\r\n3;4;1\r\n",
        "a\tb\tc\n1\t2\t0\n\n3\t4\t1\n\n",
        "1 2 0\n  \n3  4 1\n\t            \n",
        '"a","b","c"\n"1","2","0"\n3,4,1\n# the end\n',
        "1e0,2.0,-0\n# a comment\n3,+4,1.0\n",
        'a,"b, in m","the ""label"""\n1,2,0\n3,4,1\n',
        "Measured in May\n1,2,0\n3,4,1\n",
        ",a,b\n1,2,0\n3,4,1\n",
        "a,1,2\n1,2,0\n3,4,1\n",
        "1,2,0\r3,4,1\r",
    ],
    ids=(
        "plain header comment semicolon tab blanks quotes exponents comma-in-name title nameless number-as-name returns"
    ).split(),
)
@pytest.mark.parametrize("name", ["set.csv", "set.csv.gz"])
def test_usual_forms_of_csv_are_read(tmp_path: Path, text: str, name: str) -> None:
    reader = csv(tmp_path, text, name=name)
    assert (reader.rows, reader.shape) == (2, (2,))
    assert everything(reader) == ([[1, 2], [3, 4]], [0, 1])


@pytest.mark.parametrize("first", ["1,,0", ",,", "?,2,0", "1, NA ,0", '1,"",0', "1,null,None", ",0,1"])
def test_a_first_row_in_which_a_number_is_missing_is_a_row_and_refused(tmp_path: Path, first: str) -> None:
    """As a header it would be lost without a word."""
    reader = csv(tmp_path, f"{first}\n1,2,0\n3,4,1\n")
    assert (reader.rows, reader.header) == (3, None)
    with pytest.raises(UsageError, match=r"Line 1, column \d of .* is not a number\..* If it is a header"):
        reader.read(np.arange(3))


def test_names_in_quotation_marks_may_hold_the_delimiter(tmp_path: Path) -> None:
    reader = csv(tmp_path, '"a, b","the label"\n1,2\n', "a, b")
    assert (reader.header, reader.targets) == (["a, b", "the label"], [0])


@pytest.mark.parametrize(("first", "target"), [("", None), ("label,a,b\n", "label")])
def test_a_mark_of_utf8_is_no_part_of_the_first_cell(tmp_path: Path, first: str, target: str | None) -> None:
    """Spreadsheets write it; a first row would be taken for a header, and the first name would not be found."""
    reader = csv(tmp_path, f"\ufeff{first}1,2,0\n3,4,1\n", target)
    assert reader.rows == 2
    assert everything(reader)[1] == ([1, 3] if target else [0, 1])


def test_a_text_in_utf16_is_refused_and_the_mark_of_utf8_is_no_part_of_a_label(tmp_path: Path) -> None:
    path = tmp_path / "set.libsvm"
    path.write_text("\ufeff1 1:2\n0 1:3\n", encoding="utf-8")
    assert everything(LibsvmReader(path)) == ([[2], [3]], [1, 0])
    path.write_text("1,2\n3,4\n", encoding="utf-16")
    for reader in (lambda: CsvReader(path, None), lambda: LibsvmReader(path)):
        with pytest.raises(UsageError, match=r"in UTF-16\. Save it in UTF-8"):
            reader()


def test_only_the_rows_asked_for_are_parsed(tmp_path: Path) -> None:
    """A bad line of another rank's shard is that rank's business; nothing else of the file is touched."""
    reader = csv(tmp_path, "1,2\n3,x\n5,6\n7,8\n")
    assert reader.read(np.array([0, 3]))[0].tolist() == [[1], [7]]
    empty = reader.read(np.array([], int))
    assert empty[0].shape == (0, 1)
    assert empty[1].shape == (0,)


@pytest.mark.parametrize(
    ("target", "inputs", "targets"),
    [
        (None, [[10, 12, 13]], [11]),
        ("first", [[11, 12, 13]], [10]),
        ("last", [[10, 11, 12]], [13]),
        ("c", [[10, 11, 13]], [12]),
        (2, [[10, 11, 13]], [12]),
        (-1, [[10, 11, 12]], [13]),
        (["last", "a"], None, None),
        ([3, 0], [[11, 12]], [[13, 10]]),
        (["a", "c"], [[11, 13]], [[10, 12]]),
    ],
    ids=str,
)
def test_targets_are_the_columns_that_the_user_names(
    tmp_path: Path, target: object, inputs: list[list[float]] | None, targets: list[object]
) -> None:
    """By default the column called label; in the order in which the user names them."""
    reader = csv(tmp_path, "a,Label,c,d\n10,11,12,13\n", target)
    if inputs is not None:
        assert everything(reader) == (inputs, targets)
    else:
        assert reader.targets == [3, 0]


def test_the_last_column_is_the_target_without_a_header(tmp_path: Path) -> None:
    assert csv(tmp_path, "1,2,3\n").targets == [2]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("a,bee\n1,2\n", "bees", r"no column of .*did you mean 'bee'\? The columns are a, bee"),
        ("1,2\n", "bee", "has no header line"),
        ("1,2\n", 2, "target is 2, but .* has 2 columns"),
        ("1,2\n", [0, 0], "names a column of .* twice"),
        ("1,2\n", [0, 1], "nothing is left as input"),
        ("", None, "has no rows"),
        ("a,b\n", None, "has no rows"),
        ("# only this\n", None, "has no rows"),
        ("1\n2\n", None, "All 1 columns of .* are targets"),
        ("a,b\n1,2,0\n", None, "header of .* has 2 names, the first row has 3 columns"),
    ],
)
def test_a_csv_that_cannot_be_opened_is_refused(tmp_path: Path, text: str, target: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        csv(tmp_path, text, target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", "Line 3, column 1 of .* is 'x', which is not a number"),
        ("1,2\n# c\n3,\n", "Line 3, column 1 of .* is ''"),
        ("1,2\n3,4,5\n", "Line 2 of .* has 3 columns, the first row has 2"),
        ("1,2\n3\n4,5,6\n", "Line 2 of .* has 1 columns"),
        ("1,2\n" * 999 + "3\n", "Line 1000 of .* has 1 columns"),
        ("1,2\n3,4,\n", "Line 2 of .* has 3 columns"),
        ("a;b\n1,5;2\n", "Line 2, column 0 of .* is '1,5', which .* with a decimal point.$"),
        ("1,2\n1_000,2\n", "Line 2, column 0 of .* is '1_000'"),
        ('1,2\n1, "2"\n', "Line 2 of .* cannot be read: a number may stand in quotation marks"),
    ],
)
def test_the_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    reader = csv(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        reader.read(np.arange(reader.rows))


@pytest.mark.parametrize("kind", ["gz", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "not packed"])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    """Cut off, a byte changed in the middle, or no packed file at all."""
    content = "".join(f"{i},{i * i}\n" for i in range(3000)).encode()
    packed = bytearray(gzip.compress(content) if kind == "gz" else lzma.compress(content))
    if damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    broken = {"cut": bytes(packed[:-50]), "flipped": bytes(packed), "not packed": content}[damage]
    path = tmp_path / f"set.csv.{kind}"
    path.write_bytes(broken)
    with pytest.raises(UsageError, match=rf"'{path}' is damaged: .* Copy or fetch it again"):
        CsvReader(path, None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing.csv' cannot be read: No such file"):
        CsvReader(tmp_path / "nothing.csv", None)


@pytest.mark.parametrize("name", ["set.libsvm", "set.libsvm.xz", "set.libsvm.gz"])
def test_libsvm_rows_become_dense(tmp_path: Path, name: str) -> None:
    content = b"+1 1:0.5 3:2 # a comment\n-1\n\n-1 2:-1e-1\n"
    pack = {".xz": lzma.compress, ".gz": gzip.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(content))
    reader = LibsvmReader(tmp_path / name)
    inputs, targets = reader.read(np.arange(3))
    np.testing.assert_allclose(inputs, [[0.5, 0, 2], [0, 0, 0], [0, -0.1, 0]], rtol=1e-7)
    assert targets.tolist() == [1, -1, -1]
    reader.widen(5)
    assert reader.read(np.array([2]))[0].shape == (1, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1:2\n1 2:x\n", "holds 'x', which is not a number"),
        ("1 1:2\n0 2:3 4\n", "Row 1 of .* is '0 2:3 4'"),
        ("1 0:2\n", "indices from 1"),
        ("1 1:2:3\n", "Row 0"),
        ("1 -1:2\n", "Row 0"),
        ("one 1:2\n", "not a number"),
        ("\n# nothing\n", "has no rows"),
    ],
)
def test_what_is_not_libsvm_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "set.libsvm").write_text(text)
    with pytest.raises(UsageError, match=message):
        LibsvmReader(tmp_path / "set.libsvm")


def test_a_sparse_file_too_large_as_a_dense_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.libsvm").write_text("1 1000000000000:1\n")
    with pytest.raises(UsageError, match="more than 64 GiB as a dense table"):
        LibsvmReader(tmp_path / "set.libsvm").read(np.array([0]))


def test_a_shard_of_longer_lines_is_refused_although_they_agree_with_each_other(tmp_path: Path) -> None:
    reader = csv(tmp_path, "1,2\n3,4,5\n6,7,8\n")
    with pytest.raises(UsageError, match=r"Line 2 of .* has 3 columns, the first row has 2"):
        reader.read(np.array([1, 2]))
