"""Node sets as the study file names them: an atlas image, spatial maps, spheres, or columns of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from kconn.connect.nodes import nodes_from_dense_labels
from kconn.connect.parcellation import NodeSet, nodes_from_columns, nodes_from_labels, nodes_from_spheres
from kconn.connect.spatial_maps import DenseMaps, SpatialMaps, nodes_from_dense_maps, nodes_from_maps
from kconn.errors import InputError
from kconn.io import atlases, cifti, nifti
from kconn.io.coordinates import SPHERE_TABLES, read_published_spheres


def load_nodes(
    params: Mapping[str, Any], files: Mapping[str, Path], run: xr.Dataset
) -> NodeSet | SpatialMaps | DenseMaps:
    """Return the node set of one ``[nodes.NAME]`` table.

    Parameters
    ----------
    params
        The table's values.
    files
        Role (``atlas``, ``labels``, ``spheres``, ``maps``) -> path.
    run
        A run, for the columns of node tables.

    Raises
    ------
    InputError
        ``E-ATLAS``, ``E-CIFTI``, ``E-AMBIGUOUS``, ``E-NODES``, ``E-TABLE`` or ``E-ID-MISSING``.
    """
    if "atlas" in files and cifti.is_labels(files["atlas"]):
        return _load_dlabel(params, files)
    if "maps" in files:
        return _load_maps(files)
    if "atlas" in files:
        labels, affine = nifti.read_labels(files["atlas"])
        names, networks = atlases.read_labels_table(files["labels"]) if "labels" in files else (None, None)
        return nodes_from_labels(labels, affine, names=names, networks=networks, resample=params["resample"])
    if params.get("spheres") in SPHERE_TABLES:
        return _load_published(params)
    if "spheres" in files or params.get("spheres") is not None:
        spheres = atlases.read_spheres(files["spheres"]) if "spheres" in files else params["spheres"]
        return nodes_from_spheres(spheres, radius_mm=params["radius_mm"], diameter_mm=params["diameter_mm"])
    if "column" not in run.dims:
        raise InputError(
            "E-NODES",
            "a node set of columns needs runs that are tables of node series",
            rule="images have voxels, not columns",
            fix="give the node set an atlas or spheres",
        )
    available = [str(name) for name in run["column"].to_numpy()]
    wanted = available if params["columns"] == "all" else list(params["columns"])
    if unknown := [name for name in wanted if name not in available]:
        raise InputError(
            "E-ID-MISSING",
            f"there is no column {unknown[0]!r}",
            rule="the columns of a node set exist in every run",
            fix=f"the columns are {', '.join(available[:8])}{', ...' if len(available) > 8 else ''}",
        )
    return nodes_from_columns(wanted, exclude=params["exclude"])


def _load_published(params: Mapping[str, Any]) -> NodeSet:
    """Return the spheres of a published table, of its own sizes unless the study file gives one."""
    found = read_published_spheres(params["spheres"])
    radius, diameter = params["radius_mm"], params["diameter_mm"]
    own = found.radius_mm if radius is None and diameter is None else radius
    return nodes_from_spheres(found.spheres, radius_mm=own, diameter_mm=diameter, networks=found.networks)


def _load_maps(files: Mapping[str, Path]) -> SpatialMaps | DenseMaps:
    """Return the nodes of an image of maps, or of a dscalar: the names of its maps, unless a table gives others."""
    if not cifti.is_scalars(files["maps"]):
        volume, affine = nifti.read_maps(files["maps"])
        names, networks = atlases.read_labels_table(files["labels"]) if "labels" in files else (None, None)
        return nodes_from_maps(volume, affine, names=names, networks=networks)
    found = cifti.read_dense_scalars(files["maps"])
    own = dict(enumerate(found.names, start=1)) if len(set(found.names)) == len(found.names) else None
    names, networks = atlases.read_labels_table(files["labels"]) if "labels" in files else (own, None)
    return nodes_from_dense_maps(found.values, found.places, names=names, networks=networks)


def _load_dlabel(params: Mapping[str, Any], files: Mapping[str, Path]) -> NodeSet:
    """Return the nodes of a dlabel: its own names, unless a table gives others."""
    found = cifti.read_dense_labels(files["atlas"], map_name=params["label_map"])
    names, networks = atlases.read_labels_table(files["labels"]) if "labels" in files else (found.names, None)
    colours = {key: _hex(colour) for key, colour in found.colours.items()}
    return nodes_from_dense_labels(found.keys, found.places, names=names, networks=networks, colours=colours)


def _hex(colour: tuple[float, float, float, float]) -> str:
    """Return red, green and blue from 0 to 1 as ``#rrggbb``."""
    parts = (round(255 * min(1.0, max(0.0, part))) for part in colour[:3])
    return "#" + "".join(f"{part:02x}" for part in parts)


def load_templates(files: Mapping[str, Path]) -> SpatialMaps | DenseMaps | None:
    """Return the maps of known networks, or None where there are none.

    A template may be NaN where it says nothing, and lie anywhere: it is compared, not fitted.

    Parameters
    ----------
    files
        Role (``templates``, ``template_labels``) -> path.

    Raises
    ------
    InputError
        As `kconn.io.nifti.read_maps` or `kconn.io.cifti.read_dense_scalars`; ``E-ATLAS`` if the table lacks one.
    """
    if "templates" not in files:
        return None
    if cifti.is_scalars(files["templates"]):
        found = cifti.read_dense_scalars(files["templates"])
        names = _name_templates(files, found.values.shape[1], found.names)
        return DenseMaps(names=names, networks=None, values=found.values, places=found.places)
    volume, affine = nifti.read_maps(files["templates"])
    numbers = range(1, volume.shape[3] + 1)
    names = _name_templates(files, volume.shape[3], tuple(f"template{i}" for i in numbers))
    return SpatialMaps(names=names, networks=None, volume=volume, affine=affine)


def _name_templates(files: Mapping[str, Path], n_map: int, own: tuple[str, ...]) -> tuple[str, ...]:
    if "template_labels" not in files:
        return own
    numbers = range(1, n_map + 1)
    names, _ = atlases.read_labels_table(files["template_labels"])
    if missing := [i for i in numbers if i not in names]:
        raise InputError(
            "E-ATLAS",
            f"the table of templates has no row for map {missing[0]} of {n_map}",
            where=files["template_labels"].name,
            rule="one row per map, numbered from 1",
        )
    return tuple(names[i] for i in numbers)
