"""Sequential tests of many features: each is compared until it has met enough relabellings as extreme as itself.

A relabelling is a draw. After h draws at least as extreme as what was observed a feature stops, at draw l, and its p is
h / l; a feature that meets g < h of them in all n draws has p = (g + 1) / (n + 1). Stopped features leave the product:
on fixed points along the draws the others are packed together, within fixed groups of features, so that the bits of a
result follow from the data and the table alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kconn.kernels.glm import Engine, Limits
from kconn.kernels.permutation import Relabelling
from kconn.kernels.tallies import FEATURE_BLOCK, TIE_RTOL, build_operands, iterate_blocks, plan_permutation_block

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]
CountArray = npt.NDArray[np.int64]

#: Features that are packed together when some of them have stopped. A task holds whole groups.
GROUP: Final = 4 * FEATURE_BLOCK
#: The others are packed again when no more than this share of a group is left.
REPACK: Final = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential:
    """Stop comparing a feature at its ``n_exceed``-th relabelling that is at least as extreme as what was observed.

    The relative standard deviation of the p of a stopped feature is about ``1 / sqrt(n_exceed)``.

    References
    ----------
    Besag and Clifford 1991, Sequential Monte Carlo p-values, doi:10.1093/biomet/78.2.301
    """

    n_exceed: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Where each feature stopped.

    ``counts (n_feature,)`` of draws at least as extreme, ``n_draw (n_feature,)`` of those compared, both 0 for a
    feature that is not tested; ``n_computed`` counts all statistics that were computed, those of features that stopped
    but were not yet left out included.
    """

    counts: CountArray
    n_draw: CountArray
    n_computed: int


def tally_sequentially(
    values: Array, engine: Engine, draws: Relabelling, compared: FloatArray, dtype: str, *, tail: str, n_exceed: int
) -> Stopped:
    """Compare features with one relabelling after the other until each has met ``n_exceed`` that are as extreme.

    Parameters
    ----------
    values
        ``(n_obs, n_feature)``; the first feature lies on the grid of `GROUP`.
    engine, compared, dtype
        As in `kconn.kernels.tallies.tally`.
    draws
        The table without row 0, the identity.
    tail
        ``"two-sided"``, ``"greater"`` or ``"less"``.
    n_exceed
        Where to stop.
    """
    n_feature = values.shape[1]
    counts, n_draw = np.zeros((2, n_feature), dtype=np.int64)
    n_draw[~np.isnan(compared)] = len(draws.permutations)
    groups = [
        _open_group(values[:, first : first + GROUP], engine, compared[first : first + GROUP], dtype, first)
        for first in range(0, n_feature, GROUP)
    ]
    n_computed = 0
    n_block = plan_permutation_block(engine.n_row)
    for start in range(0, len(draws.permutations), n_block):
        groups = [group for group in groups if group.going.any()]
        if not groups:
            break
        signs = None if draws.signs is None else draws.signs[start : start + n_block]
        part = Relabelling(permutations=draws.permutations[start : start + n_block], signs=signs)
        (rows,) = build_operands(engine, part, dtype)
        for group in groups:
            n_computed += rows.shape[1] * group.features.size
            for first in range(0, group.features.size, FEATURE_BLOCK):
                here = slice(first, first + FEATURE_BLOCK)
                found = engine.compare(rows, np.ascontiguousarray(group.e[:, here]))
                hits = _is_extreme(found, group.limits, here, tail)
                group.count(here, hits, start, n_exceed, counts, n_draw)
            group.repack()
    return Stopped(counts=counts, n_draw=n_draw, n_computed=n_computed)


@dataclass(slots=True, kw_only=True)
class _Group:
    """Features in one product: their positions, prepared data, bounds, and which of them have not stopped."""

    features: npt.NDArray[np.intp]
    e: Array
    limits: Limits
    going: npt.NDArray[np.bool_]

    def count(
        self,
        here: slice,
        hits: npt.NDArray[np.bool_],
        start: int,
        n_exceed: int,
        counts: CountArray,
        n_draw: CountArray,
    ) -> None:
        """Add ``hits (n, n_feature)`` of the draws from ``start`` on, up to where each feature stops."""
        going = self.going[here]
        features = self.features[here]
        before = counts[features]
        after = before + hits.sum(axis=0)
        stops = np.flatnonzero(going & (after >= n_exceed))
        counts[features] = np.where(going, np.minimum(after, n_exceed), before)
        if stops.size:
            so_far = np.cumsum(hits[:, stops], axis=0)
            n_draw[features[stops]] = start + 1 + np.argmax(so_far >= n_exceed - before[stops], axis=0)
            going[stops] = False

    def repack(self) -> None:
        """Leave out stopped features if they are many."""
        if self.going.sum() > REPACK * self.going.size:
            return
        kept = self.going
        self.features, self.e = self.features[kept], np.ascontiguousarray(self.e[:, kept])
        self.limits = Limits(
            above=self.limits.above[kept], below=self.limits.below[kept], beyond=self.limits.beyond[kept]
        )
        self.going = kept[kept]


def _open_group(values: Array, engine: Engine, compared: FloatArray, dtype: str, first: int) -> _Group:
    blocks = list(iterate_blocks(values, engine, compared, dtype))
    positions = np.concatenate([np.empty(0, dtype=np.intp), *(features for features, _ in blocks)])
    return _Group(
        features=first + positions,
        e=np.concatenate([e for _, e in blocks], axis=1) if blocks else np.empty((len(values), 0), dtype=dtype),
        limits=engine.limits(compared[positions], TIE_RTOL[dtype]).cast(dtype),
        going=np.ones(positions.size, dtype=np.bool_),
    )


def _is_extreme(found: Array, limits: Limits, here: slice, tail: str) -> npt.NDArray[np.bool_]:
    if tail == "two-sided":
        return np.asarray(np.abs(found) >= limits.beyond[here])
    return np.asarray(found >= limits.above[here] if tail == "greater" else found <= limits.below[here])


def estimate_p(stopped: Stopped, n_perm: int, n_exceed: int) -> FloatArray:
    """Return p ``(n_feature,)`` of a table of ``n_perm`` relabellings, the identity counted as one; NaN if not tested.

    It is valid: under the null hypothesis P(p <= a) <= a for every a, since among the first l relabellings and the
    identity, all equally likely to come first, at most h of l are as extreme.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(stopped.counts >= n_exceed, stopped.counts / stopped.n_draw, (stopped.counts + 1) / n_perm)
    return np.where(stopped.n_draw == 0, np.nan, p)
