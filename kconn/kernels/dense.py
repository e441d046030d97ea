"""Correlations of every voxel with every other, tile by tile."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from kconn.kernels.netmats import DEAD_OF_LEVEL
from kconn.kernels.seedmaps import standardise_rows

Single = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

#: Rows of a product that are added at a time, so that they are still in the cache.
ROWS: Final = 256


def unit_rows(x: npt.NDArray[Any], /, *, kept: BoolArray, weight: float = 1.0) -> Single:
    """Return the kept frames of ``x`` (voxel, time), each voxel of mean 0 and length sqrt(``weight``).

    A voxel that is constant or has a NaN at a kept frame is NaN.
    """
    frames = np.flatnonzero(kept)
    rows = np.empty((x.shape[0], frames.size), dtype=np.float32)
    standardise_rows(x, frames, DEAD_OF_LEVEL, rows)
    if weight != 1:
        rows *= np.float32(np.sqrt(weight))
    return rows


def add_products(tile: Single | None, a: Single, b: Single, /) -> Single:
    """Return the products of rows ``a`` (voxel, time) and ``b`` (voxel_j, time), on top of ``tile`` where there is one.

    In NumPy's product, which lets other threads run meanwhile; SciPy's calls of BLAS do not.
    """
    if tile is None:
        return a @ b.T
    total = np.empty_like(tile)
    part = np.empty((min(ROWS, len(a)), len(b)), dtype=np.float32)
    for first in range(0, len(a), ROWS):
        rows = slice(first, min(first + ROWS, len(a)))
        product = np.matmul(a[rows], b.T, out=part[: rows.stop - first])
        np.add(tile[rows], product, out=total[rows])
    return total


def start_strongest(n_voxel: int, n_strongest: int, /) -> tuple[npt.NDArray[np.int32], Single]:
    """Return empty lists: columns (voxel, rank), all -1, and values (voxel, rank), all NaN."""
    columns = np.full((n_voxel, n_strongest), -1, dtype=np.int32)
    return columns, np.full((n_voxel, n_strongest), np.nan, dtype=np.float32)


def keep_strongest(
    tile: Single, first_row: int, first_column: int, columns: npt.NDArray[np.int32], values: Single, /
) -> None:
    """Put the largest of each row of ``tile`` (voxel, voxel_j), by size, into sorted lists (voxel, rank), in place.

    Of two of one size the lower column comes first, so that the lists do not depend on the order of tiles. A voxel
    with itself, and NaN, do not count.

    Parameters
    ----------
    tile
        Values.
    first_row, first_column
        Voxel of the first row, and of the first column.
    columns, values
        The lists of the voxels of the tile's rows.
    """
    _keep_strongest(tile, first_row, first_column, columns, values)


@njit(cache=True, nogil=True)
def _keep_strongest(  # pragma: no cover - compiled, invisible to coverage
    tile: Single, first_row: int, first_column: int, columns: npt.NDArray[np.int32], values: Single
) -> None:
    n_rank = columns.shape[1]
    for row in range(tile.shape[0]):
        last = columns[row, n_rank - 1]
        lowest = abs(values[row, n_rank - 1]) if last >= 0 else np.float32(-1.0)
        for at in range(tile.shape[1]):
            value = tile[row, at]
            size = abs(value)
            if not size >= lowest:  # NaN too
                continue
            column = first_column + at
            if column == first_row + row or (size == lowest and last >= 0 and column > last):
                continue
            rank = n_rank - 1
            while rank > 0 and (
                columns[row, rank - 1] < 0
                or abs(values[row, rank - 1]) < size
                or (abs(values[row, rank - 1]) == size and columns[row, rank - 1] > column)
            ):
                columns[row, rank] = columns[row, rank - 1]
                values[row, rank] = values[row, rank - 1]
                rank -= 1
            columns[row, rank] = column
            values[row, rank] = value
            last = columns[row, n_rank - 1]
            lowest = abs(values[row, n_rank - 1]) if last >= 0 else np.float32(-1.0)


def merge_strongest(
    columns: npt.NDArray[np.int32], values: Single, more_columns: npt.NDArray[np.int32], more_values: Single, /
) -> tuple[npt.NDArray[np.int32], Single]:
    """Return the lists (voxel, rank) of the largest in two sets of lists of the same voxels."""
    both = np.concatenate([columns, more_columns], axis=1)
    size = np.concatenate([values, more_values], axis=1)
    key = np.where(both < 0, -1, np.abs(size))
    order = np.lexsort((both, -key), axis=1)[:, : columns.shape[1]]
    return np.take_along_axis(both, order, axis=1), np.take_along_axis(size, order, axis=1)
