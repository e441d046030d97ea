"""Symmetric positive definite matrices as points: their geometric mean, and its tangent space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.errors import InputError

Array = npt.NDArray[np.floating[Any]]

#: The mean is found when the gradient, per element, falls below this; nilearn's value.
TOLERANCE: Final = 1e-7
MAX_STEPS: Final = 100
#: Eigenvalues below this share of the largest are rounding.
SINGULAR: Final = 1e-12


def geometric_mean(matrices: Array, /) -> Array:
    """Return the matrix (node, node) whose squared Riemannian distances to ``matrices`` (n, node, node) are least.

    Gradient descent along geodesics from the arithmetic mean, as in nilearn.

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
        root, whitening = _map_eigenvalues(np.sqrt, mean), _map_eigenvalues(_inverse_root, mean)
        gradient = _map_eigenvalues(np.log, whitening @ matrices @ whitening).mean(axis=0)
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


def project_tangent(matrices: Array, /, *, mean: Array) -> Array:
    """Return the logarithm (..., node, node) of ``matrices`` (..., node, node) as seen from ``mean`` (node, node).

    Zero where a matrix equals the mean.

    References
    ----------
    Varoquaux et al. 2010, Detection of brain functional-connectivity difference in post-stroke patients using
    group-level covariance modeling, doi:10.1007/978-3-642-15705-9_25.
    """
    _check_definite(matrices)
    whitening = _map_eigenvalues(_inverse_root, mean)
    return _map_eigenvalues(np.log, whitening @ matrices @ whitening)


def _map_eigenvalues(function: Callable[[Array], Array], symmetric: Array) -> Array:
    values, vectors = np.linalg.eigh(symmetric)
    mapped: Array = (vectors * function(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return mapped


def _inverse_root(values: Array) -> Array:
    root: Array = 1 / np.sqrt(values)
    return root


def _check_definite(matrices: Array) -> None:
    values = np.linalg.eigvalsh(matrices)
    singular = ~(values[..., 0] > SINGULAR * values[..., -1])
    if singular.any():
        raise InputError(
            "E-NETMAT-RANK",
            f"{singular.sum()} of {singular.size} matrices are singular, the least eigenvalue is {values.min():.3g}",
            rule=f"all eigenvalues exceed {SINGULAR:g} of the largest",
            fix="use kind 'ledoit', which is positive definite with any number of frames",
        )
