"""How alike repeated measurements of the same subjects are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


def intraclass_correlations(x: Array, /) -> tuple[Array, Array, Array]:
    """Return ICC(1,1), ICC(2,1) and ICC(3,1) (feature...) of ``x`` (subject, repeat, feature...).

    One-way random, two-way random (absolute agreement) and two-way mixed (consistency), each of a single measurement.
    NaN where a subject lacks a measurement or nothing varies.

    References
    ----------
    Shrout and Fleiss 1979, Intraclass correlations: uses in assessing rater reliability,
    doi:10.1037/0033-2909.86.2.420.
    """
    n, k = x.shape[:2]
    grand = x.mean(axis=(0, 1))
    of_subject, of_repeat = x.mean(axis=1) - grand, x.mean(axis=0) - grand
    between = k * (of_subject**2).sum(axis=0) / (n - 1)
    repeats = n * (of_repeat**2).sum(axis=0) / (k - 1)
    inside = ((x - x.mean(axis=1, keepdims=True)) ** 2).sum(axis=(0, 1))
    within = inside / (n * (k - 1))
    error = (inside - n * (of_repeat**2).sum(axis=0)) / ((n - 1) * (k - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        one = (between - within) / (between + (k - 1) * within)
        two = (between - error) / (between + (k - 1) * error + k * (repeats - error) / n)
        three = (between - error) / (between + (k - 1) * error)
    return one, two, three
