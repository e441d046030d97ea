"""Grayordinates as plain data: vertices of surfaces and voxels of a volume, and where some of them lie in others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.errors import InputError

IntArray = npt.NDArray[np.integer[Any]]
Array = npt.NDArray[np.floating[Any]]

#: Coordinates of a grayordinate.
COORDS: Final = ("structure", "vertex", "i", "j", "k")
#: Two affines describe one grid if no element differs by more than this, in mm.
_AFFINE_TOLERANCE: Final = 1e-3
#: CIFTI writes this before the name of every structure.
_PREFIX: Final = "CIFTI_STRUCTURE_"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grayordinates:
    """The places that a row of a dense CIFTI matrix, or the members of its parcels, stand for.

    Parameters
    ----------
    structures
        CIFTI names of the structures, in the order in which they first occur.
    structure
        (grayordinate,) index into ``structures``.
    vertex
        (grayordinate,) vertex of the surface, -1 for a voxel.
    ijk
        (grayordinate, 3) voxel of the volume, -1 for a vertex.
    n_vertices
        Structure -> vertices of its whole surface, of the structures that are surfaces.
    affine
        (4, 4) voxel to mm, or None where there is no voxel.
    grid_shape
        Voxels of the volume along i, j, k, or None where there is no voxel.
    """

    structures: tuple[str, ...]
    structure: IntArray
    vertex: IntArray
    ijk: IntArray
    n_vertices: Mapping[str, int]
    affine: Array | None
    grid_shape: tuple[int, int, int] | None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.structure)

    @property
    def flat(self) -> IntArray:
        """(grayordinate,) flat index of the voxel in the volume, first axis fastest; meaningless for a vertex."""
        n_i, n_j, _ = self.grid_shape or (1, 1, 1)
        i, j, k = self.ijk.astype(np.int64).T
        return np.asarray(i + n_i * (j + n_j * k))

    def take(self, rows: IntArray) -> Grayordinates:
        """Return some of them, in the order of ``rows``."""
        return replace(self, structure=self.structure[rows], vertex=self.vertex[rows], ijk=self.ijk[rows])

    def digest(self) -> str:
        """Return the SHA-256 of all of it: equal for equal brain models."""
        digest = hashlib.sha256(repr((self.structures, sorted(self.n_vertices.items()), self.grid_shape)).encode())
        affine = np.empty(0) if self.affine is None else np.asarray(self.affine, np.float64)
        for part in (self.structure.astype("<i4"), self.vertex.astype("<i4"), self.ijk.astype("<i4"), affine):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def coords(self, dim: str = "voxel") -> dict[str, tuple[str, npt.NDArray[Any]]]:
        """Return `COORDS` along a dimension."""
        i, j, k = np.ascontiguousarray(self.ijk.T)
        return {name: (dim, part) for name, part in zip(COORDS, (self.structure, self.vertex, i, j, k), strict=True)}

    def attrs(self) -> dict[str, Any]:
        """Return what the coordinates do not say, as JSON values."""
        attrs: dict[str, Any] = {
            "brain_models": self.digest(),
            "structures": list(self.structures),
            "n_vertices": dict(self.n_vertices),
        }
        if self.affine is not None and self.grid_shape is not None:
            attrs["volume_affine"] = [[float(x) for x in row] for row in self.affine]
            attrs["volume_shape"] = list(self.grid_shape)
        return attrs

    def describe(self) -> str:
        """Return in words how many vertices and voxels there are."""
        n_vertex = int((self.vertex >= 0).sum())
        of = ", ".join(
            f"{short_name(name)} {int((self.structure[self.vertex >= 0] == self.structures.index(name)).sum())} of {n}"
            for name, n in self.n_vertices.items()
            if name in self.structures
        )
        return f"{n_vertex} vertices ({of or 'none'}) and {len(self) - n_vertex} voxels"


def short_name(structure: str) -> str:
    """Return the name of a structure without CIFTI's prefix."""
    return structure.removeprefix(_PREFIX)


def has_grayordinates(ds: xr.Dataset) -> bool:
    """Return whether the ``voxel`` dimension of a run holds grayordinates."""
    return "structure" in ds.coords and ds["structure"].dims == ("voxel",)


