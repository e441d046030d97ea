"""Statistics of whole maps under relabelling: cluster extent and mass, network components, enhancement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from kconn.kernels import clusters
from kconn.kernels.clusters import Graph, Network, Tfce
from kconn.kernels.glm import Engine
from kconn.kernels.permutation import Relabelling
from kconn.kernels.tallies import TAILS, TIE_RTOL, Blocks, Tally, build_operands

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]

#: Operations per feature and map, beside the product, of each statistic: what its tasks are sized by.
COST: Final = {"extent": 300.0, "mass": 600.0, "tfce": 10_000.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a tool forms clusters.

    ``scale``: on z or on the statistic itself. ``strict``: above the threshold, or at it too. ``excess``: mass sums
    what exceeds the threshold. ``merge_signs``: in a two-sided test positive and negative features may share a cluster.
    ``mass_by_size``: mass weighs what it sums by the size of each feature, as extent always does.
    ``step``, ``strict_heights``, ``times_step``: heights of enhancement, see `kconn.kernels.clusters.Heights`.
    ``two_sided_step``: the step of a two-sided test comes from the largest size, for both sides.
    """

    scale: Literal["z", "stat"]
    strict: bool
    excess: bool
    merge_signs: bool
    step: Literal["map", "observed", "exact"]
    times_step: bool
    strict_heights: bool = False
    two_sided_step: bool = False
    mass_by_size: bool = False


