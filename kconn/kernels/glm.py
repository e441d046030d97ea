"""The general linear model and its permutation: one skinny matrix product per block of relabellings.

A contrast splits the design into an orthonormal basis of what is tested, ``Qx (n_obs, r)``, and of the nuisance,
``Qz (n_obs, q)``. With ``e = Rz y`` scaled to norm 1 and a relabelling P, Freedman-Lane's refit is exactly

    b = Qx' P'e,   a = Qz' P'e,   u = b / sqrt(1 - |a|^2)   (r = 1),   v = |b|^2 / (1 - |a|^2)   (any r)

with ``t = u sqrt(dof) / sqrt(1 - u^2)`` and ``F = (v / r) / ((1 - v) / dof)``. Both grow with u and v, so maxima and
counts are taken there. P moves the rows of ``[Qx Qz]``, never the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import linalg, special

from kconn.errors import DesignError
from kconn.kernels.permutation import Relabelling, Shuffling, exchanged_sets

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]
CountArray = npt.NDArray[np.int64]
Regression = Literal["freedman-lane", "dekker", "draper-stoneman", "ter-braak", "manly"]

#: Features computed together: the canonical grid of every test. A task holds whole blocks, whatever its size.
FEATURE_BLOCK: Final = 1024
#: Rows of one product, relabellings by rows each: keeps the product in a core's second-level cache.
PRODUCT_ROWS: Final = 192
#: A singular value this far below the largest is zero.
RANK_RTOL: Final = 1e-10
#: A residual this small against its data is rounding: the feature does not vary beyond the nuisance.
CONSTANT_RTOL: Final = 1e-11
#: Statistics closer than this, relative to max(|u|, 1 / sqrt(dof)), are ties.
TIE_RTOL: Final[dict[str, float]] = {"float64": 1e-9, "float32": 1e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A design seen from one contrast.

    ``tested (n_obs, r)`` and ``nuisance (n_obs, q)`` are orthonormal and orthogonal to each other; ``weights`` turns
    data into the contrast of parameter estimates, ``effect = weights @ y``, ``(r, n_obs)``; ``scale`` is the effect's
    standard error at unit residual standard deviation (t contrasts).
    """

    tested: FloatArray
    nuisance: FloatArray
    weights: FloatArray
    scale: float
    dof: int

    @property
    def rank(self) -> int:
        """Rank of the contrast."""
        return int(self.tested.shape[1])


def check_design(design: FloatArray) -> None:
    """Refuse a design with too few rows or dependent columns.

    Raises
    ------
    DesignError
        Codes ``E-TOO-FEW`` and ``E-DESIGN-RANK``.
    """
    n_obs, n_column = design.shape
    if n_obs <= n_column:
        raise DesignError(
            "E-TOO-FEW",
            f"{n_obs} observations for {n_column} columns of the design",
            rule="at least one residual degree of freedom is needed",
            fix="drop nuisance columns or add observations",
        )
    norms = np.linalg.norm(design, axis=0)
    _, triangle, pivots = linalg.qr(design / np.where(norms > 0, norms, 1.0), mode="economic", pivoting=True)
    diagonal = np.abs(np.diag(triangle))
    rank = int((diagonal > RANK_RTOL * max(1.0, diagonal[0])).sum())
    if rank < n_column:
        raise DesignError(
            "E-DESIGN-RANK",
            f"the design has rank {rank} with {n_column} columns; column(s) {sorted(pivots[rank:].tolist())} (from 0) "
            "follow from the others",
            rule="the columns of a design are linearly independent",
            fix="drop the dependent columns, for example the intercept beside a full set of group columns",
        )


