"""Tables that go with node sets: the names of an atlas's labels, and the centres of spheres."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from kconn.errors import InputError

_INDEX: Final = ("index", "label_index", "id", "key")
_NAME: Final = ("name", "label", "labels", "region", "roi", "node")
_NETWORK: Final = ("network", "networks", "module", "modules")
_HEMISPHERE: Final = ("hemisphere", "hemi", "hemispheres")
#: The names of the Schaefer atlases begin with hemisphere and network: 7Networks_LH_Default_PFC_1.
_SCHAEFER: Final = re.compile(r"(?:7|17)Networks_(LH|RH)_([A-Za-z]+)(?:_|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """Label -> name, and label -> network and hemisphere where they are known."""

    names: Mapping[int, str]
    networks: Mapping[int, str] | None = None
    hemispheres: Mapping[int, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Name of a node -> its network and its hemisphere, where a table has them."""

    networks: Mapping[str, str] | None
    hemispheres: Mapping[str, str] | None


def read_labels_table(path: Path) -> LabelTable:
    """Read the names, and the networks and hemispheres where the table has them, of an atlas's labels.

    Parameters
    ----------
    path
        A table (``.tsv``, ``.csv``) whose header has a column for the label (``index``), for its name (``name``,
        ``label``, ...) and optionally for its network (``network``, ``module``, ...) and hemisphere (``hemisphere``,
        ``hemi``); or the ``_order.txt`` of the Schaefer atlases, which has no header: label, name, colour.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``, ``E-TABLE`` or ``E-ATLAS``.
    """
    table = read_table(path)
    index = _find(table, _INDEX)
    name = _find(table, _NAME)
    if index is None and name is None and _is_order_file(table):
        first = [str(column) for column in table.columns]
        rows = [first[:2], *table.iloc[:, :2].astype(str).to_numpy().tolist()]
        return label_schaefer(_keyed(path, [row[0] for row in rows], [row[1] for row in rows]))
    if index is None or name is None:
        raise InputError(
            "E-ATLAS",
            f"the label table has the columns {', '.join(map(str, table.columns))}",
            where=path.name,
            rule=f"it needs one of {', '.join(_INDEX)} and one of {', '.join(_NAME)}",
            fix="rename the columns",
        )
    keys = table[index].astype(str).tolist()
    names = _keyed(path, keys, table[name].astype(str).tolist())
    network, hemisphere = (
        None if column is None else _keyed(path, keys, table[column].astype(str).tolist())
        for column in (_find(table, _NETWORK), _find(table, _HEMISPHERE))
    )
    if network is None and hemisphere is None:
        return label_schaefer(names)
    return LabelTable(names=names, networks=network, hemispheres=hemisphere)


def label_schaefer(names: Mapping[int, str]) -> LabelTable:
    """Return names with the networks and hemispheres that they state, if all are those of a Schaefer atlas."""
    found = {key: _SCHAEFER.match(name) for key, name in names.items() if key != 0}
    if not found or not all(found.values()):
        return LabelTable(names=names)
    stated = {key: match.groups() for key, match in found.items() if match is not None}
    return LabelTable(
        names=names,
        networks={key: network for key, (_, network) in stated.items()},
        hemispheres={key: hemisphere for key, (hemisphere, _) in stated.items()},
    )


def read_members(path: Path) -> Members:
    """Read the network and the hemisphere of nodes by their names, where the table has such columns.

    Parameters
    ----------
    path
        A table with a column of names (``name``, ``node``, ...) and ``network`` or ``hemisphere``.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``, ``E-TABLE`` or ``E-ATLAS``.
    """
    table = read_table(path)
    name = _find(table, _NAME)
    if name is None:
        raise InputError(
            "E-ATLAS",
            f"the table of nodes has the columns {', '.join(map(str, table.columns))}",
            where=path.name,
            rule=f"it needs one of {', '.join(_NAME)}",
            fix="rename the columns",
        )
    names = table[name].astype(str).tolist()
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise InputError("E-ATLAS", f"node {twice!r} is listed twice", where=path.name, rule="one row per node")
    networks, hemispheres = (
        None if column is None else dict(zip(names, table[column].astype(str).tolist(), strict=True))
        for column in (_find(table, _NETWORK), _find(table, _HEMISPHERE))
    )
    return Members(networks=networks, hemispheres=hemispheres)


def read_spheres(path: Path) -> list[tuple[str, float, float, float]]:
    """Read ``(name, x, y, z)`` in mm from a table with these columns.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``, ``E-TABLE`` or ``E-NODES``.
    """
    table = read_table(path)
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


def read_table(path: Path) -> pd.DataFrame:
    """Return a table with a header, every cell as text.

    Raises
    ------
    InputError
        ``E-FILE-MISSING`` or ``E-TABLE``.
    """
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
