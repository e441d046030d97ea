"""Whether two groups, or two visits, differ in how much the head moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two means and what is to be thought of their difference; NaN where there is nothing to test."""

    n_first: int
    n_second: int
    mean_first: float
    mean_second: float
    stat: float = float("nan")
    dof: float = float("nan")
    p_parametric: float = float("nan")
    p_unc: float = float("nan")


def compare_groups(first: Array, second: Array, *, n_perm: int, seed: tuple[int, ...]) -> Compared:
    """Compare the means of two groups: Welch's t of second minus first.

    Parameters
    ----------
    first, second
        ``(subject,)``; values that are not finite are left out.
    n_perm
        Relabellings, the identity included; all distinct ones where there are no more.
    seed
        Words of the seed of the relabellings.

    References
    ----------
    Welch 1951, doi:10.1093/biomet/38.3-4.330.
    """
    a, b = (x[np.isfinite(x)] for x in (first, second))
    means = _describe(a, b)
    if min(len(a), len(b)) < 2 or np.ptp(np.concatenate([a, b])) == 0 or max(np.ptp(a), np.ptp(b)) == 0:
        return means
    welch = stats.ttest_ind(b, a, equal_var=False)
    dealt = stats.permutation_test(
        (b, a),
        _welch_t,
        permutation_type="independent",
        vectorized=True,
        n_resamples=n_perm - 1,
        rng=np.random.default_rng(seed),
    )
    return _with_test(means, welch, float(dealt.pvalue))


def compare_visits(first: Array, second: Array, *, n_perm: int, seed: tuple[int, ...]) -> Compared:
    """Compare two visits of the same subjects: Student's t of the mean change, second minus first, by sign flips.

    Parameters
    ----------
    first, second
        ``(subject,)`` in the same order; subjects without a finite value in both are left out.
    n_perm, seed
        As in `compare_groups`.
    """
    both = np.isfinite(first) & np.isfinite(second)
    a, b = first[both], second[both]
    means = _describe(a, b)
    change = b - a
    if len(change) < 2 or np.ptp(change) == 0:
        return means
    paired = stats.ttest_1samp(change, 0.0)
    flipped = stats.permutation_test(
        (change,),
        # With the same squares, the mean orders the flips as t does.
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_perm - 1,
        rng=np.random.default_rng(seed),
    )
    return _with_test(means, paired, float(flipped.pvalue))


def _welch_t(b: Array, a: Array, axis: int) -> Array:
    error = b.var(axis=axis, ddof=1) / b.shape[axis] + a.var(axis=axis, ddof=1) / a.shape[axis]
    difference = b.mean(axis=axis) - a.mean(axis=axis)
    # Without any spread, which only some relabellings have, nothing was measured.
    return np.asarray(np.divide(difference, np.sqrt(error), out=np.zeros_like(difference), where=error > 0))


def _describe(a: Array, b: Array) -> Compared:
    means = (float(x.mean()) if len(x) else float("nan") for x in (a, b))
    first, second = means
    return Compared(n_first=len(a), n_second=len(b), mean_first=first, mean_second=second)


def _with_test(means: Compared, test: object, p_unc: float) -> Compared:
    return Compared(
        n_first=means.n_first,
        n_second=means.n_second,
        mean_first=means.mean_first,
        mean_second=means.mean_second,
        stat=float(test.statistic),  # type: ignore[attr-defined]  # SciPy's TtestResult
        dof=float(test.df),  # type: ignore[attr-defined]  # the same
        p_parametric=float(test.pvalue),  # type: ignore[attr-defined]  # the same
        p_unc=p_unc,
    )