def split_design(design: FloatArray, contrast: FloatArray) -> Partition:
    """Split a design of full column rank by a contrast.

    Parameters
    ----------
    design
        ``(n_obs, n_column)``.
    contrast
        ``(n_column,)`` for a t, ``(r, n_column)`` for an F.

    Raises
    ------
    DesignError
        Code ``E-CONTRAST``: wrong length, not finite, zero or dependent rows.

    References
    ----------
    Winkler et al. 2014, Permutation inference for the general linear model, doi:10.1016/j.neuroimage.2014.01.060
    (appendix A, the partitions of Beckmann and of Ridgway, which span the same spaces).
    """
    n_obs, n_column = design.shape
    rows = np.atleast_2d(contrast)
    if rows.ndim != 2 or rows.shape[1] != n_column or not np.isfinite(rows).all():
        raise DesignError(
            "E-CONTRAST",
            f"the contrast has shape {np.shape(contrast)} and {int((~np.isfinite(contrast)).sum())} not finite weights",
            rule=f"one finite weight per column of the design ({n_column})",
        )
    norms = np.linalg.norm(design, axis=0)
    basis, triangle = np.linalg.qr(design / norms)
    # c'beta = w'(basis' y), with w = R^-T c: the tested direction inside the column space of the design.
    inside = linalg.solve_triangular(triangle, (rows / norms).T, trans="T")
    left, values, _ = np.linalg.svd(inside, full_matrices=True)
    rank = rows.shape[0]
    if rank > n_column or values.size == 0 or values[0] == 0 or (values <= RANK_RTOL * values[0]).any():
        raise DesignError(
            "E-CONTRAST",
            f"the contrast has {rank} row(s) of rank {int((values > RANK_RTOL * values.max(initial=0)).sum())}",
            rule="the rows of a contrast are not zero and linearly independent",
            fix="drop rows that follow from others",
        )
    tested = left[:, :rank]
    if rank == 1:
        tested = inside / np.linalg.norm(inside)
    return Partition(
        tested=basis @ tested,
        nuisance=basis @ left[:, rank:],
        weights=(basis @ inside).T,
        scale=float(np.linalg.norm(inside[:, 0])),
        dof=n_obs - n_column,
    )