def read_grayordinates(ds: xr.Dataset, dim: str = "voxel") -> Grayordinates:
    """Return the grayordinates that a run keeps as coordinates along a dimension, exactly as the file had them."""
    shape = ds.attrs.get("volume_shape")
    structure, vertex, i, j, k = (ds[name].to_numpy() for name in COORDS)
    if ds["structure"].dims != (dim,):
        raise KeyError(dim)
    return Grayordinates(
        structures=tuple(map(str, ds.attrs["structures"])),
        structure=structure,
        vertex=vertex,
        ijk=np.stack([i, j, k], axis=1),
        n_vertices={str(name): int(n) for name, n in ds.attrs["n_vertices"].items()},
        affine=None if shape is None else np.asarray(ds.attrs["volume_affine"], dtype=np.float64),
        grid_shape=None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2])),
    )


def join_grayordinates(parts: Sequence[Grayordinates]) -> Grayordinates:
    """Return several sets of grayordinates as one, set after set; they share surfaces and volume."""
    structures = tuple(dict.fromkeys(name for part in parts for name in part.structures))
    numbers = [np.array([structures.index(name) for name in part.structures], dtype=np.uint8) for part in parts]
    with_volume = next((part for part in parts if part.affine is not None), parts[0])
    return Grayordinates(
        structures=structures,
        structure=np.concatenate([number[part.structure] for number, part in zip(numbers, parts, strict=True)]),
        vertex=np.concatenate([part.vertex for part in parts]),
        ijk=np.concatenate([part.ijk for part in parts]),
        n_vertices={name: n for part in parts for name, n in part.n_vertices.items()},
        affine=with_volume.affine,
        grid_shape=with_volume.grid_shape,
    )


def find_rows(wanted: Grayordinates, among: Grayordinates, *, where: str = "", what: str = "atlas") -> IntArray:
    """Return the row in ``among`` of each grayordinate of ``wanted``, -1 where there is none.

    Vertices are matched by structure and number, voxels by their place in the volume, never by their rank in the file:
    an atlas with the medial wall fits a run without.

    Parameters
    ----------
    wanted, among
        Two sets of grayordinates.
    where
        The run, for error messages.
    what
        What ``wanted`` belongs to, for error messages.

    Raises
    ------
    InputError
        ``E-BRAIN-MODELS`` if they have surfaces of another number of vertices, or volumes of another grid.
    """
    _check_spaces(wanted, among, where=where, what=what)
    rows = np.full(len(wanted), -1, dtype=np.int64)
    rank = {name: i for i, name in enumerate(among.structures)}
    for i_wanted, name in enumerate(wanted.structures):
        mine = np.flatnonzero((wanted.structure == i_wanted) & (wanted.vertex >= 0))
        theirs = np.flatnonzero((among.structure == rank.get(name, -1)) & (among.vertex >= 0))
        if mine.size and theirs.size:
            row_of_vertex = np.full(wanted.n_vertices[name], -1, dtype=np.int64)
            row_of_vertex[among.vertex[theirs]] = theirs
            rows[mine] = row_of_vertex[wanted.vertex[mine]]
    mine, theirs = np.flatnonzero(wanted.vertex < 0), np.flatnonzero(among.vertex < 0)
    if mine.size and theirs.size:
        places = among.flat[theirs]
        order = np.argsort(places, kind="stable")
        at = np.minimum(np.searchsorted(places[order], wanted.flat[mine]), len(places) - 1)
        found = theirs[order[at]]
        rows[mine] = np.where(among.flat[found] == wanted.flat[mine], found, -1)
    return rows


def _check_spaces(wanted: Grayordinates, among: Grayordinates, *, where: str, what: str) -> None:
    apart = [
        f"{short_name(name)} has {n} vertices in the {what} and {among.n_vertices[name]} in the run"
        for name, n in wanted.n_vertices.items()
        if among.n_vertices.get(name, n) != n
    ]
    if wanted.affine is not None and among.affine is not None:
        if wanted.grid_shape != among.grid_shape:
            apart.append(f"the volume is {wanted.grid_shape} in the {what} and {among.grid_shape} in the run")
        elif np.abs(wanted.affine - among.affine).max() > _AFFINE_TOLERANCE:
            apart.append(f"the volumes of {what} and run have other affines")
    if apart:
        raise InputError(
            "E-BRAIN-MODELS",
            "; ".join(apart),
            where=where,
            rule="surfaces have the same number of vertices, volumes the same grid",
            fix="give the file of the same space and density, such as fs_LR 32k for 91k grayordinates",
        )
