"""Noise components that are fitted beside signal components, and regressors that add nothing to those before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr

from kconn.kernels import blas
from kconn.kernels.butterworth import filter_rows
from kconn.kernels.projection import RANK_TOLERANCE, Projection

Array = npt.NDArray[np.float64]

#: A regressor adds something when more than this share of it is not in the others. Looser than the rank of the fit:
#: tables are printed with six to ten digits, and what differs by rounding alone is the same regressor.
REDUNDANT: Final = 1e-9


def remove_components(projection: Projection, noise: Array, signal: Array, *, oblique: bool) -> Projection:
    r"""Return the projection with noise components removed as well, as far as they are not signal components too.

    Let `X`, `N` and `S` be the data, the noise and the signal components after ``projection``, `B` the coefficients of
    `N` in the least squares fit of ``[S N]`` to `X`, and `U` what of `N` is orthogonal to `S`. Then
    ``B = pinv(U) X``, and there are two ways to take the noise away:

    - orthogonal: ``X - U B``. What signal and noise components share stays; the residual is orthogonal to `U`.
    - oblique: ``X - N B``, FSL's ``fsl_regfilt`` and FIX. The fit of the noise goes, with what of it lies along the
      signal components. The residual is orthogonal to `U` too; the two differ by ``(N - U) B``, a combination of
      signal components, and not at all where noise and signal are orthogonal.

    Parameters
    ----------
    projection
        What is removed anyway.
    noise, signal
        ``(time, component)``; rows of dropped frames are not read.
    oblique
        Which of the two.

    References
    ----------
    Griffanti L et al. (2014). ICA-based artefact removal and accelerated fMRI acquisition for improved resting state
    network imaging. https://doi.org/10.1016/j.neuroimage.2014.03.034
    """
    inside = _coordinates(np.hstack([noise, signal]), projection)
    N, S = inside[:, : noise.shape[1]], inside[:, noise.shape[1] :]
    with blas.single_thread():
        Q_signal = _range(S)
        U = N - Q_signal @ (Q_signal.T @ N)
        U -= Q_signal @ (Q_signal.T @ U)
        V = _range(U)
        # N W is what leaves for each direction in V: a direction alone, or with what the noise has along the signal.
        left = N @ np.linalg.lstsq(U, V, rcond=REDUNDANT)[0] if oblique else V
        if projection.removes:
            basis = np.hstack([projection.basis, V])
            return replace(projection, basis=basis, returns=np.hstack([projection.basis, left]) if oblique else None)
        decomposed: Any = qr(left, mode="full")
        rest = decomposed[0][:, V.shape[1] :]
        basis = projection.basis @ rest
        returns = projection.basis @ (rest - left @ (V.T @ rest)) if oblique else None
    return replace(projection, basis=basis, returns=returns)


def find_redundant(columns: Array, projection: Projection) -> npt.NDArray[np.bool_]:
    """Return ``(column,)`` True where a column lies in what ``projection`` removes together with the columns before it.

    Parameters
    ----------
    columns
        ``(time, column)`` of any scale; rows of dropped frames are not read.
    projection
        What is removed beside the columns. Constant columns are redundant: the mean goes anyway.
    """
    inside = _coordinates(columns, projection)
    basis = np.empty((len(inside), 0))
    redundant = np.zeros(columns.shape[1], dtype=np.bool_)
    for i, column in enumerate(inside.T):
        rest = column
        for _ in range(2):
            rest = rest - basis @ (basis.T @ rest)
        norm = np.linalg.norm(rest)
        redundant[i] = norm <= REDUNDANT
        if not redundant[i]:
            basis = np.column_stack([basis, rest / norm])
    return redundant


def _coordinates(columns: Array, projection: Projection) -> Array:
    """Return what the projection leaves of unit columns: over all frames, or along its basis if that spans what stays.

    A constant column is 0.
    """
    kept = projection.kept
    work = np.zeros((columns.shape[1], projection.n_time))
    work[:, kept] = columns[kept].T
    # The largest value first: squares of a column of 1e200 would overflow.
    peak = np.abs(work).max(axis=1, initial=0.0)[:, None]
    np.divide(work, peak, out=work, where=peak > 0)
    raw = np.linalg.norm(work, axis=1)
    work[:, kept] -= work[:, kept].mean(axis=1)[:, None]
    norm = np.linalg.norm(work, axis=1)
    varies = norm > RANK_TOLERANCE * raw
    work[varies] /= norm[varies, None]
    work[~varies] = 0.0
    with blas.single_thread():
        if projection.butterworth is not None:
            work = filter_rows(work, projection.butterworth)[0]
        if not projection.removes:
            return np.asarray((work @ projection.basis).T)
        return np.asarray((work - (work @ projection.basis) @ projection.basis.T).T)


def _range(columns: Array) -> Array:
    """Return an orthonormal basis of the span of columns that were unit columns before something was taken off them."""
    if columns.shape[1] == 0:
        return columns
    decomposed: Any = qr(columns, mode="economic", pivoting=True)
    Q, R, _ = decomposed
    return np.asarray(Q[:, : int(np.count_nonzero(np.abs(np.diagonal(R)) > REDUNDANT))])