def regress_out(values: FloatArray, basis: FloatArray) -> FloatArray:
    """Return ``values (n_obs, n_feature)`` without what the orthonormal ``basis (n_obs, q)`` explains."""
    # Twice, so that a mean a million times larger than the signal leaves no rounding behind ("twice is enough").
    once = values - basis @ (basis.T @ values)
    return once - basis @ (basis.T @ once)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the data say before any relabelling, one number per feature.

    ``effect`` is NaN for F contrasts; ``stat`` is t or F; ``u`` is the partial correlation (t) or its square summed
    over the tested directions (F), the scale on which relabellings are compared; ``excluded`` is 0 for a tested
    feature, 1 for one with missing values, 2 for one that does not vary beyond the nuisance.
    """

    effect: FloatArray
    stat: FloatArray
    u: FloatArray
    cohen_d: FloatArray
    excluded: npt.NDArray[np.int8]


def observe(values: Array, partition: Partition) -> Observed:
    """Fit one block of features ``(n_obs, n_feature)`` in float64."""
    data = np.ascontiguousarray(values, dtype=np.float64)
    excluded = np.zeros(data.shape[1], dtype=np.int8)
    excluded[~np.isfinite(data).all(axis=0)] = 1
    data = np.where(excluded == 1, 0.0, data)
    residual = regress_out(data, partition.nuisance)
    norm = np.linalg.norm(residual, axis=0)
    excluded[(excluded == 0) & (norm <= CONSTANT_RTOL * np.linalg.norm(data, axis=0))] = 2

    with np.errstate(divide="ignore", invalid="ignore"):
        u = _combine(partition.tested.T @ (residual / norm))
        # The error sum of squares comes from its own residual, not from 1 - u^2, which cancels when the fit is close.
        error = np.linalg.norm(regress_out(residual, partition.tested), axis=0) / norm
        stat = _statistic(u, error, partition)
        effect = partition.weights[0] @ data if partition.rank == 1 else np.full(norm.shape, np.nan)
        cohen_d = stat * partition.scale if partition.rank == 1 else np.full(norm.shape, np.nan)
    tested = excluded == 0
    return Observed(
        effect=np.where(tested, effect, np.nan),
        stat=np.where(tested, stat, np.nan),
        u=np.where(tested, u, np.nan),
        cohen_d=np.where(tested, cohen_d, np.nan),
        excluded=excluded,
    )


def observe_blocks(values: Array, partition: Partition) -> Observed:
    """Fit features ``(n_obs, n_feature)``, one canonical block after the other."""
    starts = range(0, values.shape[1], FEATURE_BLOCK)
    return join_observed([observe(values[:, start : start + FEATURE_BLOCK], partition) for start in starts])


def join_observed(parts: list[Observed]) -> Observed:
    """Return blocks of features as one."""
    return Observed(
        effect=np.concatenate([part.effect for part in parts]),
        stat=np.concatenate([part.stat for part in parts]),
        u=np.concatenate([part.u for part in parts]),
        cohen_d=np.concatenate([part.cohen_d for part in parts]),
        excluded=np.concatenate([part.excluded for part in parts]),
    )


def _combine(projections: FloatArray) -> FloatArray:
    return projections[0] if len(projections) == 1 else np.asarray((projections**2).sum(axis=0))


def _statistic(u: FloatArray, error: FloatArray, partition: Partition) -> FloatArray:
    if partition.rank == 1:
        return np.asarray(u * np.sqrt(partition.dof) / error)
    return np.asarray((u / partition.rank) / (error**2 / partition.dof))


def statistic_of_u(u: FloatArray, *, rank: int, dof: int) -> FloatArray:
    """Return t (rank 1) or F (higher rank) of a permuted u."""
    with np.errstate(divide="ignore"):
        if rank == 1:
            return np.asarray(u * np.sqrt(dof) / np.sqrt((1 - u) * (1 + u)))
        return np.asarray((u / rank) / ((1 - u) / dof))


def t_to_z(t: FloatArray, dof: npt.ArrayLike) -> FloatArray:
    """Return the normal deviate with the same upper tail as Student's t.

    Where the tail is below the smallest float64, Wallace's approximation is used (relative error below 1e-4 there).

    References
    ----------
    Wallace 1959, Bounds on normal approximations to Student's and the chi-square distributions,
    doi:10.1214/aoms/1177706094
    """
    nu = np.asarray(dof, dtype=np.float64)
    size = np.abs(t)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        tail = special.stdtr(nu, -size)
        far = np.sqrt(nu * np.log1p(size**2 / nu)) * (8 * nu + 1) / (8 * nu + 3)
        z = np.where(tail > 1e-300, -special.ndtri(tail), far)
    return np.asarray(np.sign(t) * z)


def f_to_z(f: FloatArray, rank: int, dof: npt.ArrayLike) -> FloatArray:
    """Return the normal deviate with the same upper tail as F; negative below the median."""
    nu = np.asarray(dof, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        upper = special.fdtrc(rank, nu, f)
        lower = special.fdtr(rank, nu, f)
        return np.asarray(np.where(upper < 0.5, -special.ndtri(upper), special.ndtri(lower)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How a regression method turns a relabelling into the rows of the product.

    The columns of ``vectors (n_obs, k)`` are relabelled: r of the tested part first, then nuisance vectors whose
    squared products are taken from 1. ``removed (n_obs, m)`` is regressed out of the data first. With ``cleaned
    (n_obs, q)``, this space is taken out of the relabelled vectors again and they are made orthonormal, so that
    nothing is taken from 1.
    """

    vectors: FloatArray
    rank: int
    removed: FloatArray
    cleaned: FloatArray | None = None

    @property
    def n_row(self) -> int:
        """Rows of the product for one relabelling."""
        return int(self.vectors.shape[1])

    def build(self, part: Relabelling) -> FloatArray:
        """Return the rows ``(k, n, n_obs)`` of n relabellings."""
        rows = part.apply(self.vectors)
        return rows if self.cleaned is None else _whiten(rows, self.cleaned)


def plan_rows(partition: Partition, shuffling: Shuffling, regression: Regression) -> Rows:
    """Return the rows that carry out a regression method.

    * ``freedman-lane`` permutes the residuals of the nuisance model and refits (Freedman and Lane 1983).
    * ``dekker`` and ``draper-stoneman`` permute the tested part, with the nuisance regressed out of it again. They
      differ only in whether the tested part is made orthogonal to the nuisance first; in the partition used here it
      already is.
    * ``ter-braak`` permutes the residuals of the full model.
    * ``manly`` permutes the data.

    References
    ----------
    Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060, table 2.
    """
    if regression in ("dekker", "draper-stoneman"):
        return Rows(
            vectors=partition.tested,
            rank=partition.rank,
            removed=partition.nuisance,
            cleaned=partition.nuisance,
        )
    fixed, moved = _split_invariant(partition.nuisance, shuffling)
    removed = {
        "freedman-lane": partition.nuisance,
        "ter-braak": np.column_stack([partition.tested, partition.nuisance]),
        "manly": fixed,
    }[regression]
    return Rows(vectors=np.column_stack([partition.tested, moved]), rank=partition.rank, removed=removed)


