"""Network matrices of node series, and their packing into edges."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from kconn.errors import InputError

Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

#: |r| is cut here before arctanh, so that z stays finite (|z| <= 11.86); only r of copied series reaches it.
R_CLIP: Final = 1 - 1e-10
#: A node is dead when its sd falls below this share of its root mean square (float32 resolves no less) ...
DEAD_OF_LEVEL: Final = 1e-7
#: ... or below this share of the median sd of the nodes.
DEAD_OF_MEDIAN: Final = 1e-6
#: A covariance counts as singular when a node keeps less than this share of its variance, given the others.
SINGULAR: Final = 1e-10


def covariance(ts: Array, /) -> Array:
    """Return the covariance (..., node, node) of ``ts`` (..., time, node), divided by n - 1."""
    x = ts - ts.mean(axis=-2, keepdims=True)
    cov: Array = np.matmul(np.swapaxes(x, -1, -2), x) / (ts.shape[-2] - 1)
    return cov


def correlation(ts: Array, /) -> Array:
    """Return Pearson's r (..., node, node) of ``ts`` (..., time, node)."""
    cov = covariance(ts)
    sd = np.sqrt(np.diagonal(cov, axis1=-2, axis2=-1))
    r: Array = np.clip(cov / (sd[..., :, None] * sd[..., None, :]), -1, 1)
    return r


def correlation_without_mean(ts: Array, /) -> Array:
    """Return Pearson's r (..., node, node) after regressing the mean over nodes out of ``ts`` (..., time, node).

    FSLNets' ``rcorr``. Removing a mean of the nodes makes the average correlation about zero, and with it makes
    negative correlations (Murphy et al. 2009, doi:10.1016/j.neuroimage.2008.09.036).
    """
    x = ts - ts.mean(axis=-2, keepdims=True)
    mean = x.mean(axis=-1, keepdims=True)
    weight = np.matmul(np.swapaxes(mean, -1, -2), x) / (mean**2).sum(axis=-2, keepdims=True)
    return correlation(x - mean * weight)


def partial_correlation(ts: Array, /) -> Array:
    """Return the partial correlation (..., node, node) of ``ts`` (..., time, node), given all other nodes.

    Raises
    ------
    InputError
        Code ``E-NETMAT-RANK`` if the correlation matrix cannot be inverted.
    """
    return scale_precision(_invert(correlation(ts)))


def ridge_partial(ts: Array, /, *, rho: float) -> Array:
    """Return the partial correlation (..., node, node) with an L2 penalty, by the formula of FSLNets' ``ridgep``.

    ``C = cov / sqrt(mean(diag(cov)^2))``, then ``-inv(C + rho I)`` scaled to a unit diagonal. The penalty is thus
    free of the unit of the run, not of each node.

    References
    ----------
    Smith et al. 2011, doi:10.1016/j.neuroimage.2010.08.063.
    """
    cov = covariance(ts)
    variance = np.diagonal(cov, axis1=-2, axis2=-1)
    cov = cov / np.sqrt((variance**2).mean(axis=-1))[..., None, None]
    return scale_precision(_invert(cov + rho * np.eye(cov.shape[-1])))


def ledoit_wolf(ts: Array, /) -> Array:
    """Return the correlation (..., node, node) of ``ts`` (..., time, node), shrunk by the rule of Ledoit and Wolf.

    The covariance of the standardised series (divided by n) moves towards the identity, as far as its own sampling
    error says; no penalty has to be chosen. Standardised first, so that no unit decides how much a node is shrunk. It
    is positive definite, also with more nodes than frames.

    References
    ----------
    Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4.
    """
    n, p = ts.shape[-2:]
    x = ts - ts.mean(axis=-2, keepdims=True)
    x = x / np.sqrt(np.einsum("...tn,...tn->...n", x, x) / n)[..., None, :]
    r = np.matmul(np.swapaxes(x, -1, -2), x) / n
    size = np.einsum("...ij,...ij->...", r, r)
    distance = size - p
    noise = ((np.einsum("...tn,...tn->...t", x, x) ** 2).sum(axis=-1) / n - size) / n
    share = np.clip(noise, 0, distance) / np.where(distance > 0, distance, 1)
    shrunk: Array = np.clip((1 - share)[..., None, None] * r, -1, 1)
    shrunk[..., np.arange(p), np.arange(p)] = 1
    return shrunk


def ledoit_wolf_partial(ts: Array, /) -> Array:
    """Return the partial correlation (..., node, node) of ``ts`` (..., time, node) by the inverse of `ledoit_wolf`."""
    return scale_precision(_invert(ledoit_wolf(ts)))


def scale_precision(precision: Array, /) -> Array:
    """Return ``-P / sqrt(P_ii P_jj)`` (..., node, node), with a unit diagonal."""
    scale = 1 / np.sqrt(np.diagonal(precision, axis1=-2, axis2=-1))
    r = np.clip(-precision * scale[..., :, None] * scale[..., None, :], -1, 1)
    n = r.shape[-1]
    r[..., np.arange(n), np.arange(n)] = 1
    return r


