"""Nodes that are spatial maps: group ICA components, probabilities. Their series come from a regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.errors import InputError
from kconn.grayordinates import Grayordinates, has_grayordinates, read_grayordinates

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpatialMaps:
    """Named maps on a grid.

    Parameters
    ----------
    names
        (node,) unique names: the coordinate ``node``.
    networks
        (node,) the network of each map, or None.
    volume
        (i, j, k, node), finite.
    affine
        (4, 4) voxel to mm.
    """

    names: tuple[str, ...]
    networks: tuple[str, ...] | None
    volume: Array
    affine: Array

    def coords(self) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        """Return the coordinates of the dimension ``node``; x, y, z (mm) are the peak of the absolute map."""
        flat = np.abs(self.volume).reshape(-1, len(self.names)).argmax(axis=0)
        peak = np.stack(np.unravel_index(flat, self.volume.shape[:3])).astype(np.float64)
        place = self.affine[:3, :3] @ peak + self.affine[:3, 3:]
        return _name_nodes(self.names, self.networks) | {axis: ("node", place[i]) for i, axis in enumerate("xyz")}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseMaps:
    """Named maps of grayordinates.

    Parameters
    ----------
    names
        (node,) unique names: the coordinate ``node``.
    networks
        (node,) the network of each map, or None.
    values
        (grayordinate, node), finite.
    places
        Where the grayordinates are.
    """

    names: tuple[str, ...]
    networks: tuple[str, ...] | None
    values: Array
    places: Grayordinates

    def coords(self) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        """Return the coordinates of the dimension ``node``; a map of vertices has no place in mm."""
        return _name_nodes(self.names, self.networks)


def nodes_from_dense_maps(
    values: Array,
    places: Grayordinates,
    *,
    names: Mapping[int, str] | None = None,
    networks: Mapping[int, str] | None = None,
) -> DenseMaps:
    """Return the nodes of maps of grayordinates.

    Parameters
    ----------
    values
        Maps (grayordinate, node).
    places
        Where the grayordinates are.
    names, networks
        As in `nodes_from_maps`.

    Raises
    ------
    InputError
        As `nodes_from_maps`.
    """
    named = _check_maps(values, names)
    return DenseMaps(names=named, networks=_names(networks, values.shape[1], "networks"), values=values, places=places)


def nodes_from_maps(
    volume: Array,
    affine: npt.ArrayLike,
    *,
    names: Mapping[int, str] | None = None,
    networks: Mapping[int, str] | None = None,
) -> SpatialMaps:
    """Return the nodes of an image of spatial maps.

    Parameters
    ----------
    volume
        Maps (i, j, k, node).
    affine
        (4, 4) voxel to mm.
    names, networks
        Number of a map, from 1 -> name and network; the numbers themselves if not given.

    Raises
    ------
    InputError
        ``E-NODES`` if the image is not of four dimensions, a map is zero throughout or holds values that are not
        finite, or two maps share a name; ``E-ATLAS`` if the table does not fit the image.
    """
    if volume.ndim != 4:
        raise InputError("E-NODES", f"the maps have shape {volume.shape}", rule="(i, j, k, map)")
    named = _check_maps(volume.reshape(-1, volume.shape[3]), names)
    return SpatialMaps(
        names=named,
        networks=_names(networks, volume.shape[3], "networks"),
        volume=volume,
        affine=np.asarray(affine, dtype=np.float64),
    )


def nodes_from_components(ds: xr.Dataset, *, accepted: npt.NDArray[np.bool_]) -> SpatialMaps | DenseMaps:
    """Return the nodes of a group ICA.

    Parameters
    ----------
    ds
        ``ica_map (node, voxel)`` with ``i j k`` and the attrs ``grid_shape`` and ``affine``.
    accepted
        (node,) which components are nodes.
    """
    names = tuple(map(str, ds["node"].to_numpy()[accepted]))
    if has_grayordinates(ds):
        values = ds["ica_map"].to_numpy()[accepted].T
        return DenseMaps(names=names, networks=None, values=values, places=read_grayordinates(ds))
    volume = np.zeros((*ds.attrs["grid_shape"], int(accepted.sum())))
    volume[tuple(ds[axis].to_numpy() for axis in "ijk")] = ds["ica_map"].to_numpy()[accepted].T
    return SpatialMaps(
        names=names, networks=None, volume=volume, affine=np.asarray(ds.attrs["affine"], dtype=np.float64)
    )


def _check_maps(values: Array, names: Mapping[int, str] | None) -> tuple[str, ...]:
    """Return the names of maps (place, node); refuse what is no map."""
    n_map = values.shape[1]
    bad = np.flatnonzero([not np.isfinite(values[:, i]).all() for i in range(n_map)])
    if bad.size:
        raise InputError(
            "E-NODES",
            f"map {bad[0] + 1} of {n_map} holds NaN or infinite values",
            rule="maps are finite everywhere, zero where there is nothing",
            fix="set them to zero",
        )
    empty = np.flatnonzero([not values[:, i].any() for i in range(n_map)])
    if empty.size:
        raise InputError(
            "E-NODES",
            f"map {empty[0] + 1} of {n_map} is zero throughout",
            rule="every map has values",
            fix="leave it out",
        )
    named = _names(names, n_map, "names") or tuple(str(i + 1) for i in range(n_map))
    if len(set(named)) < n_map:
        twice = next(name for name in named if named.count(name) > 1)
        raise InputError("E-NODES", f"several maps are named {twice!r}", rule="names are unique")
    return named


def _name_nodes(names: tuple[str, ...], networks: tuple[str, ...] | None) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    coords: dict[str, tuple[str, npt.NDArray[Any]]] = {"node": ("node", np.array(names))}
    if networks is not None:
        coords["network"] = ("node", np.array(networks))
    return coords


def _names(table: Mapping[int, str] | None, n_map: int, what: str) -> tuple[str, ...] | None:
    if table is None:
        return None
    wanted: Sequence[int] = range(1, n_map + 1)
    if set(table) != set(wanted):
        raise InputError(
            "E-ATLAS",
            f"{what}: the table has {len(table)} rows, from {min(table)} to {max(table)}, for {n_map} maps",
            rule="the table holds one row per map, numbered from 1",
            fix="use the table that belongs to these maps",
        )
    return tuple(table[i] for i in wanted)
