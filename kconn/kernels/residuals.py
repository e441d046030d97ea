"""What a projection leaves of the voxels: one pass over each, in tiles that stay in the cache of a core."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from kconn.kernels import blas
from kconn.kernels.butterworth import compiled_type, filter_into
from kconn.kernels.projection import Projection

Array = npt.NDArray[np.float64]
Signal = npt.NDArray[np.floating[Any]]

#: Scale of the residuals: as they are, unit variance, or percent of the mean of the signal.
Scale = Literal["none", "zscore_sample", "psc"]

#: A voxel carries no signal when the residual falls below this share of its root mean square; the rounding of
#: float32 alone (6e-8) leaves a residual of that order in a voxel that is constant or copies a regressor.
NO_SIGNAL: Final = 1e-6
#: Voxels that are worked on at a time: enough for products to be worth their start, few enough to stay near a core.
TILE: Final = 128
_NONE, _ZSCORE, _PSC = range(3)
_SCALES: Final[dict[Scale, int]] = {"none": _NONE, "zscore_sample": _ZSCORE, "psc": _PSC}
#: A sum may be split over the lanes of the vector units, alike for every row; NaN stays NaN.
_FLAGS: Final = {"contract", "reassoc"}


def residuals(x: Signal, projection: Projection, *, scale: Scale = "none") -> Signal:
    """Return what the projection leaves of each row of ``x``.

    All arithmetic is float64; the result is rounded once. Rows are worked on in tiles that start at row 0 and BLAS
    runs on one thread, so the bits depend on ``x`` alone.

    Parameters
    ----------
    x
        ``(voxel, time)``, all frames.
    projection
        The space to keep.
    scale
        ``"zscore_sample"`` divides by the standard deviation (n_kept - 1) of the residual, ``"psc"`` by the absolute
        mean of the kept frames, times 100.

    Returns
    -------
    residual
        ``(voxel, time)``, float64 for float64 input and float32 otherwise. NaN at censored frames, and all along a
        voxel without signal: one that is constant or not finite, or that the regressors explain to rounding. (Zeros
        instead would enter means and correlations as if they had been measured.)
    """
    out = np.empty(x.shape, dtype=result_dtype(x.dtype))
    _fill(x, projection, scale, out)
    return out


def residuals_in_blocks(x: Signal, projection: Projection, *, block: int, scale: Scale = "none") -> Signal:
    """Return `residuals` of each ``block`` of voxels, on as many threads as BLAS would take."""
    out = np.empty(x.shape, dtype=result_dtype(x.dtype))
    parts = [slice(start, start + block) for start in range(0, len(x), block)]
    with ThreadPoolExecutor(blas.count_threads()) as pool:
        for _ in pool.map(lambda part: _fill(x[part], projection, scale, out[part]), parts):
            pass
    return out


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of residuals: float64 stays (node tables), everything else becomes float32 (voxels)."""
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def _fill(x: Signal, projection: Projection, scale: Scale, out: Signal) -> None:
    """Write the residuals of ``x`` to ``out``, tile by tile."""
    kept = np.zeros(projection.n_time, dtype=np.bool_)
    kept[projection.kept] = True
    returns = projection.basis if projection.returns is None else projection.returns
    work, inside = np.empty((2, min(TILE, len(x)), projection.n_time))
    mean, power = np.empty((2, len(work)))
    with blas.single_thread():
        for start in range(0, len(x), TILE):
            tile = x[start : start + TILE]
            if projection.butterworth is None:
                _centre(compiled_type(tile), kept, projection.n_kept, work, mean, power)
            else:
                filter_into(tile, projection.butterworth, work[: len(tile)], mean, power)
            # NumPy's product frees the interpreter lock and so lets blocks run side by side; SciPy's wrappers do not.
            np.matmul(work @ projection.basis, returns.T, out=inside)
            part, n_kept = out[start : start + TILE], projection.n_kept
            _finish(work, inside, projection.removes, kept, n_kept, mean, power, _SCALES[scale], part)


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _centre(x, kept, n_kept, work, mean, power):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Write the rows of ``x`` about their mean over the kept frames to ``work``, 0 elsewhere; add up their squares."""
    for row in range(len(x)):
        total, squares = 0.0, 0.0
        for t in range(x.shape[1]):
            # What dropped frames hold may be anything, and 0 times infinity is not 0.
            value = np.float64(x[row, t]) if kept[t] else 0.0
            total += value
            squares += value * value
        level = total / n_kept
        mean[row], power[row] = level, squares
        for t in range(x.shape[1]):
            work[row, t] = np.float64(x[row, t]) - level if kept[t] else 0.0


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _finish(work, inside, removes, kept, n_kept, mean, power, scale, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913, PLR0917 - compiled
    """Write the residuals to ``out`` in the scale that is asked for; NaN where there is no signal.

    They are ``inside``, or what it leaves of ``work``.
    """
    for row in range(len(out)):
        total, squares = 0.0, 0.0
        for t in range(out.shape[1]):
            rest = work[row, t] - inside[row, t] if removes else inside[row, t]
            inside[row, t] = rest
            total += rest
            squares += rest * rest

        # Not a number fails every comparison, and so counts as no signal.
        factor = 1.0 if squares > NO_SIGNAL * NO_SIGNAL * power[row] and power[row] < np.inf else np.nan
        offset = 0.0
        if scale != _NONE:
            # A residual has a mean only after a Butterworth filter, and only with dropped frames.
            offset = total / n_kept
            spread = squares - n_kept * offset * offset
            level = mean[row] + offset
            if scale == _ZSCORE:
                factor *= np.sqrt((n_kept - 1) / spread) if spread > 0 else np.nan
            else:
                factor *= 100.0 / abs(level) if level * level * n_kept > NO_SIGNAL * NO_SIGNAL * power[row] else np.nan
        for t in range(out.shape[1]):
            out[row, t] = (inside[row, t] - offset) * factor if kept[t] else np.nan
