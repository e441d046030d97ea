"""Which voxels of a grid a run has, as bits, and where a voxel of the group lies among those of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.integer[Any]]


def pack_voxels(flat: IntArray, n_grid: int, /) -> Bits:
    """Return one bit per voxel of the grid, set for those at ``flat`` (voxel,)."""
    inside = np.zeros(n_grid, dtype=bool)
    inside[flat] = True
    return np.packbits(inside, bitorder="little")


def unpack_voxels(bits: Bits, n_grid: int, /) -> npt.NDArray[np.bool_]:
    """Return ``bits`` as a mask (n_grid,)."""
    return np.unpackbits(bits, count=n_grid, bitorder="little").astype(bool)


def locate_voxels(bits: Bits, wanted: IntArray, /) -> tuple[int, int, npt.NDArray[np.intp]]:
    """Return where voxels of a grid lie among those of a run.

    Parameters
    ----------
    bits
        The voxels of the run, which stand in ascending order.
    wanted
        (voxel,) flat positions on the grid, ascending, at least one.

    Returns
    -------
    tuple
        The first and the end of the range of the run's voxels that holds all of them, and the place (voxel,) of each
        within that range, -1 where the run does not have it.
    """
    low, high = int(wanted[0]), int(wanted[-1]) + 1
    byte = low // 8
    before = int(np.bitwise_count(bits[:byte]).sum())
    around = np.unpackbits(bits[byte : -(-high // 8)], bitorder="little")
    before += int(around[: low - 8 * byte].sum())
    inside = around[low - 8 * byte : high - 8 * byte].astype(bool)
    rank = np.cumsum(inside) - 1
    at = wanted - low
    return before, before + int(inside.sum()), np.where(inside[at], rank[at], -1)
