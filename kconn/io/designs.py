"""Designs of other tools: FSL's ``design.mat .con .fts .grp`` and the plain CSV tables of PALM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from kconn.errors import InputError

FloatArray = npt.NDArray[np.float64]

#: Kind of file -> the keys of its header that count columns and rows.
_HEADERS: Final = {
    ".mat": ("/NumWaves", "/NumPoints"),
    ".con": ("/NumWaves", "/NumContrasts"),
    ".fts": ("/NumWaves", "/NumContrasts"),
    ".grp": ("/NumWaves", "/NumPoints"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FslDesign:
    """What FSL's design files hold.

    ``matrix (n_obs, n_column)``; ``contrasts``: name -> weights, or -> rows of an F; ``groups (n_obs,)``:
    exchangeability blocks, or variance groups in FLAME; None without a file.
    """

    matrix: FloatArray
    contrasts: dict[str, FloatArray]
    groups: npt.NDArray[np.int64] | None


def read_fsl_design(stem: Path) -> FslDesign:
    """Read ``stem.mat`` and, where they exist, ``stem.con``, ``stem.fts`` and ``stem.grp``.

    Raises
    ------
    InputError
        Codes ``E-FILE-MISSING``, ``E-TABLE``, ``E-TABLE-SHAPE``.
    """
    matrix, _ = _read_vest(_with(stem, ".mat"))
    contrasts: dict[str, FloatArray] = {}
    rows = np.empty((0, matrix.shape[1]))
    if _with(stem, ".con").exists():
        rows, header = _read_vest(_with(stem, ".con"))
        _check_columns(_with(stem, ".con"), rows, matrix.shape[1])
        for i_row, weights in enumerate(rows):
            contrasts[header.get(f"/ContrastName{i_row + 1}", f"c{i_row + 1}")] = weights
    if _with(stem, ".fts").exists():
        chosen, _ = _read_vest(_with(stem, ".fts"))
        _check_columns(_with(stem, ".fts"), chosen, len(rows))
        for i_test, row in enumerate(chosen):
            contrasts[f"f{i_test + 1}"] = rows[row != 0]
    groups = None
    if _with(stem, ".grp").exists():
        table, _ = _read_vest(_with(stem, ".grp"))
        if table.shape != (len(matrix), 1):
            raise InputError(
                "E-TABLE-SHAPE",
                f"{table.shape[0]} rows and {table.shape[1]} columns",
                where=_with(stem, ".grp").name,
                rule=f"one group for each of the {len(matrix)} rows of the design",
            )
        groups = table[:, 0].astype(np.int64)
    return FslDesign(matrix=matrix, contrasts=contrasts, groups=groups)


def write_fsl_design(
    stem: Path,
    matrix: FloatArray,
    contrasts: Mapping[str, npt.ArrayLike],
    groups: npt.NDArray[np.integer] | None = None,
) -> list[Path]:
    """Write ``stem.mat``, ``stem.con``, with F contrasts ``stem.fts``, and with groups ``stem.grp``; return the paths.

    The rows of an F contrast become t contrasts of their own, as FSL wants them.
    """
    rows: list[FloatArray] = []
    names: list[str] = []
    tests: list[list[int]] = []
    for name, given in contrasts.items():
        weights = np.atleast_2d(np.asarray(given, dtype=np.float64))
        if np.ndim(given) > 1:
            tests.append(list(range(len(rows), len(rows) + len(weights))))
        names += [name] if np.ndim(given) == 1 else [f"{name}_{i + 1}" for i in range(len(weights))]
        rows.extend(weights)
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [_write_vest(_with(stem, ".mat"), matrix, peaks=True)]
    named = {f"/ContrastName{i + 1}": name for i, name in enumerate(names)}
    written.append(_write_vest(_with(stem, ".con"), np.array(rows), named=named, peaks=True))
    if tests:
        chosen = np.zeros((len(tests), len(rows)))
        for i_test, members in enumerate(tests):
            chosen[i_test, members] = 1
        written.append(_write_vest(_with(stem, ".fts"), chosen))
    if groups is not None:
        written.append(_write_vest(_with(stem, ".grp"), np.asarray(groups, dtype=np.float64)[:, None]))
    return written


@dataclass(frozen=True, slots=True, kw_only=True)
class DesignFiles:
    """What the files of one contrast hold; each but ``contrasts`` has one row per id.

    ``matrix (n_obs, n_column)``; ``contrasts``: name -> weights, or -> rows of an F; ``blocks (n_obs, n_level)``;
    ``variance_groups (n_obs,)``; ``permutations`` and ``signs`` ``(n_perm, n_obs)``, positions counting from 0.
    """

    ids: tuple[str, ...]
    matrix: FloatArray | None
    contrasts: dict[str, FloatArray]
    blocks: npt.NDArray[np.int64] | None
    variance_groups: npt.NDArray[np.int64] | None
    permutations: npt.NDArray[np.int64] | None
    signs: npt.NDArray[np.int64] | None


def read_design_files(paths: Mapping[str, Path]) -> DesignFiles:
    """Read the files that a contrast of the study file names.

    Parameters
    ----------
    paths
        Role -> path: ``ids`` (one per line) and any of ``design contrasts ftests blocks variance_groups permutations
        signs``. Files ending in ``.mat .con .fts .grp`` are FSL's, all others plain tables of numbers, as PALM takes
        them. Relabellings are columns, the identity first, positions counting from 1 or from 0; a negative position
        flips the sign, as in PALM.

    Raises
    ------
    InputError
        ``E-FILE-MISSING E-ID-DUPLICATE E-TABLE E-TABLE-SHAPE``.
    """
    ids = read_ids(paths["ids"])
    names, rows = _read_contrasts(paths["contrasts"]) if "contrasts" in paths else ([], np.empty((0, 0)))
    contrasts: dict[str, FloatArray] = dict(zip(names, rows, strict=True))
    if "ftests" in paths:
        chosen = _read_numbers(paths["ftests"])
        _check_columns(paths["ftests"], chosen, len(rows))
        contrasts |= {f"f{i + 1}": rows[row != 0] for i, row in enumerate(chosen)}
    matrix = _read_rows_of(paths, "design", ids)
    if matrix is not None and "contrasts" in paths:
        _check_columns(paths["contrasts"], rows, matrix.shape[1])
    blocks, groups = (_read_labels(paths, role, ids) for role in ("blocks", "variance_groups"))
    permutations, signs = _read_relabellings(paths, ids)
    return DesignFiles(
        ids=ids,
        matrix=matrix,
        contrasts=contrasts,
        blocks=blocks,
        variance_groups=None if groups is None else groups[:, 0],
        permutations=permutations,
        signs=signs,
    )


def read_ids(path: Path) -> tuple[str, ...]:
    """Read one id per line; empty lines are passed over.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``, ``E-TABLE``, ``E-ID-DUPLICATE`` also where ids differ only in case, or ``E-TABLE-SHAPE``.
    """
    ids = tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())
    folded = [name.casefold() for name in ids]
    if twice := [name for name, key in zip(ids, folded, strict=True) if folded.count(key) > 1]:
        raise InputError(
            "E-ID-DUPLICATE",
            f"{' and '.join(map(repr, twice[:2]))} are one id",
            where=path.name,
            rule="every row has an id of its own, also when case is ignored",
            fix="correct the list",
        )
    if not ids:
        raise InputError("E-TABLE-SHAPE", "holds no id", where=path.name, rule="one id per line")
    return ids


def _read_contrasts(path: Path) -> tuple[list[str], FloatArray]:
    """Return names and rows; FSL's own names where the file has them."""
    if path.suffix != ".con":
        rows = read_palm_table(path)
        return [f"c{i + 1}" for i in range(len(rows))], rows
    rows, header = _read_vest(path)
    names = [header.get(f"/ContrastName{i + 1}", f"c{i + 1}") for i in range(len(rows))]
    if len(set(names)) < len(names):
        raise InputError(
            "E-TABLE", f"two contrasts have the name {max(names, key=names.count)!r}", where=path.name, rule="one each"
        )
    return names, rows