def _split_invariant(nuisance: FloatArray, shuffling: Shuffling) -> tuple[FloatArray, FloatArray]:
    """Split the nuisance space into what no relabelling changes and the rest.

    A vector that is constant over each set of exchanged observations (the intercept; with exchange within blocks every
    block's own mean) is orthogonal to ``P'e`` for every P: its row would always be zero.
    """
    none = nuisance[:, :0]
    if nuisance.shape[1] == 0 or shuffling.signs is not None:
        return none, nuisance
    sets = exchanged_sets(shuffling.permutations)
    indicator = np.eye(sets.max() + 1)[sets]
    indicator /= np.linalg.norm(indicator, axis=0)
    rotation, cosines, _ = np.linalg.svd(nuisance.T @ indicator, full_matrices=True)
    n_fixed = int((cosines > 1 - 1e-9).sum())
    rotated = nuisance @ rotation
    return rotated[:, :n_fixed], rotated[:, n_fixed:]


def _whiten(rows: FloatArray, nuisance: FloatArray) -> FloatArray:
    moved = np.moveaxis(rows, 0, 1)  # (n, r, n_obs)
    moved = moved - (moved @ nuisance) @ nuisance.T
    if moved.shape[1] == 1:
        moved = moved / np.linalg.norm(moved, axis=-1, keepdims=True)
    else:
        lower = np.linalg.cholesky(moved @ np.swapaxes(moved, -1, -2))
        moved = np.linalg.solve(lower, moved)
    return np.moveaxis(moved, 1, 0)


