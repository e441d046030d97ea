"""Sparse partial correlations by the graphical lasso, which is scikit-learn's."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.errors import InputError
from kconn.kernels.netmats import correlation, scale_precision

Array = npt.NDArray[np.floating[Any]]

#: Passes over all nodes before the search is given up.
MAX_ITER: Final = 500
#: How exactly the lasso of each node is solved; scikit-learn's 1e-4 makes the search go in circles around series that
#: correlate as strongly as filtered ones do.
ENET_TOL: Final = 1e-8


def graphical_lasso_partial(ts: Array, /, *, alpha: float) -> Array:
    """Return the partial correlation (..., node, node) of ``ts`` (..., time, node) with an L1 penalty.

    The precision matrix is estimated from the correlation matrix, so that no unit of a node decides how much it is
    penalised. A larger penalty sets more partial correlations to exactly 0.

    Parameters
    ----------
    ts
        ``(..., time, node)``.
    alpha
        The penalty, above 0; at 1 and above nothing is left.

    Raises
    ------
    InputError
        ``E-NETMAT-CONVERGENCE`` if no solution is found.

    References
    ----------
    Friedman, Hastie and Tibshirani 2008, doi:10.1093/biostatistics/kxm045.
    """
    r = correlation(ts)
    out = np.empty_like(r)
    for at in np.ndindex(r.shape[:-2]):
        out[at] = scale_precision(_estimate_precision(r[at], alpha))
    return out


def _estimate_precision(r: Array, alpha: float) -> Array:
    # scikit-learn takes seconds to import, and only this kind needs it.
    from sklearn.covariance import graphical_lasso  # noqa: PLC0415
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            _, precision = graphical_lasso(r, alpha=alpha, max_iter=MAX_ITER, enet_tol=ENET_TOL)
    except (FloatingPointError, ConvergenceWarning) as error:
        raise InputError(
            "E-NETMAT-CONVERGENCE",
            f"the graphical lasso of {r.shape[-1]} nodes found no solution with alpha = {alpha:g}",
            rule=f"the search ends within {MAX_ITER} passes",
            fix="choose a larger alpha, or kind = 'ridgep'",
        ) from error
    return np.asarray(precision, dtype=np.float64)
