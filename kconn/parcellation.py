"""Node sets, and the mean series of their nodes: ``denoised`` or ``bold`` -> ``timeseries`` and ``coverage``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.errors import InputError, SchemaError
from kconn.kernels import parcellation as kernel
from kconn.kernels.spheres import sphere_members

Array = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

#: Two affines describe one grid if no element differs by more than this, in mm.
AFFINE_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """Nodes that are labels of an image.

    Parameters
    ----------
    volume
        Integer labels (i, j, k); 0 is no node.
    affine
        (4, 4) voxel to mm.
    keys
        (node,) the label of each node, ascending.
    resample
        Whether a run on another grid may be served by nearest-neighbour resampling.
    """

    volume: IntArray
    affine: Array
    keys: tuple[int, ...]
    resample: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spheres:
    """Nodes that are spheres.

    Parameters
    ----------
    centres
        (node, 3) in mm.
    radius_mm
        (node,) in mm.
    """

    centres: Array
    radius_mm: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Nodes that are columns of a table of node series, found by their names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeSet:
    """Named nodes and what selects their voxels, for any run.

    Parameters
    ----------
    names
        (node,) unique names: the coordinate ``node``.
    networks
        (node,) the network of each node, or None.
    centres
        (node, 3) mm, or None where nothing is known of it.
    source
        What selects the voxels.
    """

    names: tuple[str, ...]
    networks: tuple[str, ...] | None
    centres: Array | None
    source: Labels | Spheres | Columns

    def coords(self) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        """Return the coordinates of the dimension ``node``."""
        coords: dict[str, tuple[str, npt.NDArray[Any]]] = {"node": ("node", np.array(self.names))}
        if self.networks is not None:
            coords["network"] = ("node", np.array(self.networks))
        if self.centres is not None:
            coords.update({axis: ("node", self.centres[:, i]) for i, axis in enumerate("xyz")})
        return coords


def nodes_from_labels(
    labels: npt.NDArray[Any],
    affine: npt.ArrayLike,
    *,
    names: Mapping[int, str] | None = None,
    networks: Mapping[int, str] | None = None,
    resample: bool = False,
) -> NodeSet:
    """Return the nodes of a label atlas.

    Parameters
    ----------
    labels
        Label image (i, j, k): whole numbers, 0 is no node.
    affine
        (4, 4) voxel to mm.
    names
        Label -> name, of exactly the labels in the image; the labels themselves if not given.
    networks
        Label -> network.
    resample
        Whether runs on another grid get the label nearest to each of their voxels. Without it they are refused.

    Raises
    ------
    InputError
        ``E-ATLAS`` if the image holds no labels or values that are none, or the tables do not fit it; ``E-NODES`` if
        two nodes share a name.
    """
    volume = _as_labels(labels)
    keys = tuple(int(key) for key in np.unique(volume) if key != 0)
    if not keys:
        raise InputError("E-ATLAS", "the label image holds no label", rule="at least one voxel is not 0")
    grid = np.asarray(affine, dtype=np.float64)
    for table, what in ((names, "names"), (networks, "networks")):
        _check_table(table, keys, what)
    return NodeSet(
        names=_check_names(str(key) if names is None else names[key] for key in keys),
        networks=None if networks is None else tuple(networks[key] for key in keys),
        centres=kernel.centres_of_mass(volume, grid, keys),
        source=Labels(volume=volume, affine=grid, keys=keys, resample=resample),
    )


def nodes_from_spheres(
    spheres: Iterable[tuple[str, float, float, float]],
    *,
    radius_mm: float | Sequence[float] | None = None,
    diameter_mm: float | Sequence[float] | None = None,
    networks: Mapping[str, str] | None = None,
) -> NodeSet:
    """Return nodes that are spheres: all voxels whose centre lies within the radius, as in nilearn.

    Parameters
    ----------
    spheres
        Name and centre (x, y, z) in mm of each.
    radius_mm, diameter_mm
        One of the two, for all spheres or one for each. Published studies state either.
    networks
        Name -> network.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if neither or both of ``radius_mm`` and ``diameter_mm`` are given, or one is not above zero.
    InputError
        ``E-NODES`` if there is no sphere, a centre is not finite, or two share a name.
    """
    if (radius_mm is None) == (diameter_mm is None):
        raise SchemaError(
            "E-ARGUMENT",
            f"radius_mm is {radius_mm} and diameter_mm is {diameter_mm}",
            rule="exactly one of them states the size of a sphere",
            fix="give radius_mm or diameter_mm, as the source of the coordinates defines it",
        )
    rows = list(spheres)
    names = _check_names(row[0] for row in rows)
    centres = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(centres).all():
        bad = int(np.flatnonzero(~np.isfinite(centres).all(axis=1))[0])
        raise InputError("E-NODES", f"sphere {names[bad]!r} has centre {centres[bad].tolist()}", rule="x, y, z in mm")
    radius = np.asarray(radius_mm, np.float64) if diameter_mm is None else np.asarray(diameter_mm, np.float64) / 2
    if radius.size not in {1, len(names)} or not np.all(np.isfinite(radius) & (radius > 0)):
        raise SchemaError(
            "E-ARGUMENT",
            f"the radius is {radius.tolist()} mm for {len(names)} spheres",
            rule="one number above 0 for all, or one for each",
        )
    return NodeSet(
        names=names,
        networks=None if networks is None else tuple(networks[name] for name in names),
        centres=centres,
        source=Spheres(centres=centres, radius_mm=np.broadcast_to(radius, len(names)).copy()),
    )


def nodes_from_columns(
    names: Iterable[str], *, exclude: Iterable[str] = (), networks: Mapping[str, str] | None = None
) -> NodeSet:
    """Return nodes that are columns of node series tables.

    Parameters
    ----------
    names
        Columns of the tables, in the order wanted.
    exclude
        Those of them that are no node (a global signal, the corpus callosum).
    networks
        Name -> network.

    Raises
    ------
    InputError
        ``E-NODES`` if nothing is left, two columns share a name, or ``exclude`` names no column.
    """
    columns, excluded = list(names), set(exclude)
    unknown = sorted(excluded - set(columns))
    if unknown:
        raise InputError(
            "E-NODES",
            f"no column is named {', '.join(map(repr, unknown))}",
            rule="every excluded column exists",
            fix=f"the columns are {', '.join(columns[:8])}{', ...' if len(columns) > 8 else ''}",
        )
    kept = _check_names(name for name in columns if name not in excluded)
    return NodeSet(
        names=kept,
        networks=None if networks is None else tuple(networks[name] for name in kept),
        centres=None,
        source=Columns(),
    )


def parcellate(ds: xr.Dataset, nodes: NodeSet, *, min_coverage: float = 0.5) -> xr.Dataset:
    """Add the mean series of each node to a run.

    A voxel counts if it has data: finite at every kept frame (``sample_mask``) and not constant over them. A node is
    NaN if fewer than ``min_coverage`` of its voxels count; `find_uncovered` lists these. Frames that are not kept are
    NaN. Voxels are summed in float64 in a fixed order, so that the bits do not depend on the chunks of the input.

    Parameters
    ----------
    ds
        A run with ``denoised``, else ``bold``: (voxel, time) with the coordinates ``i j k`` (voxel) and attrs
        ``affine`` and ``grid_shape``, or (column, time) for a node set of columns. Lazy input gives a lazy result.
    nodes
        Which voxels, or columns, make a node.
    min_coverage
        Share of the voxels of a node, 0 to 1, that must have data. Voxels outside the brain mask or outside the field
        of view count as voxels without.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``timeseries (node, time)`` float64 and ``coverage (node)``.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` or ``E-ARGUMENT``.
    InputError
        ``E-GRID`` if atlas and run do not share one grid and resampling was not asked for; ``E-NODES`` if no node
        lies in the run (raised when computed if only the data tell); ``E-ID-MISSING`` if a column is absent.
    """
    if not 0 <= min_coverage <= 1:
        raise SchemaError("E-ARGUMENT", f"min_coverage is {min_coverage}", rule="it is a share, from 0 to 1")
    signal = "denoised" if "denoised" in ds else "bold"
    schema.validate(ds, signal)
    source = ds[signal]
    if isinstance(nodes.source, Columns):
        source = _select_columns(source, nodes, where=str(ds.attrs.get("where", "")))
        members = _column_members(len(nodes.names))
        position = xr.DataArray(np.arange(len(nodes.names)), dims="column")
    else:
        shape, affine = read_grid(ds)
        members = find_members(nodes, shape, affine, where=str(ds.attrs.get("where", "")))
        position = ds["i"] + shape[0] * (ds["j"] + shape[1] * ds["k"])

    ds = ds.drop_dims("node", errors="ignore")
    kept = ds["sample_mask"] if "sample_mask" in ds else xr.DataArray(np.ones(ds.sizes["time"], bool), dims="time")
    rule = {"n_voxel": members.n_voxel, "min_coverage": min_coverage, "where": str(ds.attrs.get("where", ""))}
    series, coverage = _apply(source, position, kept, members, rule)
    out = ds.assign_coords(nodes.coords()).assign(
        timeseries=xr.DataArray(series, dims=("node", "time"), attrs={"source": signal}),
        coverage=xr.DataArray(coverage, dims=("node",), attrs={"min_coverage": min_coverage}),
    )
    return schema.annotate(out)


def find_uncovered(ds: xr.Dataset) -> tuple[str, ...]:
    """Return the nodes that are NaN because too few of their voxels have data; computes ``coverage``."""
    schema.validate(ds, "coverage")
    below = ds["coverage"].to_numpy() < ds["coverage"].attrs["min_coverage"]
    return tuple(map(str, ds["node"].to_numpy()[below | (ds["coverage"].to_numpy() == 0)]))


def read_grid(ds: xr.Dataset) -> tuple[tuple[int, int, int], Array]:
    """Return the shape and the affine (4, 4) of the voxel grid of a run.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` if the run does not say where its voxels are.
    """
    lacking = [name for name in ("affine", "grid_shape") if name not in ds.attrs]
    lacking += [name for name in "ijk" if name not in ds.coords]
    if lacking:
        raise SchemaError(
            "E-SCHEMA",
            f"the run does not say where its voxels are: it lacks {', '.join(lacking)}",
            where=str(ds.attrs.get("where", "")),
            rule="voxels need coordinates i, j, k and the attrs affine and grid_shape",
            fix="read the run with kconn, or use a node set of columns for tables of node series",
        )
    n_i, n_j, n_k = (int(n) for n in ds.attrs["grid_shape"])
    return (n_i, n_j, n_k), np.asarray(ds.attrs["affine"], dtype=np.float64)


def find_members(nodes: NodeSet, shape: tuple[int, int, int], affine: Array, *, where: str = "") -> kernel.Members:
    """Return the voxels of every node on a grid.

    Parameters
    ----------
    nodes
        Labels or spheres.
    shape, affine
        The grid.
    where
        The run, for error messages.

    Raises
    ------
    InputError
        ``E-GRID`` or ``E-NODES``, as in `parcellate`.
    """
    match nodes.source:
        case Spheres(centres=centres, radius_mm=radius_mm):
            members = sphere_members(centres, radius_mm, affine, shape)
        case Labels() as source:
            members = _find_labels(source, shape, affine, where)
        case Columns():
            raise SchemaError("E-ARGUMENT", "a node set of columns has no voxels", where=where)
    if members.voxel.size == 0:
        raise InputError(
            "E-NODES",
            f"none of the {len(nodes.names)} nodes lies within the {_describe(shape, affine)}",
            where=where,
            rule="at least one node overlaps the run",
            fix="check that atlas and run are in the same space",
        )
    return members


def _find_labels(source: Labels, shape: tuple[int, int, int], affine: Array, where: str) -> kernel.Members:
    same = source.volume.shape == shape and np.abs(source.affine - affine).max() <= AFFINE_TOLERANCE
    if same:
        return kernel.label_members(source.volume, keys=source.keys)
    if not source.resample:
        raise InputError(
            "E-GRID",
            f"the atlas is on a {_describe(source.volume.shape, source.affine)}, the run on a "
            f"{_describe(shape, affine)}",
            where=where,
            rule=f"shape equal and affine equal to {AFFINE_TOLERANCE:g} mm",
            fix="ask for resample = true (nearest neighbour), or give the atlas on the grid of the run",
        )
    labels = kernel.resample_labels(source.volume, source.affine, affine, shape)
    wide_affine, wide_shape, inside = kernel.extended_grid(source.volume, source.affine, affine, shape)
    beyond = kernel.resample_labels(source.volume, source.affine, wide_affine, wide_shape)
    beyond[inside] = 0
    n_beyond = kernel.label_members(beyond, keys=source.keys).n_voxel
    return kernel.label_members(labels, keys=source.keys, n_beyond=n_beyond)


def _select_columns(signal: xr.DataArray, nodes: NodeSet, *, where: str) -> xr.DataArray:
    if "column" not in signal.dims:
        raise SchemaError(
            "E-ARGUMENT",
            f"{signal.name!r} has dims {tuple(map(str, signal.dims))}, the node set selects columns of a table",
            where=where,
            rule="columns are those of (column, time)",
            fix="use a label atlas or spheres for voxel data",
        )
    position = {str(name): i for i, name in enumerate(signal["column"].to_numpy())}
    missing = [name for name in nodes.names if name not in position]
    if missing:
        raise InputError(
            "E-ID-MISSING",
            f"the table has no column {', '.join(map(repr, missing[:5]))}{' ...' if len(missing) > 5 else ''}",
            where=where,
            rule=f"all {len(nodes.names)} nodes are columns of every table",
            fix="exclude them, or correct the names",
        )
    return signal.isel(column=[position[name] for name in nodes.names])


def _column_members(n: int) -> kernel.Members:
    return kernel.Members(
        voxel=np.arange(n, dtype=np.int32),
        start=np.arange(n + 1, dtype=np.int32),
        node=np.arange(n, dtype=np.int32),
        n_voxel=np.ones(n, dtype=np.int64),
    )


def _apply(
    x: xr.DataArray, position: xr.DataArray, kept: xr.DataArray, members: kernel.Members, rule: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Sum block after block of the canonical grid, lazily if anything is lazy, and divide at the end."""
    place, block = str(x.dims[0]), plan_voxel_blocks(*x.shape)
    if all(array.chunks is None for array in (x, position, kept)):
        starts = range(0, x.shape[0], block)
        parts = [_sum_block(x.data[i : i + block], position.data[i : i + block], kept.data, members) for i in starts]
        return _finish(parts, kept.data, rule)

    blocks = x.chunk({place: block, "time": -1}).data.to_delayed()[:, 0]
    positions = position.chunk({place: block}).data.to_delayed()
    [frames] = kept.chunk({"time": -1}).data.to_delayed()
    sum_block, finish = delayed(_sum_block), delayed(_finish, nout=2)
    shared = delayed(members, traverse=False)
    parts = [sum_block(b, p, frames, shared) for b, p in zip(blocks, positions, strict=True)]
    series, coverage = finish(parts, frames, delayed(rule, traverse=False))
    n_node = members.n_voxel.size
    return (
        da.from_delayed(series, (n_node, x.shape[1]), dtype=np.float64),
        da.from_delayed(coverage, (n_node,), dtype=np.float64),
    )


