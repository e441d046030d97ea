"""Tables of numbers and of people: node series, confounds, one-column vectors, participants, sessions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.errors import InputError
from kconn.io.cells import MISSING, Cells, is_number, read_cells, refuse_cells, to_numbers
from kconn.io.identifiers import check_distinct, format_label
from kconn.io.streams import open_stream

Orientation = Literal["time-by-node", "node-by-time"]

_SERIES: Final = "node series table"
_CONFOUNDS: Final = "confound table"
_OTHER: Final[dict[str, str]] = {"time-by-node": "node-by-time", "node-by-time": "time-by-node"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeseriesTable:
    """Node series of one run: ``values`` (node, time) float64, unique ``names``, and ``notes`` for the report."""

    values: npt.NDArray[np.float64]
    names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfoundTable:
    """Confounds of one run: ``values`` (time, confound) float64 with NaN for n/a, ``names`` as in the file."""

    values: npt.NDArray[np.float64]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_timeseries(
    path: Path,
    *,
    orientation: Orientation,
    has_header: bool | None = None,
    delimiter: str | None = None,
    n_time: int | None = None,
    n_node: int | None = None,
    where: str = "",
) -> TimeseriesTable:
    """Read the node series of one run from text (.tsv, .csv, .txt) or ``.npy``.

    Nodes without a name get their rank, from ``"1"``. The second, third, ... column of one name gets ``_2``, ``_3``,
    ... appended, and a note says so.

    Parameters
    ----------
    path
        The table.
    orientation
        ``time-by-node``: a row is a frame; ``node-by-time``: a row is a node, which may start with its name. Stated,
        never guessed.
    has_header
        Whether the first row holds names. Without it a first row of words is a header and one of numbers is not;
        a mixture, or the numbers 0 1 2 ... or 1 2 3 ..., is refused.
    delimiter
        See `kconn.io.cells.read_cells`.
    n_time, n_node
        What the table must hold, where it is known.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-ORIENTATION`` if the stated orientation contradicts the table, ``E-TABLE-SHAPE``, ``E-TABLE-NAN`` with
        row and column, ``E-TABLE``, ``E-FILE-MISSING``.
    """
    if orientation not in _OTHER:
        raise InputError(
            "E-ORIENTATION",
            f"the orientation is stated as {orientation!r}",
            where=where,
            rule="time-by-node (a row is a frame) or node-by-time (a row is a node); it is never guessed",
            fix="state inputs.orientation in the study file",
        )
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if path.name.endswith(".npy"):
        table = _read_npy(path, where=where)
    else:
        cells = read_cells(path, delimiter=delimiter, where=where, what=_SERIES)
        table, names, notes = _split(cells, orientation, has_header=has_header)
    values = np.ascontiguousarray(table.T) if orientation == "time-by-node" else table
    _check_series_shape(values.shape, n_node=n_node, n_time=n_time, orientation=orientation, where=where)
    unique, more_notes = _make_unique(names or tuple(str(i + 1) for i in range(len(values))))
    return TimeseriesTable(values=values, names=unique, notes=notes + more_notes)


def read_confounds(path: Path, *, n_time: int, where: str = "") -> ConfoundTable:
    """Read a confound table whose first row names the columns; n/a becomes NaN, and a note counts them.

    Raises
    ------
    InputError
        ``E-CONFOUND-ROWS`` if it has not one row per frame, ``E-CONFOUND-NAN`` for infinite values, ``E-TABLE`` for
        text in a column or a column name that is missing or there twice.
    """
    cells = read_cells(path, where=where, what=_CONFOUNDS)
    names = tuple(cells.rows[0])
    check_header(cells, names)
    if all(is_number(name) for name in names):
        raise cells.error(
            "E-TABLE",
            f"starts with numbers, {' '.join(names[:4])[:60]!r} ...",
            rule="its first row names the columns",
            fix="write the names above, or state format and columns of the table in [regressors]",
        )
    if len(cells.rows) - 1 != n_time:
        raise cells.error(
            "E-CONFOUND-ROWS",
            f"has {len(cells.rows) - 1} rows below its header, the run has {n_time} frames",
            rule="one row per frame",
            fix="give the table of this run; if dummy frames were cut from one of them, cut them from both",
        )
    values = to_numbers(cells, first_row=1, missing=MISSING)
    refuse_cells(cells, np.isinf(values), code="E-CONFOUND-NAN", first_row=1, names=names)
    is_missing = np.isnan(values)
    only_first = is_missing[0] & (is_missing.sum(axis=0) == 1)
    notes = [f"{name}: n/a in {n} of {n_time} frames" for name, n in _count_missing(names, is_missing[1:])]
    if only_first.any():
        notes.insert(0, f"{int(only_first.sum())} confounds are n/a in the first frame alone")
    return ConfoundTable(values=values, names=names, notes=tuple(notes))


def read_vector(
    path: Path, *, n_time: int | None = None, where: str = "", what: str = "framewise displacement"
) -> npt.NDArray[np.float64]:
    """Read one number per frame from a one-column text, with or without a name in its first row.

    A file with one row less than ``n_time`` holds differences between frames (as nipype's FramewiseDisplacement
    writes it): the first frame, which has none, gets NaN. So does n/a in the first row.

    Returns
    -------
    (time,) float64.

    Raises
    ------
    InputError
        ``E-TABLE-SHAPE`` for several columns, ``E-CONFOUND-ROWS`` for another number of rows, ``E-TABLE-NAN`` for NaN
        beyond the first row or infinity, ``E-TABLE``.
    """
    cells = read_cells(path, where=where, what=what)
    if cells.n_column != 1:
        raise cells.error(
            "E-TABLE-SHAPE",
            f"has {cells.n_column} columns",
            rule="one column, one row per frame",
            fix="cut the column out of the table",
        )
    first = cells.rows[0][0]
    first_row = int(not is_number(first) and first not in MISSING)
    values = to_numbers(cells, first_row=first_row, missing=MISSING)[:, 0]
    if n_time is not None and len(values) == n_time - 1:
        values = np.concatenate([[np.nan], values])
    if n_time is not None and len(values) != n_time:
        raise cells.error(
            "E-CONFOUND-ROWS",
            f"has {len(values)} rows, the run has {n_time} frames",
            rule="one row per frame, or one less where rows are differences between frames",
            fix="give the file of this run",
        )
    bad = ~np.isfinite(values)
    bad[:1] &= ~np.isnan(values[:1])
    refuse_cells(cells, bad[:, None], code="E-TABLE-NAN", first_row=first_row, names=())
    return values


def read_participants(
    path: Path, *, id_column: str = "participant_id", id_format: str | None = None, where: str = ""
) -> pd.DataFrame:
    """Read a table of subjects, indexed by ``subject`` as in ``"01"``.

    A column of numbers becomes numeric unless one of them starts with a needless zero (site ``"007"``); n/a and empty
    cells become missing.

    Parameters
    ----------
    path
        ``.tsv`` or ``.csv`` with a header.
    id_column
        Column of the subject's label; a ``sub-`` before it is dropped.
    id_format
        How whole numbers become labels: ``"{:03d}"`` makes ``4`` to ``"004"``.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-ID`` for a malformed label, ``E-ID-DUPLICATE`` for two rows of one subject (also if they differ only in
        case), ``E-TABLE-SHAPE`` if the column is missing, ``E-TABLE-NAN`` for an infinite value, ``E-TABLE``.
    """
    cells, table = _read_people(path, {id_column: id_format}, prefixes=("sub",), what="participants table", where=where)
    check_distinct(_rows(table.index), what="rows", where=cells.where or cells.what)
    return table.rename_axis("subject")


def read_sessions(
    path: Path,
    *,
    id_column: str = "participant_id",
    id_format: str | None = None,
    session_column: str = "session_id",
    where: str = "",
) -> pd.DataFrame:
    """Read a table of sessions, indexed by ``subject`` and ``session`` as in ``("01", "1")``.

    Parameters and errors as `read_participants`; ``session_column`` holds the session's label, a ``ses-`` before it is
    dropped, and each pair of labels occurs once.

    Raises
    ------
    InputError
        See `read_participants`.
    """
    columns = {id_column: id_format, session_column: None}
    cells, table = _read_people(path, columns, prefixes=("sub", "ses"), what="sessions table", where=where)
    pairs = [f"sub-{subject}/ses-{session}" for subject, session in table.index]
    check_distinct(_rows(pairs), what="rows", where=cells.where or cells.what)
    subjects = sorted({str(subject) for subject, _ in table.index})
    check_distinct(zip(subjects, subjects, strict=True), what="spellings", where=cells.where or cells.what)
    return table.rename_axis(["subject", "session"])


def read_people(
    participants: Path | None,
    sessions: Path | None,
    *,
    subjects: Iterable[str],
    id_column: str,
    id_format: str | None,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read the tables of a study: participants, or a row without columns per subject where there is none, and sessions.

    Parameters
    ----------
    participants, sessions
        The files, or None.
    subjects
        Labels of the subjects with data.
    id_column, id_format
        As `read_participants`.
    """
    table = bare_rows(subjects)
    if participants is not None:
        table = read_participants(participants, id_column=id_column, id_format=id_format)
    visits = None if sessions is None else read_sessions(sessions, id_column=id_column, id_format=id_format)
    return table, visits


