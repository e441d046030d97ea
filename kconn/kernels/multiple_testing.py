"""From counts to p-values, and what to do with many of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def count_at_least(null: FloatArray, bounds: FloatArray) -> npt.NDArray[np.int64]:
    """Return, for each bound, how many values of ``null (n_perm,)`` are not below it."""
    return np.asarray(null.size - np.searchsorted(np.sort(null), bounds, side="left"), dtype=np.int64)


def adjust_benjamini_hochberg(p: FloatArray) -> FloatArray:
    """Return p-values adjusted for the false discovery rate; NaN stays NaN and is not counted.

    References
    ----------
    Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x
    """
    flat = np.full(p.size, np.nan)
    known = np.flatnonzero(np.isfinite(p.ravel()))
    values = p.ravel()[known]
    order = np.argsort(values, kind="stable")
    steps = values[order] * values.size / np.arange(1, values.size + 1)
    flat[known[order]] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1.0)
    return flat.reshape(p.shape)
