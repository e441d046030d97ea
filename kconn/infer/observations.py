"""Rows are joined by id, never by position, and computed in one canonical order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.errors import DesignError

DIM = "observation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """The rows of the data in canonical order.

    ``ids`` are sorted; ``order[i]`` is the row of the data that holds ``ids[i]``. Data without ids keep their order and
    are known by their position.
    """

    ids: tuple[str, ...]
    order: npt.NDArray[np.intp]

    @property
    def n_obs(self) -> int:
        """Number of observations."""
        return len(self.ids)


def read_observations(data: xr.DataArray) -> Observations:
    """Return the canonical order of ``data (observation, ...)``.

    Raises
    ------
    DesignError
        Code ``E-ID-DUPLICATE``.
    """
    n_obs = data.sizes[DIM]
    if DIM not in data.coords:
        return Observations(ids=tuple(map(str, range(n_obs))), order=np.arange(n_obs))
    ids = [str(found) for found in data[DIM].to_numpy()]
    _refuse_duplicates(ids, "the data")
    order = np.asarray(sorted(range(n_obs), key=ids.__getitem__), dtype=np.intp)
    return Observations(ids=tuple(ids[i] for i in order), order=order)


def join_table(table: pd.DataFrame | pd.Series, observations: Observations, *, what: str) -> pd.DataFrame:
    """Return the rows of a table in the order of the observations.

    Raises
    ------
    DesignError
        Codes ``E-ID-DUPLICATE``, ``E-ID-MISSING``, ``E-ID-EXTRA``.
    """
    frame = table.to_frame() if isinstance(table, pd.Series) else table
    ids = [str(found) for found in frame.index]
    _refuse_duplicates(ids, what)
    _refuse_difference(set(ids), set(observations.ids), what)
    position = {found: i for i, found in enumerate(ids)}
    return frame.iloc[[position[wanted] for wanted in observations.ids]]


def join_rows(
    values: pd.DataFrame | pd.Series | xr.DataArray | npt.ArrayLike, observations: Observations, *, what: str
) -> npt.NDArray[np.generic]:
    """Return values ``(n_obs, ...)`` in the order of the observations: by id where there are ids, else by position.

    Raises
    ------
    DesignError
        Codes ``E-ID-DUPLICATE``, ``E-ID-MISSING``, ``E-ID-EXTRA``, ``E-TABLE-SHAPE``.
    """
    if isinstance(values, xr.DataArray) and DIM in values.coords:
        rows = values.transpose(DIM, ...)
        index = pd.Index([str(found) for found in rows[DIM].to_numpy()])
        position = join_table(pd.Series(range(index.size), index=index), observations, what=what).iloc[:, 0]
        return np.asarray(rows.to_numpy()[position.to_numpy()])
    if isinstance(values, pd.DataFrame | pd.Series):
        joined = join_table(values, observations, what=what).to_numpy()
        return np.asarray(joined[:, 0] if isinstance(values, pd.Series) else joined)
    array = np.asarray(values)
    if array.ndim == 0 or array.shape[0] != observations.n_obs:
        raise DesignError(
            "E-TABLE-SHAPE",
            f"{what} has shape {array.shape} for {observations.n_obs} observations",
            rule="one row per observation, in the order of the data; a table with an index is joined by id",
        )
    return np.asarray(array[observations.order])


def join_shufflings(values: xr.DataArray | npt.ArrayLike, observations: Observations) -> npt.NDArray[np.generic]:
    """Return a sign table ``(n_perm, n_obs)`` with its columns in the order of the observations."""
    if isinstance(values, xr.DataArray) and DIM in values.coords:
        return join_rows(values.transpose(DIM, ...), observations, what="the sign table").T
    table = np.asarray(values)
    if table.ndim != 2 or table.shape[1] != observations.n_obs:
        raise DesignError(
            "E-PERMUTATIONS",
            f"the table has shape {table.shape}",
            rule=f"a table is (n_perm, {observations.n_obs}), its columns in the order of the data",
        )
    return np.asarray(table[:, observations.order])


def join_permutations(values: xr.DataArray | npt.ArrayLike, observations: Observations) -> npt.NDArray[np.generic]:
    """Return a permutation table with columns and entries in the order of the observations.

    A plain table counts rows of the data as they were given. A DataArray with ids along ``observation``, as a result
    holds it, counts observations sorted by id, whatever the order of its columns.
    """
    table = join_shufflings(values, observations)
    valid = table.dtype.kind in "iu" and table.size > 0 and table.min() >= 0 and table.max() < observations.n_obs
    if not valid or (isinstance(values, xr.DataArray) and DIM in values.coords):
        # Entries outside the range are left as they are, for the check of the table to name.
        return table
    return np.asarray(np.argsort(observations.order)[table])


def _refuse_duplicates(ids: Sequence[str], what: str) -> None:
    seen: dict[str, str] = {}
    for found in ids:
        if found.casefold() in seen:
            raise DesignError(
                "E-ID-DUPLICATE",
                f"{what} has the observations {seen[found.casefold()]!r} and {found!r}",
                where=found,
                rule="every observation occurs once, and ids differ in more than case",
                fix="remove or rename one of them",
            )
        seen[found.casefold()] = found


def _refuse_difference(found: set[str], wanted: set[str], what: str) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if not missing and not extra:
        return
    folded = {name.casefold(): name for name in extra}
    variants = [(name, folded[name.casefold()]) for name in missing if name.casefold() in folded]
    hint = f"; {variants[0][1]!r} differs from {variants[0][0]!r} only in case" if variants else ""
    if missing:
        raise DesignError(
            "E-ID-MISSING",
            f"{what} lacks {len(missing)} observation(s) of the data: {missing[:5]}{hint}",
            where=missing[0],
            rule="rows are joined by id, and every observation of the data has one",
            fix="add the rows, or select the observations of the data first",
        )
    raise DesignError(
        "E-ID-EXTRA",
        f"{what} has {len(extra)} observation(s) without data: {extra[:5]}",
        where=extra[0],
        rule="rows are joined by id, and every row has data",
        fix="drop the rows, or add the data",
    )
