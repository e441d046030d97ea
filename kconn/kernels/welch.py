"""v and G: every variance group has its own variance, and relabellings are compared on z.

With the full model's orthonormal basis Q = [Qx Qz], e* = P'e, coefficients a = Q'e* and the weights

    w_g = (sum of R_ii over group g) / (sum of squared residuals of group g)

the Schur complement S of Q'WQ onto the tested part gives ``v = a_x sqrt(S)`` (one row) and ``G = a_x' S a_x / r / L``
(r rows). Its degrees of freedom differ from feature to feature and from relabelling to relabelling, so a maximum is
only meaningful on z. The group sums need one product with e and one with e squared: nothing is refitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numba import njit

from kconn.errors import DesignError
from kconn.kernels.glm import Limits, Observed, Partition, f_to_z, limit, observe, regress_out, t_to_z
from kconn.kernels.permutation import Relabelling, label_rows

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupVariances:
    """The v or G of a contrast; Freedman-Lane.

    ``member (n_obs, n_group)`` is 0 or 1; ``leverage (n_group,)`` sums 1 minus the leverage over each group. Degrees of
    freedom are divided by ``dof_divisor``.

    References
    ----------
    Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060, equations 3 to 5; Welch 1951,
    doi:10.1093/biomet/38.3-4.330
    """

    partition: Partition
    member: FloatArray
    leverage: FloatArray
    dof_divisor: float = 1.0

    @property
    def basis(self) -> FloatArray:
        """Nuisance first, tested part last, ``(n_obs, m)``: then the Schur complement is the last block of a factor."""
        return np.column_stack([self.partition.nuisance, self.partition.tested])

    @property
    def stat_kind(self) -> str:
        """``v`` or ``G``."""
        return "v" if self.partition.rank == 1 else "G"

    @property
    def n_row(self) -> int:
        """Rows of both products for one relabelling."""
        n_group = self.member.shape[1]
        return int(n_group * (self.partition.nuisance.shape[1] + self.partition.rank + 1))

    def observe(self, values: Array) -> Observed:
        """Fit ``(n_obs, n_feature)`` as observed; effect sizes are those of the pooled model."""
        pooled = observe(values, self.partition)
        kept = np.flatnonzero(pooled.excluded == 0)
        stat, dof, z = (np.full(pooled.stat.shape, np.nan) for _ in range(3))
        if kept.size:
            n_obs = len(self.member)
            identity = Relabelling(permutations=np.arange(n_obs, dtype=np.int32)[None], signs=None)
            data = np.asarray(values, dtype=np.float64)[:, kept]
            found, found_dof = self._statistic(self.build(identity), self.prepare(data))
            stat[kept], dof[kept], z[kept] = found[0], found_dof[0], self._to_z(found, found_dof)[0]
        return replace(pooled, stat=stat, dof=dof, zstat=z, compared=z)

    def prepare(self, data: FloatArray) -> FloatArray:
        """Return residuals of the nuisance model, of norm 1."""
        e = regress_out(np.ascontiguousarray(data), self.partition.nuisance)
        return np.asarray(e / np.linalg.norm(e, axis=0))

    def build(self, part: Relabelling) -> FloatArray:
        """Return, for each group, the basis inside it and then, for e squared, its members: ``(n_row, n, n_obs)``."""
        inside = (self.basis[:, None, :] * self.member[:, :, None]).reshape(len(self.member), -1)
        squares = Relabelling(permutations=part.permutations, signs=None).apply(self.member)
        return np.concatenate([part.apply(inside), squares])

    def compare(self, rows: Array, e: Array) -> Array:
        """Return z ``(n, n_feature)`` of n relabellings."""
        return self._to_z(*self._statistic(rows, e))

    def tally(self, rows: Array, e: Array, limits: Limits, counts: npt.NDArray[np.int32]) -> tuple[Array, Array]:
        """Add to ``counts (3, n_feature)`` and return the highest and lowest z of each relabelling."""
        z = self.compare(rows, e)
        counts[0] += (z >= limits.above).sum(axis=0, dtype=np.int32)
        counts[1] += (z <= limits.below).sum(axis=0, dtype=np.int32)
        counts[2] += (np.abs(z) >= limits.beyond).sum(axis=0, dtype=np.int32)
        return z.max(axis=1), z.min(axis=1)

    def limits(self, compared: FloatArray, tie_rtol: float) -> Limits:
        """Return bounds on z."""
        return limit(compared, unit=1.0, tie_rtol=tie_rtol)

    def to_stat(self, compared: FloatArray) -> FloatArray:
        """Return z: ``max_stat`` is on z, for v and G have no common scale."""
        return compared

    def to_z(self, compared: FloatArray) -> FloatArray:
        """Return z."""
        return compared

    def from_z(self, z: float) -> float:
        """Return z."""
        return z

    def from_stat(self, stat: float) -> float:
        """Return z: what ``to_stat`` gives is z."""
        return stat

    def _statistic(self, rows: Array, e: Array) -> tuple[FloatArray, FloatArray]:
        n_row, n_perm, n_obs = rows.shape
        n_group = self.member.shape[1]
        n_first = n_row - n_group
        first = (rows[:n_first].reshape(-1, n_obs) @ e).reshape(n_first, n_perm, -1)
        second = (rows[n_first:].reshape(-1, n_obs) @ (e * e)).reshape(n_group, n_perm, -1)
        basis = self.basis
        gram = np.stack([(basis * group[:, None]).T @ basis for group in self.member.T])
        stat = np.empty((n_perm, e.shape[1]))
        dof = np.empty((n_perm, e.shape[1]))
        _fit_groups(first, second, gram, self.leverage, self.member.sum(axis=0), self.partition.rank, stat, dof)
        return stat, dof / self.dof_divisor

    def _to_z(self, stat: FloatArray, dof: FloatArray) -> FloatArray:
        rank = self.partition.rank
        return t_to_z(stat, dof) if rank == 1 else f_to_z(stat, rank, dof)


def plan_welch(partition: Partition, groups: npt.NDArray[np.generic], *, palm: bool = False) -> GroupVariances:
    """Return the engine of a contrast with one variance per group.

    The degrees of freedom of v are Welch and Satterthwaite's. PALM (December 2025) divides them by 3 on its way to z,
    which changes maxima and, a little, counts; ``palm`` does the same.

    Raises
    ------
    DesignError
        Code ``E-BLOCKS`` if a group has no residual degree of freedom of its own.
    """
    labels = label_rows(np.asarray(groups, dtype=np.float64).reshape(-1, 1))
    member = np.eye(labels.max() + 1)[labels]
    full = np.column_stack([partition.tested, partition.nuisance])
    leverage = member.T @ (1 - (full**2).sum(axis=1))
    if (leverage < 1e-8).any():
        size = int(member.sum(axis=0)[np.argmin(leverage)])
        raise DesignError(
            "E-BLOCKS",
            f"a variance group of {size} observation(s) has {leverage.min():.2g} residual degrees of freedom",
            rule="every variance group leaves something to estimate its variance from",
            fix="merge variance groups or drop nuisance columns",
        )
    divisor = 3.0 if palm and partition.rank == 1 else 1.0
    return GroupVariances(partition=partition, member=member, leverage=leverage, dof_divisor=divisor)


@njit(cache=True, nogil=True)
def _fit_groups(first, second, gram, leverage, size, rank, stat, dof):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, C901, PLR0912, PLR0913, PLR0917 - compiled
    n_group, n_basis, _ = gram.shape
    n_perm, n_feature = stat.shape
    a = np.empty(n_basis)
    weight = np.empty(n_group)
    factor = np.empty((n_basis, n_basis))
    for p in range(n_perm):
        for j in range(n_feature):
            for k in range(n_basis):
                total = 0.0
                for g in range(n_group):
                    total += first[g * n_basis + k, p, j]
                a[k] = total
            for g in range(n_group):
                error = float(second[g, p, j])
                for k in range(n_basis):
                    fitted = 0.0
                    for i in range(n_basis):
                        fitted += gram[g, k, i] * a[i]
                    error += a[k] * (fitted - 2 * first[g * n_basis + k, p, j])
                weight[g] = leverage[g] / max(error, 1e-14)

            # Cholesky factor of the weighted Gram matrix; its last rows belong to the tested part.
            for k in range(n_basis):
                for i in range(k + 1):
                    total = 0.0
                    for g in range(n_group):
                        total += weight[g] * gram[g, k, i]
                    for h in range(i):
                        total -= factor[k, h] * factor[i, h]
                    factor[k, i] = np.sqrt(max(total, 1e-300)) if i == k else total / factor[i, i]

            trace = 0.0
            for g in range(n_group):
                trace += weight[g] * size[g]
            spread = 0.0
            for g in range(n_group):
                spread += (1 - weight[g] * size[g] / trace) ** 2 / leverage[g]
            spread /= rank * (rank + 2)
            dof[p, j] = 1 / (3 * spread)
            if rank == 1:
                stat[p, j] = a[n_basis - 1] * factor[n_basis - 1, n_basis - 1]
                continue
            value = 0.0
            for i in range(n_basis - rank, n_basis):
                total = 0.0
                for k in range(i, n_basis):
                    total += factor[k, i] * a[k]
                value += total**2
            stat[p, j] = value / rank / (1 + 2 * (rank - 1) * spread)