def _read_numbers(path: Path) -> FloatArray:
    return _read_vest(path)[0] if path.suffix in _HEADERS else read_palm_table(path)


def _read_rows_of(paths: Mapping[str, Path], role: str, ids: Sequence[str]) -> FloatArray | None:
    """Return the table in a role, which has one row per id."""
    if role not in paths:
        return None
    table = _read_numbers(paths[role])
    if len(table) != len(ids):
        raise InputError(
            "E-TABLE-SHAPE",
            f"{len(table)} rows for {len(ids)} ids",
            where=paths[role].name,
            rule=f"one row for each line of {paths['ids'].name}, in its order",
            fix="list the ids in the order of the rows",
        )
    return table


def _read_labels(paths: Mapping[str, Path], role: str, ids: Sequence[str]) -> npt.NDArray[np.int64] | None:
    table = _read_rows_of(paths, role, ids)
    if table is not None and (table != np.round(table)).any():
        raise InputError("E-TABLE", "holds fractions", where=paths[role].name, rule="labels are whole numbers")
    return None if table is None else table.astype(np.int64)


def _read_relabellings(
    paths: Mapping[str, Path], ids: Sequence[str]
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64] | None]:
    """Return permutations and signs, a row each; negative positions of a permutation become signs."""
    table = _read_labels(paths, "permutations", ids)
    signs = _read_labels(paths, "signs", ids)
    if table is None:
        return None, None if signs is None else signs.T
    if (table < 0).any():
        if signs is not None:
            raise InputError(
                "E-TABLE",
                "holds negative positions, and there are signs as well",
                where=paths["permutations"].name,
                rule="signs are given once",
            )
        signs = np.sign(table)
    positions = np.abs(table)
    return (positions - int(positions.min() > 0)).T, None if signs is None else signs.T