def bare_rows(subjects: Iterable[str]) -> pd.DataFrame:
    """Return a table of subjects without columns: what is known where there is no participants table."""
    return pd.DataFrame(index=pd.Index(sorted(set(subjects)), name="subject"))


def check_ids(needed: Iterable[str], index: Iterable[Any], *, what: str, where: str = "") -> None:
    """Refuse data without a row: every needed identifier must be in the index of a table.

    Parameters
    ----------
    needed
        Identifiers of the data, as ``"01"``.
    index
        Identifiers of the table.
    what
        Name of the table for the error.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-ID-MISSING``, naming the identifiers and the most similar rows.
    """
    known = [str(label) for label in index]
    missing = [label for label in needed if label not in set(known)]
    if not missing:
        return
    alike = get_close_matches(missing[0], known, n=3, cutoff=0.3)
    raise InputError(
        "E-ID-MISSING",
        f"the {what} has no row for {', '.join(missing[:10])}{' ...' if len(missing) > 10 else ''} "
        f"({len(missing)} of the data's identifiers)",
        where=where,
        rule="every subject with data has a row, found by its label and never by its position",
        fix="add the rows"
        + (f", or make labels alike with id_format: the table has {', '.join(alike)}" if alike else ""),
    )


def _read_npy(path: Path, *, where: str) -> npt.NDArray[np.float64]:
    with open_stream(path, where=where, what=_SERIES):
        pass  # refuses what is no regular file
    try:
        # Mapped, a header that claims more than the file holds is refused before memory is taken.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, OverflowError, SyntaxError, TypeError):
        mapped = np.empty(0)
    if mapped.ndim != 2 or mapped.size == 0 or mapped.dtype.kind not in "iuf":
        raise InputError(
            "E-TABLE",
            f"the {_SERIES} is no .npy array of real numbers in two dimensions",
            where=where,
            rule="a .npy file with one two-dimensional array of integers or floats, and no pickled objects",
            fix="write it again with numpy.save",
        )
    values = np.array(mapped, dtype=np.float64)
    if not np.isfinite(values).all():
        cells = Cells(rows=[[]], what=_SERIES, where=where)
        refuse_cells(cells, ~np.isfinite(values), code="E-TABLE-NAN", first_row=0, names=())
    return values


