"""The general linear model and its permutation: one skinny matrix product per block of relabellings.

A contrast splits the design into an orthonormal basis of what is tested, ``Qx (n_obs, r)``, and of the nuisance,
``Qz (n_obs, q)``. With ``e = Rz y`` scaled to norm 1 and a relabelling P, Freedman-Lane's refit is exactly

    b = Qx' P'e,   a = Qz' P'e,   u = b / sqrt(1 - |a|^2)   (r = 1),   v = |b|^2 / (1 - |a|^2)   (any r)

with ``t = u sqrt(dof) / sqrt(1 - u^2)`` and ``F = (v / r) / ((1 - v) / dof)``. Both grow with u and v, so maxima and
counts are taken there. P moves the rows of ``[Qx Qz]``, never the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from threading import local
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import linalg, special

from kconn.errors import DesignError
from kconn.kernels.permutation import Relabelling, Shuffling, exchanged_sets

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]
Regression = Literal["freedman-lane", "dekker", "draper-stoneman", "still-white", "ter-braak", "manly"]

#: A singular value this far below the largest is zero.
RANK_RTOL: Final = 1e-10
#: A residual this small against its data is rounding: the feature does not vary beyond the nuisance.
CONSTANT_RTOL: Final = 1e-11


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


def drop_dependent(design: FloatArray, contrast: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return a design and contrast without nuisance columns that follow from other nuisance columns.

    The model stays the same: a nuisance counts by the space it spans. Columns that the contrast weights are kept, and
    come first.

    Parameters
    ----------
    design
        ``(n_obs, n_column)``, for example of some observations of a larger study.
    contrast
        ``(n_column,)`` or ``(r, n_column)``.
    """
    rows = np.atleast_2d(contrast)
    tested = rows.any(axis=0)
    nuisance = design[:, ~tested]
    norms = np.linalg.norm(nuisance, axis=0)
    nuisance = nuisance[:, norms > 0] / norms[norms > 0]
    if nuisance.shape[1]:
        _, triangle, pivots = linalg.qr(nuisance, mode="economic", pivoting=True)
        diagonal = np.abs(np.diag(triangle))
        nuisance = nuisance[:, np.sort(pivots[: int((diagonal > RANK_RTOL * max(1.0, diagonal[0])).sum())])]
    weights = np.concatenate([rows[:, tested], np.zeros((len(rows), nuisance.shape[1]))], axis=1)
    return np.column_stack([design[:, tested], nuisance]), weights


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
    """What the data say before any relabelling, one number per feature, NaN where ``excluded``.

    ``effect``, ``cohen_d`` and ``span``, the range of the tested regressor with 0 included, are NaN for F contrasts.
    ``compared`` is what relabellings are compared on. ``excluded`` is 0 for a tested feature, 1 for one with missing
    values, 2 for one that does not vary beyond the nuisance.
    """

    effect: FloatArray
    stat: FloatArray
    dof: FloatArray
    zstat: FloatArray
    compared: FloatArray
    cohen_d: FloatArray
    span: FloatArray
    partial_r: FloatArray
    excluded: npt.NDArray[np.int8]


def observe(values: Array, partition: Partition) -> Observed:
    """Fit one block of features ``(n_obs, n_feature)`` in float64, one variance for all observations."""
    data = np.ascontiguousarray(values, dtype=np.float64)
    excluded = np.zeros(data.shape[1], dtype=np.int8)
    excluded[~np.isfinite(data).all(axis=0)] = 1
    data = np.where(excluded == 1, 0.0, data)
    residual = regress_out(data, partition.nuisance)
    norm = np.linalg.norm(residual, axis=0)
    excluded[(excluded == 0) & (norm <= CONSTANT_RTOL * np.linalg.norm(data, axis=0))] = 2

    rank, dof = partition.rank, partition.dof
    with np.errstate(divide="ignore", invalid="ignore"):
        u = _combine(partition.tested.T @ (residual / norm))
        # The error sum of squares comes from its own residual, not from 1 - u^2, which cancels when the fit is close.
        error = np.linalg.norm(regress_out(residual, partition.tested), axis=0) / norm
        stat = statistic_of_error(u, error, rank=rank, dof=dof)
    nothing = np.full(norm.shape, np.nan)
    missing = np.where(excluded == 0, 0.0, np.nan)
    return Observed(
        effect=missing + (partition.weights[0] @ data if rank == 1 else nothing),
        stat=missing + stat,
        dof=missing + dof,
        zstat=missing + (t_to_z(stat, dof) if rank == 1 else f_to_z(stat, rank, dof)),
        compared=missing + u,
        cohen_d=missing + (stat * partition.scale if rank == 1 else nothing),
        span=missing + (np.ptp(np.append(partition.tested, 0.0)) / partition.scale if rank == 1 else nothing),
        partial_r=missing + (u if rank == 1 else np.sqrt(u)),
        excluded=excluded,
    )


