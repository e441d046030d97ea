"""Tables that go with node sets: the names of an atlas's labels, and the centres of spheres."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pandas as pd

from kconn.errors import InputError

_INDEX: Final = ("index", "label_index", "id", "key")
_NAME: Final = ("name", "label", "labels", "region", "roi", "node")
_NETWORK: Final = ("network", "networks", "module", "modules")


def read_labels_table(path: Path) -> tuple[dict[int, str], dict[int, str] | None]:
    """Read the names, and the networks where the table has them, of an atlas's labels.

    Parameters
    ----------
    path
        A table (``.tsv``, ``.csv``) whose header has a column for the label (``index``), for its name (``name``,
        ``label``, ...) and optionally for its network (``network``, ``module``, ...); or the ``_order.txt`` of the
        Schaefer atlases, which has no header: label, name, colour.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``, ``E-TABLE`` or ``E-ATLAS``.
    """
    table = _read(path)
    index = _find(table, _INDEX)
    name = _find(table, _NAME)
    if index is None and name is None and _is_order_file(table):
        first = [str(column) for column in table.columns]
        rows = [first[:2], *table.iloc[:, :2].astype(str).to_numpy().tolist()]
        return _keyed(path, [row[0] for row in rows], [row[1] for row in rows]), None
    if index is None or name is None:
        raise InputError(
            "E-ATLAS",
            f"the label table has the columns {', '.join(map(str, table.columns))}",
            where=path.name,
            rule=f"it needs one of {', '.join(_INDEX)} and one of {', '.join(_NAME)}",
            fix="rename the columns",
        )
    keys = table[index].astype(str).tolist()
    network = _find(table, _NETWORK)
    names = _keyed(path, keys, table[name].astype(str).tolist())
    return names, None if network is None else _keyed(path, keys, table[network].astype(str).tolist())


def read_spheres(path: Path) -> list[tuple[str, float, float, float]]:
    """Read ``(name, x, y, z)`` in mm from a table with these columns.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``, ``E-TABLE`` or ``E-NODES``.
    """
    table = _read(path)
    name = _find(table, _NAME)
    axes = [_find(table, (axis,)) for axis in "xyz"]
    if name is None or None in axes:
        raise InputError(
            "E-NODES",
            f"the table of spheres has the columns {', '.join(map(str, table.columns))}",
            where=path.name,
            rule="it needs name, x, y and z (mm)",
            fix="rename the columns",
        )
    try:
        centres = table[axes].astype(float).to_numpy()
    except ValueError as error:
        raise InputError(
            "E-NODES",
            f"a coordinate is no number: {error}",
            where=path.name,
            rule="x, y and z are in mm",
            fix="correct the cell",
        ) from error
    names = table[name].astype(str).tolist()
    return [(label, float(x), float(y), float(z)) for label, (x, y, z) in zip(names, centres, strict=True)]


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str, keep_default_na=False)
    except OSError as error:
        raise InputError(
            "E-FILE-MISSING",
            f"{path.name} cannot be read: {error.strerror}",
            rule="every file of a node set exists",
            fix="correct the path in [nodes]",
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(
            "E-TABLE",
            f"it is no table: {error}",
            where=path.name,
            rule="one row per label, columns separated by tabs (.csv: commas)",
            fix="write it again as .tsv",
        ) from error
    return table


def _find(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    by_name = {str(column).strip().lower(): str(column) for column in table.columns}
    return next((by_name[name] for name in names if name in by_name), None)


def _is_order_file(table: pd.DataFrame) -> bool:
    return len(table.columns) >= 2 and str(table.columns[0]).strip().isdigit()


def _keyed(path: Path, keys: list[str], values: list[str]) -> dict[int, str]:
    try:
        table = {int(key): value for key, value in zip(keys, values, strict=True)}
    except ValueError as error:
        raise InputError(
            "E-ATLAS",
            f"a label is no whole number: {error}",
            where=path.name,
            rule="the index column holds the values of the label image",
            fix="correct the cell",
        ) from error
    if len(table) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError("E-ATLAS", f"label {twice} is listed twice", where=path.name, rule="one row per label")
    return table
