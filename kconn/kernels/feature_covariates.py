"""t and F with one more nuisance regressor, a different one for every feature; Freedman-Lane.

Data and covariates travel as one matrix ``(2 n_obs, n_feature)``. With w the covariate of a feature, cleaned of the
common nuisance and of norm 1, g = Qx'w, and e the data cleaned of both, a relabelling P has

    c = w' P'e,   b = (Qx - w g')' P'e = Qx'P'e - c g,   a = Qz' P'e
    v = b' (I - g g')^-1 b / (1 - |a|^2 - c^2),   u = b / sqrt((1 - g^2)(1 - |a|^2 - c^2))

so only c needs a pass of its own over the data: everything else is the product of the common model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from kconn.kernels.glm import (
    CONSTANT_RTOL,
    Limits,
    Observed,
    Partition,
    f_to_z,
    limit,
    regress_out,
    split_invariant,
    statistic_of_u,
    t_to_z,
    u_of_statistic,
    z_to_f,
    z_to_t,
)
from kconn.kernels.permutation import Relabelling, Shuffling

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]

#: A covariate that leaves less of the tested part than this (1 - |g|^2) makes the contrast inestimable.
ESTIMABLE: float = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCovariates:
    """The t or F of a contrast with a nuisance regressor per feature.

    ``vectors (n_obs, k)``: the tested part, then the common nuisance that relabellings change.
    """

    partition: Partition
    vectors: FloatArray

    @property
    def stat_kind(self) -> str:
        """``t`` or ``F``."""
        return "t" if self.partition.rank == 1 else "F"

    @property
    def dof(self) -> int:
        """Residual degrees of freedom."""
        return self.partition.dof - 1

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
        data, covariate = both[:n_obs], both[n_obs:]
        e, w, norm, rest = self._clean(data, covariate)
        tested = self.partition.tested
        g = tested.T @ w
        left = 1 - (g**2).sum(axis=0)
        flat = (norm <= CONSTANT_RTOL * np.linalg.norm(data, axis=0)) | (left < ESTIMABLE)
        flat |= rest <= CONSTANT_RTOL * np.linalg.norm(covariate, axis=0)
        excluded[(excluded == 0) & flat] = 2

        rank, dof = self.partition.rank, self.dof
        missing = np.where(excluded == 0, 0.0, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            b = tested.T @ e
            u = b[0] / np.sqrt(left) if rank == 1 else (b**2).sum(axis=0) + (g * b).sum(axis=0) ** 2 / left
            stat = statistic_of_u(u, rank=rank, dof=dof)
            scale = self.partition.scale / np.sqrt(left)
            effect = scale * u * norm if rank == 1 else np.full(norm.shape, np.nan)
        return Observed(
            effect=missing + effect,
            stat=missing + stat,
            dof=missing + dof,
            zstat=missing + (t_to_z(stat, dof) if rank == 1 else f_to_z(stat, rank, dof)),
            compared=missing + u,
            cohen_d=missing + (stat * scale if rank == 1 else np.nan),
            partial_r=missing + (u if rank == 1 else np.sqrt(u)),
            excluded=excluded,
        )

    def prepare(self, data: FloatArray) -> FloatArray:
        """Return e above w, each of norm 1: ``(2 n_obs, n_feature)``."""
        n_obs = len(self.vectors)
        e, w, _, _ = self._clean(data[:n_obs], data[n_obs:])
        return np.concatenate([e, w])

    def build(self, part: Relabelling) -> FloatArray:
        """Return the rows of the product, then positions, then signs: ``(n_row, n, n_obs)``."""
        signs = np.ones(part.permutations.shape) if part.signs is None else part.signs.astype(np.float64)
        return np.concatenate([part.apply(self.vectors), part.permutations[None].astype(np.float64), signs[None]])

    def compare(self, rows: Array, e: Array) -> Array:
        """Return u or v ``(n, n_feature)`` of n relabellings."""
        n_row, n_perm, n_obs = rows.shape
        data, w = e[:n_obs], e[n_obs:]
        product = (rows[:-2].reshape(-1, n_obs) @ data).reshape(n_row - 2, n_perm, -1)
        out = np.empty((n_perm, e.shape[1]), dtype=e.dtype)
        tested = (self.partition.tested.T @ w).astype(e.dtype)
        _compare(product, tested, rows[-2].astype(np.int64), rows[-1], data, w, out)
        return out

    def tally(self, rows: Array, e: Array, limits: Limits, counts: npt.NDArray[np.int32]) -> tuple[Array, Array]:
        """Add to ``counts (3, n_feature)`` and return the highest and lowest u or v of each relabelling."""
        u = self.compare(rows, e)
        counts[0] += (u >= limits.above).sum(axis=0, dtype=np.int32)
        counts[1] += (u <= limits.below).sum(axis=0, dtype=np.int32)
        counts[2] += (np.abs(u) >= limits.beyond).sum(axis=0, dtype=np.int32)
        return u.max(axis=1), u.min(axis=1)

    def limits(self, compared: FloatArray, tie_rtol: float) -> Limits:
        """Return bounds; the unit is the standard deviation of u under the null."""
        return limit(compared, unit=1 / np.sqrt(self.dof + 1), tie_rtol=tie_rtol)

    def to_stat(self, compared: FloatArray) -> FloatArray:
        """Return t or F of u or v."""
        return statistic_of_u(compared, rank=self.partition.rank, dof=self.dof)

    def to_z(self, compared: FloatArray) -> FloatArray:
        """Return the normal deviate with the same upper tail as t or F."""
        stat = self.to_stat(compared)
        return t_to_z(stat, self.dof) if self.partition.rank == 1 else f_to_z(stat, self.partition.rank, self.dof)

    def from_z(self, z: float) -> float:
        """Return u or v at a normal deviate."""
        rank, at = self.partition.rank, np.array(z)
        return self.from_stat(float(z_to_t(at, self.dof) if rank == 1 else z_to_f(at, rank, self.dof)))

    def from_stat(self, stat: float) -> float:
        """Return u or v at a t or F."""
        return u_of_statistic(stat, rank=self.partition.rank, dof=self.dof)

    def _clean(self, data: FloatArray, covariate: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return e and w of norm 1, and their norms before."""
        nuisance = self.partition.nuisance
        w = regress_out(np.ascontiguousarray(covariate), nuisance)
        rest = np.linalg.norm(w, axis=0)
        w = w / np.where(rest > 0, rest, 1.0)
        e = regress_out(np.ascontiguousarray(data), nuisance)
        for _ in range(2):
            e = e - w * (w * e).sum(axis=0)
        norm = np.linalg.norm(e, axis=0)
        return e / np.where(norm > 0, norm, 1.0), w, norm, rest


