"""t and F with one more regressor, a different one for every feature, that is nuisance or tested; Freedman-Lane.

Data and covariates travel as one matrix ``(2 n_obs, n_feature)``. Let Qx and Qz be orthonormal bases of what a contrast
tests of the common design and of the rest of it, and w what is left of the covariate of a feature, scaled to norm 1. In
the coordinates of ``[Qx w]`` the contrast is the columns

    [A; s],   A = Qx' M (M'M)^-1 C',   s = (d - (Qx'z)'A) / rho

with C its weights in the common design M, d those of the covariate z, and rho the norm of z without M. The tested part
of a feature is their span, x its unit vector where there is one column; the direction n of ``[Qx w]`` that they leave,
if there is one, is nuisance. With e the data cleaned of Qz and n, a relabelling P has

    q = [Qx w]' P'e,   a = Qz' P'e,   left = 1 - |a|^2 - (n'q)^2
    u = x'q / sqrt(left),   v = (|q|^2 - (n'q)^2) / left

so only w'P'e needs a pass of its own over the data: everything else is the product of the common model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

from kconn.errors import DesignError
from kconn.kernels.glm import (
    CONSTANT_RTOL,
    RANK_RTOL,
    ComparedOnU,
    Limits,
    Observed,
    f_to_z,
    regress_out,
    split_design,
    split_invariant,
    statistic_of_error,
    t_to_z,
)
from kconn.kernels.permutation import Relabelling, Shuffling

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]

#: A covariate of which the common design leaves less than this (its square, beside that of the nuisance alone) makes
#: the contrast inestimable.
ESTIMABLE: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class CovariatePartition:
    """A design with one more regressor per feature, seen from one contrast.

    ``tested (n_obs, k)`` and ``nuisance (n_obs, q)`` are orthonormal bases of the common design: of what the contrast
    tests of it, and of the rest. ``inside (k, r)`` is the contrast in the first of them, ``weight (r,)`` what it gives
    the covariate; where k is r - 1, the contrast tests the covariate whole, and ``inside`` is of no account.
    """

    tested: FloatArray
    nuisance: FloatArray
    inside: FloatArray
    weight: FloatArray
    dof: int

    @property
    def rank(self) -> int:
        """Rank of the contrast."""
        return int(self.weight.size)

    @property
    def has_free_direction(self) -> bool:
        """Whether something of the tested columns and the covariate is nuisance."""
        return bool(self.tested.shape[1] == self.rank)


def split_with_covariate(design: FloatArray, contrast: FloatArray) -> CovariatePartition:
    """Split a design of full column rank, and one more regressor per feature, by a contrast.

    Parameters
    ----------
    design
        ``(n_obs, n_column)``, common to all features.
    contrast
        ``(n_column + 1,)`` for a t, ``(r, n_column + 1)`` for an F; the last weight is that of the covariate.

    Raises
    ------
    DesignError
        Code ``E-CONTRAST``: wrong length, not finite, zero or dependent rows.
    """
    n_obs, n_column = design.shape
    rows = np.atleast_2d(contrast)
    if rows.ndim != 2 or rows.shape[1] != n_column + 1 or not np.isfinite(rows).all():
        raise DesignError(
            "E-CONTRAST",
            f"the contrast has shape {np.shape(contrast)} and {int((~np.isfinite(contrast)).sum())} not finite weights",
            rule=f"one finite weight per column of the design and one for the covariate ({n_column} + 1)",
        )
    common, weight, dof = rows[:, :-1], rows[:, -1], n_obs - n_column - 1
    norms = np.linalg.norm(design, axis=0)
    left, values, _ = np.linalg.svd(common / norms)
    rank = int((values > RANK_RTOL * values.max(initial=0)).sum())
    if rank == len(rows):
        split = split_design(design, common)
        inside = split.tested.T @ split.weights.T
        return CovariatePartition(tested=split.tested, nuisance=split.nuisance, inside=inside, weight=weight, dof=dof)
    # Of rows that depend on each other in the common design, one may remain that weighs the covariate alone.
    weighs = bool((np.abs(left[:, rank:].T @ weight) > RANK_RTOL * np.abs(weight).max()).any())
    if rank + weighs < len(rows):
        raise DesignError(
            "E-CONTRAST",
            f"the contrast has {len(rows)} row(s) of rank {rank + weighs}",
            rule="the rows of a contrast are not zero and linearly independent",
            fix="drop rows that follow from others",
        )
    tested, nuisance = np.empty((n_obs, 0)), np.linalg.qr(design / norms)[0]
    if rank:
        split = split_design(design, left[:, :rank].T @ common)
        tested, nuisance = split.tested, split.nuisance
    return CovariatePartition(
        tested=tested, nuisance=nuisance, inside=np.zeros((rank, len(rows))), weight=weight, dof=dof
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cleaned:
    """Data and covariates of some features, and the contrast as each of them has it.

    ``e`` and ``w (n_obs, n_feature)`` have norm 1, ``norm (n_feature,)`` is that of e before; ``free`` and ``x
    (k + 1, n_feature)`` are n and x, without rows where there is none, ``scale`` the standard error of the effect at
    unit residual standard deviation. ``estimable`` tells where the covariate is more than a sum of columns.
    """

    e: FloatArray
    w: FloatArray
    norm: FloatArray
    free: FloatArray
    x: FloatArray
    scale: FloatArray
    estimable: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCovariates(ComparedOnU):
    """The t or F of a contrast of a design with one more regressor per feature.

    ``vectors (n_obs, m)``: the tested part of the common design, then its nuisance that relabellings change.
    """

    partition: CovariatePartition
    vectors: FloatArray

    @property
    def n_row(self) -> int:
        """Rows of one relabelling: those of the product, positions and signs."""
        return int(self.vectors.shape[1]) + 2

    def observe(self, values: Array) -> Observed:
        """Fit ``(2 n_obs, n_feature)`` as observed."""
        both = np.ascontiguousarray(values, dtype=np.float64)
        n_obs = len(self.vectors)
        excluded = np.zeros(both.shape[1], dtype=np.int8)
        excluded[~np.isfinite(both).all(axis=0)] = 1
        both = np.where(excluded == 1, 0.0, both)
        found = self._clean(both)
        flat = found.norm <= CONSTANT_RTOL * np.linalg.norm(both[:n_obs], axis=0)
        excluded[(excluded == 0) & (flat | ~found.estimable)] = 2

        tested, rank, dof = self.partition.tested, self.partition.rank, self.partition.dof
        missing = np.where(excluded == 0, 0.0, np.nan)
        nothing = np.full(missing.shape, np.nan)
        along = np.concatenate([tested.T @ found.e, (found.w * found.e).sum(axis=0)[None]])
        error = np.linalg.norm(found.e - tested @ along[:-1] - found.w * along[-1], axis=0)
        u = (found.x * along).sum(axis=0) if rank == 1 else (along**2).sum(axis=0)
        effect, span = nothing, nothing
        with np.errstate(divide="ignore", invalid="ignore"):
            stat = statistic_of_error(u, error, rank=rank, dof=dof)
            if rank == 1:
                regressor = tested @ found.x[:-1] + found.w * found.x[-1]
                effect = found.scale * u * found.norm
                span = (np.maximum(regressor.max(axis=0), 0) - np.minimum(regressor.min(axis=0), 0)) / found.scale
        return Observed(
            effect=missing + effect,
            stat=missing + stat,
            dof=missing + dof,
            zstat=missing + (t_to_z(stat, dof) if rank == 1 else f_to_z(stat, rank, dof)),
            compared=missing + u,
            cohen_d=missing + (stat * found.scale if rank == 1 else nothing),
            span=missing + span,
            partial_r=missing + (u if rank == 1 else np.sqrt(u)),
            excluded=excluded,
        )

    def prepare(self, data: FloatArray) -> FloatArray:
        """Return e, w, n and x, one above the other, ``(2 n_obs + ..., n_feature)``."""
        found = self._clean(data)
        return np.concatenate([found.e, found.w, found.free, found.x])

    def build(self, part: Relabelling) -> FloatArray:
        """Return the rows of the product, then positions, then signs: ``(n_row, n, n_obs)``."""
        signs = np.ones(part.permutations.shape) if part.signs is None else part.signs.astype(np.float64)
        return np.concatenate([part.apply(self.vectors), part.permutations[None].astype(np.float64), signs[None]])

    def compare(self, rows: Array, e: Array) -> Array:
        """Return u or v ``(n, n_feature)`` of n relabellings."""
        n_row, n_perm, n_obs = rows.shape
        n_along = self.partition.tested.shape[1] + 1
        n_free = n_along if self.partition.has_free_direction else 0
        data, w, free, x = np.split(e, [n_obs, 2 * n_obs, 2 * n_obs + n_free])
        product = (rows[:-2].reshape(-1, n_obs) @ data).reshape(n_row - 2, n_perm, e.shape[1])
        out = np.empty((n_perm, e.shape[1]), dtype=e.dtype)
        _compare(product, n_along - 1, rows[-2].astype(np.int64), rows[-1], data, w, free, x, out)
        return out

    def tally(self, rows: Array, e: Array, limits: Limits, counts: npt.NDArray[np.int32]) -> tuple[Array, Array]:
        """Add to ``counts (3, n_feature)`` and return the highest and lowest u or v of each relabelling."""
        u = self.compare(rows, e)
        counts[0] += (u >= limits.above).sum(axis=0, dtype=np.int32)
        counts[1] += (u <= limits.below).sum(axis=0, dtype=np.int32)
        counts[2] += (np.abs(u) >= limits.beyond).sum(axis=0, dtype=np.int32)
        return u.max(axis=1), u.min(axis=1)

    def _clean(self, both: FloatArray) -> _Cleaned:
        split, n_obs = self.partition, len(self.vectors)
        data, covariate = np.ascontiguousarray(both[:n_obs]), np.ascontiguousarray(both[n_obs:])
        z = regress_out(covariate, split.nuisance)
        beside = np.linalg.norm(z, axis=0)
        w = regress_out(z, split.tested)
        rho = np.linalg.norm(w, axis=0)
        estimable = (beside > CONSTANT_RTOL * np.linalg.norm(covariate, axis=0)) & (rho**2 > ESTIMABLE * beside**2)
        # One that is not estimable is left out later, and computed with whatever is finite until then.
        rho = np.where(estimable, rho, 1.0)
        w = w / rho

        slope = (split.weight[:, None] - split.inside.T @ (split.tested.T @ z)) / rho
        free, x, scale = np.empty((0, rho.size)), np.empty((0, rho.size)), np.ones(rho.size)
        if split.rank == 1:
            column = np.concatenate([np.repeat(split.inside, rho.size, axis=1), slope])
            scale = np.linalg.norm(column, axis=0)
            x = column / scale
        e = regress_out(data, split.nuisance)
        if split.has_free_direction:
            normal = np.concatenate([-np.linalg.solve(split.inside.T, slope), np.ones((1, rho.size))])
            free = normal / np.linalg.norm(normal, axis=0)
            direction = split.tested @ free[:-1] + w * free[-1]
            for _ in range(2):
                e = e - direction * (direction * e).sum(axis=0)
        norm = np.linalg.norm(e, axis=0)
        e = e / np.where(norm > 0, norm, 1.0)
        return _Cleaned(e=e, w=w, norm=norm, free=free, x=x, scale=scale, estimable=estimable)


def plan_feature_covariates(partition: CovariatePartition, shuffling: Shuffling) -> FeatureCovariates:
    """Return the engine of a contrast of a design with one more regressor per feature."""
    _, moved = split_invariant(partition.nuisance, shuffling)
    return FeatureCovariates(partition=partition, vectors=np.column_stack([partition.tested, moved]))


@njit(cache=True, nogil=True)
def _project(direction, product, i_perm, along, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    n_tested = direction.shape[0] - 1
    for j in range(out.size):
        out[j] = direction[n_tested, j] * along[j]
    for k in range(n_tested):
        for j in range(out.size):
            out[j] += direction[k, j] * product[k, i_perm, j]


@njit(cache=True, nogil=True)
def _sum_squares(product, i_perm, first, last, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    for k in range(first, last):
        for j in range(out.size):
            out[j] += product[k, i_perm, j] * product[k, i_perm, j]


@njit(cache=True, nogil=True)
def _compare(product, n_tested, position, sign, e, w, free, x, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913, PLR0917 - compiled
    n_row, n_perm, n_feature = product.shape
    along, off, lost, top = np.zeros((4, n_feature), dtype=out.dtype)
    for p in range(n_perm):
        along[:] = 0
        for i in range(e.shape[0]):
            for j in range(n_feature):
                along[j] += sign[p, i] * w[position[p, i], j] * e[i, j]
        if free.shape[0] > 0:
            _project(free, product, p, along, off)
        lost[:] = off * off
        _sum_squares(product, p, n_tested, n_row, lost)
        lost[:] = np.maximum(1 - lost, out.dtype.type(1e-12))
        if x.shape[0] > 0:
            _project(x, product, p, along, top)
            out[p] = top / np.sqrt(lost)
        else:
            top[:] = along * along - off * off
            _sum_squares(product, p, 0, n_tested, top)
            out[p] = top / lost
