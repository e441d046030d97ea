"""Principal components of noise regions, from the products of their series with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from kconn.errors import InputError
from kconn.kernels import blas
from kconn.kernels.projection import Projection
from kconn.kernels.residuals import residuals

Array = npt.NDArray[np.float64]
Signal = npt.NDArray[np.floating[Any]]


def gram(x: Signal, projection: Projection) -> Array:
    """Return the products of all frames with each other, summed over voxels.

    Each voxel is cleaned by ``projection`` (the high-pass that the components are to be free of) and scaled to unit
    variance first; voxels without signal are left out.

    Parameters
    ----------
    x
        ``(voxel, time)``, all frames.
    projection
        What to remove.

    Returns
    -------
    products
        ``(time, time)``, 0 at dropped frames.
    """
    series = residuals(x.astype(np.float64), projection, scale="zscore_sample")[:, projection.kept]
    series = series[np.isfinite(series).all(axis=1)]
    out = np.zeros((projection.n_time, projection.n_time))
    with blas.single_thread():
        out[np.ix_(projection.kept, projection.kept)] = series.T @ series
    return out


def components(
    products: Array, kept: npt.NDArray[np.intp], *, n_component: int | None, variance: float | None = None
) -> tuple[Array, Array]:
    """Return the leading principal components over time, and the share of variance of each.

    Parameters
    ----------
    products
        `gram` of all voxels of the region.
    kept
        Positions of the kept frames.
    n_component, variance
        How many; or as many as explain this share of the variance of the region.

    Returns
    -------
    components
        ``(time, n_component)``, orthonormal, NaN at dropped frames. The entry that is largest in size is positive.
    share
        ``(n_component,)`` of the variance of the region.

    Raises
    ------
    InputError
        Code ``E-MASK-EMPTY`` if the region has fewer than ``n_component`` dimensions.

    References
    ----------
    Behzadi Y et al. (2007). https://doi.org/10.1016/j.neuroimage.2007.04.042
    """
    with blas.single_thread():
        values, vectors = eigh(products[np.ix_(kept, kept)])
    values, vectors = values[::-1], vectors[:, ::-1]
    total = values[values > 0].sum()
    n_dimension = int(np.count_nonzero(values > total * len(values) * np.finfo(np.float64).eps))
    if n_component is None:
        explained = np.cumsum(values[:n_dimension]) / total
        n_component = min(int(np.searchsorted(explained, variance or 1.0)) + 1, max(n_dimension, 1))
    if n_dimension < n_component:
        raise InputError(
            "E-MASK-EMPTY",
            f"the noise region has {n_dimension} dimensions, {n_component} components were asked for",
            rule="a region needs at least as many voxels with signal as components",
            fix="check the mask, or ask for fewer components",
        )
    leading = vectors[:, :n_component]
    sign = np.sign(np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None], axis=0))
    out = np.full((len(products), n_component), np.nan)
    out[kept] = leading * sign
    return out, np.asarray(values[:n_component] / total, dtype=np.float64)
