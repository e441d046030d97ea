"""How far correlations of unrelated, autocorrelated series scatter: FSLNets' way from r to z."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.kernels.netmats import fisher_z, pack_edges, partial_correlation

Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

#: Null edges that a simulation draws: the sd of so many is known to about 0.2 %.
N_NULL_EDGE: Final = 100_000


def lag_one(ts: Array, /, *, kept: BoolArray) -> Array:
    """Return the AR(1) coefficient (node,) of ``ts`` (time, node), from the pairs of frames that are both kept.

    The sum of products of neighbours over the sum of squares, after the mean is taken off, as in FSLNets; with
    censored frames both are means over what is there.
    """
    x = ts - ts[kept].mean(axis=0)
    pair = kept[:-1] & kept[1:]
    # Without censoring the divisors below give FSLNets' plain ratio of the two sums.
    share = kept.sum() / (pair.sum() + 1)
    ar1: Array = share * np.einsum("tn,tn->n", x[:-1][pair], x[1:][pair]) / np.einsum("tn,tn->n", x[kept], x[kept])
    return ar1


def null_scale_full(ar1: float, /, *, n_frame: int) -> float:
    """Return 1 / sd of Fisher's z between two unrelated AR(1) series: sqrt((T - 3) (1 - a^2) / (1 + a^2)).

    The closed form of what FSLNets simulates.

    References
    ----------
    Bartlett 1935, doi:10.2307/2342284, for the variance of r between autocorrelated series.
    """
    return float(np.sqrt((n_frame - 3) * (1 - ar1**2) / (1 + ar1**2)))


def null_scale_partial(ar1: float, /, *, n_frame: int, n_node: int, seed: int) -> float:
    """Return 1 / sd of Fisher's z of the partial correlation among unrelated AR(1) series, by simulation.

    Draw i depends on ``seed`` and i alone. There is no closed form: that of the full correlation with T - N in place
    of T is 1 to 2 % too low.

    Parameters
    ----------
    ar1
        Coefficient of all series.
    n_frame, n_node
        Size of each draw; more frames than nodes.
    seed
        Of the simulation.
    """
    from scipy.signal import lfilter  # noqa: PLC0415 - 47 MB that only this simulation needs

    n_draw = -(-N_NULL_EDGE // (n_node * (n_node - 1) // 2))
    total = 0.0
    count = 0
    for i in range(n_draw):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,)))
        noise = rng.standard_normal((n_frame, n_node))
        noise[0] /= np.sqrt(1 - ar1**2)  # the first frame has the variance of all others
        z = fisher_z(pack_edges(partial_correlation(lfilter([1.0], [1.0, -ar1], noise, axis=0))))
        total += float((z**2).sum())
        count += z.size
    return float(np.sqrt(count / total))