def join_observed(parts: list[Observed]) -> Observed:
    """Return blocks of features as one."""
    return Observed(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Observed)}
    )


def scatter_observed(parts: Sequence[tuple[npt.NDArray[np.intp], Observed]], n_feature: int) -> Observed:
    """Return fits of some features each, at their positions among all; the others are excluded as missing."""
    out = {field.name: np.full(n_feature, np.nan) for field in fields(Observed) if field.name != "excluded"}
    excluded = np.ones(n_feature, dtype=np.int8)
    for positions, part in parts:
        excluded[positions] = part.excluded
        for name, values in out.items():
            values[positions] = getattr(part, name)
    return Observed(**out, excluded=excluded)


def _combine(projections: FloatArray) -> FloatArray:
    return projections[0] if len(projections) == 1 else np.asarray((projections**2).sum(axis=0))


def statistic_of_error(u: FloatArray, error: FloatArray, *, rank: int, dof: int) -> FloatArray:
    """Return t (rank 1) or F (higher rank) of u or v and the norm of the residual beside it."""
    if rank == 1:
        return np.asarray(u * np.sqrt(dof) / error)
    return np.asarray((u / rank) / (error**2 / dof))


def statistic_of_u(u: FloatArray, *, rank: int, dof: int) -> FloatArray:
    """Return t (rank 1) or F (higher rank) of a permuted u."""
    with np.errstate(divide="ignore"):
        if rank == 1:
            return np.asarray(u * np.sqrt(dof) / np.sqrt((1 - u) * (1 + u)))
        return np.asarray((u / rank) / ((1 - u) / dof))


def u_of_statistic(stat: float, *, rank: int, dof: int) -> float:
    """Return u (rank 1) or v of a t or F."""
    if rank == 1:
        return stat / float(np.sqrt(dof + stat**2))
    return stat * rank / (dof + stat * rank)


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


def z_to_t(z: FloatArray, dof: npt.ArrayLike) -> FloatArray:
    """Return Student's t with the same upper tail as the normal deviate."""
    return np.asarray(-np.sign(z) * special.stdtrit(np.asarray(dof, dtype=np.float64), special.ndtr(-np.abs(z))))


def z_to_f(z: FloatArray, rank: int, dof: npt.ArrayLike) -> FloatArray:
    """Return F with the same upper tail as the normal deviate."""
    return np.asarray(special.fdtri(rank, np.asarray(dof, dtype=np.float64), special.ndtr(z)))


def fold_z(z: FloatArray) -> FloatArray:
    """Return the normal deviate whose upper tail is twice that of ``z``: the size of a two-sided statistic."""
    # A limit near zero may lie below it by the width of a tie.
    return np.asarray(-special.ndtri_exp(np.minimum(special.log_ndtr(-np.maximum(z, 0)) + np.log(2), 0)))


class Engine(Protocol):
    """What carries out a test: how the data are prepared, what is relabelled, and on which scale results compare."""

    @property
    def stat_kind(self) -> str:
        """``t``, ``F``, ``v`` or ``G``."""

    @property
    def n_row(self) -> int:
        """Rows of the product for one relabelling."""

    def observe(self, values: Array) -> Observed:
        """Fit ``(n_obs, n_feature)`` as observed."""

    def prepare(self, data: FloatArray) -> FloatArray:
        """Return what a relabelling multiplies, ``(n_obs, n_feature)``, from finite data that vary."""

    def build(self, part: Relabelling) -> FloatArray:
        """Return the rows ``(n_row, n, n_obs)`` of n relabellings."""

    def compare(self, rows: Array, e: Array) -> Array:
        """Return the compared statistic ``(n, n_feature)`` of n relabellings."""

    def tally(self, rows: Array, e: Array, limits: Limits, counts: npt.NDArray[np.int32]) -> tuple[Array, Array]:
        """Add to ``counts (3, n_feature)`` and return the highest and lowest statistic of each relabelling."""

    def limits(self, compared: FloatArray, tie_rtol: float) -> Limits:
        """Return where a relabelling counts as at least as extreme as the observed value, ties included."""

    def to_stat(self, compared: FloatArray) -> FloatArray:
        """Return the statistic that ``max_stat`` reports."""

    def to_z(self, compared: FloatArray) -> FloatArray:
        """Return the normal deviate with the same upper tail."""

    def from_z(self, z: float) -> float:
        """Return the compared statistic at a normal deviate."""

    def from_stat(self, stat: float) -> float:
        """Return the compared statistic at a value of ``to_stat``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds per feature: a value counts if ``>= above``, ``<= below`` or, in size, ``>= beyond``."""

    above: Array
    below: Array
    beyond: Array

    def cast(self, dtype: str) -> Limits:
        """Return the same bounds in another precision."""
        return Limits(above=self.above.astype(dtype), below=self.below.astype(dtype), beyond=self.beyond.astype(dtype))


