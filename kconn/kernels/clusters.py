"""Clusters, threshold-free enhancement and network components of a map: values per feature in, per feature out.

Features are vertices of a graph: voxels that touch, vertices of a surface, edges of a network that share a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.sparse import coo_array

from kconn.errors import DesignError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Connectivity of voxels -> how many of the three indices may differ by one.
CONNECTIVITY: Final = {6: 1, 18: 2, 26: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Neighbours of each feature in compressed rows: those of i are ``indices[indptr[i]:indptr[i + 1]]``.

    ``sizes (n_feature,)`` is what each feature adds to an extent: the area of a vertex; None for 1 each.
    """

    indptr: npt.NDArray[np.int32]
    indices: npt.NDArray[np.int32]
    sizes: FloatArray | None = None

    def measure(self, features: IntArray) -> FloatArray:
        """Return the sizes of some features."""
        return np.ones(features.size) if self.sizes is None else self.sizes[features]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neighbours:
    """Which features touch, ``pairs (n_pair, 2)`` of positions, and what each adds to an extent.

    ``sizes (n_feature,)``, for example vertex areas in mm2; None counts features. From
    `kconn.grayordinate_neighbours`, or made by hand.
    """

    pairs: npt.NDArray[np.integer]
    sizes: FloatArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Features that are edges between nodes: two are neighbours if they share one."""

    node_i: IntArray
    node_j: IntArray
    n_node: int


def build_graph(pairs: npt.NDArray[np.integer], n_feature: int, sizes: FloatArray | None = None) -> Graph:
    """Return the graph of neighbouring pairs ``(n_pair, 2)``, each in either order.

    ``sizes`` as in `Graph`.

    Raises
    ------
    DesignError
        Code ``E-TABLE-SHAPE``.
    """
    edges = np.asarray(pairs)
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise DesignError(
            "E-TABLE-SHAPE", f"neighbours have shape {edges.shape} and dtype {edges.dtype}", rule="(n_pair, 2) integers"
        )
    if edges.size and (edges.min() < 0 or edges.max() >= n_feature):
        raise DesignError(
            "E-TABLE-SHAPE",
            f"neighbours name the features {edges.min()} to {edges.max()}",
            rule=f"features count from 0 to {n_feature - 1}",
        )
    if sizes is not None:
        sizes = np.asarray(sizes, dtype=np.float64)
        if sizes.shape != (n_feature,) or not (np.isfinite(sizes) & (sizes > 0)).all():
            raise DesignError(
                "E-TABLE-SHAPE",
                f"sizes have shape {sizes.shape} and {int((~(sizes > 0)).sum())} that are not above 0",
                rule=f"one finite size above 0 for each of {n_feature} features",
            )
    edges = edges[edges[:, 0] != edges[:, 1]]
    row, column = np.concatenate([edges, edges[:, ::-1]]).T
    matrix = coo_array((np.ones(row.size, dtype=np.int32), (row, column)), shape=(n_feature, n_feature)).tocsr()
    matrix.sum_duplicates()
    return Graph(indptr=matrix.indptr.astype(np.int32), indices=matrix.indices.astype(np.int32), sizes=sizes)


def volume_pairs(ijk: npt.NDArray[np.integer], connectivity: int) -> IntArray:
    """Return the pairs ``(n_pair, 2)`` of voxels ``(n_voxel, 3)`` that touch by faces, edges (18) or corners (26)."""
    low = ijk.min(axis=0)
    shape = ijk.max(axis=0) - low + 3
    grid = np.full(shape, -1, dtype=np.int64)
    place = tuple((ijk - low + 1).T)
    grid[place] = np.arange(len(ijk))
    pairs = []
    for step in product((-1, 0, 1), repeat=3):
        if step > (0, 0, 0) and sum(map(abs, step)) <= CONNECTIVITY[connectivity]:
            neighbour = grid[tuple(axis + by for axis, by in zip(place, step, strict=True))]
            here = np.flatnonzero(neighbour >= 0)
            pairs.append(np.column_stack([here, neighbour[here]]))
    return np.concatenate(pairs)


def network_pairs(node_i: npt.NDArray[Any], node_j: npt.NDArray[Any]) -> IntArray:
    """Return the pairs ``(n_pair, 2)`` of edges that share a node; ``node_i node_j (edge,)`` name their ends."""
    _, ends = np.unique(np.concatenate([node_i, node_j]), return_inverse=True)
    n_edge = len(node_i)
    order = np.argsort(ends, kind="stable")
    starts = np.flatnonzero(np.diff(ends[order], prepend=-1))
    pairs = []
    for meeting in np.split(order % n_edge, starts[1:]):
        first, second = np.triu_indices(meeting.size, 1)
        pairs.append(np.column_stack([meeting[first], meeting[second]]))
    return np.concatenate(pairs).astype(np.int64)


def find_clusters(active: IntArray, neighbours: Graph | Network, n_feature: int) -> IntArray:
    """Return, for each of the ``active`` features (rising), the first of its cluster, as a position in ``active``."""
    if isinstance(neighbours, Network):
        parent = np.arange(neighbours.n_node)
        return np.asarray(_join_nodes(neighbours.node_i[active], neighbours.node_j[active], parent))
    place = np.full(n_feature, -1, dtype=np.int32)
    return np.asarray(_join_features(active, neighbours.indptr, neighbours.indices, place))


def sum_clusters(cluster: IntArray, weights: FloatArray) -> FloatArray:
    """Return, for each active feature, the sum of ``weights`` over its cluster."""
    return np.asarray(np.bincount(cluster, weights=weights)[cluster] if cluster.size else np.zeros(0))


def number_clusters(cluster: IntArray) -> npt.NDArray[np.int32]:
    """Return the clusters of the active features numbered from 1, the one with most features first."""
    names, first, sizes = np.unique(cluster, return_index=True, return_counts=True)
    rank = np.empty(names.size, dtype=np.int32)
    rank[np.lexsort((first, -sizes))] = np.arange(1, names.size + 1)
    return np.asarray(rank[np.searchsorted(names, cluster)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tfce:
    """Threshold-free cluster enhancement: the sum over heights h of ``extent(h) ** extent * h ** height``.

    ``step`` is the distance of heights: a number, ``"map"`` (a hundredth of each map's maximum), ``"observed"`` (of the
    observed map's), ``"exact"`` (the limit of small steps), or None for what the convention says.

    References
    ----------
    Smith and Nichols 2009, doi:10.1016/j.neuroimage.2008.03.061
    """

    height: float = 2.0
    extent: float = 0.5
    step: float | Literal["map", "observed", "exact"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heights:
    """The heights that enhancement sums over: ``step`` apart, or all of them for None.

    ``strict``: a feature must lie above a height, not only reach it. ``times_step``: the sum approximates the integral.
    """

    step: float | None = None
    strict: bool = False
    times_step: bool = True

    def integrate(self, levels: FloatArray, power: float) -> FloatArray:
        """Return the sum of ``h ** power`` over the heights up to each of the falling ``levels``."""
        if self.step is None:
            return np.asarray(levels ** (power + 1) / (power + 1))
        heights = self.step * np.arange(1, int(np.floor(levels[0] / self.step * (1 + 1e-12))) + 1)
        weights = heights**power * (self.step if self.times_step else 1.0)
        # A level that is a height but for rounding counts as one.
        near = levels * (1 - 1e-12 if self.strict else 1 + 1e-12)
        reached = np.searchsorted(heights, near, side="left" if self.strict else "right")
        return np.asarray(np.concatenate([[0.0], np.cumsum(weights)])[reached])


def enhance(values: FloatArray, graph: Graph, options: Tfce, heights: Heights) -> FloatArray:
    """Return the enhanced map of the positive ``values (n_feature,)``; 0 elsewhere."""
    out = np.zeros(values.size)
    positive = np.flatnonzero(values > 0)
    if positive.size == 0:
        return out
    order = positive[np.argsort(-values[positive])]
    rank = np.full(values.size, order.size, dtype=np.int32)
    rank[order] = np.arange(order.size, dtype=np.int32)
    # Counts stay integers: half the memory, and their powers are looked up.
    sizes = np.ones(order.size, dtype=np.int32) if graph.sizes is None else graph.sizes[order]
    parent, extent = _grow(order, rank, sizes, graph.indptr, graph.indices)
    if graph.sizes is None:
        power = (np.arange(order.size + 1, dtype=np.float64) ** options.extent)[extent]
    else:
        power = extent**options.extent
    out[order] = _add_up(parent, power, heights.integrate(values[order], options.height))
    return out


@njit(cache=True, nogil=True)
def _find(parent, i):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _unite(parent, i, j):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    first, second = _find(parent, i), _find(parent, j)
    parent[max(first, second)] = min(first, second)


@njit(cache=True, nogil=True)
def _join_features(active, indptr, indices, place):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    parent = np.arange(active.size)
    for n in range(active.size):
        i = active[n]
        place[i] = n
        for k in range(indptr[i], indptr[i + 1]):
            # Neighbours come in rising order, and those after i have not been reached.
            if indices[k] > i:
                break
            if place[indices[k]] >= 0:
                _unite(parent, n, place[indices[k]])
    for n in range(active.size):
        parent[n] = _find(parent, n)
    return parent


@njit(cache=True, nogil=True)
def _join_nodes(node_i, node_j, parent):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    for n in range(node_i.size):
        _unite(parent, node_i[n], node_j[n])
    first = np.full(parent.size, -1)
    cluster = np.empty(node_i.size, dtype=np.int64)
    for n in range(node_i.size):
        root = _find(parent, node_i[n])
        if first[root] < 0:
            first[root] = n
        cluster[n] = first[root]
    return cluster


@njit(cache=True, nogil=True)
def _grow(order, rank, size, indptr, indices):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Add features from the highest down and build the tree of clusters; return parents and extents.

    Feature n of the order is the node of the cluster that it completes; the node that takes this cluster up later is
    its parent. The cluster has the same extent from its own height down to its parent's.
    """
    n_active = order.size
    joined = np.empty(n_active, dtype=np.int32)
    total = size.copy()
    node = np.empty(n_active, dtype=np.int32)
    parent = np.full(n_active, -1, dtype=np.int32)
    extent = np.empty(n_active, dtype=size.dtype)
    for n in range(n_active):
        joined[n] = n
        root = n
        for k in range(indptr[order[n]], indptr[order[n] + 1]):
            neighbour = rank[indices[k]]
            if neighbour >= n:
                continue
            other = _find(joined, neighbour)
            if other == root:
                continue
            parent[node[other]] = n
            if total[other] > total[root]:
                root, other = other, root
            joined[other] = root
            total[root] += total[other]
        node[root] = n
        extent[n] = total[root]
    return parent, extent


@njit(cache=True, nogil=True)
def _add_up(parent, power, weights):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Return, for each node, the sum of what it and all nodes below it add."""
    out = np.empty(parent.size)
    for n in range(parent.size - 1, -1, -1):
        below = parent[n]
        out[n] = power[n] * (weights[n] - (weights[below] if below >= 0 else 0.0))
        out[n] += out[below] if below >= 0 else 0.0
    return out
