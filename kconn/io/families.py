"""The table of named families of edges."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kconn.errors import InputError
from kconn.io.atlases import read_table

_COLUMNS: Final = ("family", "first", "second")


def read_families(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Read family -> pairs of names from a table with the columns family, first and second, in any order.

    Parameters
    ----------
    path
        ``.tsv`` or ``.csv``; one row per pair, several rows of one family add up.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``, ``E-TABLE``.
    """
    table = read_table(path)
    columns = {str(column).strip().lower(): column for column in table.columns}
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise InputError(
            "E-TABLE",
            f"the table of families lacks the column {missing[0]!r}; it has {', '.join(map(str, table.columns))}",
            where=path.name,
            rule=f"its columns are {', '.join(_COLUMNS)}",
            fix="name the columns",
        )
    cells = table[[columns[name] for name in _COLUMNS]].map(str.strip).to_numpy()
    if (cells == "").any():
        i_row = int((cells == "").any(axis=1).argmax())
        raise InputError("E-TABLE", f"row {i_row + 1} has an empty cell", where=path.name, rule="every cell is a name")
    found: dict[str, list[tuple[str, str]]] = {}
    for family, first, second in cells.tolist():
        found.setdefault(family, []).append((first, second))
    if not found:
        raise InputError("E-TABLE", "the table of families has no row", where=path.name, rule="one row per pair")
    return found
