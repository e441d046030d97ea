"""A square array laid out tile by tile, of which a killed attempt leaves every finished tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.io import store
from kconn.io.cubes import stage_array, translated
from kconn.io.store import Target

#: First row and first column of a tile.
Corner = tuple[int, int]


def write_upper_tiles(
    target: Target,
    compute: Callable[[Sequence[Corner]], Sequence[npt.NDArray[Any]]],
    *,
    like: xr.DataArray,
    tile: int,
    rest: xr.Dataset,
    n_at_once: int,
) -> int:
    """Write the tiles on and above the diagonal of a symmetric array, and make the group current.

    Tiles below the diagonal take no room; they read as NaN. A tile that an earlier, killed attempt finished is found
    in the journal and not computed again.

    Parameters
    ----------
    target
        Where, under which content key, made from what.
    compute
        Takes corners and returns their tiles.
    like
        An array of any kind with the name, dims, shape, type and attrs of what is written.
    tile
        Rows and columns of a tile.
    rest
        Everything else in the group.
    n_at_once
        Tiles that are computed together.

    Returns
    -------
    How many tiles were computed in this attempt.

    Raises
    ------
    ResourceError
        ``E-DISK`` if the disk is full; nothing is published, and finished tiles are kept for the next attempt.
    """
    with translated(target.address):
        staging = store.stage(target)
        name = str(like.name)
        array, done = stage_array(staging, name, like.variable, rest=rest, chunks=(tile, tile), fill_value=np.nan)
        n_row = -(-like.shape[0] // tile)
        numbers = {i * n_row + j: (i * tile, j * tile) for i in range(n_row) for j in range(i, n_row)}
        todo = [(number, corner) for number, corner in numbers.items() if number not in done]
        for first in range(0, len(todo), n_at_once):
            batch = todo[first : first + n_at_once]
            for (number, (row, column)), values in zip(batch, compute([corner for _, corner in batch]), strict=True):
                array[row : row + values.shape[0], column : column + values.shape[1]] = values
                staging.write_journal(number, [f"{name}/c/{row // tile}/{column // tile}"])
        store.seal(target, staging)
    return len(todo)