def write_ids(path: Path, ids: Sequence[str]) -> Path:
    """Write one id per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    return path


def write_relabellings(
    path: Path, permutations: npt.NDArray[np.integer], signs: npt.NDArray[np.integer] | None
) -> Path:
    """Write relabellings ``(n_perm, n_obs)`` as PALM and MRtrix3 keep them: a column each, counting from 1.

    A negative position flips the sign.
    """
    columns = (permutations + 1) * (1 if signs is None else signs)
    return write_palm_table(path, columns.T)


def read_palm_table(path: Path) -> FloatArray:
    """Read a CSV of numbers without header: PALM's designs, contrasts, blocks and groups, ``(row, column)``.

    Raises
    ------
    InputError
        Codes ``E-FILE-MISSING``, ``E-TABLE``, ``E-TABLE-SHAPE``.
    """
    lines = [line for line in _read_text(path).splitlines() if line.strip()]
    return _read_rows([line.replace(",", " ") for line in lines], path)


def write_palm_table(path: Path, table: npt.ArrayLike) -> Path:
    """Write numbers as a CSV without header that reads back to the same bits."""
    rows = np.atleast_2d(np.asarray(table, dtype=np.float64))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(map(_format, row)) + "\n" for row in rows), encoding="utf-8")
    return path


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError("E-FILE-MISSING", f"cannot be read: {error.strerror}", where=path.name) from error
    except UnicodeDecodeError as error:
        raise InputError("E-TABLE", "is no text", where=path.name, rule="a text file of numbers") from error


def _read_rows(lines: Sequence[str], path: Path) -> FloatArray:
    try:
        rows = [[float(word) for word in line.split()] for line in lines]
    except ValueError as error:
        raise InputError("E-TABLE", str(error), where=path.name, rule="numbers only") from error
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise InputError(
            "E-TABLE-SHAPE",
            f"rows have {sorted(widths)} columns",
            where=path.name,
            rule="rows of one length, at least one",
        )
    return np.array(rows)


def _read_vest(path: Path) -> tuple[FloatArray, dict[str, str]]:
    """Read FSL's text format: a header of ``/Key value`` lines, ``/Matrix``, then the rows."""
    header: dict[str, str] = {}
    lines = _read_text(path).splitlines()
    stripped = [line.strip() for line in lines]
    if "/Matrix" not in stripped:
        raise InputError("E-TABLE", "has no line '/Matrix'", where=path.name, rule="a header, '/Matrix', then the rows")
    start = stripped.index("/Matrix")
    for line in stripped[:start]:
        key, _, value = line.partition("\t") if "\t" in line else line.partition(" ")
        header[key] = value.strip().strip('"')
    table = _read_rows([line for line in stripped[start + 1 :] if line], path)
    for key, found in zip(_HEADERS[path.suffix], table.shape[::-1], strict=True):
        if key in header and int(float(header[key])) != found:
            raise InputError(
                "E-TABLE-SHAPE",
                f"the header says {key} {header[key]}, found {found}",
                where=path.name,
                rule="they agree",
            )
    return table, header


def _check_columns(path: Path, table: FloatArray, n_column: int) -> None:
    if table.shape[1] != n_column:
        raise InputError(
            "E-TABLE-SHAPE",
            f"{table.shape[1]} columns",
            where=path.name,
            rule=f"{n_column} columns, one per column of the design or per t contrast",
        )


def _write_vest(path: Path, table: FloatArray, *, named: Mapping[str, str] | None = None, peaks: bool = False) -> Path:
    columns, rows = _HEADERS[path.suffix]
    lines = [f"{key}\t{value}" for key, value in (named or {}).items()]
    lines += [f"{columns}\t{table.shape[1]}", f"{rows}\t{table.shape[0]}"]
    if peaks:
        # FSL's viewer wants the range of each column (design) or a placeholder (contrasts).
        heights = np.ptp(table, axis=0) if path.suffix == ".mat" else np.ones(table.shape[0])
        lines.append("/PPheights\t" + "\t".join(map(_format, heights)))
    lines += ["", "/Matrix", *("\t".join(map(_format, row)) for row in table)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _format(value: float) -> str:
    return f"{value:.17g}"
