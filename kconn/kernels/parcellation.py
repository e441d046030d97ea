"""Which voxels make a node, and their mean series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
from numba import njit
from scipy.ndimage import affine_transform

Array = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Members:
    """The voxels of every node on one grid: a sparse matrix, stored voxel by voxel.

    Parameters
    ----------
    voxel
        (n_member,) flat voxel index, first axis fastest, ascending and unique.
    start
        (n_member + 1,) where the nodes of each voxel begin in `node`.
    node
        (n_pair,) node of each (voxel, node) pair; a voxel of two overlapping spheres has two.
    n_voxel
        (n_node,) voxels of each node on the lattice of this grid, also those beyond its field of view.
    """

    voxel: IntArray
    start: IntArray
    node: IntArray
    n_voxel: IntArray


def join_members(voxel: IntArray, node: IntArray, /, *, n_voxel: IntArray) -> Members:
    """Return the `Members` of (voxel, node) pairs given in any order."""
    order = np.lexsort((node, voxel))
    unique, first = np.unique(voxel[order], return_index=True)
    return Members(
        voxel=unique.astype(np.int32),
        start=np.append(first, voxel.size).astype(np.int32),
        node=node[order].astype(np.int32),
        n_voxel=n_voxel,
    )


def merge_members(parts: Sequence[Members], /) -> Members:
    """Return the `Members` of all nodes of ``parts`` on one grid, numbered part after part."""
    first = np.cumsum([0, *(part.n_voxel.size for part in parts[:-1])])
    return join_members(
        np.concatenate([np.repeat(part.voxel, np.diff(part.start)) for part in parts]),
        np.concatenate([part.node + offset for part, offset in zip(parts, first, strict=True)]),
        n_voxel=np.concatenate([part.n_voxel for part in parts]),
    )


def label_members(labels: IntArray, /, *, keys: Sequence[int], n_beyond: IntArray | None = None) -> Members:
    """Return the voxels of ``labels`` (i, j, k) that carry each of ``keys``.

    Parameters
    ----------
    labels
        Integer label volume (i, j, k).
    keys
        The label of each node, ascending.
    n_beyond
        (n_node,) voxels of each node that lie beyond this field of view.
    """
    flat = labels.ravel(order="F")
    voxel = np.flatnonzero(flat)
    node = np.searchsorted(keys, flat[voxel])
    known = np.asarray(keys)[np.minimum(node, len(keys) - 1)] == flat[voxel]
    voxel, node = voxel[known], node[known]
    n_voxel = np.bincount(node, minlength=len(keys))
    return join_members(voxel, node, n_voxel=n_voxel if n_beyond is None else n_voxel + n_beyond)


def resample_labels(labels: IntArray, affine: Array, target_affine: Array, shape: tuple[int, int, int]) -> IntArray:
    """Return ``labels`` (i, j, k) on another grid, each voxel taking the label at its centre (nearest neighbour).

    Parameters
    ----------
    labels
        Integer label volume (i, j, k).
    affine
        (4, 4) voxel to mm of ``labels``.
    target_affine
        (4, 4) voxel to mm of the grid wanted; any orientation and voxel size.
    shape
        Shape of the grid wanted.
    """
    mapping = scipy.linalg.inv(affine) @ target_affine
    matrix = mapping[:3, :3]
    if np.all(matrix == np.diag(np.diag(matrix))):
        matrix = np.diag(matrix)
    resampled: IntArray = affine_transform(labels, matrix, offset=mapping[:3, 3], output_shape=shape, order=0)
    return resampled


def extended_grid(
    labels: IntArray, affine: Array, target_affine: Array, shape: tuple[int, int, int]
) -> tuple[Array, tuple[int, int, int], tuple[slice, slice, slice]]:
    """Return the grid wanted, widened until it holds every non-zero voxel of ``labels``.

    Returns
    -------
    tuple
        The affine and shape of the widened grid, and where the grid wanted lies in it.
    """
    used = [np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    corners = np.array([[used[0][a], used[1][b], used[2][c], 1] for a in (0, -1) for b in (0, -1) for c in (0, -1)])
    reached = (scipy.linalg.inv(target_affine) @ affine @ corners.T)[:3]
    low = np.minimum(0, np.floor(reached.min(axis=1)).astype(int) - 1)
    high = np.maximum(shape, np.ceil(reached.max(axis=1)).astype(int) + 2)
    wide = np.array(target_affine, dtype=np.float64)
    wide[:3, 3] = (target_affine @ np.append(low, 1))[:3]
    inside = tuple(slice(int(-a), int(-a) + n) for a, n in zip(low, shape, strict=True))
    extent = tuple(int(n) for n in high - low)
    return wide, (extent[0], extent[1], extent[2]), (inside[0], inside[1], inside[2])


def centres_of_mass(labels: IntArray, affine: Array, keys: Sequence[int]) -> Array:
    """Return the centre of mass of each label, (n_key, 3) in mm."""
    index = np.nonzero(labels)
    node = np.searchsorted(keys, labels[index])
    size = np.bincount(node, minlength=len(keys))
    centre = np.stack([np.bincount(node, weights=axis, minlength=len(keys)) / size for axis in index])
    return (affine[:3, :3] @ centre + affine[:3, 3:]).T


def sum_members(
    x: npt.NDArray[Any], voxel: IntArray, /, *, kept: BoolArray, members: Members
) -> tuple[Array, IntArray]:
    """Return the summed series of every node over the voxels of one block that have data.

    A voxel has data if it is finite at every kept frame and not constant over them.

    Parameters
    ----------
    x
        Signal of the block (voxel, time).
    voxel
        Flat index of each row of ``x`` on the grid of ``members``.
    kept
        (time,) frames that count.
    members
        The voxels of each node.

    Returns
    -------
    tuple
        Sums (node, time) float64, and how many voxels each is made of (node,).
    """
    total = np.zeros((members.n_voxel.size, x.shape[1]))
    count = np.zeros(members.n_voxel.size, dtype=np.int64)
    if members.voxel.size:
        at = np.minimum(np.searchsorted(members.voxel, voxel), members.voxel.size - 1)
        rows = np.flatnonzero(members.voxel[at] == voxel)
        _sum_rows(x, kept, rows, at[rows], members.start, members.node, total, count)
    return total, count


@njit(cache=True, nogil=True)
def _sum_rows(  # pragma: no cover  # noqa: PLR0913, PLR0917 - compiled: plain arrays only, invisible to coverage
    x: npt.NDArray[Any],
    kept: BoolArray,
    rows: IntArray,
    at: IntArray,
    start: IntArray,
    node: IntArray,
    total: Array,
    count: IntArray,
) -> None:
    n_time = x.shape[1]
    for i in range(rows.size):
        v = rows[i]
        first = x[v, np.argmax(kept)]
        n_bad = 0
        n_moved = 0
        for t in range(n_time):
            n_bad += kept[t] & (x[v, t] - x[v, t] != 0)
            n_moved += kept[t] & (x[v, t] != first)
        if n_bad > 0 or n_moved == 0:
            continue
        for pair in range(start[at[i]], start[at[i] + 1]):
            n = node[pair]
            count[n] += 1
            for t in range(n_time):
                total[n, t] += x[v, t]


def mean_members(
    parts: Sequence[tuple[Array, IntArray]], /, *, kept: BoolArray, n_voxel: IntArray, min_coverage: float
) -> tuple[Array, Array]:
    """Return the mean series and coverage of every node from the sums of all blocks, added in the order given.

    Parameters
    ----------
    parts
        What `sum_members` returned for each block.
    kept
        (time,) frames that count; the others become NaN.
    n_voxel
        (node,) voxels that each node ought to have.
    min_coverage
        A node whose share of voxels with data is below this becomes NaN.

    Returns
    -------
    tuple
        Series (node, time) float64 and coverage (node,).
    """
    total = np.zeros_like(parts[0][0])
    count = np.zeros_like(parts[0][1])
    for part_total, part_count in parts:
        total += part_total
        count += part_count

    coverage = count / np.maximum(n_voxel, 1)
    series = np.full_like(total, np.nan)
    usable = (count > 0) & (coverage >= min_coverage)
    series[usable] = total[usable] / count[usable, None]
    series[:, ~kept] = np.nan
    return series, coverage
