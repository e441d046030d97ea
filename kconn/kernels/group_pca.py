"""Principal components of voxels over frames and runs, from products of small blocks."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.special import gammaln

from kconn.kernels.dual_regression import find_voxels_with_data

Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

#: Components below this share of the largest eigenvalue are rounding.
NEGLIGIBLE: Final = 1e-12


def centre_frames(x: npt.NDArray[Any], /, *, kept: BoolArray) -> Array:
    """Return the kept frames of ``x`` (voxel, time), each voxel around its mean; 0 for voxels without data."""
    useful = find_voxels_with_data(x, kept=kept)
    inner = x[:, kept].astype(np.float64)
    inner -= inner.mean(axis=1, keepdims=True)
    inner[~useful] = 0
    return inner


def sd_within(centred: Array, courses: Array, /) -> Array:
    """Return the sd (voxel,) of ``centred`` (voxel, time) within the span of orthonormal ``courses`` (time, course)."""
    sd: Array = np.sqrt(((centred @ courses) ** 2).sum(axis=1) / courses.shape[1])
    return sd


def divide_by(centred: Array, sd: Array, /) -> Array:
    """Return ``centred`` (voxel, time) in units of ``sd`` (voxel,); voxels without any stay 0."""
    scaled: Array = centred / np.where(sd > 0, sd, np.inf)[:, None]
    return scaled


def leading_components(gram: Array, n_component: int | None, /) -> tuple[Array, Array]:
    """Return the largest eigenvalues (component,) and their eigenvectors (row, component) of ``gram`` (row, row).

    Descending; never more than ``n_component``, all that are no rounding where it is None. The sign makes the largest
    weight of each vector positive.
    """
    values, vectors = eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    n_real = int((values > NEGLIGIBLE * max(values[0], np.finfo(float).tiny)).sum())
    n_kept = n_real if n_component is None else min(n_component, n_real)
    vectors = vectors[:, :n_kept]
    peak = np.abs(vectors).argmax(axis=0)
    return values[:n_kept], vectors * np.sign(vectors[peak, np.arange(n_kept)])


def estimate_dimension(eigenvalues: Array, /, *, n_sample: int) -> int:
    """Return how many components stand out of white noise, by Minka's approximation to the Bayesian evidence.

    Parameters
    ----------
    eigenvalues
        (component,) of the covariance, descending, all above 0: signal and noise.
    n_sample
        Independent samples that the covariance is of.

    References
    ----------
    Minka 2000, Automatic choice of dimensionality for PCA, NIPS 13.
    """
    n = eigenvalues.size
    if n < 3:
        return n
    variance = eigenvalues / n_sample
    rank = np.arange(1, n)
    tail = np.cumsum(variance[::-1])[::-1]
    noise = tail[rank] / (n - rank)
    order = (n - rank + 1) / 2
    prior = np.cumsum(-np.log(2.0) + gammaln(order) - np.log(np.pi) * order)
    likelihood = -n_sample / 2 * np.cumsum(np.log(variance))[:-1]
    remainder = -n_sample * (n - rank) / 2 * np.log(noise)
    n_free = n * rank - rank * (rank + 1) / 2
    constant = np.log(2 * np.pi) * (n_free + rank) / 2
    hessian = _log_hessian(variance, noise) + np.log(n_sample) * n_free
    evidence = prior + likelihood + remainder + constant - hessian / 2 - rank * np.log(n_sample) / 2
    return int(rank[np.argmax(evidence)])


def _log_hessian(variance: Array, noise: Array) -> Array:
    """Return for every rank k the sum over pairs i <= k < or = j of the log curvatures, but for the sample size."""
    n = variance.size
    upper = np.triu_indices(n, 1)
    gap = np.full((n, n), 0.0)
    gap[upper] = np.log(np.maximum(variance[upper[0]] - variance[upper[1]], np.finfo(float).tiny))
    inverse = np.full((n, n), 0.0)
    difference = 1 / variance[upper[1]] - 1 / variance[upper[0]]
    inverse[upper] = np.log(np.maximum(difference, np.finfo(float).tiny))
    rows_of_gap = np.cumsum(gap.sum(axis=1))
    inner = np.cumsum(np.cumsum(inverse, axis=0), axis=1)
    total = np.empty(n - 1)
    for i, v in enumerate(noise):
        rank = i + 1
        outside = np.log(np.maximum(1 / v - 1 / variance[:rank], np.finfo(float).tiny)).sum() * (n - rank)
        total[i] = rows_of_gap[rank - 1] + inner[rank - 1, rank - 1] + outside
    return total