def plan_feature_covariates(partition: Partition, shuffling: Shuffling) -> FeatureCovariates:
    """Return the engine of a contrast with a nuisance regressor per feature."""
    _, moved = split_invariant(partition.nuisance, shuffling)
    return FeatureCovariates(partition=partition, vectors=np.column_stack([partition.tested, moved]))


@njit(cache=True, nogil=True)
def _compare(product, g, position, sign, e, w, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    n_row, n_perm, n_feature = product.shape
    rank, n_obs = g.shape[0], e.shape[0]
    c = np.empty_like(out[0])
    left = np.empty_like(out[0])
    for p in range(n_perm):
        c[:] = 0
        for i in range(n_obs):
            for j in range(n_feature):
                c[j] += sign[p, i] * w[position[p, i], j] * e[i, j]
        for j in range(n_feature):
            left[j] = 1 - c[j] * c[j]
        for k in range(rank, n_row):
            for j in range(n_feature):
                left[j] -= product[k, p, j] * product[k, p, j]
        for j in range(n_feature):
            spare = out.dtype.type(1)
            cross = out.dtype.type(0)
            total = out.dtype.type(0)
            for k in range(rank):
                b = product[k, p, j] - c[j] * g[k, j]
                spare -= g[k, j] * g[k, j]
                cross += g[k, j] * b
                total += b * b
            room = max(left[j], out.dtype.type(1e-12))
            if rank == 1:
                out[p, j] = (product[0, p, j] - c[j] * g[0, j]) / np.sqrt(spare * room)
            else:
                out[p, j] = (total + cross * cross / spare) / room
