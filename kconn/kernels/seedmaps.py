"""Correlation of seeds with every voxel."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from kconn.kernels.netmats import DEAD_OF_LEVEL

Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

#: Voxels standardised and multiplied at a time: with 500 frames a tile of 1 MB, which stays in the cache of a core.
TILE: Final = 512
#: |r| of float32 products is cut here before arctanh: |z| <= 8.32.
R_CLIP_SINGLE: Final = np.float32(1 - 2.0**-23)
#: Up to this |r| six terms of the series of arctanh are exact to 1e-7.
FEW_TERMS: Final = np.float32(0.4)


def standardise(ts: Array, /) -> Array:
    """Return series (node, time) with mean 0 and length 1 in float64; NaN where one is constant or has a NaN."""
    x = ts - ts.mean(axis=-1, keepdims=True)
    length = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    level = np.sqrt((ts**2).sum(axis=-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > DEAD_OF_LEVEL * level, x / length, np.nan)


def seed_maps(
    seeds: Array, x: npt.NDArray[Any], /, *, kept: BoolArray, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return Fisher's z (node, voxel) of the correlation of each seed with each voxel over the kept frames.

    Parameters
    ----------
    seeds
        Seed series (node, time).
    x
        Signal (voxel, time).
    kept
        (time,) frames that count.
    out
        (node, voxel) where the result goes; made if not given.
    """
    unit = standardise(seeds[:, kept].astype(np.float64)).astype(np.float32)
    frames = np.flatnonzero(kept)
    z = np.empty((seeds.shape[0], x.shape[0]), dtype=np.float32) if out is None else out
    tile = np.empty((min(TILE, x.shape[0]), frames.size), dtype=np.float32)
    for first in range(0, x.shape[0], TILE):
        block = x[first : first + TILE]
        standardise_rows(block, frames, DEAD_OF_LEVEL, tile)
        r = unit @ tile[: block.shape[0]].T
        fisher_z_rows(r)
        z[:, first : first + TILE] = r
    return z


# Below FEW_TERMS the series of arctanh needs no logarithm, and no branch: eight values at a time of a contiguous row.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def fisher_z_rows(r: npt.NDArray[np.float32], /) -> None:  # pragma: no cover - compiled, invisible to coverage
    """Replace ``r`` (node, voxel), cut at `R_CLIP_SINGLE`, by its arctanh, to 1e-6."""
    whole = np.empty(r.shape[1], dtype=np.float32)
    for node in range(r.shape[0]):
        row = r[node]
        n_large = 0
        for v in range(row.size):
            whole[v] = row[v]
            n_large += int(abs(row[v]) > FEW_TERMS)
        for v in range(row.size):
            square = row[v] * row[v]
            series = np.float32(1 / 13)
            series = series * square + np.float32(1 / 11)
            series = series * square + np.float32(1 / 9)
            series = series * square + np.float32(1 / 7)
            series = series * square + np.float32(1 / 5)
            series = series * square + np.float32(1 / 3)
            row[v] = row[v] + row[v] * square * series
        if n_large == 0:
            continue
        for v in range(row.size):
            if abs(whole[v]) > FEW_TERMS:
                inside = min(R_CLIP_SINGLE, max(-R_CLIP_SINGLE, whole[v]))
                row[v] = np.float32(0.5) * np.log((1 + inside) / (1 - inside))


# Sums may be taken in any order of the lanes (reassoc), else they are not vectorised; NaN keeps its meaning.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def standardise_rows(  # pragma: no cover - compiled, invisible to coverage
    x: npt.NDArray[Any], frames: npt.NDArray[np.intp], smallest: float, out: npt.NDArray[np.float32]
) -> None:
    """Put the frames of each row of ``x`` (voxel, time) into ``out`` with mean 0 and length 1; NaN if constant."""
    n = frames.size
    whole = n == x.shape[1]
    for v in range(x.shape[0]):
        row = out[v]
        if whole:
            for t in range(n):
                row[t] = x[v, t]
        else:
            for t in range(n):
                row[t] = x[v, frames[t]]
        # One pass over the distances from the first frame: it lies among the others, so little cancels in float64.
        first = np.float64(row[0])
        total = 0.0
        squares = 0.0
        for t in range(n):
            distance = np.float64(row[t]) - first
            total += distance
            squares += distance * distance
        mean = first + total / n
        length = squares - total * total / n
        level = length + n * mean * mean
        scale = 1 / np.sqrt(length) if length > smallest * smallest * level else np.nan
        for t in range(n):
            row[t] = np.float32((row[t] - mean) * scale)