def limit(compared: FloatArray, *, unit: float, tie_rtol: float) -> Limits:
    """Return bounds that lie ``tie_rtol * max(|value|, unit)`` on the near side of each value."""
    slack = tie_rtol * np.maximum(np.abs(compared), unit)
    return Limits(above=compared - slack, below=compared + slack, beyond=np.abs(compared) - slack)


class _Degrees(Protocol):
    """What t and F need to know of a design."""

    @property
    def rank(self) -> int:
        """Rank of what is tested."""

    @property
    def dof(self) -> int:
        """Degrees of freedom of the error."""


class ComparedOnU:
    """What engines have in common whose statistic is t or F, and whose relabellings are compared on u or v."""

    __slots__ = ()

    partition: _Degrees

    @property
    def stat_kind(self) -> str:
        """``t`` or ``F``."""
        return "t" if self.partition.rank == 1 else "F"

    def limits(self, compared: FloatArray, tie_rtol: float) -> Limits:
        """Return bounds; the unit is the standard deviation of u under the null."""
        return limit(compared, unit=1 / np.sqrt(self.partition.dof + 1), tie_rtol=tie_rtol)

    def to_stat(self, compared: FloatArray) -> FloatArray:
        """Return t or F of u or v."""
        return statistic_of_u(compared, rank=self.partition.rank, dof=self.partition.dof)

    def to_z(self, compared: FloatArray) -> FloatArray:
        """Return the normal deviate with the same upper tail as t or F."""
        rank, dof = self.partition.rank, self.partition.dof
        stat = self.to_stat(compared)
        return t_to_z(stat, dof) if rank == 1 else f_to_z(stat, rank, dof)

    def from_z(self, z: float) -> float:
        """Return u or v at a normal deviate."""
        rank, dof = self.partition.rank, self.partition.dof
        at = np.array(z)
        return self.from_stat(float(z_to_t(at, dof) if rank == 1 else z_to_f(at, rank, dof)))

    def from_stat(self, stat: float) -> float:
        """Return u or v at a t or F."""
        return u_of_statistic(stat, rank=self.partition.rank, dof=self.partition.dof)


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledVariance(ComparedOnU):
    """t and F: one variance for all observations. Relabellings are compared on u or v.

    The columns of ``vectors (n_obs, k)`` are relabelled: r of the tested part first, then nuisance vectors whose
    squared products are taken from 1. ``removed (n_obs, m)`` is regressed out of the data first. With ``cleaned
    (n_obs, q)``, this space is taken out of the relabelled vectors again and they are made orthonormal, so that
    nothing is taken from 1.
    """

    partition: Partition
    vectors: FloatArray
    removed: FloatArray
    cleaned: FloatArray | None = None

    @property
    def n_row(self) -> int:
        """Rows of the product for one relabelling."""
        return int(self.vectors.shape[1])

    def observe(self, values: Array) -> Observed:
        """Fit ``(n_obs, n_feature)`` as observed."""
        return observe(values, self.partition)

    def prepare(self, data: FloatArray) -> FloatArray:
        """Return residuals ``(n_obs, n_feature)`` of norm 1."""
        e = regress_out(data, self.removed)
        norm = np.linalg.norm(e, axis=0)
        # A feature that the full model fits perfectly has no residual for ter-braak: its null statistic is 0.
        return np.asarray(e / np.where(norm > 0, norm, 1.0))

    def build(self, part: Relabelling) -> FloatArray:
        """Return the rows ``(n_row, n, n_obs)`` of n relabellings."""
        rows = part.apply(self.vectors)
        return rows if self.cleaned is None else _whiten(rows, self.cleaned)

    def compare(self, rows: Array, e: Array) -> Array:
        """Return u or v ``(n, n_feature)`` of n relabellings."""
        out = np.empty((rows.shape[1], e.shape[1]), dtype=e.dtype)
        _compare(_product(rows, e), self.partition.rank, out)
        return out

    def tally(self, rows: Array, e: Array, limits: Limits, counts: npt.NDArray[np.int32]) -> tuple[Array, Array]:
        """Add to ``counts (3, n_feature)`` and return the highest and lowest u or v of each relabelling."""
        ends = np.empty((2, rows.shape[1]), dtype=e.dtype)
        scratch = np.empty(e.shape[1], dtype=e.dtype)
        product = _product(rows, e)
        _tally(product, self.partition.rank, scratch, limits.above, limits.below, limits.beyond, ends, counts)
        return ends[0], ends[1]


