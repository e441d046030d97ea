"""The one linear map of denoising: mean, trend, filter and confounds leave together or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import qr

from kconn.kernels import blas
from kconn.kernels.butterworth import Butterworth, filter_rows
from kconn.kernels.filtering import cosine_basis

Array = npt.NDArray[np.float64]
Frames = npt.NDArray[np.intp]

#: A regressor counts when, beside those already taken, more than this share of its norm is its own.
RANK_TOLERANCE: Final = 1e-11


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The space that denoising keeps, over the kept frames.

    Parameters
    ----------
    basis
        ``(time, k)``, orthonormal columns, 0 at dropped frames, orthogonal to the constant over the kept ones.
    removes
        True: ``basis`` spans what is removed beside the mean. False: it spans what is kept.
    kept
        ``(kept,)`` positions of the kept frames, ascending.
    n_time
        Number of frames of the run.
    butterworth
        A filter that goes before, when it is not part of ``basis``.
    returns
        ``(time, k)`` what comes back for each column of ``basis``, where the projection is oblique. None: the column.
    """

    basis: Array
    removes: bool
    kept: Frames
    n_time: int
    butterworth: Butterworth | None = None
    returns: Array | None = None

    @property
    def dropped(self) -> Frames:
        """Positions of the dropped frames."""
        return np.setdiff1d(np.arange(self.n_time), self.kept, assume_unique=True)

    @property
    def n_kept(self) -> int:
        """Number of kept frames."""
        return len(self.kept)

    @property
    def n_regressors(self) -> int:
        """Rank of what is removed, the mean included.

        A Butterworth filter has no rank: it counts by its share of the frequencies.
        """
        width = int(self.basis.shape[1])
        if self.butterworth is not None:
            return width + self.n_kept - int(self.butterworth.share * self.n_kept)
        return width + 1 if self.removes else self.n_kept - width

    @property
    def df_left(self) -> int:
        """Dimensions that a residual series can still move in."""
        return self.n_kept - self.n_regressors


def fit_projection(columns: Array, sample_mask: npt.NDArray[np.bool_], *, band: tuple[int, int]) -> Projection:
    """Return the projection that removes the mean, ``columns`` and all cosines outside ``band``.

    Fitted on the kept frames alone. The basis is that of the removed space or of the kept one, whichever was found
    to be the narrower before the rank is known.

    Parameters
    ----------
    columns
        ``(time, column)`` regressors of any scale; rows of censored frames are not read.
    sample_mask
        ``(time,)`` True where a frame is kept.
    band
        First and last cosine to keep, as `kconn.kernels.filtering.pass_band` returns them.
    """
    n_time = len(sample_mask)
    kept = np.flatnonzero(sample_mask)
    first, last = band
    scaled = _scale_columns(columns[kept])
    n_stop = (first - 1) + (n_time - 1 - last)
    with blas.single_thread():
        removes = n_stop + scaled.shape[1] <= len(kept) // 2
        if removes:
            stop = np.hstack([cosine_basis(n_time, 1, first - 1), cosine_basis(n_time, last + 1, n_time - 1)])
            basis = _range_of(np.hstack([scaled, _scale_columns(stop[kept])]))
        else:
            basis = _complement_in_band(scaled, kept, cosine_basis(n_time, first, last))
    return Projection(basis=_over_all_frames(basis, kept, n_time), removes=removes, kept=kept, n_time=n_time)


def fit_filtered(columns: Array, butterworth: Butterworth, *, n_time: int) -> Projection:
    """Return the projection that removes ``columns`` after the filter, which passes over them as over the signal.

    Confounds that were not filtered alike would bring back the frequencies that the filter has removed.

    Parameters
    ----------
    columns
        ``(time, column)`` regressors of any scale; rows of censored frames are not read.
    butterworth
        The filter; its kept frames are those of the fit.
    n_time
        Number of frames of the run.

    References
    ----------
    Lindquist MA et al. (2019). Modular preprocessing pipelines can reintroduce artifacts into fMRI data.
    https://doi.org/10.1002/hbm.24528
    """
    kept = butterworth.kept
    scaled = _scale_columns(columns[kept])
    filtered, _, _ = filter_rows(_over_all_frames(scaled, kept, n_time).T, butterworth)
    # What the filter leaves nothing of, such as the line, is no regressor any more.
    survives = np.linalg.norm(filtered, axis=1) > RANK_TOLERANCE
    with blas.single_thread():
        basis = _range_of(_scale_columns(filtered[survives][:, kept].T))
    return Projection(
        basis=_over_all_frames(basis, kept, n_time), removes=True, kept=kept, n_time=n_time, butterworth=butterworth
    )


def _over_all_frames(columns: Array, kept: Frames, n_time: int) -> Array:
    """Return ``columns (kept, ...)`` with rows of 0 put in for the dropped frames."""
    out = np.zeros((n_time, columns.shape[1]), order="F")
    out[kept] = columns
    return out


def _scale_columns(columns: Array) -> Array:
    """Return the columns about their mean with norm 1, without those that are constant."""
    # The largest value first: squares of a column of 1e200 would overflow.
    peak = np.abs(columns).max(axis=0, initial=0.0)
    unit = columns[:, peak > 0] / peak[peak > 0]
    raw = np.linalg.norm(unit, axis=0)
    unit = unit - unit.mean(axis=0)
    norm = np.linalg.norm(unit, axis=0)
    varies = norm > RANK_TOLERANCE * raw
    return np.asarray(unit[:, varies] / norm[varies], dtype=np.float64)


def _range_of(columns: Array) -> Array:
    """Return an orthonormal basis of the span of unit columns."""
    if columns.shape[1] == 0:
        return columns
    Q, rank = _rank_revealing_qr(columns, mode="economic")
    return Q[:, :rank]


def _complement_in_band(columns: Array, kept: Frames, band: Array) -> Array:
    """Return an orthonormal basis, over the kept frames, of the series that ``band`` spans and nothing else removes.

    Such a series is ``band @ c``. It vanishes at the censored frames and is orthogonal to ``columns``, which makes
    ``c`` orthogonal to a few vectors as short as the band is narrow; the many cosines outside are never formed.
    """
    censored = np.ones(len(band), dtype=bool)
    censored[kept] = False
    constraints = np.hstack([band[censored].T, band[kept].T @ columns])
    if constraints.shape[1] == 0:
        return band[kept]
    Q, rank = _rank_revealing_qr(constraints, mode="full")
    return np.asarray(band[kept] @ Q[:, rank:], dtype=np.float64)


def _rank_revealing_qr(columns: Array, *, mode: Literal["economic", "full"]) -> tuple[Array, int]:
    """Return Q and how many of its first columns span ``columns``."""
    decomposed: Any = qr(columns, mode=mode, pivoting=True)
    Q, R, _ = decomposed
    return Q, int(np.count_nonzero(np.abs(np.diagonal(R)) > RANK_TOLERANCE))