def plan_permutation_block(n_row: int) -> int:
    """Return how many relabellings are computed together: the canonical grid along permutations."""
    return max(4, min(64, PRODUCT_ROWS // n_row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a range of relabellings found for a range of features.

    ``highest`` and ``lowest (n_perm,)``: extremes of u over the features; ``n_above``, ``n_below``, ``n_beyond
    (n_feature,)``: how many relabellings had u >= observed, u <= observed, |u| >= |observed|.
    """

    highest: FloatArray
    lowest: FloatArray
    n_above: CountArray
    n_below: CountArray
    n_beyond: CountArray


def tally(values: Array, partition: Partition, rows: Rows, part: Relabelling, dtype: str) -> Tally:
    """Compare some relabellings with the observed statistic.

    Parameters
    ----------
    values
        ``(n_obs, n_feature)``; the first feature lies on the canonical grid (a multiple of `FEATURE_BLOCK`).
    partition, rows
        The contrast, and what is relabelled.
    part
        Rows of the table from 1 plus a multiple of `plan_permutation_block` on. Row 0, the identity, is the observed
        data and is not computed again.
    dtype
        ``"float64"`` or ``"float32"``: precision of the product. The observed statistic is always float64.

    Notes
    -----
    The bits of the result do not depend on how features and relabellings are cut into calls: each product has the same
    operands whichever call makes it. Call it with BLAS on one thread.
    """
    n_perm = len(part.permutations)
    n_block = plan_permutation_block(rows.n_row)
    operands = []
    for first in range(0, n_perm, n_block):
        here = slice(first, first + n_block)
        signs = None if part.signs is None else part.signs[here]
        block = Relabelling(permutations=part.permutations[here], signs=signs)
        operands.append(np.ascontiguousarray(rows.build(block), dtype=dtype))
    out = Tally(
        highest=np.full(n_perm, -np.inf),
        lowest=np.full(n_perm, np.inf),
        n_above=np.zeros(values.shape[1], dtype=np.int64),
        n_below=np.zeros(values.shape[1], dtype=np.int64),
        n_beyond=np.zeros(values.shape[1], dtype=np.int64),
    )
    for first in range(0, values.shape[1], FEATURE_BLOCK):
        data = np.ascontiguousarray(values[:, first : first + FEATURE_BLOCK], dtype=np.float64)
        _tally_block(data, partition, rows, operands, out, first, dtype)
    return out


def _tally_block(
    block: FloatArray,
    partition: Partition,
    rows: Rows,
    operands: list[Array],
    out: Tally,
    first: int,
    dtype: str,
) -> None:
    seen = observe(block, partition)
    kept = np.flatnonzero(seen.excluded == 0)
    if kept.size == 0:
        return
    e = regress_out(np.ascontiguousarray(block[:, kept]), rows.removed)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A feature that the full model fits perfectly has no residual for ter-braak: its null statistic is 0.
        e = np.nan_to_num(e / np.linalg.norm(e, axis=0)).astype(dtype)
    above, below, beyond = (
        bound.astype(dtype) for bound in bounds(seen.u[kept], dof=partition.dof, tie_rtol=TIE_RTOL[dtype])
    )
    counts = np.zeros((3, kept.size), dtype=np.int32)
    ends = np.empty((2, max(len(part[0]) for part in operands)), dtype=dtype)
    scratch = np.empty(kept.size, dtype=dtype)
    i_perm = 0
    for part in operands:
        n_row, n_perm, n_obs = part.shape
        product = (part.reshape(n_row * n_perm, n_obs) @ e).reshape(n_row, n_perm, kept.size)
        reduce_block = _reduce_t if rows.rank == 1 else _reduce_f
        reduce_block(product, rows.rank, scratch, above, below, beyond, ends, counts)
        here = slice(i_perm, i_perm + n_perm)
        np.maximum(out.highest[here], ends[0, :n_perm], out=out.highest[here])
        np.minimum(out.lowest[here], ends[1, :n_perm], out=out.lowest[here])
        i_perm += n_perm
    out.n_above[first + kept] += counts[0]
    out.n_below[first + kept] += counts[1]
    out.n_beyond[first + kept] += counts[2]


def bounds(u: FloatArray, *, dof: int, tie_rtol: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return where a permuted u counts as at least, at most or, in size, at least the observed one, ties included."""
    slack = tie_rtol * np.maximum(np.abs(u), 1 / np.sqrt(dof + 1))
    return u - slack, u + slack, np.abs(u) - slack


# Only flags that change no bit of a finite result: no reassociation, no contraction. They let LLVM vectorise max.
_FLAGS: Final = {"nnan", "ninf", "nsz"}


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _reduce_t(product, rank, u, above, below, beyond, ends, counts):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913, PLR0917, ARG001 - compiled
    n_row, n_perm, n_feature = product.shape
    for i_perm in range(n_perm):
        for j in range(n_feature):
            u[j] = 1
        for k in range(1, n_row):
            for j in range(n_feature):
                u[j] -= product[k, i_perm, j] * product[k, i_perm, j]
        for j in range(n_feature):
            # The floor keeps a relabelling that the nuisance explains fully from dividing zero by zero.
            u[j] = product[0, i_perm, j] / np.sqrt(max(u[j], u.dtype.type(1e-12)))
        highest = u[0]
        lowest = u[0]
        for j in range(n_feature):
            highest = max(highest, u[j])
            lowest = min(lowest, u[j])
        for j in range(n_feature):
            counts[0, j] += u[j] >= above[j]
            counts[1, j] += u[j] <= below[j]
            counts[2, j] += abs(u[j]) >= beyond[j]
        ends[0, i_perm] = highest
        ends[1, i_perm] = lowest


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _reduce_f(product, rank, v, above, below, beyond, ends, counts):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913, PLR0917, ARG001 - compiled
    n_row, n_perm, n_feature = product.shape
    left = np.empty_like(v)
    for i_perm in range(n_perm):
        for j in range(n_feature):
            v[j] = 0
            left[j] = 1
        for k in range(rank):
            for j in range(n_feature):
                v[j] += product[k, i_perm, j] * product[k, i_perm, j]
        for k in range(rank, n_row):
            for j in range(n_feature):
                left[j] -= product[k, i_perm, j] * product[k, i_perm, j]
        for j in range(n_feature):
            v[j] /= max(left[j], v.dtype.type(1e-12))
        highest = v[0]
        for j in range(n_feature):
            highest = max(highest, v[j])
        for j in range(n_feature):
            counts[0, j] += v[j] >= above[j]
        ends[0, i_perm] = highest
        ends[1, i_perm] = 0
