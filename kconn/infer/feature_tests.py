"""Tests of single features, from relabelled statistics to uncorrected p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kconn.infer.correction import Correction, Outcome, compare
from kconn.infer.permuting import Test, Work, run_tests
from kconn.infer.refining import refine_tests


def estimate_features(
    matrix: Any, order: npt.NDArray[np.intp], tests: Sequence[Test], work: Work, correction: Correction
) -> list[Outcome]:
    """Return the outcome of each test.

    Parameters
    ----------
    matrix
        ``(observation, feature)``, NumPy or Dask.
    order
        Row of the matrix at each canonical position.
    tests, work, correction
        What to test, how, and what is made of the counts.
    """
    found = run_tests(matrix, order, tests, work)
    outcomes = [compare(test, one, correction) for test, one in zip(tests, found, strict=True)]
    if correction.tail == "counts":
        return outcomes
    refined = refine_tests(matrix, order, outcomes, zero_beyond_end=correction.convention == "palm")
    return [replace(outcome, p_unc=p) for outcome, p in zip(outcomes, refined, strict=True)]
