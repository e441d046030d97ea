"""The GIFTI surfaces of a study, and the neighbours that they make of grayordinates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kconn.grayordinates import Grayordinates, short_name
from kconn.infer.surface_neighbours import grayordinate_neighbours
from kconn.io.gifti import read_surface
from kconn.kernels.clusters import Neighbours
from kconn.kernels.surfaces import vertex_areas
from kconn.study.test_tables import Extent

#: Role of a file -> the structure whose surface it is.
STRUCTURE_OF: Final = {"surface_left": "CORTEX_LEFT", "surface_right": "CORTEX_RIGHT"}
#: Of voxels that no contrast is to connect: any connectivity will do.
_ANY: Final = 26


def load_neighbours(
    files: Mapping[str, Path], places: Grayordinates, *, connectivity: int | None, extent: Extent
) -> Neighbours:
    """Return what touches what among the grayordinates of a study.

    Parameters
    ----------
    files
        Role -> GIFTI file, see `STRUCTURE_OF`.
    places
        The grayordinates.
    connectivity
        6, 18 or 26 for voxels; None where there is none.
    extent
        Whether extents count vertices or are in mm2.

    Raises
    ------
    InputError
        As `kconn.io.gifti.read_surface`, and ``E-BRAIN-MODELS`` if a surface is missing or has another number of
        vertices.
    """
    surfaces = {
        structure: read_surface(files[role], structure=structure)
        for role, structure in STRUCTURE_OF.items()
        if role in files
    }
    triangles = {name: surface.triangles for name, surface in surfaces.items()}
    areas = None
    if extent == "mm2":
        areas = {name: vertex_areas(surface.points, surface.triangles) for name, surface in surfaces.items()}
    return grayordinate_neighbours(places, triangles, connectivity=connectivity or _ANY, areas=areas)


def find_surfaces(places: Grayordinates) -> list[str]:
    """Return the structures of which there are vertices."""
    return [
        short_name(name)
        for i_structure, name in enumerate(places.structures)
        if ((places.structure == i_structure) & (places.vertex >= 0)).any()
    ]
