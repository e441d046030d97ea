"""Quality of a signal, voxel by voxel, and of a cohort, edge by edge."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from scipy.stats import t as student

from kconn.kernels.multiple_testing import adjust_benjamini_hochberg

Array = npt.NDArray[np.float64]
Signal = npt.NDArray[np.floating[Any]]

#: Voxels of a carpet plot: enough to see what all of the image does, few enough to keep beside the run.
CARPET_ROWS: Final = 200
#: Steps of a carpet per standard deviation, and the value of what is not there.
CARPET_STEPS: Final = 40
CARPET_NOTHING: Final = -128
#: Voxels that are worked on at a time, so that their frames stay in the cache of a core.
TILE: Final = 256
#: Relabellings that are worked on at a time, so that their correlations with a large netmat stay small.
RELABELLINGS: Final = 50
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


def signal_sums(x: Signal) -> Array:
    """Return what the mean signal of many voxels adds up from.

    Parameters
    ----------
    x
        ``(voxel, time)``. Rows that are not finite are left out.

    Returns
    -------
    sums
        ``(time + 1,)``: the sum over voxels in each frame, then the number of voxels.
    """
    out = np.zeros(x.shape[1] + 1)
    for start in range(0, len(x), TILE):
        tile = x[start : start + TILE].astype(np.float64)
        tile = tile[np.isfinite(tile).all(axis=1)]
        out[:-1] += tile.sum(axis=0)
        out[-1] += len(tile)
    return out


def relative_spread(course: Array, sample_mask: npt.NDArray[np.bool_]) -> np.float64:
    """Return the standard deviation (n_kept - 1) of the kept frames of a course in percent of their mean.

    NaN with fewer than two kept frames, or a mean of 0.
    """
    kept = course[sample_mask]
    if len(kept) < 2 or kept.mean() == 0:
        return np.float64(np.nan)
    return np.float64(100 * kept.std(ddof=1) / abs(kept.mean()))


def carpet_rows(n_voxel: int) -> npt.NDArray[np.intp]:
    """Return which voxels a carpet shows: at most `CARPET_ROWS`, evenly spread in the order of the file."""
    n_row = min(n_voxel, CARPET_ROWS)
    return np.arange(n_row) * n_voxel // max(1, n_row)


def carpet_order(x: Signal, global_signal: Array, sample_mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the rows ``x (voxel, time)`` by their correlation with the mean signal, the highest first.

    What moves the whole image then shows as bands that fade from top to bottom. Rows without signal come last.

    References
    ----------
    Aquino KM et al. (2020). https://doi.org/10.1016/j.neuroimage.2020.116614
    """
    kept = np.flatnonzero(sample_mask)
    if len(kept) < 3:
        return np.arange(len(x))
    rows = _without_line(np.take(x, kept, axis=1).astype(np.float64))
    mean = _without_line(np.asarray(global_signal, dtype=np.float64)[kept])
    with np.errstate(divide="ignore", invalid="ignore"):
        r = rows @ mean / np.linalg.norm(rows, axis=1)
    return np.argsort(-np.where(np.isfinite(r), r, -np.inf), kind="stable")


