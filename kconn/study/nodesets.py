"""Node sets as the study file names them: an atlas image, spatial maps, spheres, or columns of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from kconn.connect.nodes import drop_nodes, join_nodes, label_nodes, nodes_from_dense_labels
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
        The table's values; of a union those of its parts as well, by name, in ``parts``.
    files
        Role (``atlas``, ``labels``, ``spheres``, ``maps``) -> path; roles in a union are ``PART:atlas``.
    run
        A run, for the columns of node tables.

    Raises
    ------
    InputError
        ``E-ATLAS``, ``E-CIFTI``, ``E-AMBIGUOUS``, ``E-NODES``, ``E-TABLE`` or ``E-ID-MISSING``.
    """
    if "maps" in files:
        return _load_maps(files)
    if "parts" not in params and "atlas" not in files and params.get("spheres") is None and "spheres" not in files:
        return _load_columns(params, files, run)
    nodes = _load_places(params, files, run)
    return drop_nodes(nodes, params["exclude"]) if params.get("exclude") else nodes


def _load_places(params: Mapping[str, Any], files: Mapping[str, Path], run: xr.Dataset) -> NodeSet:
    """Return the nodes of an atlas, of spheres, or of a union, all of them."""
    if "parts" in params:
        return join_nodes(*(_load_part(name, part, files, run) for name, part in params["parts"].items()))
    if "atlas" in files:
        return _load_dlabel(params, files) if cifti.is_labels(files["atlas"]) else _load_labels(params, files)
    if params.get("spheres") in SPHERE_TABLES:
        nodes = _load_published(params)
    else:
        rows = atlases.read_spheres(files["spheres"]) if "spheres" in files else params["spheres"]
        nodes = nodes_from_spheres(rows, radius_mm=params["radius_mm"], diameter_mm=params["diameter_mm"])
    members = files.get("labels", files.get("spheres"))
    return nodes if members is None else _label(nodes, members)


def _load_part(name: str, params: Mapping[str, Any], files: Mapping[str, Path], run: xr.Dataset) -> NodeSet:
    own = {role.removeprefix(f"{name}:"): path for role, path in files.items() if role.startswith(f"{name}:")}
    nodes = load_nodes(params, own, run)
    assert isinstance(nodes, NodeSet)  # noqa: S101 - the study file refuses maps in a union
    return nodes


def _load_labels(params: Mapping[str, Any], files: Mapping[str, Path]) -> NodeSet:
    labels, affine = nifti.read_labels(files["atlas"])
    if "labels" not in files:
        return nodes_from_labels(labels, affine, resample=params["resample"])
    table = atlases.read_labels_table(files["labels"])
    return nodes_from_labels(
        labels,
        affine,
        names=table.names,
        networks=table.networks,
        hemispheres=table.hemispheres,
        resample=params["resample"],
    )


def _load_columns(params: Mapping[str, Any], files: Mapping[str, Path], run: xr.Dataset) -> NodeSet:
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
    nodes = nodes_from_columns(wanted, exclude=params["exclude"])
    return _label(nodes, files["labels"], known=available) if "labels" in files else nodes


def _label(nodes: NodeSet, path: Path, *, known: Iterable[str] = ()) -> NodeSet:
    """Return nodes with the networks and hemispheres that a table has, by name."""
    members = atlases.read_members(path)
    return label_nodes(nodes, networks=members.networks, hemispheres=members.hemispheres, known=known)


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
        if "labels" not in files:
            return nodes_from_maps(volume, affine)
        table = atlases.read_labels_table(files["labels"])
        return nodes_from_maps(volume, affine, names=table.names, networks=table.networks)
    found = cifti.read_dense_scalars(files["maps"])
    own = dict(enumerate(found.names, start=1)) if len(set(found.names)) == len(found.names) else None
    if "labels" not in files:
        return nodes_from_dense_maps(found.values, found.places, names=own)
    table = atlases.read_labels_table(files["labels"])
    return nodes_from_dense_maps(found.values, found.places, names=table.names, networks=table.networks)


def _load_dlabel(params: Mapping[str, Any], files: Mapping[str, Path]) -> NodeSet:
    """Return the nodes of a dlabel: its own names, unless a table gives others."""
    found = cifti.read_dense_labels(files["atlas"], map_name=params["label_map"])
    occur = set(np.unique(found.keys).tolist()) - {0}
    own = atlases.label_schaefer({key: name for key, name in found.names.items() if key in occur})
    table = atlases.read_labels_table(files["labels"]) if "labels" in files else own
    return nodes_from_dense_labels(
        found.keys,
        found.places,
        names=table.names,
        networks=table.networks,
        hemispheres=table.hemispheres,
        colours={key: _hex(colour) for key, colour in found.colours.items()},
    )


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
    names = atlases.read_labels_table(files["template_labels"]).names
    if missing := [i for i in numbers if i not in names]:
        raise InputError(
            "E-ATLAS",
            f"the table of templates has no row for map {missing[0]} of {n_map}",
            where=files["template_labels"].name,
            rule="one row per map, numbered from 1",
        )
    return tuple(names[i] for i in numbers)
