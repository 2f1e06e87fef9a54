"""Tables in text: csv (any delimiter, with or without a header) and libsvm, plain or compressed.

A compressed text has no random access, so every rank decompresses the file, but parses its own lines only (csv).
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from hpcopt.data.files import read_bytes
from hpcopt.errors import UsageError, nearest

Target = str | int | list[str] | list[int] | None

LABEL_NAMES = ("label", "class", "target")
"""Headers that mark the target column when the user does not say which it is."""

NEWLINE = b"\n"

_PAIRS = re.compile(rb"[^\s:]+(?:\s+[1-9]\d*:[^\s:]+)*")

MISSING = ("", "?", "na", "n/a", "null", "none")
"""Cells, in lower case, that stand for a number that is missing: they make no header of a first row."""

MAX_DENSE_BYTES = 2**36
"""A sparse file that would take more memory than this as a dense table is refused instead of killing the machine."""


class CsvReader:
    """Rows of numbers separated by commas, semicolons, tabs or blanks; lines that begin with # are comments.

    The header is a first line with a cell that is neither a number nor one of ``MISSING``, or the comment just above
    the first row if it has a name for each column. Inputs are float64, (n, features).

    Raises:
        UsageError: the file is missing or damaged, has no rows, names in its header that do not fit them, or no such
            target column.
    """

    def __init__(self, path: Path, target: Target) -> None:
        self.path = path
        self.name = str(path)
        self._text = _read_text(path)
        ranges = _line_ranges(self._text)
        comment = np.frombuffer(self._text, np.uint8)[ranges[:, 0]] == ord("#") if len(ranges) else np.zeros(0, bool)
        self._lines = ranges[~comment]
        if not len(self._lines):
            raise self._empty()
        # Of two lines, since the last one may be cut off.
        marks = [_delimiter(self._line(span)) for span in self._lines[:-3:-1]]
        self._delimiter = next(filter(None, marks), None)
        above = [self._cells(span) for span in ranges[: int(np.argmin(comment))][-1:]]
        header = self._take_header()
        width = len(self._cells(self._lines[0]))
        self._check_names(header, width)
        self.header = next((names for names in (header, *above) if names and len(names) == width), None)
        self.targets = target_columns(target, self.header, width, self.name)
        self.features = [column for column in range(width) if column not in self.targets]
        if not self.features:
            raise UsageError(
                f"All {width} columns of {self.name!r} are targets, so nothing is left as input. Is the"
                " delimiter a comma, semicolon, tab or blank, and data.target right?"
            )
        self.rows = len(self._lines)
        self.shape: tuple[int, ...] = (len(self.features),)

    @property
    def named_label(self) -> bool:
        """Whether the header calls the target column a label or class."""
        return (
            self.header is not None
            and len(self.targets) == 1
            and self.header[self.targets[0]].lower() in LABEL_NAMES[:2]
        )

    def column(self, feature: int) -> str:
        """The header's name of a feature, else its column number."""
        column = self.features[feature]
        return f"column {self.header[column]!r}" if self.header else f"column {column}"

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Parse the given lines.

        Raises:
            UsageError: one of them has other columns than the first, or something that is no number.
        """
        if not len(rows):
            table = np.empty((0, len(self.features) + len(self.targets)))
        else:
            text = b"\n".join([self._text[a:b] for a, b in self._lines[rows].tolist()]).decode("utf-8", "replace")
            table = self._parse(text, rows)
        targets = table[:, self.targets]
        return table[:, self.features], targets[:, 0] if len(self.targets) == 1 else targets

    def _take_header(self) -> list[str] | None:
        """The cells of the first line where it holds text, and then it is no row; else None."""
        cells = self._cells(self._lines[0])
        if all(_is_number(cell) or cell.lower() in MISSING for cell in cells):
            return None
        self._lines = self._lines[1:]
        if not len(self._lines):
            raise self._empty()
        return cells

    def _check_names(self, header: list[str] | None, width: int) -> None:
        """Refuse names of which nobody could say to which columns they belong; a line of one cell may be a title."""
        if header and self._delimiter and len(header) not in (1, width):
            raise UsageError(
                f"The header of {self.name!r} has {len(header)} names, the first row has {width} columns. Give every"
                " column a name, or remove the header."
            )

    def _parse(self, text: str, rows: np.ndarray) -> np.ndarray:
        width = len(self.features) + len(self.targets)
        table = self._table(text)
        if table is None or table.shape != (len(rows), width):
            raise self._bad_line(text, rows, width)
        return table

    def _table(self, text: str) -> np.ndarray | None:
        """The numbers of some lines, None where it is not numbers that they hold, as many in each."""
        try:
            return np.loadtxt(io.StringIO(text), delimiter=self._delimiter, comments=None, quotechar='"', ndmin=2)
        except ValueError:
            return None

    def _bad_line(self, text: str, rows: np.ndarray, width: int) -> UsageError:
        """The error for the first line that is not ``width`` numbers."""
        lines = text.split("\n")
        for line, row in zip(lines, rows, strict=True):
            cells = _split(line, self._delimiter)
            if len(cells) != width:
                return UsageError(
                    f"Line {self._number(row)} of {self.name!r} has {len(cells)} columns, the first row has {width}."
                    " Every row needs the same number of columns."
                )
            for column, cell in enumerate(cells):
                if not _is_number(cell):
                    named = " If it is a header, give the columns names that are no numbers."
                    return UsageError(
                        f"Line {self._number(row)}, column {column} of {self.name!r} is {cell!r}, which is not a"
                        " number. Missing values and text must be filled in or coded as numbers, with a decimal point."
                        + (named if row == 0 and self.header is None else "")
                    )
        for line, row in zip(lines, rows, strict=True):
            if self._table(line) is None:
                return UsageError(
                    f"Line {self._number(row)} of {self.name!r} is {line[:60]!r}, which cannot be read: a number may"
                    " stand in quotation marks, with nothing before or between them."
                )
        return UsageError(f"The data file {self.name!r} cannot be read as a table of numbers.")

    def _number(self, row: int) -> int:
        """The number of a row's line in the file, from 1."""
        return self._text.count(NEWLINE, 0, int(self._lines[row, 0])) + 1

    def _cells(self, span: np.ndarray) -> list[str]:
        return _split(self._line(span).lstrip("#"), self._delimiter)

    def _empty(self) -> UsageError:
        return UsageError(f"The data file {self.name!r} has no rows. A csv file holds one sample a line.")

    def _line(self, span: np.ndarray) -> str:
        return self._text[span[0] : span[1]].decode("utf-8", "replace").strip()


