"""Files of a BIDS derivative: names of entities, tables, matrices and sidecars. Equal content gives equal bytes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.errors import InputError, StudyFileError

BIDS_VERSION: Final = "1.9.0"
#: What BIDS writes for a value that is missing.
MISSING: Final = "n/a"


def bids_label(text: str) -> str:
    """Return a name as a label of BIDS, letters and digits only: ``drug-change`` gives ``drugChange``."""
    parts: list[str] = re.findall(r"[A-Za-z0-9]+", text)
    return parts[0] + "".join(part[0].upper() + part[1:] for part in parts[1:])


def bids_name(entities: Mapping[str, str | None], suffix: str) -> str:
    """Return ``key-label_key-label_suffix`` of the entities that have a label."""
    pairs = [f"{key}-{label}" for key, label in entities.items() if label is not None]
    return "_".join([*pairs, suffix])


def table_bytes(columns: Mapping[str, npt.ArrayLike]) -> bytes:
    """Return a table as tab-separated text with a header.

    Numbers are written with the fewest digits that read back as the same float64, missing ones and empty cells as
    n/a. A cell with a tab, a line break or a quote is quoted, as BIDS asks.

    Parameters
    ----------
    columns
        Name -> values ``(row,)``, all of one length.
    """
    cells = [_cells(np.asarray(values)) for values in columns.values()]
    return _tsv([list(columns), *zip(*cells, strict=True)])


def matrix_bytes(labels: Sequence[str], values: npt.NDArray[np.floating[Any]]) -> bytes:
    """Return a square matrix ``(node, node)`` as a table whose first row and first column name the nodes."""
    rows = zip(labels, values, strict=True)
    return _tsv([["Node", *labels], *([label, *_cells(row)] for label, row in rows)])


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return a sidecar: keys in their order, indented, NaN written as n/a."""
    return (json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def describe_dataset(name: str, *, version: str) -> bytes:
    """Return ``dataset_description.json`` of a derivative that kconn made."""
    return json_bytes(
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "kconn", "Version": version}],
        }
    )


def check_folder(folder: Path, names: Iterable[str]) -> None:
    """Refuse file names that collide, and a folder that holds files which are not among them.

    Hidden files count neither as content nor as strangers.

    Raises
    ------
    StudyFileError
        ``E-STUDY-VALUE`` if two names are one where case does not count.
    InputError
        ``E-FILE-EXISTS``.
    """
    wanted = list(names)
    twice = [name for name, n in Counter(name.casefold() for name in wanted).items() if n > 1]
    if twice:
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"two results would be written to {twice[0]!r}",
            rule="names of node sets and contrasts differ in their letters and digits, whatever their case",
            fix="rename one of them in the study file",
        )
    inside = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    there = {path.as_posix() for path in inside if not any(part.startswith(".") for part in path.parts)}
    if strangers := there - set(wanted):
        raise InputError(
            "E-FILE-EXISTS",
            f"the folder {folder.name!r} holds {len(strangers)} files that this export does not write",
            rule="an export goes into a new folder, or over an earlier one of the same results",
            fix="choose another folder, or remove this one",
        )


def _cells(values: npt.NDArray[Any]) -> list[Any]:
    """Return values as Python objects whose text is exact: `csv` writes a float with `repr`."""
    cells: list[Any] = values.astype(int if values.dtype.kind == "b" else values.dtype).tolist()
    if values.dtype.kind == "f":
        return [MISSING if math.isnan(cell) else cell for cell in cells]
    return cells if values.dtype.kind in "biu" else [str(cell) or MISSING for cell in cells]


def _tsv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    return MISSING if isinstance(value, float) and math.isnan(value) else value
