"""A generalised Pareto tail for the null distribution of each single feature."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from kconn.kernels import tails
from kconn.kernels.glm import Engine
from kconn.kernels.permutation import Relabelling, Shuffling
from kconn.kernels.tallies import iterate_blocks, plan_permutation_block

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]

#: Values of the null distributions that are held together: 4 million are 32 MiB.
N_HELD: Final = 4 * 2**20
#: How each direction reads a statistic with a sign.
_SIGNS: Final = (np.abs, np.positive, np.negative)


def refine_features(
    values: Array,
    engine: Engine,
    shuffling: Shuffling,
    compared: FloatArray,
    p: FloatArray,
    *,
    zero_beyond_end: bool,
) -> FloatArray:
    """Return uncorrected p-values with those below `tails.P_REFINED` taken from the tail of their own null.

    Nothing is stored: the null of the features with a small p is computed again, some features at a time.

    Parameters
    ----------
    values
        ``(n_obs, n_feature)``; the first feature lies on the canonical grid.
    engine, shuffling
        As tested.
    compared
        ``(n_feature,)``, the observed statistic on the compared scale, NaN where a feature is not tested.
    p
        ``(n_tail, n_feature)`` from counts, in the order of `tallies.TAILS`; for F and G only the second row is read.
    zero_beyond_end
        As in `tails.refine_p_values`.
    """
    directed = engine.stat_kind in ("t", "v")
    sides = list(enumerate(_SIGNS)) if directed else [(1, np.positive)]
    out = p.copy()
    width = max(1, min(256, N_HELD // shuffling.n_perm))
    for features, e in iterate_blocks(values, engine, compared, "float64"):
        observed = compared[features]
        lowest = np.min([p[i_tail, features] for i_tail, _ in sides], axis=0)
        wanted = np.flatnonzero(lowest < tails.P_REFINED)
        for first in range(0, wanted.size, width):
            here = wanted[first : first + width]
            null = _draw_null(engine, shuffling, np.ascontiguousarray(e[:, here]), observed[here])
            for i_tail, sign in sides:
                old = p[i_tail, features[here]]
                low = np.flatnonzero(old < tails.P_REFINED)
                if low.size:
                    found = _fit(sign(null[:, low]), engine)
                    at = engine.to_z(sign(observed[here[low]]))
                    new = tails.replace_p_values(old[low], at, found, zero_beyond_end=zero_beyond_end)
                    out[i_tail, features[here[low]]] = new
    if not directed:
        out[0] = out[1]
    return out


def _fit(null: FloatArray, engine: Engine) -> tails.Tails:
    # Only the part that a tail may begin in is turned into z, which costs more than sorting.
    ordered = np.sort(null, axis=0)
    start = max(0, int(tails.find_first(ordered, tails.QUANTILES[0], len(null)).min()) - 1)
    return tails.fit_sorted_tails(engine.to_z(ordered[start:]), len(null))


def _draw_null(engine: Engine, shuffling: Shuffling, e: FloatArray, observed: FloatArray) -> FloatArray:
    """Return the compared statistic ``(n_perm, n_feature)`` of all relabellings, the identity first."""
    null = np.empty((shuffling.n_perm, e.shape[1]))
    null[0] = observed
    n_block = plan_permutation_block(engine.n_row)
    for start in range(1, shuffling.n_perm, n_block):
        part: Relabelling = shuffling.part(start, min(start + n_block, shuffling.n_perm))
        null[start : start + n_block] = engine.compare(np.ascontiguousarray(engine.build(part)), e)
    return null
