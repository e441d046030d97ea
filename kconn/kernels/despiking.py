"""Spikes in time: values far from the running median of their voxel are drawn towards it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from kconn.kernels.butterworth import compiled_type

Signal = npt.NDArray[np.floating[Any]]

#: Frames on either side that a running median is over, beside the frame itself.
HALF_WINDOW: Final = 12
#: Deviations, in robust standard deviations, from which a value is changed and beyond which none is left: AFNI's.
FIRST, LAST = 2.5, 4.0
#: Standard deviation of a normal distribution over its median absolute deviation.
SD_OF_MAD: Final = 1.4826


def despike(x: Signal) -> tuple[Signal, npt.NDArray[np.int64]]:
    r"""Return the rows of ``x`` with spikes squashed, and how many values of each were changed.

    With `m` the running median over 25 frames (fewer at the ends) and `s` the deviation from it, in units of 1.4826
    times the median absolute deviation of the row, a value with ``|s| > 2.5`` becomes
    ``m + sign(s) (2.5 + 1.5 tanh((|s| - 2.5) / 1.5))``, in the same units: continuous, in the same order, and never
    beyond 4.

    The squashing is that of AFNI's ``3dDespike``. The curve it is measured from is not: AFNI fits a polynomial with
    sines and cosines in the L1 norm.

    Parameters
    ----------
    x
        ``(row, time)``. A row with a value that is not finite, or of which half the values equal their median, comes
        back as it is.

    Returns
    -------
    despiked
        ``(row, time)`` float64 for float64 input, else float32.
    n_changed
        ``(row,)``.

    References
    ----------
    Cox RW (1996). AFNI: software for analysis and visualization of functional magnetic resonance neuroimages.
    https://doi.org/10.1006/cbmr.1996.0014
    """
    series = compiled_type(x)
    out = np.empty(x.shape, dtype=np.float64 if x.dtype == np.float64 else np.float32)
    n_changed = np.zeros(len(x), dtype=np.int64)
    _despike(series, out, n_changed)
    return out, n_changed


@njit(cache=True, nogil=True)
def _despike(x, out, n_changed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    n = x.shape[1]
    middle = np.empty(n)
    away = np.empty(n)
    for row in range(len(x)):
        for t in range(n):
            out[row, t] = x[row, t]
        if not np.isfinite(x[row]).all():
            continue
        _running_median(x[row], middle)
        for t in range(n):
            away[t] = abs(x[row, t] - middle[t])
        unit = SD_OF_MAD * np.median(away)
        if unit <= 0.0:
            continue
        for t in range(n):
            far = away[t] / unit
            if far > FIRST:
                near = FIRST + (LAST - FIRST) * np.tanh((far - FIRST) / (LAST - FIRST))
                out[row, t] = middle[t] + (x[row, t] - middle[t]) * (near / far)
                n_changed[row] += 1


@njit(cache=True, nogil=True)
def _running_median(x, middle):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Write the median of the frames around each frame, from a window that is kept in order."""
    n = len(x)
    window = np.empty(2 * HALF_WINDOW + 1)
    size = 0
    for t in range(-HALF_WINDOW, n):
        old, new = t - HALF_WINDOW - 1, t + HALF_WINDOW
        if old >= 0:
            i = np.searchsorted(window[:size], x[old])
            for j in range(i, size - 1):
                window[j] = window[j + 1]
            size -= 1
        if new < n:
            i = size
            while i > 0 and window[i - 1] > x[new]:
                window[i] = window[i - 1]
                i -= 1
            window[i] = x[new]
            size += 1
        if t >= 0:
            middle[t] = (window[(size - 1) // 2] + window[size // 2]) / 2.0