def _sum_block(
    x: npt.NDArray[Any], position: IntArray, kept: BoolArray, members: kernel.Members
) -> tuple[Array, IntArray]:
    return kernel.sum_members(x, position, kept=kept, members=members)


def _finish(parts: Sequence[tuple[Array, IntArray]], kept: BoolArray, rule: Mapping[str, Any]) -> tuple[Array, Array]:
    series, coverage = kernel.mean_members(parts, kept=kept, n_voxel=rule["n_voxel"], min_coverage=rule["min_coverage"])
    if np.isnan(series[:, kept]).all():
        raise InputError(
            "E-NODES",
            f"none of the {len(coverage)} nodes is covered: the best has data in {coverage.max():.0%} of its voxels",
            where=rule["where"],
            rule=f"at least one node has data in {rule['min_coverage']:.0%} of its voxels",
            fix="check that atlas and run are in the same space, and the brain mask",
        )
    return series, coverage


def _as_labels(labels: npt.NDArray[Any]) -> IntArray:
    if labels.ndim != 3:
        raise InputError("E-ATLAS", f"the label image has shape {labels.shape}", rule="it has three dimensions")
    if labels.dtype.kind in "iu":
        return labels
    whole = np.rint(labels) if labels.dtype.kind == "f" else np.zeros(1)
    if labels.dtype.kind != "f" or not np.array_equal(whole, labels):
        raise InputError(
            "E-ATLAS",
            f"the image of type {labels.dtype} holds values that are no label",
            rule="labels are whole numbers",
            fix="give a label image, not a probability map",
        )
    return whole.astype(np.int32)


