"""Small p-values from few permutations: a generalised Pareto tail fitted to each null distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: p-values below this are refined.
P_REFINED: Final = 0.1
#: Quantiles tried in turn as the start of the tail.
QUANTILES: Final = np.arange(751, 972, 10) / 1000
#: A fit is accepted above this p of the Anderson-Darling test.
P_ACCEPTED: Final = 0.05

# Upper points of the Anderson-Darling statistic when shape and scale are estimated: table 2 of Choulakian and Stephens
# 2001, doi:10.1198/00401700152672573, for shapes 0.9 and 0.5. Smaller shapes are tested as 0.5, which is stricter: so
# do Knijnenburg et al. 2009, doi:10.1093/bioinformatics/btp211, and PALM after them.
_SHAPES: Final = (0.5, 0.9)
_TAILS: Final = np.array([0.5, 0.25, 0.1, 0.05, 0.025, 0.01, 0.005, 0.001])
_POINTS: Final = np.array(
    [
        [0.356, 0.499, 0.685, 0.830, 0.978, 1.180, 1.336, 1.707],
        [0.339, 0.471, 0.641, 0.771, 0.905, 1.086, 1.226, 1.559],
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tails:
    """Fitted tails, one per null: P(X > x) = ``share`` * P(excess over ``start`` > x - start); NaN where none fits."""

    start: FloatArray
    scale: FloatArray
    shape: FloatArray
    share: FloatArray

    def p_value(self, values: FloatArray) -> FloatArray:
        """Return the probability that the null exceeds each value."""
        return self.share * survive(values - self.start, self.scale, self.shape)


def survive(excess: FloatArray, scale: FloatArray | float, shape: FloatArray | float) -> FloatArray:
    """Return the survival function of the generalised Pareto distribution, ``(1 - shape x / scale) ** (1 / shape)``."""
    k = np.asarray(shape, dtype=np.float64)
    flat = np.abs(k) < np.finfo(np.float64).eps
    base = np.maximum(1 - k * excess / scale, 0)
    with np.errstate(divide="ignore", over="ignore"):
        power = base ** (1 / np.where(flat, 1.0, k))
    return np.asarray(np.where(flat, np.exp(-excess / scale), power))


def fit_tails(null: FloatArray) -> Tails:
    """Fit the tail of each null by moments, from the lowest quantile at which it fits.

    Parameters
    ----------
    null
        ``(n_perm, n_null)``, one null distribution per column.

    References
    ----------
    Winkler et al. 2016, Faster permutation inference in brain imaging, doi:10.1016/j.neuroimage.2016.05.068;
    Hosking and Wallis 1987, doi:10.1080/00401706.1987.10488243
    """
    return fit_sorted_tails(np.sort(null, axis=0), len(null))


def fit_sorted_tails(ordered: FloatArray, n_perm: int) -> Tails:
    """Fit nulls of ``n_perm`` values each, of which ``ordered (n, n_null)`` holds the highest n in rising order."""
    below = n_perm - len(ordered)
    found = np.full((4, ordered.shape[1]), np.nan)
    left = np.arange(ordered.shape[1])
    for quantile in QUANTILES:
        # Values that tie with the first one of the tail belong to it.
        first = find_first(ordered[:, left], quantile, n_perm, below)
        usable = first > 0
        if not usable.any():
            continue
        here, first = left[usable], first[usable]
        fit, accepted = _fit(ordered[first.min() - 1 :, here], first - first.min() + 1, n_perm)
        found[:, here[accepted]] = fit[:, accepted]
        left = left[np.isnan(found[0, left])]
    return Tails(start=found[0], scale=found[1], shape=found[2], share=found[3])


def find_first(ordered: FloatArray, quantile: float, n_perm: int, below: int = 0) -> npt.NDArray[np.intp]:
    """Return the row of each column where the tail above a quantile begins; ``below`` values are not in the rows."""
    at = int(np.searchsorted(np.arange(1, n_perm + 1) / n_perm, quantile, side="left")) - below
    return np.asarray((ordered < ordered[at]).sum(axis=0))


def _fit(ordered: FloatArray, first: npt.NDArray[np.intp], n_perm: int) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return start, scale, shape and share of tails that begin at the rows ``first``, and which of them fit."""
    columns = np.arange(first.size)
    row = np.arange(len(ordered))[:, None]
    inside = row >= first
    size = len(ordered) - first
    start = (ordered[first - 1, columns] + ordered[first, columns]) / 2
    excess = np.where(inside, ordered - start, 0.0)
    mean = excess.sum(axis=0) / size
    # One value, or equal ones, have no variance, and no tail.
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(inside, (excess - mean) ** 2, 0.0).sum(axis=0) / (size - 1)
        scale = mean * (mean**2 / variance + 1) / 2
        shape = (mean**2 / variance - 1) / 2
        survival = np.where(inside, survive(excess, scale, shape), 0.5)
        place = row - first + 1
        terms = (2 * (size - place) + 1) * np.log(survival) + (2 * place - 1) * np.log1p(-survival)
        statistic = -size - np.where(inside, terms, 0.0).sum(axis=0) / size
        accepted = np.isfinite(statistic) & (_goodness_of_fit(statistic, shape) > P_ACCEPTED)
    return np.stack([start, scale, shape, size / n_perm]), accepted


def _goodness_of_fit(statistic: FloatArray, shape: FloatArray) -> FloatArray:
    """Return the p of Anderson-Darling statistics, by linear interpolation, and beyond the table as at its ends."""
    low, high = _SHAPES
    share = (np.maximum(shape, low) - low) / (high - low)
    points = _POINTS[0] + share[:, None] * (_POINTS[1] - _POINTS[0])
    i = np.clip((points < statistic[:, None]).sum(axis=1) - 1, 0, _TAILS.size - 2)
    columns = np.arange(statistic.size)
    slope = (_TAILS[i + 1] - _TAILS[i]) / (points[columns, i + 1] - points[columns, i])
    return np.asarray(_TAILS[i] + (statistic - points[columns, i]) * slope)


def refine_p_values(
    p: FloatArray, values: FloatArray, null: FloatArray, *, zero_beyond_end: bool = False
) -> FloatArray:
    """Return p-values from counts, those below `P_REFINED` replaced by the fitted tail where it fits.

    Parameters
    ----------
    p, values
        ``(n,)``.
    null
        ``(n_perm,)``, one for all values.
    zero_beyond_end
        Beyond the end of a bounded tail the fit says 0: give this, as PALM does, or leave the count.
    """
    low = p < P_REFINED
    if not low.any():
        return p
    out = p.copy()
    tails = fit_tails(null[:, None])
    out[low] = replace_p_values(p[low], values[low], tails, zero_beyond_end=zero_beyond_end)
    return out


def replace_p_values(p: FloatArray, values: FloatArray, tails: Tails, *, zero_beyond_end: bool) -> FloatArray:
    """Return the p of fitted tails for values inside them, ``p`` elsewhere; one tail for all, or one per value."""
    with np.errstate(invalid="ignore"):
        fitted = tails.p_value(values)
        inside = (values > tails.start) & ((fitted > 0) | zero_beyond_end)
    return np.where(inside, fitted, p)