def _split(
    cells: Cells, orientation: Orientation, *, has_header: bool | None
) -> tuple[npt.NDArray[np.float64], tuple[str, ...], tuple[str, ...]]:
    """Take names off a table of text; return numbers as they lie in the file, the names of nodes, and notes."""
    by_node = orientation == "node-by-time"
    has_row_names = by_node and cells.n_column > 1 and not any(is_number(row[0]) for row in cells.rows[1:])
    first_column = int(has_row_names)
    if has_header is None:
        has_header = _tell_header(cells, cells.rows[0][first_column:])
        if has_header and by_node and not has_row_names:
            raise cells.error(
                "E-ORIENTATION",
                f"is stated to be node-by-time, but its first row names {cells.n_column} columns",
                rule="names above the columns mean that a column is a node",
                fix="state time-by-node, or has_header = true if the first row labels frames",
            )
    first_row = int(has_header)
    if len(cells.rows) == first_row:
        raise cells.error(
            "E-TABLE-SHAPE", "has no rows below its header", rule="rows of numbers", fix="export it again"
        )
    names: tuple[str, ...] = ()
    if has_header and not by_node:
        names = tuple(cells.rows[0])
        check_header(cells, names, may_repeat=True)
    elif has_row_names:
        names = tuple(row[0] for row in cells.rows[first_row:])
    values = to_numbers(cells, first_row=first_row, first_column=first_column, missing=MISSING)
    refuse_cells(cells, ~np.isfinite(values), code="E-TABLE-NAN", first_row=first_row, names=() if by_node else names)
    notes = ("the first row, labels of frames, was dropped",) if has_header and by_node else ()
    return values, names, notes


def _tell_header(cells: Cells, first: list[str]) -> bool:
    numeric = [is_number(cell) or cell in MISSING - {""} for cell in first]
    counts = [[str(i + start) for i in range(len(first))] for start in (0, 1)]
    if all(numeric) and (len(first) < 3 or first not in counts):
        return False
    if not any(numeric):
        return True
    raise cells.error(
        "E-TABLE",
        f"starts with a row that may be names or numbers: {' '.join(first[:5])[:60]!r} ...",
        rule="a first row of words is a header, one of numbers is not",
        fix="state has_header in the study file; a table must not hold a column of row names",
    )