def carpet(x: Signal, sample_mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    """Return rows as a carpet plot shows them: without their line, in `CARPET_STEPS` per standard deviation.

    Parameters
    ----------
    x
        ``(voxel, time)``. Frames that hold a NaN are not there.
    sample_mask
        ``(time,)``, the frames on which mean, line and standard deviation are found; all frames are shown.

    Returns
    -------
    carpet
        ``(voxel, time)`` int8, cut at 3 standard deviations; `CARPET_NOTHING` where there is no value, and all along a
        row without signal.
    """
    kept = np.flatnonzero(sample_mask)
    out = np.full(x.shape, CARPET_NOTHING, dtype=np.int8)
    if len(kept) < 3:
        return out
    values = x.astype(np.float64)
    line = np.column_stack([np.ones(x.shape[1]), np.arange(x.shape[1]) - kept.mean()])
    weights = np.linalg.pinv(line[kept])
    centred = values - np.nan_to_num(values[:, kept]) @ weights.T @ line.T
    spread = np.sqrt(np.vecdot(centred[:, kept], centred[:, kept]) / (len(kept) - 2))
    has_signal = np.isfinite(spread) & (spread > np.abs(values[:, kept]).max(axis=1, initial=0) * 2.0**-24)
    z = np.divide(centred, spread[:, None], out=np.full(x.shape, np.nan), where=has_signal[:, None])
    there = np.isfinite(z)
    out[there] = np.rint(np.clip(z[there], -3, 3) * CARPET_STEPS).astype(np.int8)
    return out


def _without_line(rows: Array) -> Array:
    """Return ``rows (..., time)`` without mean and straight line."""
    time = np.arange(rows.shape[-1]) - (rows.shape[-1] - 1) / 2
    centred = rows - rows.mean(axis=-1, keepdims=True)
    slope = centred @ time / (time @ time)
    return np.asarray(centred - slope[..., None] * time)


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
    basis = _basis(nuisance)
    flat = np.asarray(values, dtype=np.float64).reshape(n, -1)
    x, y = (_residual(part, basis) for part in (score[:, None], flat))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip((x.T @ y)[0] / (np.linalg.norm(x) * np.linalg.norm(y, axis=0)), -1, 1)
    p = _p_of(r, n - 2 - basis.shape[1])
    return r.reshape(values.shape[1:]), p.reshape(values.shape[1:])


def _basis(nuisance: Array) -> Array:
    """Return an orthonormal basis ``(observation, rank)`` of the centred nuisance."""
    basis, singular, _ = np.linalg.svd(nuisance - nuisance.mean(axis=0), full_matrices=False)
    return np.asarray(basis[:, singular > singular.max(initial=0.0) * len(nuisance) * np.finfo(np.float64).eps])


def _p_of(r: Array, df: int) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(2 * student.sf(np.abs(r) * np.sqrt(df / (1 - r**2)), df))


def _unit(columns: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(columns / np.linalg.norm(columns, axis=0))


def chance_of_correlations(
    values: Signal, score: Array, nuisance: Array, *, distance: Array | None, n_perm: int, seed: int
) -> Array:
    """Return what `summarise_correlations` says when the score is dealt out at random.

    The edges of one matrix depend on each other, so that the share of small p scatters far more around 0.05 than it
    would for as many independent tests. Relabelling i depends on ``(seed, i)`` alone.

    Parameters
    ----------
    values, score, nuisance
        As in `correlate_across`.
    distance
        ``(column,)``, or None.
    n_perm
        Relabellings.
    seed
        Of the relabellings.

    Returns
    -------
    summaries
        ``(n_perm, 3)``.
    """
    n = len(score)
    out = np.full((n_perm, 3), np.nan)
    basis = _basis(nuisance)
    unit = _unit(_residual(np.asarray(values, dtype=np.float64).reshape(n, -1), basis))
    there = np.isfinite(unit).all(axis=0)
    if not there.any():
        return out
    unit = unit[:, there]
    length = np.full(there.sum(), np.nan) if distance is None else np.asarray(distance, dtype=np.float64)[there]
    placed = np.isfinite(length)
    ranks = _centred_ranks(length[placed])
    x = _residual(score[:, None], basis)[:, 0]
    df = n - 2 - basis.shape[1]
    limit = student.isf(0.025, df)
    for start in range(0, n_perm, RELABELLINGS):
        some = slice(start, min(start + RELABELLINGS, n_perm))
        orders = [
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))).permutation(n)
            for i in range(some.start, some.stop)
        ]
        r = np.clip(_unit(_residual(x[np.array(orders)].T, basis)).T @ unit, -1, 1)
        with np.errstate(divide="ignore"):
            small = np.abs(r) * np.sqrt(df / (1 - r**2)) > limit
        out[some, 0], out[some, 1] = np.median(np.abs(r), axis=1), small.mean(axis=1)
        if placed.sum() >= 3:
            out[some, 2] = _unit(_centred_ranks(r[:, placed]).T).T @ _unit(ranks)
    return out


def summarise_correlations(r: Array, p: Array, *, distance: Array | None) -> tuple[float, float, float, float]:
    """Return the median of the absolute r, the share of p < 0.05, the rank correlation of r with distance, and the
    share of Benjamini-Hochberg adjusted p < 0.05; of those columns that have an r.
    """  # noqa: D205 - four numbers, one sentence
    there = np.isfinite(r)
    if not there.any():
        return (float("nan"),) * 4
    rho = float("nan") if distance is None else rank_correlation(r, distance)
    adjusted = adjust_benjamini_hochberg(p[there])
    return float(np.median(np.abs(r[there]))), float(np.mean(p[there] < 0.05)), rho, float(np.mean(adjusted < 0.05))


def _residual(columns: Array, basis: Array) -> Array:
    centred = columns - columns.mean(axis=0)
    return np.asarray(centred - basis @ (basis.T @ centred), dtype=np.float64)


def rank_correlation(x: Array, y: Array) -> float:
    """Return Spearman's correlation of the pairs in which both are finite; NaN if fewer than 3 are."""
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        return float("nan")
    return float(np.corrcoef(rankdata(x[both]), rankdata(y[both]))[0, 1])


def _centred_ranks(rows: Array) -> Array:
    """Return the ranks along the last axis, without their mean; ties share theirs."""
    return np.asarray(rankdata(rows, axis=-1) - (rows.shape[-1] + 1) / 2)
