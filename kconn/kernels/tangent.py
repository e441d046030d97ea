"""Symmetric positive definite matrices as points: their geometric mean, and its tangent space."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from kconn.errors import InputError
from kconn.kernels.netmats import SINGULAR

Array = npt.NDArray[np.floating[Any]]

#: The mean is found when the gradient, per element, falls below this; nilearn's value.
TOLERANCE: Final = 1e-7
MAX_STEPS: Final = 100


def geometric_mean(matrices: Array, /, *, n_thread: int = 1) -> Array:
    """Return the matrix (node, node) whose squared Riemannian distances to ``matrices`` (n, node, node) are least.

    Gradient descent along geodesics from the arithmetic mean, as in nilearn. ``n_thread`` changes no bit.

    Raises
    ------
    InputError
        Code ``E-NETMAT-RANK`` if a matrix is not positive definite, or the descent does not settle.

    References
    ----------
    Pennec, Fillard and Ayache 2006, doi:10.1007/s11263-005-3222-z.
    """
    _check_definite(matrices)
    mean: Array = matrices.mean(axis=0)
    smallest, step = np.inf, 1.0
    for _ in range(MAX_STEPS):
        values, vectors = np.linalg.eigh(mean)
        root, whitening = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
        gradient = _log_whitened(matrices, whitening, n_thread).mean(axis=0)
        norm = float(np.linalg.norm(gradient))
        mean = root @ _map_eigenvalues(np.exp, step * gradient) @ root
        mean = (mean + mean.T) / 2
        if norm > smallest:
            step /= 2
        smallest = min(norm, smallest)
        if norm / mean.size < TOLERANCE:
            return mean
    raise InputError(
        "E-NETMAT-RANK",
        f"the geometric mean of {len(matrices)} matrices did not settle in {MAX_STEPS} steps",
        rule=f"the gradient per element falls below {TOLERANCE:g}",
        fix="use more frames or a shrunk estimate: matrices near singular have no stable mean",
    )


def project_tangent(matrices: Array, /, *, mean: Array, n_thread: int = 1) -> Array:
    """Return the logarithm (..., node, node) of ``matrices`` (..., node, node) as seen from ``mean`` (node, node).

    Zero where a matrix equals the mean. Both must be positive definite, as those that `geometric_mean` took.

    References
    ----------
    Varoquaux et al. 2010, Detection of brain functional-connectivity difference in post-stroke patients using
    group-level covariance modeling, doi:10.1007/978-3-642-15705-9_25.
    """
    values, vectors = np.linalg.eigh(mean)
    whitening = (vectors / np.sqrt(values)) @ vectors.T
    return _log_whitened(matrices, whitening, n_thread)


def _log_whitened(matrices: Array, whitening: Array, n_thread: int) -> Array:
    """Return the logarithm of each matrix (n, node, node) between two ``whitening`` (node, node), shared by threads."""

    def log_of(part: Array) -> Array:
        return _map_eigenvalues(np.log, whitening @ part @ whitening)

    if n_thread == 1:
        return log_of(matrices)
    with ThreadPoolExecutor(n_thread) as pool:
        return np.concatenate(list(pool.map(log_of, np.array_split(matrices, n_thread))))


def _map_eigenvalues(function: Callable[[Array], Array], symmetric: Array) -> Array:
    values, vectors = np.linalg.eigh(symmetric)
    mapped: Array = (vectors * function(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return mapped


def _check_definite(matrices: Array) -> None:
    pivots = [_least_pivot(matrix) for matrix in matrices]
    n_singular = sum(pivot < SINGULAR for pivot in pivots)
    if n_singular:
        raise InputError(
            "E-NETMAT-RANK",
            f"{n_singular} of {len(pivots)} matrices are singular",
            rule=f"each node keeps at least {SINGULAR:g} of its variance, given the others",
            fix="use kind 'ledoit', which is positive definite with any number of frames",
        )


def _least_pivot(matrix: Array) -> float:
    """Return the least share of its variance that a node keeps, given those before it; 0 if there is none."""
    factor, failed = lapack.dpotrf(matrix, lower=0, clean=0)
    return 0.0 if failed else float((np.diagonal(factor) ** 2 / np.diagonal(matrix)).min())