def check_header(cells: Cells, names: tuple[str, ...], *, may_repeat: bool = False) -> None:
    """Refuse a first row that does not name every column, or, unless it may, names two alike.

    Raises
    ------
    InputError
        ``E-TABLE``.
    """
    nameless = [i for i, name in enumerate(names) if not name or name.startswith("Unnamed: ")]
    if nameless:
        raise cells.error(
            "E-TABLE",
            f"has no name above column {nameless[0] + 1}",
            rule="every column has a name; one without is often a row number, not a signal",
            fix="write the table without its index (pandas: index=False)",
        )
    if not may_repeat and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise cells.error("E-TABLE", f"has two columns {twice!r}", rule="names are unique", fix="drop one of them")


def _make_unique(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    taken = set(names)
    counts: dict[str, int] = {}
    unique: list[str] = []
    notes: list[str] = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        label = name
        while counts[name] > 1 and label in taken:
            label = f"{name}_{counts[name]}"
            counts[name] += label in taken
        if label != name:
            notes.append(f"column {len(unique) + 1} is another {name!r}: named {label!r}")
            taken.add(label)
        unique.append(label)
    return tuple(unique), tuple(notes)


def _check_series_shape(
    shape: tuple[int, ...], *, n_node: int | None, n_time: int | None, orientation: str, where: str
) -> None:
    found, wanted = (shape[0], shape[1]), (n_node, n_time)
    problem = f"the {_SERIES}, read as {orientation}, holds {shape[0]} nodes by {shape[1]} frames"
    if all(w in (None, f) for w, f in zip(wanted, found, strict=True)) and shape[1] >= 2:
        return
    expected = f"expected are {n_node or 'any number of'} nodes by {n_time or 'at least two'} frames"
    if shape[1] >= 2 and all(w in (None, f) for w, f in zip(wanted, found[::-1], strict=True)):
        raise InputError(
            "E-ORIENTATION",
            problem,
            where=where,
            rule=expected,
            fix=f"it fits the other way round: state orientation = {_OTHER[orientation]!r}",
        )
    raise InputError(
        "E-TABLE-SHAPE", problem, where=where, rule=expected, fix="check delimiter, header and orientation of the table"
    )


def _count_missing(names: tuple[str, ...], is_missing: npt.NDArray[np.bool_]) -> list[tuple[str, int]]:
    return [(name, int(n)) for name, n in zip(names, is_missing.sum(axis=0), strict=True) if n]


def _read_people(
    path: Path, id_columns: dict[str, str | None], *, prefixes: tuple[str, ...], what: str, where: str
) -> tuple[Cells, pd.DataFrame]:
    cells = read_cells(path, where=where, what=what)
    names, rows = tuple(cells.rows[0]), cells.rows[1:]
    check_header(cells, names)
    if absent := [name for name in id_columns if name not in names]:
        raise cells.error(
            "E-TABLE-SHAPE",
            f"has no column {absent[0]!r}, only {', '.join(names)}",
            rule="labels are read from this column",
            fix="name the column that holds them in the study file",
        )
    if not rows:
        raise cells.error("E-TABLE-SHAPE", "has no row below its header", rule="a row each", fix="give the right file")
    labels = [
        [
            format_label(
                row[names.index(name)], prefix=prefix, id_format=id_format, where=f"{where or what}, row {i + 2}"
            )
            for i, row in enumerate(rows)
        ]
        for (name, id_format), prefix in zip(id_columns.items(), prefixes, strict=True)
    ]
    index = pd.Index(labels[0], dtype=object) if len(labels) == 1 else pd.MultiIndex.from_arrays(labels)
    content = {name: _read_column(cells, i) for i, name in enumerate(names) if name not in id_columns}
    return cells, pd.DataFrame(content, index=index)


def _read_column(cells: Cells, i_column: int) -> npt.NDArray[Any]:
    column = [row[i_column] for row in cells.rows[1:]]
    present = [cell for cell in column if cell not in MISSING]
    is_code = any(re.match(r"[+-]?0\d", cell) for cell in present)
    if is_code or not all(is_number(cell) for cell in present):
        return np.array([None if cell in MISSING else cell for cell in column], dtype=object)
    if len(present) == len(column) and all(re.fullmatch(r"[+-]?\d{1,18}", cell) for cell in column):
        return np.array([int(cell) for cell in column])
    numbers = np.array([np.nan if cell in MISSING else float(cell) for cell in column])
    refuse_cells(cells, np.isinf(numbers)[:, None], code="E-TABLE-NAN", first_row=1, names=(cells.rows[0][i_column],))
    return numbers


def _rows(labels: Iterable[Any]) -> Iterable[tuple[str, str]]:
    return ((f"row {i + 2}", str(label)) for i, label in enumerate(labels))