def _invert(matrix: Array) -> Array:
    """Invert symmetric positive definite matrices (..., node, node) by Cholesky, refusing singular ones."""
    out = np.empty_like(matrix)
    for at in np.ndindex(matrix.shape[:-2]):
        out[at] = _invert_one(matrix[at])
    return out


def _invert_one(matrix: Array) -> Array:
    variance = np.diagonal(matrix)
    factor, failed = lapack.dpotrf(matrix, lower=0, clean=0)
    kept = np.diagonal(factor) ** 2 / variance
    if failed or kept.min() < SINGULAR:
        node = failed - 1 if failed else int(kept.argmin())
        raise InputError(
            "E-NETMAT-RANK",
            f"the covariance of {matrix.shape[-1]} nodes is singular: node {node + 1} is a combination of the others",
            rule=f"each node keeps at least {SINGULAR:g} of its variance, given the others",
            fix="use kind='ridgep' with a penalty rho, or leave that node out",
        )
    inverse, _ = lapack.dpotri(factor, lower=0)
    symmetric: Array = np.triu(inverse) + np.triu(inverse, 1).T
    return symmetric


def find_dead_nodes(ts: Array, /) -> BoolArray:
    """Return which nodes (..., node) of ``ts`` (..., time, node) carry no signal.

    A node is dead if it has a NaN, or if its sd is at most `DEAD_OF_LEVEL` of its root mean square, or at most
    `DEAD_OF_MEDIAN` of the median sd of the nodes that vary at all. A column that is constant but for rounding would
    else give finite correlations that mean nothing.
    """
    centred = ts - ts.mean(axis=-2, keepdims=True)
    variance = np.einsum("...tn,...tn->...n", centred, centred)
    level = np.einsum("...tn,...tn->...n", ts, ts)
    flat = ~(variance > DEAD_OF_LEVEL**2 * level)
    # The lower median of those that vary: NaN sorts to the end.
    ranked = np.sort(np.where(flat, np.nan, variance), axis=-1)
    middle = np.maximum((~flat).sum(axis=-1, keepdims=True) - 1, 0) // 2
    typical = np.take_along_axis(ranked, middle, axis=-1)
    dead: BoolArray = flat | ~(variance > DEAD_OF_MEDIAN**2 * typical)
    return dead


def fisher_z(r: Array, /) -> Array:
    """Return arctanh of ``r``, cut at `R_CLIP` so that no value is infinite."""
    z: Array = np.arctanh(np.clip(r, -R_CLIP, R_CLIP))
    return z


def average_edges(edges: Array, /, *, members: BoolArray) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return the mean of ``edges`` (..., edge) over each row of ``members`` (family, edge), and of how many it is.

    NaN edges do not count; a family without any other is NaN.
    """
    mean = np.full((*edges.shape[:-1], len(members)), np.nan)
    count = np.zeros(mean.shape, dtype=np.int64)
    for i, member in enumerate(members):
        inner = np.ascontiguousarray(edges[..., member])
        there = ~np.isnan(inner)
        count[..., i] = there.sum(axis=-1)
        total = np.where(there, inner, 0).sum(axis=-1)
        np.divide(total, count[..., i], out=mean[..., i], where=count[..., i] > 0)
    return mean, count


def pack_edges(matrix: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """Return the upper triangle (..., edge) of symmetric matrices (..., node, node), row by row."""
    n = matrix.shape[-1]
    packed: npt.NDArray[Any] = matrix.reshape(*matrix.shape[:-2], n * n)[..., _upper_triangle(n)]
    return packed


def unpack_edges(edges: npt.NDArray[Any], /, *, diagonal: float = 0) -> npt.NDArray[Any]:
    """Return the symmetric matrices (..., node, node) whose upper triangle is ``edges`` (..., edge).

    Raises
    ------
    ValueError
        If the number of edges is not n (n - 1) / 2 of a whole n.
    """
    n = count_nodes(edges.shape[-1])
    upper = _upper_triangle(n)
    matrix = np.full((*edges.shape[:-1], n * n), diagonal, dtype=edges.dtype)
    matrix[..., upper] = edges
    matrix[..., upper % n * n + upper // n] = edges
    return matrix.reshape(*edges.shape[:-1], n, n)


@lru_cache(maxsize=4)
def _upper_triangle(n: int) -> npt.NDArray[np.intp]:
    """Return the flat positions (edge,) of the upper triangle of n x n, row by row."""
    rows, columns = np.triu_indices(n, 1)
    upper: npt.NDArray[np.intp] = rows * n + columns
    upper.flags.writeable = False
    return upper


def count_nodes(n_edge: int) -> int:
    """Return n of ``n_edge`` = n (n - 1) / 2.

    Raises
    ------
    ValueError
        If there is no such whole number.
    """
    n = (1 + isqrt(1 + 8 * n_edge)) // 2
    if n * (n - 1) // 2 != n_edge:
        raise ValueError(f"{n_edge} is not a number of edges: n (n - 1) / 2 of a whole n")
    return n
