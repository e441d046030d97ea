"""Which grayordinates touch: vertices along the edges of their surface, voxels in the volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.errors import InputError, SchemaError
from kconn.grayordinates import Grayordinates, read_grayordinates, short_name
from kconn.kernels.clusters import CONNECTIVITY, Neighbours, volume_pairs
from kconn.kernels.surfaces import triangle_pairs


def grayordinate_neighbours(
    places: Grayordinates | xr.Dataset | xr.DataArray,
    triangles: Mapping[str, npt.NDArray[np.integer]],
    *,
    connectivity: int = 26,
    areas: Mapping[str, npt.NDArray[np.floating]] | None = None,
) -> Neighbours:
    """Return the neighbours of grayordinates, one graph of both hemispheres and the volume.

    Vertices are neighbours along the edges of the triangles, over those vertices that are grayordinates: the medial
    wall separates. Voxels are neighbours in the volume, of whatever structures they are. A vertex and a voxel never
    are, nor the hemispheres.

    Parameters
    ----------
    places
        Grayordinates, or data with them as coordinates ``structure vertex i j k`` along ``voxel``.
    triangles
        Structure (``"CORTEX_LEFT"``, with or without CIFTI's prefix) -> ``(n_triangle, 3)`` vertices of its whole
        surface, as in a GIFTI file.
    connectivity
        6, 18 or 26 for voxels.
    areas
        Structure -> area of each vertex of its whole surface, mm2, see `kconn.vertex_areas`. Extents are then in mm2
        on surfaces, and each voxel counts 1. None counts grayordinates.

    Returns
    -------
    Neighbours
        To be passed to `kconn.permutation_test` as ``neighbours``.

    Raises
    ------
    InputError
        ``E-BRAIN-MODELS`` if a surface is missing or has another number of vertices.
    SchemaError
        ``E-ARGUMENT``.
    """
    if connectivity not in CONNECTIVITY:
        raise SchemaError("E-ARGUMENT", f"connectivity={connectivity}", rule=f"one of {list(CONNECTIVITY)}")
    known = places if isinstance(places, Grayordinates) else read_grayordinates(_as_dataset(places))
    faces = {short_name(name): np.asarray(found) for name, found in triangles.items()}
    sizes = None if areas is None else np.ones(len(known))
    of_vertex = {short_name(name): np.asarray(found, dtype=np.float64) for name, found in (areas or {}).items()}
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for i_structure, name in enumerate(known.structures):
        rows = np.flatnonzero((known.structure == i_structure) & (known.vertex >= 0))
        if rows.size == 0:
            continue
        n_vertex = known.n_vertices[name]
        place = np.full(n_vertex, -1, dtype=np.int64)
        place[known.vertex[rows]] = rows
        edges = place[triangle_pairs(_find(faces, name, n_vertex, "triangles"))]
        pairs.append(edges[(edges >= 0).all(axis=1)])
        if sizes is not None:
            sizes[rows] = _find(of_vertex, name, n_vertex, "areas")[known.vertex[rows]]
    voxels = np.flatnonzero(known.vertex < 0)
    if voxels.size:
        pairs.append(voxels[volume_pairs(known.ijk[voxels].astype(np.int64), connectivity)])
    return Neighbours(pairs=np.concatenate(pairs), sizes=sizes)


def _as_dataset(data: xr.Dataset | xr.DataArray) -> xr.Dataset:
    return data if isinstance(data, xr.Dataset) else data.coords.to_dataset().assign_attrs(data.attrs)


def _find(given: Mapping[str, npt.NDArray[Any]], structure: str, n_vertex: int, what: str) -> npt.NDArray[Any]:
    """Return the triangles or the areas of a structure, after checking that they are of this surface."""
    name = short_name(structure)
    found = given.get(name)
    if found is None:
        problem = f"there are no {what} of {name}"
    elif what == "areas":
        problem = "" if found.shape == (n_vertex,) else f"areas of {name} have shape {found.shape}"
    else:
        fits = found.ndim == 2 and found.shape[1] == 3 and found.size > 0
        fits = fits and int(found.min()) >= 0 and int(found.max()) == n_vertex - 1
        problem = "" if fits else f"triangles of {name} have shape {found.shape} and other vertices"
    if problem or found is None:
        raise InputError(
            "E-BRAIN-MODELS",
            problem,
            where=name,
            rule=f"the surface has {n_vertex} vertices",
            fix="give the GIFTI surface of the same space and density",
        )
    return found
