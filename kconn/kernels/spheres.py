"""Spheres on a voxel grid."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from kconn.kernels.parcellation import Members, join_members

Array = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]


def sphere_members(centres: Array, radius_mm: Array, affine: Array, shape: tuple[int, int, int]) -> Members:
    """Return the voxels of each sphere: those whose centre lies within the radius (<=), and the one at the centre.

    Parameters
    ----------
    centres
        (n_node, 3) in mm.
    radius_mm
        (n_node,) in mm.
    affine
        (4, 4) voxel to mm.
    shape
        Shape of the grid. Voxels of a sphere beyond it count in ``Members.n_voxel`` only.
    """
    matrix, offset = affine[:3, :3], affine[:3, 3]
    inverse = np.linalg.inv(matrix)
    # How far a sphere of 1 mm reaches along each voxel axis.
    reach = np.linalg.norm(inverse, axis=1)
    found = [_lattice_ball(c, r, matrix, offset, inverse, reach) for c, r in zip(centres, radius_mm, strict=True)]

    n_voxel = np.array([ball.shape[1] for ball in found], dtype=np.int64)
    node = np.repeat(np.arange(len(found)), n_voxel)
    i, j, k = np.concatenate([*chain(found), np.empty((3, 0), dtype=np.int64)], axis=1)
    inside = (i >= 0) & (i < shape[0]) & (j >= 0) & (j < shape[1]) & (k >= 0) & (k < shape[2])
    flat = i + shape[0] * (j + shape[1] * k)
    return join_members(flat[inside], node[inside], n_voxel=n_voxel)


def _lattice_ball(centre: Array, radius: float, matrix: Array, offset: Array, inverse: Array, reach: Array) -> IntArray:
    at = inverse @ (centre - offset)
    low = np.ceil(at - radius * reach - 1e-6).astype(np.int64)
    high = np.floor(at + radius * reach + 1e-6).astype(np.int64)
    axes = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
    box = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    distance2 = (((matrix @ box + offset[:, None]) - centre[:, None]) ** 2).sum(axis=0)
    ball = box[:, distance2 <= radius**2]
    if ball.shape[1] == 0:
        ball = np.round(at).astype(np.int64)[:, None]
    return ball
