"""Order and gaps of network matrices of a group."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from kconn.kernels.netmats import pack_edges, unpack_edges

Array = npt.NDArray[np.floating[Any]]


def mean_present(x: Array, /) -> Array:
    """Return the mean (...) of ``x`` (..., row) over the rows that are not NaN, added in their order.

    One row after the other, so that neither chunks nor memory layout change a bit.
    """
    total = np.zeros(x.shape[:-1])
    count = np.zeros(x.shape[:-1], dtype=np.int64)
    for i in range(x.shape[-1]):
        there = ~np.isnan(x[..., i])
        total += np.where(there, x[..., i], 0)
        count += there
    mean: Array = np.where(count > 0, total, np.nan) / np.maximum(count, 1)
    return mean


def find_missing_nodes(edges: Array, /) -> npt.NDArray[np.bool_]:
    """Return which nodes (..., node) have NaN on each of their edges, of ``edges`` (..., edge)."""
    missing: npt.NDArray[np.bool_] = np.all(np.isnan(unpack_edges(edges, diagonal=np.nan)), axis=-1)
    return missing


def ward_tree(edges: Array, /) -> Array:
    """Return the Ward tree of a full correlation matrix, in SciPy's linkage format, by the rule of FSLNets.

    Divide by the 99th percentile of |w| over the whole matrix (its zero diagonal included), cut to [0, 1], so that
    negative edges count as none, and take (1 - w) / 2 as distance. Setting negatives to none makes many equal
    distances; which of them joins first is SciPy's choice (leaf order optimal for neighbours), and MATLAB or Octave
    may draw another order from the same matrix.

    Parameters
    ----------
    edges
        (edge,) without NaN.

    References
    ----------
    Ward 1963, doi:10.1080/01621459.1963.10500845; Bar-Joseph et al. 2001, doi:10.1093/bioinformatics/17.suppl_1.S22.
    """
    matrix = unpack_edges(edges)
    top = np.percentile(np.abs(matrix), 99)
    weight = np.clip(matrix / top if top > 0 else matrix, 0, 1)
    distance = (1 - weight) / 2
    np.fill_diagonal(distance, 0)
    tree: Array = linkage(squareform(distance, checks=False), method="ward", optimal_ordering=True)
    return tree


def ward_order(edges: Array, /) -> npt.NDArray[np.intp]:
    """Return the leaf order of `ward_tree`. Nodes that have to go to leave a matrix without NaN come last."""
    matrix = unpack_edges(edges, diagonal=0)
    complete = find_complete(matrix)
    good, rest = np.flatnonzero(complete), np.flatnonzero(~complete)
    if good.size > 2:
        good = good[leaves_list(ward_tree(pack_edges(matrix[np.ix_(good, good)])))]
    return np.concatenate([good, rest])


def reorder_edges(names: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the positions (edge,) that bring edges between ``names`` (node,) into the order of ``wanted`` (node,)."""
    node = np.argsort(names)[np.searchsorted(names, wanted, sorter=np.argsort(names))]
    edge = unpack_edges(np.arange(len(names) * (len(names) - 1) // 2))
    position: npt.NDArray[np.intp] = pack_edges(edge[np.ix_(node, node)])
    return position


def find_complete(matrix: Array) -> npt.NDArray[np.bool_]:
    """Return the nodes (node,) that stay when the node with most NaN is dropped until ``matrix`` has none."""
    hole = np.isnan(matrix)
    complete = np.ones(len(hole), dtype=bool)
    while hole.any():
        worst = hole.sum(axis=1).argmax()
        complete[worst] = False
        hole[worst] = hole[:, worst] = False
    return complete