RULES: Final = {
    "kconn": Rules(
        scale="z", strict=False, excess=True, merge_signs=False, step="exact", times_step=True, mass_by_size=True
    ),
    "palm": Rules(scale="z", strict=False, excess=False, merge_signs=True, step="map", times_step=True),
    "fsl": Rules(
        scale="stat",
        strict=True,
        excess=False,
        merge_signs=False,
        step="observed",
        times_step=False,
        strict_heights=True,
    ),
    "nilearn": Rules(
        scale="stat",
        strict=True,
        excess=True,
        merge_signs=False,
        step="map",
        times_step=False,
        two_sided_step=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TailP:
    """A threshold given as the upper tail of the statistic."""

    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Enhancement:
    """A statistic of neighbouring features.

    Features beyond ``threshold``, a z or a statistic as the rules say, form clusters. ``steps``: the step of the upper
    and of the lower side, if it was taken from the observed map.
    """

    kind: Literal["extent", "mass", "tfce"]
    neighbours: Graph | Network
    threshold: float | TailP | None
    tfce: Tfce
    rules: Rules
    steps: tuple[float, float] | None = None

    def fixed(self, compared: FloatArray, engine: Engine) -> Enhancement:
        """Return the same with steps taken from the observed map, where the rules want this."""
        if self.kind != "tfce" or (self.tfce.step or self.rules.step) != "observed":
            return self
        ends = self._scale(np.array([compared.max(), -compared.min()]), engine) / 100
        # A side without a positive value has no heights, whatever their distance.
        return replace(self, steps=(float(ends[0]) or 1.0, float(ends[1]) or 1.0))

    def sides(self, compared: FloatArray, engine: Engine) -> FloatArray:
        """Return the statistic of each of `TAILS`, ``(n_tail, n_feature)``; only the upper side of F and G."""
        greater = self._side(compared, engine, 0, None)
        if engine.stat_kind not in ("t", "v"):
            return np.stack([greater] * len(TAILS))
        less = self._side(-compared, engine, 1, None)
        if self.rules.merge_signs:
            return np.stack([self._side(np.abs(compared), engine, 0, None), greater, less])
        if self.kind == "tfce" and self.rules.two_sided_step and self.tfce.step is None:
            top = float(np.abs(compared).max())
            first, second = self._side(compared, engine, 0, top), self._side(-compared, engine, 1, top)
            return np.stack([np.maximum(first, second), greater, less])
        return np.stack([np.maximum(greater, less), greater, less])

    def number(self, compared: FloatArray, engine: Engine, tail: str) -> npt.NDArray[np.int32]:
        """Return the observed clusters of a map numbered from 1, 0 outside; negative sides of their own are below 0."""
        sides = {"greater": [(1, compared)], "less": [(-1, -compared)]}.get(tail, [(1, compared), (-1, -compared)])
        if tail == "two-sided" and self.rules.merge_signs:
            sides = [(1, np.abs(compared))]
        out = np.zeros(compared.size, dtype=np.int32)
        for sign, values in sides:
            active = self._active(values, engine)
            cluster = clusters.find_clusters(active, self.neighbours, compared.size)
            out[active] = sign * clusters.number_clusters(cluster)
        return out

    def _side(self, compared: FloatArray, engine: Engine, i_side: int, top: float | None) -> FloatArray:
        """Return the statistic of the upper side of a map ``(n_feature,)`` on the compared scale."""
        if isinstance(self.neighbours, Graph) and self.threshold is None:
            values = np.zeros(compared.size)
            positive = compared > 0
            values[positive] = np.maximum(self._scale(compared[positive], engine), 0)
            return clusters.enhance(values, self.neighbours, self.tfce, self._heights(values, engine, i_side, top))
        out = np.zeros(compared.size)
        active = self._active(compared, engine)
        weights = self.neighbours.measure(active) if isinstance(self.neighbours, Graph) else np.ones(active.size)
        if self.kind == "mass":
            mass = self._scale(compared[active], engine) - (self._least(engine)[1] if self.rules.excess else 0.0)
            weights = weights * mass if self.rules.mass_by_size else mass
        cluster = clusters.find_clusters(active, self.neighbours, compared.size)
        out[active] = clusters.sum_clusters(cluster, weights)
        return out

    def _heights(self, values: FloatArray, engine: Engine, i_side: int, top: float | None) -> clusters.Heights:
        chosen = self.tfce.step if self.tfce.step is not None else self.rules.step
        step: float | None = None
        if self.steps is not None:
            step = self.steps[i_side]
        elif chosen == "map":
            highest = float(values.max()) if top is None else float(self._scale(np.array([top]), engine)[0])
            step = highest / 100 if highest > 0 else 1.0
        elif not isinstance(chosen, str):
            step = float(chosen)
        return clusters.Heights(step=step, strict=self.rules.strict_heights, times_step=self.rules.times_step)

    def _scale(self, compared: FloatArray, engine: Engine) -> FloatArray:
        return engine.to_z(compared) if self.rules.scale == "z" else engine.to_stat(compared)

    def _least(self, engine: Engine) -> tuple[float, float]:
        """Return the threshold on the compared scale and on that of the rules."""
        if isinstance(self.threshold, TailP):
            least = engine.from_z(float(-special.ndtri(self.threshold.p)))
            return least, float(self._scale(np.array([least]), engine)[0])
        threshold = np.inf if self.threshold is None else self.threshold
        return (engine.from_z(threshold) if self.rules.scale == "z" else engine.from_stat(threshold)), threshold

    def _active(self, compared: FloatArray, engine: Engine) -> npt.NDArray[np.int64]:
        """Return the features that form clusters."""
        # A value that is the threshold but for rounding counts as the threshold.
        slack = 1e-12 if self.rules.strict else -1e-12
        return np.flatnonzero(compared >= self._least(engine)[0] + slack)


def limits(observed: FloatArray, dtype: str) -> FloatArray:
    """Return where a relabelled value counts as at least the observed one, ties included."""
    return np.asarray(observed - TIE_RTOL[dtype] * np.maximum(np.abs(observed), 1))


def fill(compared: FloatArray) -> FloatArray:
    """Return a map with 0, which no cluster holds, where features are excluded."""
    return np.nan_to_num(compared, nan=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedMaps:
    """The identity's maps: ``compared (n_feature,)``, NaN where a feature is not tested, and what is made of it.

    ``enhancement`` is how, with its steps; ``enhanced`` is ``(n_tail, n_feature)``.
    """

    compared: FloatArray
    enhancement: Enhancement
    enhanced: FloatArray


def observe_maps(compared: FloatArray, engine: Engine, enhancement: Enhancement) -> ObservedMaps:
    """Return what an enhancement makes of the observed statistic ``(n_feature,)``."""
    filled = fill(compared)
    own = enhancement.fixed(filled, engine)
    return ObservedMaps(compared=compared, enhancement=own, enhanced=own.sides(filled, engine))


def tally_maps(blocks: Blocks, engine: Engine, part: Relabelling, observed: ObservedMaps, dtype: str) -> Tally:
    """Compare the enhanced maps of some relabellings with the observed ones.

    Parameters
    ----------
    blocks, engine, part, dtype
        As in `kconn.kernels.tallies.tally`.
    observed
        The maps of the identity, and what is made of each map.
    """
    bounds = limits(observed.enhanced, dtype)
    highest = []
    counts = np.zeros(bounds.shape, dtype=np.int64)
    for rows in build_operands(engine, part, dtype):
        compared = np.zeros((rows.shape[1], observed.compared.size))
        for features, e in blocks:
            compared[:, features] = engine.compare(rows, e)
        for one in compared:
            found = observed.enhancement.sides(one, engine)
            highest.append(found.max(axis=1))
            counts += found >= bounds
    return Tally(highest=np.stack(highest, axis=1), counts=counts)
