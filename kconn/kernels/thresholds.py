"""The corrected threshold of a test that is still going on, and how far chance may have moved it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What a statistic must reach for a corrected p of at most alpha, with confidence limits.

    ``value`` is NaN while no p can be that small; ``upper`` is infinite while too few relabellings are known for one.
    """

    value: float
    lower: float
    upper: float


def estimate_threshold(max_stat: npt.NDArray[np.float64], *, alpha: float, level: float) -> Threshold:
    """Return the threshold after n relabellings, the identity among them.

    With k = floor(alpha n), the k-th largest maximum is the smallest value that at most k of n relabellings reach, so
    its p = k / n is the largest one not above alpha. How many of n maxima exceed the true 1 - alpha quantile is
    binomial (n, alpha), whatever their distribution. So the limits are order statistics too: with B its quantile
    function, the B((1 + level) / 2) + 1-th and the B((1 - level) / 2)-th largest.

    Parameters
    ----------
    max_stat
        ``(n,)``, the largest statistic of each relabelling.
    alpha
        Family-wise error rate.
    level
        Coverage of the limits, at least.

    References
    ----------
    David and Nagaraja 2003, Order Statistics, 3rd edition, section 7.1, doi:10.1002/0471722162
    """
    largest = np.sort(max_stat)[::-1]
    n = largest.size
    low_rank = int(stats.binom.ppf((1 + level) / 2, n, alpha)) + 1
    high_rank = int(stats.binom.ppf((1 - level) / 2, n, alpha))
    rank = int(alpha * n + 1e-9)
    return Threshold(
        value=float(largest[rank - 1]) if rank >= 1 else np.nan,
        lower=float(largest[low_rank - 1]) if low_rank <= n else -np.inf,
        upper=float(largest[high_rank - 1]) if high_rank >= 1 else np.inf,
    )
