"""Quality of a signal, voxel by voxel."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.floating[Any]]

#: Voxels that are worked on at a time, so that their frames stay in the cache of a core.
TILE: Final = 256


def tsnr(x: Signal, sample_mask: npt.NDArray[np.bool_]) -> Signal:
    """Return the temporal signal-to-noise ratio: mean over standard deviation (n_kept - 1) of the kept frames.

    Parameters
    ----------
    x
        ``(voxel, time)``, all frames.
    sample_mask
        ``(time,)`` True where a frame is kept.

    Returns
    -------
    tsnr
        ``(voxel,)`` float32. NaN where the voxel is constant or not finite, and with fewer than two kept frames.
    """
    kept = np.flatnonzero(sample_mask)
    out = np.full(len(x), np.nan, dtype=np.float32)
    if len(kept) < 2:
        return out
    for start in range(0, len(x), TILE):
        tile = np.take(x[start : start + TILE], kept, axis=1).astype(np.float64)
        mean = tile.mean(axis=1)
        tile -= mean[:, None]
        spread = np.sqrt(np.vecdot(tile, tile) / (len(kept) - 1))
        # float32 keeps 24 bits: what spreads less than that about its mean is constant.
        varies = np.isfinite(spread) & (spread > np.abs(mean) * 2.0**-24)
        out[start : start + TILE][varies] = mean[varies] / spread[varies]
    return out