class LibsvmReader:
    """Rows of ``label index:value index:value ...`` with indices from 1, made dense: inputs float32, (n, features).

    Raises:
        UsageError: the file is missing, damaged, or not of this form.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        text = _read_text(path)
        lines = [line for line in (raw.split(b"#")[0].strip() for raw in text.split(b"\n")) if line]
        if not lines:
            raise UsageError(f"The data file {self.name!r} has no rows. A libsvm file holds one sample a line.")
        self._check(lines)
        entries = [line.count(b":") for line in lines]
        numbers = self._numbers(lines)
        starts = np.concatenate([[0], np.cumsum(2 * np.array(entries) + 1)])
        is_label = np.zeros(len(numbers), bool)
        is_label[starts[:-1]] = True
        pairs = numbers[~is_label].reshape(-1, 2)
        self._labels, self._values = numbers[is_label], pairs[:, 1].astype(np.float32)
        self._indices = pairs[:, 0].astype(np.int64) - 1
        self._pointers = np.concatenate([[0], np.cumsum(entries)])
        self.rows = len(lines)
        self.shape: tuple[int, ...] = (int(self._indices.max(initial=-1)) + 1,)

    def widen(self, features: int) -> None:
        """Give every row this many features: the training and the test file may end at different indices."""
        self.shape = (features,)

    def column(self, feature: int) -> str:
        """The file's own index of a feature."""
        return f"index {feature + 1}"

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The given rows as a dense table.

        Raises:
            UsageError: it would take more memory than a rank should give it.
        """
        if len(rows) * self.shape[0] * 4 > MAX_DENSE_BYTES:
            raise UsageError(
                f"{len(rows)} rows of {self.name!r} with {self.shape[0]} features each take more than"
                f" {MAX_DENSE_BYTES >> 30} GiB as a dense table. Use more ranks or data.limit."
            )
        inputs = np.zeros((len(rows), self.shape[0]), np.float32)
        for place, row in enumerate(rows.tolist()):
            entries = slice(self._pointers[row], self._pointers[row + 1])
            inputs[place, self._indices[entries]] = self._values[entries]
        return inputs, self._labels[rows]

    def _check(self, lines: list[bytes]) -> None:
        for row, line in enumerate(lines):
            if not _PAIRS.fullmatch(line):
                shown = line.decode("utf-8", "replace")
                raise UsageError(
                    f"Row {row} of the libsvm file {self.name!r} is {shown[:60]!r}; a row must be"
                    " 'label index:value index:value ...', with indices from 1, all of them numbers."
                )

    def _numbers(self, lines: list[bytes]) -> np.ndarray:
        """All numbers of the file in order."""
        words = b" ".join(lines).replace(b":", b" ").split()
        try:
            return np.array(words).astype(np.float64)
        except ValueError as error:
            bad = next((word for word in words if not _is_number(word.decode("utf-8", "replace"))), b"something")
            shown = bad.decode("utf-8", "replace")
            raise UsageError(f"The libsvm file {self.name!r} holds {shown!r}, which is not a number.") from error


def target_columns(target: Target, header: list[str] | None, width: int, name: str) -> list[int]:
    """The numbers of the target columns of a table of ``width`` columns.

    Raises:
        UsageError: there is no such column.
    """
    if target is None:
        named = [i for i, column in enumerate(header or []) if column.lower() in LABEL_NAMES]
        return named[:1] or [width - 1]
    entries = target if isinstance(target, list) else [target]
    columns = [_column(entry, header, width, name) for entry in entries]
    if len(set(columns)) != len(columns):
        raise UsageError(f"data.target is {target!r}, which names a column of {name!r} twice.")
    return columns


def _column(entry: str | int, header: list[str] | None, width: int, name: str) -> int:
    if isinstance(entry, int):
        if not -width <= entry < width:
            raise UsageError(
                f"data.target is {entry}, but {name!r} has {width} columns; the first is number 0, the"
                f" last {width - 1} or -1."
            )
        return entry % width
    if header and entry in header:
        return header.index(entry)
    if entry in ("first", "last"):
        return 0 if entry == "first" else width - 1
    if not header:
        raise UsageError(
            f'data.target is {entry!r}, but {name!r} has no header line with names. Use "first", '
            '"last" or the number of the column.'
        )
    raise UsageError(
        f"data.target is {entry!r}, which is no column of {name!r}{nearest(entry, header)} The columns"
        f" are {', '.join(header[:20])}{', ...' if len(header) > 20 else ''}."
    )


def _read_text(path: Path) -> bytes:
    """The content of a text file, without the mark of UTF-8 that some programs put before the first cell.

    Raises:
        UsageError: the file is missing or damaged, or in UTF-16.
    """
    text = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    if NEWLINE not in text:
        text = text.replace(b"\r", NEWLINE)
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"The data file {str(path)!r} is a text in UTF-16. Save it in UTF-8.")
    return text


def _line_ranges(text: bytes) -> np.ndarray:
    """Start and stop of every line that is not blank, shape (lines, 2)."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    starts = np.concatenate([[0], ends + 1])
    ranges = np.stack([starts, np.concatenate([ends, [len(text)]])], axis=1)
    ranges = ranges[ranges[:, 1] > ranges[:, 0]]
    if not len(ranges):
        return ranges
    # From one start to the next; blanks and what ends a line come first in the order of characters.
    shown = np.logical_or.reduceat(np.frombuffer(text, np.uint8) > ord(" "), ranges[:, 0])
    return np.asarray(ranges[shown])


def _delimiter(line: str) -> str | None:
    # The comma of a row that holds another one too is a decimal comma, which the error then shows.
    return next((mark for mark in (";", "\t", ",") if mark in line), None)


def _split(line: str, delimiter: str | None) -> list[str]:
    """The cells of a line, without quotes and the blanks around them."""
    cells = line.split(delimiter)
    if '"' in line and delimiter:
        with suppress(csv.Error):
            cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    return [cell.strip().strip('"') for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    # Python reads these, a parser of tables does not.
    return cell.isascii() and "_" not in cell
