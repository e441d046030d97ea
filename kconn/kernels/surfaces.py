"""Triangles of a surface: which vertices they join, and how large the part of each vertex is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def triangle_pairs(triangles: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the edges ``(n_edge, 2)`` of triangles ``(n_triangle, 3)``, each once, lower vertex first."""
    corners = np.asarray(triangles, dtype=np.int64)
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    return np.unique(np.sort(edges, axis=1), axis=0)


def vertex_areas(points: npt.NDArray[np.floating], triangles: npt.NDArray[np.integer]) -> FloatArray:
    """Return the area of each vertex ``(n_vertex,)``: a third of every triangle it belongs to.

    Parameters
    ----------
    points
        ``(n_vertex, 3)``; areas are in the square of their unit, mm2 for GIFTI surfaces.
    triangles
        ``(n_triangle, 3)``, positions of points.

    References
    ----------
    Winkler et al. 2012, Measuring and comparing brain cortical surface area and other areal quantities,
    doi:10.1016/j.neuroimage.2012.03.026
    """
    a, b, c = np.asarray(points, dtype=np.float64)[np.asarray(triangles).T]
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    weights = np.repeat(area / 3, 3)
    return np.asarray(np.bincount(np.ravel(triangles), weights=weights, minlength=len(points)), dtype=np.float64)