def _check_table(table: Mapping[int, str] | None, keys: Sequence[int], what: str) -> None:
    if table is None:
        return
    unnamed = sorted(set(keys) - set(table))
    unused = sorted(set(table) - set(keys) - {0})
    if unnamed or unused:
        raise InputError(
            "E-ATLAS",
            f"{what}: {len(unnamed)} labels of the image are not in the table {unnamed[:5]}, "
            f"{len(unused)} of the table are not in the image {unused[:5]}",
            rule="the table holds exactly the labels of the image",
            fix="use the table that belongs to this image",
        )


def _check_names(names: Iterable[str]) -> tuple[str, ...]:
    out = tuple(str(name) for name in names)
    if not out:
        raise InputError("E-NODES", "the node set is empty", rule="at least one node")
    twice = sorted({name for name in out if out.count(name) > 1}) if len(set(out)) < len(out) else []
    if twice:
        raise InputError("E-NODES", f"several nodes are named {twice[0]!r}", rule="names are unique")
    return out


def _describe(shape: Sequence[int], affine: Array) -> str:
    """Describe a grid as a reader knows it: shape, voxel size, orientation, origin."""
    size = " x ".join(f"{edge:.4g}" for edge in np.linalg.norm(affine[:3, :3], axis=0))
    main = np.abs(affine[:3, :3]).argmax(axis=0)
    axes = "".join(("LR", "PA", "IS")[m][int(affine[m, i] > 0)] for i, m in enumerate(main))
    origin = ", ".join(f"{x:.4g}" for x in affine[:3, 3])
    return f"grid of {' x '.join(map(str, shape))} voxels of {size} mm, {axes}, origin ({origin})"
