"""Quality of a signal, voxel by voxel, and of a cohort, edge by edge."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from scipy.stats import t as student

Array = npt.NDArray[np.float64]
Signal = npt.NDArray[np.floating[Any]]

#: Voxels that are worked on at a time, so that their frames stay in the cache of a core.
TILE: Final = 256
#: Interquartile range of a normal distribution of unit variance, as rounded by FSL and fMRIPrep.
IQR_OF_NORMAL: Final = 1.349


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


def dvars_sums(x: Signal) -> Array:
    """Return what the DVARS of many voxels add up from.

    Parameters
    ----------
    x
        ``(voxel, time)``, all frames. Rows that are constant or not finite are left out.

    Returns
    -------
    sums
        ``(time + 2,)``: per frame the sum over voxels of the squared difference from the frame before (0 in the
        first), then the sum of the standard deviations of that difference that each voxel leads to expect, then the
        number of voxels.
    """
    n_time = x.shape[1]
    out = np.zeros(n_time + 2)
    for start in range(0, len(x), TILE):
        tile = x[start : start + TILE].astype(np.float64)
        tile = tile[np.isfinite(tile).all(axis=1) & (np.ptp(tile, axis=1) > 0)]
        # Quartiles are order statistics, not interpolated, as in FSL and fMRIPrep.
        low, high = int(0.25 * (n_time - 1)), int(0.75 * (n_time - 1))
        ordered = np.partition(tile, (low, high), axis=1)
        spread = (ordered[:, high] - ordered[:, low]) / IQR_OF_NORMAL
        out[1:n_time] += (np.diff(tile, axis=1) ** 2).sum(axis=0)
        tile -= tile.mean(axis=1, keepdims=True)
        persistence = np.vecdot(tile[:, 1:], tile[:, :-1]) / np.vecdot(tile, tile)
        out[n_time] += (np.sqrt(2 * (1 - persistence)) * spread).sum()
        out[n_time + 1] += len(tile)
    return out


def dvars(sums: Array) -> tuple[Array, Array]:
    """Return DVARS ``(time,)`` in the unit of the signal, and standardised, from `dvars_sums` of all voxels.

    Standardised DVARS is 1 where the difference between two frames is what independent noise of the voxels' own
    variance and lag-1 autocorrelation would make it. Both are 0 in the first frame, and NaN without any voxel.

    References
    ----------
    Power JD et al. (2012). https://doi.org/10.1016/j.neuroimage.2011.10.018
    Nichols T (2017). Notes on creating a standardized version of DVARS. https://doi.org/10.48550/arXiv.1704.01469
    """
    *squares, expected, n_voxel = sums
    if n_voxel == 0 or expected == 0:
        return np.full(len(squares), np.nan), np.full(len(squares), np.nan)
    plain = np.sqrt(np.asarray(squares) / n_voxel)
    return plain, plain / (expected / n_voxel)


def correlate_across(values: Signal, score: Array, nuisance: Array) -> tuple[Array, Array]:
    """Return the correlation of each column with a score, across rows, and its two-sided p.

    Parameters
    ----------
    values
        ``(observation, ...)``, such as edges. Columns with a NaN give NaN.
    score
        ``(observation,)``, such as mean framewise displacement.
    nuisance
        ``(observation, covariate)``, taken out of both; the constant always is. May have no column.

    Returns
    -------
    r, p
        ``(...)`` each; Student's t with ``n_observation - 2 - rank(nuisance)`` degrees of freedom.
    """
    n = len(score)
    basis, singular, _ = np.linalg.svd(nuisance - nuisance.mean(axis=0), full_matrices=False)
    basis = basis[:, singular > singular.max(initial=0.0) * n * np.finfo(np.float64).eps]
    flat = np.asarray(values, dtype=np.float64).reshape(n, -1)
    x, y = (_residual(part, basis) for part in (score[:, None], flat))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip((x.T @ y)[0] / (np.linalg.norm(x) * np.linalg.norm(y, axis=0)), -1, 1)
        df = n - 2 - basis.shape[1]
        p = 2 * student.sf(np.abs(r) * np.sqrt(df / (1 - r**2)), df)
    return r.reshape(values.shape[1:]), p.reshape(values.shape[1:])


def _residual(columns: Array, basis: Array) -> Array:
    centred = columns - columns.mean(axis=0)
    return np.asarray(centred - basis @ (basis.T @ centred), dtype=np.float64)


def rank_correlation(x: Array, y: Array) -> float:
    """Return Spearman's correlation of the pairs in which both are finite; NaN if fewer than 3 are."""
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        return float("nan")
    return float(np.corrcoef(rankdata(x[both]), rankdata(y[both]))[0, 1])
