"""A second pass over the features with a small p, for the tails of their own null distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from kconn.infer.correction import Outcome
from kconn.infer.permuting import Test
from kconn.infer.scheduling import DataMatrix, compute_all, count_threads
from kconn.kernels.blas import single_thread
from kconn.kernels.feature_tails import refine_features
from kconn.kernels.tallies import FEATURE_BLOCK

#: Parts per thread, which even out that small p-values are not spread evenly.
PARTS_PER_THREAD: Final = 4


def refine_tests(
    data: DataMatrix, outcomes: Sequence[Outcome], *, zero_beyond_end: bool
) -> list[npt.NDArray[np.float64]]:
    """Return uncorrected p-values ``(n_tail, n_feature)`` of each test with small ones taken from a fitted tail.

    Parameters
    ----------
    data
        What was tested.
    outcomes
        The tests, and p-values from counts.
    zero_beyond_end
        As in `kconn.kernels.tails.refine_p_values`.
    """
    n_block = -(-data.n_feature // FEATURE_BLOCK)
    width = FEATURE_BLOCK * max(1, n_block // (PARTS_PER_THREAD * count_threads().total))
    parts = [slice(first, first + width) for first in range(0, data.n_feature, width)]
    graph = [
        [
            delayed(_refine, pure=False)(
                data.values[:, part],
                data.order,
                outcome.test,
                outcome.observed.compared[part],
                outcome.p_unc[:, part],
                zero_beyond_end=zero_beyond_end,
            )
            for part in parts
        ]
        for outcome in outcomes
    ]
    return [np.concatenate(found, axis=1) for found in compute_all(graph)]


def _refine(
    block: npt.NDArray[np.generic],
    order: npt.NDArray[np.intp],
    test: Test,
    compared: npt.NDArray[np.float64],
    p: npt.NDArray[np.float64],
    *,
    zero_beyond_end: bool,
) -> npt.NDArray[np.float64]:
    values = np.ascontiguousarray(np.asarray(block)[order])
    with single_thread():
        return refine_features(values, test.engine, test.shuffling, compared, p, zero_beyond_end=zero_beyond_end)
