"""From counts to p-values, and what to do with many of them."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

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


#: Level at which the first stage of the two-stage procedure rejects.
BKY_LEVEL: Final = 0.05


def adjust_benjamini_krieger_yekutieli(p: FloatArray) -> FloatArray:
    """Return p-values adjusted by the two-stage procedure at `BKY_LEVEL`; NaN stays NaN and is not counted.

    The number of true null hypotheses is estimated by a first Benjamini-Hochberg step at ``q / (1 + q)``, so an
    adjusted value at most q is a discovery at level q; other levels need the procedure run anew.

    References
    ----------
    Benjamini, Krieger and Yekutieli 2006, doi:10.1093/biomet/93.3.491
    """
    adjusted = adjust_benjamini_hochberg(p)
    known = np.isfinite(adjusted)
    n_test = int(known.sum())
    if n_test == 0:
        return adjusted
    n_rejected = int((adjusted[known] <= BKY_LEVEL / (1 + BKY_LEVEL)).sum())
    if n_rejected == n_test:
        return adjusted
    share = (n_test - n_rejected) / n_test
    return np.asarray(np.minimum(adjusted * share * (1 + BKY_LEVEL), 1.0))


#: FDR procedure -> adjustment.
FDR: Final = {"bh": adjust_benjamini_hochberg, "bky": adjust_benjamini_krieger_yekutieli}


def binomial_limits(
    counts: npt.NDArray[np.integer] | FloatArray, n_perm: int | npt.NDArray[np.integer], *, level: float
) -> tuple[FloatArray, FloatArray]:
    """Return exact confidence limits of the p-value that all relabellings would give.

    Parameters
    ----------
    counts
        Relabellings at least as extreme as the observed one, identity included; NaN gives NaN.
    n_perm
        Relabellings, identity included; one number for all or one per count. The identity is no random draw: the limits
        are those of ``counts - 1`` successes in ``n_perm - 1`` trials.
    level
        Coverage, for example 0.95.

    References
    ----------
    Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404
    """
    hits = np.asarray(counts, dtype=np.float64) - 1
    trials = n_perm - 1
    outside = (1 - level) / 2
    with np.errstate(invalid="ignore"):
        lower = np.where(hits > 0, special.betaincinv(np.maximum(hits, 1), trials - hits + 1, outside), 0.0)
        upper = np.where(hits < trials, special.betaincinv(hits + 1, np.maximum(trials - hits, 1), 1 - outside), 1.0)
    missing = np.isnan(hits)
    return np.where(missing, np.nan, lower), np.where(missing, np.nan, upper)


def negative_binomial_limits(n_hit: int, n_draw: FloatArray, *, level: float) -> tuple[FloatArray, FloatArray]:
    """Return exact confidence limits of a probability whose ``n_hit``-th success came at draw ``n_draw``.

    The lower limit is the probability at which so few draws, the upper one at which so many, had a probability of
    ``(1 - level) / 2``. NaN gives NaN.

    References
    ----------
    Casella and Berger 2002, Statistical Inference, 2nd edition, section 9.2.3 (limits from a distribution function)
    """
    outside = (1 - level) / 2
    n_miss = np.maximum(n_draw - n_hit, 0)
    lower = special.betaincinv(n_hit, n_miss + 1, outside)
    upper = np.where(n_miss > 0, special.betaincinv(n_hit, np.maximum(n_miss, 1), 1 - outside), 1.0)
    return lower, np.where(np.isnan(n_draw), np.nan, upper)
