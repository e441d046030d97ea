"""Statistics of whole maps under relabelling: cluster extent and mass, network components, enhancement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from kconn.kernels import clusters
from kconn.kernels.clusters import Graph, Network, Tfce
from kconn.kernels.glm import Engine
from kconn.kernels.permutation import Relabelling
from kconn.kernels.tallies import TIE_RTOL, build_operands, iterate_blocks

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]

TAILS: Final = ("two-sided", "greater", "less")
#: Operations per feature and map, beside the product, of each statistic: what its tasks are sized by.
COST: Final = {"extent": 300.0, "mass": 600.0, "tfce": 10_000.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Enhancement:
    """A statistic of neighbouring features.

    ``threshold`` is a z; features at or above it form clusters. ``excess``: mass sums z minus the threshold instead of
    z. ``merge_signs``: in a two-sided test positive and negative features may share a cluster.
    """

    kind: Literal["extent", "mass", "tfce"]
    neighbours: Graph | Network
    threshold: float | None
    tfce: Tfce
    excess: bool
    merge_signs: bool

    def side(self, compared: FloatArray, engine: Engine) -> FloatArray:
        """Return the statistic of the upper side of a map ``(n_feature,)`` on the compared scale."""
        if self.threshold is None:
            z = np.zeros(compared.size)
            positive = compared > 0
            z[positive] = np.maximum(engine.to_z(compared[positive]), 0)
            return clusters.enhance(z, self.neighbours, self.tfce) if isinstance(self.neighbours, Graph) else z
        out = np.zeros(compared.size)
        active = self.active(compared, engine)
        weights = np.ones(active.size)
        if self.kind == "mass":
            weights = engine.to_z(compared[active]) - (self.threshold if self.excess else 0.0)
        out[active] = clusters.sum_clusters(self.cluster(active, compared.size), weights)
        return out

    def active(self, compared: FloatArray, engine: Engine) -> npt.NDArray[np.int64]:
        """Return the features that form clusters."""
        least = np.inf if self.threshold is None else engine.from_z(self.threshold)
        # A threshold that a feature meets exactly is met whatever the rounding on the way there.
        return np.flatnonzero(compared >= least - 1e-12)

    def cluster(self, active: npt.NDArray[np.int64], n_feature: int) -> npt.NDArray[np.int64]:
        """Return the cluster of each active feature."""
        return clusters.find_clusters(active, self.neighbours, n_feature)

    def number(self, compared: FloatArray, engine: Engine, tail: str) -> npt.NDArray[np.int32]:
        """Return the observed clusters of a map numbered from 1, 0 outside; negative sides of their own are below 0."""
        sides = {"greater": [(1, compared)], "less": [(-1, -compared)]}.get(tail, [(1, compared), (-1, -compared)])
        if tail == "two-sided" and self.merge_signs:
            sides = [(1, np.abs(compared))]
        out = np.zeros(compared.size, dtype=np.int32)
        for sign, values in sides:
            active = self.active(values, engine)
            out[active] = sign * clusters.number_clusters(self.cluster(active, compared.size))
        return out

    def sides(self, compared: FloatArray, engine: Engine) -> FloatArray:
        """Return the statistic of each of `TAILS`, ``(n_tail, n_feature)``; only the upper side of F and G."""
        greater = self.side(compared, engine)
        if engine.stat_kind not in ("t", "v"):
            return np.stack([greater] * len(TAILS))
        less = self.side(-compared, engine)
        both = self.side(np.abs(compared), engine) if self.merge_signs else np.maximum(greater, less)
        return np.stack([both, greater, less])


@dataclass(frozen=True, slots=True, kw_only=True)
class MapTally:
    """What a range of relabellings found: ``highest (n_tail, n_perm)`` and ``counts (n_tail, n_feature)``."""

    highest: FloatArray
    counts: npt.NDArray[np.int64]


def limits(observed: FloatArray, dtype: str) -> FloatArray:
    """Return where a relabelled value counts as at least the observed one, ties included."""
    return np.asarray(observed - TIE_RTOL[dtype] * np.maximum(np.abs(observed), 1))


def fill(compared: FloatArray) -> FloatArray:
    """Return a map with 0, which no cluster holds, where features are excluded."""
    return np.nan_to_num(compared, nan=0.0)


def tally_maps(
    values: Array, engine: Engine, enhancement: Enhancement, part: Relabelling, observed: FloatArray, dtype: str
) -> MapTally:
    """Compare the enhanced maps of some relabellings with the observed ones, ``(n_tail, n_feature)``.

    Parameters
    ----------
    values
        ``(n_obs, n_feature)``, all features.
    engine, part, dtype
        As in `kconn.kernels.tallies.tally`.
    enhancement
        What is made of each map.
    observed
        The statistic of the identity.
    """
    blocks = [(features, e) for features, _, e in iterate_blocks(values, engine, dtype)]
    bounds = limits(observed, dtype)
    highest = []
    counts = np.zeros(observed.shape, dtype=np.int64)
    for rows in build_operands(engine, part, dtype):
        compared = np.zeros((rows.shape[1], values.shape[1]))
        for features, e in blocks:
            compared[:, features] = engine.compare(rows, e)
        for one in compared:
            found = enhancement.sides(one, engine)
            highest.append(found.max(axis=1))
            counts += found >= bounds
    return MapTally(highest=np.stack(highest, axis=1), counts=counts)