class _Scratch(local):
    """One buffer per thread for products, kept between calls.

    A product is larger than what malloc keeps for reuse where MALLOC_TRIM_THRESHOLD_ is set, as `distributed` does for
    its workers: fresh pages for each one took as long as the product itself.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def array(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """Return an array of whatever content that is valid until the next call."""
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        if self._bytes.size < n_bytes:
            self._bytes = np.empty(n_bytes, dtype=np.uint8)
        return np.asarray(self._bytes[:n_bytes].view(dtype).reshape(shape))


_SCRATCH: Final = _Scratch()


def _product(rows: Array, e: Array) -> Array:
    n_row, n_perm, n_obs = rows.shape
    out = _SCRATCH.array((n_row * n_perm, e.shape[1]), e.dtype)
    return np.asarray(np.matmul(rows.reshape(n_row * n_perm, n_obs), e, out=out).reshape(n_row, n_perm, e.shape[1]))


def plan_pooled(partition: Partition, shuffling: Shuffling, regression: Regression) -> PooledVariance:
    """Return what carries out a regression method.

    * ``freedman-lane`` permutes the residuals of the nuisance model and refits (Freedman and Lane 1983).
    * ``dekker`` and ``draper-stoneman`` permute the tested part, with the nuisance regressed out of it again. They
      differ only in whether the tested part is made orthogonal to the nuisance first; in the partition used here it
      already is.
    * ``still-white`` permutes the tested part and leaves the nuisance out of the refit, with the degrees of freedom of
      the full model: biased where the permuted tested part correlates with the nuisance, offered for comparison.
    * ``ter-braak`` permutes the residuals of the full model.
    * ``manly`` permutes the data.

    References
    ----------
    Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060, table 2.
    """
    if regression in ("dekker", "draper-stoneman"):
        return PooledVariance(
            partition=partition,
            vectors=partition.tested,
            removed=partition.nuisance,
            cleaned=partition.nuisance,
        )
    if regression == "still-white":
        return PooledVariance(partition=partition, vectors=partition.tested, removed=partition.nuisance)
    fixed, moved = split_invariant(partition.nuisance, shuffling)
    removed = {
        "freedman-lane": partition.nuisance,
        "ter-braak": np.column_stack([partition.tested, partition.nuisance]),
        "manly": fixed,
    }[regression]
    return PooledVariance(partition=partition, vectors=np.column_stack([partition.tested, moved]), removed=removed)


def split_invariant(nuisance: FloatArray, shuffling: Shuffling) -> tuple[FloatArray, FloatArray]:
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


# Only flags that change no bit of a finite result: no reassociation, no contraction. They let LLVM vectorise max.
_FLAGS: Final = {"nnan", "ninf", "nsz"}


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _compare_one(product, rank, i_perm, u):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    n_row, _, n_feature = product.shape
    # The floor keeps a relabelling that the nuisance explains fully from dividing zero by zero.
    floor = u.dtype.type(1e-12)
    for j in range(n_feature):
        u[j] = 1
    for k in range(rank, n_row):
        for j in range(n_feature):
            u[j] -= product[k, i_perm, j] * product[k, i_perm, j]
    if rank == 1:
        for j in range(n_feature):
            u[j] = product[0, i_perm, j] / np.sqrt(max(u[j], floor))
        return
    for j in range(n_feature):
        total = product[0, i_perm, j] * product[0, i_perm, j]
        for k in range(1, rank):
            total += product[k, i_perm, j] * product[k, i_perm, j]
        u[j] = total / max(u[j], floor)


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _compare(product, rank, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    for i_perm in range(product.shape[1]):
        _compare_one(product, rank, i_perm, out[i_perm])


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _tally(product, rank, u, above, below, beyond, ends, counts):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913, PLR0917 - compiled
    for i_perm in range(product.shape[1]):
        _compare_one(product, rank, i_perm, u)
        highest = u[0]
        lowest = u[0]
        for j in range(u.size):
            highest = max(highest, u[j])
            lowest = min(lowest, u[j])
        for j in range(u.size):
            counts[0, j] += u[j] >= above[j]
            counts[1, j] += u[j] <= below[j]
            counts[2, j] += abs(u[j]) >= beyond[j]
        ends[0, i_perm] = highest
        ends[1, i_perm] = lowest
