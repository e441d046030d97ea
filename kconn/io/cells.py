"""Text tables as rows of cells: one delimiter, rows of one length, nothing dropped."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from kconn.chunks import GIB
from kconn.errors import InputError
from kconn.io.streams import open_stream

#: How tables write that a value is missing; the first is the one of BIDS.
MISSING: Final = frozenset({"n/a", "N/A", "NA", "NaN", "nan", "NAN", ""})
#: Stands for any run of blanks and tabs.
WHITESPACE: Final = " "

_DELIMITERS: Final = {"\t": "tab", ",": "comma", ";": "semicolon"}
_MAX_BYTES: Final = GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Rows of equally many cells, without blanks around them."""

    rows: list[list[str]]
    what: str
    where: str

    @property
    def n_column(self) -> int:
        """Cells per row."""
        return len(self.rows[0])

    def error(self, code: str, problem: str, *, rule: str, fix: str) -> InputError:
        """Return an error that names this table and its place."""
        return InputError(code, f"the {self.what} {problem}", where=self.where, rule=rule, fix=fix)


def read_cells(path: Path, *, delimiter: str | None = None, where: str, what: str) -> Cells:
    r"""Read a text table.

    Parameters
    ----------
    path
        UTF-8 text; a name ending in ``.gz`` is decompressed.
    delimiter
        ``"\t"``, ``","``, ``";"``, or ``" "`` for runs of blanks. Without it the first line tells, if only one of
        them is there (blanks if none is); where several are, the ending of the name (.tsv, .csv) does.
    where, what
        Place and kind of table for errors.

    Raises
    ------
    InputError
        ``E-FILE-MISSING`` or ``E-GZIP``; ``E-TABLE`` if the text has no rows, is no UTF-8, or its delimiter cannot
        be told; ``E-TABLE-SHAPE`` if a row is blank or has another number of cells than the first.
    """
    text = _read_text(path, where=where, what=what)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while not lines[-1].strip():
        lines.pop()
    mark = delimiter or _find_delimiter(lines[0], path.name, where=where, what=what)
    try:
        rows = (
            [line.split() for line in lines]
            if mark == WHITESPACE
            else [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark, strict=True)]
        )
    except csv.Error as exc:
        raise _unreadable(f"is malformed: {exc}", where=where, what=what) from None
    cells = Cells(rows=rows, what=what, where=where)
    for i_row, row in enumerate(rows):
        if len(row) != cells.n_column or not any(row):
            raise cells.error(
                "E-TABLE-SHAPE",
                f"has {len(row)} cells in row {i_row + 1}, and {cells.n_column} in row 1",
                rule="every row has the same number of cells, and none is blank",
                fix="export the table again; check its delimiter",
            )
    return cells


def is_number(cell: str) -> bool:
    """Return whether a cell reads as a number (NaN and infinity included)."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # float() reads 1_0 as ten


def to_numbers(
    cells: Cells, *, first_row: int = 0, first_column: int = 0, missing: frozenset[str] = frozenset()
) -> npt.NDArray[np.float64]:
    """Return rows and columns from the given ones on as numbers, with NaN for cells in ``missing``.

    Raises
    ------
    InputError
        ``E-TABLE`` with row and column of the first cell that is neither a number nor in ``missing``.
    """
    values = np.empty((len(cells.rows) - first_row, cells.n_column - first_column))
    for i_row, row in enumerate(cells.rows[first_row:]):
        kept = row[first_column:]
        try:
            values[i_row] = [float(cell) for cell in kept]
            is_plain = "_" not in "".join(kept)
        except ValueError:
            is_plain = False
        if is_plain:
            continue
        for i_column, cell in enumerate(kept):
            if cell not in missing and not is_number(cell):
                raise cells.error(
                    "E-TABLE",
                    f"holds {cell[:40]!r} in row {first_row + i_row + 1}, column {first_column + i_column + 1}",
                    rule="every cell is a number with a decimal point" + (", or n/a" if missing else ""),
                    fix="correct the cell, or state delimiter and header",
                )
            values[i_row, i_column] = float("nan") if cell in missing else float(cell)
    return values


def refuse_cells(cells: Cells, bad: npt.NDArray[np.bool_], *, code: str, first_row: int, names: Sequence[str]) -> None:
    """Refuse a table with the first cell, row by row, where ``bad`` (row, column) is true.

    Raises
    ------
    InputError
        With the given code.
    """
    if not bad.any():
        return
    i_row, i_column = (int(i) for i in np.argwhere(bad)[0])
    name = f" ({names[i_column]})" if names else ""
    raise cells.error(
        code,
        f"holds {int(bad.sum())} NaN or infinite values, the first in row {first_row + i_row + 1}, "
        f"column {i_column + 1}{name}",
        rule="every value is a finite number",
        fix="find out why the value is missing; repair the table or leave the run out",
    )


def _read_text(path: Path, *, where: str, what: str) -> str:
    with open_stream(path, where=where, what=what) as stream:
        n_expected = _MAX_BYTES if stream.is_gzip else min(stream.size_on_disk, _MAX_BYTES)
        raw = stream.read_up_to(n_expected + 1)
    if len(raw) > _MAX_BYTES:
        raise _unreadable(f"holds more than {_MAX_BYTES} bytes", where=where, what=what)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise _unreadable(
            f"is no UTF-8 text: byte {exc.start} is {raw[exc.start]:#04x}", where=where, what=what
        ) from None
    if "\0" in text:
        raise _unreadable("is no text: it holds zero bytes", where=where, what=what)
    if not text.strip():
        raise _unreadable("is empty", where=where, what=what)
    return text


def _find_delimiter(line: str, name: str, *, where: str, what: str) -> str:
    present = [mark for mark in _DELIMITERS if mark in line]
    if len(present) > 1:
        by_name = {".tsv": "\t", ".csv": ","}
        present = [mark for ending, mark in by_name.items() if ending in name and mark in present] or present
    if len(present) > 1:
        raise _unreadable(
            f"has {' and '.join(_DELIMITERS[mark] for mark in present)} in its first line", where=where, what=what
        )
    return present[0] if present else WHITESPACE


def _unreadable(problem: str, *, where: str, what: str) -> InputError:
    return InputError(
        "E-TABLE",
        f"the {what} {problem}",
        where=where,
        rule="a text table in UTF-8 with one delimiter: tab, comma, semicolon or blanks",
        fix="export the table again as .tsv",
    )
