"""The mean series of nodes: ``denoised`` or ``bold`` -> ``timeseries`` and ``coverage``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.clean.frames import sample_mask
from kconn.connect.nodes import (
    Columns,
    NodeSet,
    find_dense_members,
    find_members,
    nodes_from_columns,
    nodes_from_labels,
    nodes_from_spheres,
)
from kconn.errors import InputError, SchemaError
from kconn.grayordinates import has_grayordinates, read_grayordinates
from kconn.kernels import parcellation as kernel

#: Whoever parcellates makes node sets first: their names are to be had here as well.
__all__ = [
    "Columns",
    "NodeSet",
    "find_atlas_coverage",
    "find_dense_members",
    "find_members",
    "find_uncovered",
    "name_regions",
    "nodes_from_columns",
    "nodes_from_labels",
    "nodes_from_spheres",
    "parcellate",
    "read_grid",
]

Array = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]


def parcellate(ds: xr.Dataset, nodes: NodeSet, *, min_coverage: float = 0.5) -> xr.Dataset:
    """Add the mean series of each node to a run.

    A voxel counts if it has data: finite at every kept frame (``sample_mask``) and not constant over them. A node is
    NaN if fewer than ``min_coverage`` of its voxels count; `find_uncovered` lists these. Frames that are not kept are
    NaN. Voxels are summed in float64 in a fixed order, so that the bits do not depend on the chunks of the input.

    Parameters
    ----------
    ds
        A run with ``denoised``, else ``bold``: (voxel, time) with the coordinates ``i j k`` (voxel) and attrs
        ``affine`` and ``grid_shape``, or with those of grayordinates, or (column, time) for a node set of columns.
        Lazy input gives a lazy result.
    nodes
        Which voxels, or columns, make a node.
    min_coverage
        Share of the voxels of a node, 0 to 1, that must have data. Voxels outside the brain mask or outside the field
        of view count as voxels without.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``timeseries (node, time)`` float64, ``coverage (node)`` and ``n_voxel (node)``.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` or ``E-ARGUMENT``.
    InputError
        ``E-GRID`` if atlas and run do not share one grid and resampling was not asked for; ``E-BRAIN-MODELS`` if they
        do not share surfaces and volume; ``E-NODES`` if no node lies in the run (raised when computed if only the data
        tell); ``E-ID-MISSING`` if a column is absent.
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
        members, position = _find_places(ds, nodes)

    ds = ds.drop_dims("node", errors="ignore")
    kept = sample_mask(ds)
    rule = {"n_voxel": members.n_voxel, "min_coverage": min_coverage, "where": str(ds.attrs.get("where", ""))}
    series, coverage = _apply(source, position, kept, members, rule)
    out = ds.assign_coords(nodes.coords()).assign(
        timeseries=xr.DataArray(series, dims=("node", "time"), attrs={"source": signal}),
        coverage=xr.DataArray(coverage, dims=("node",), attrs={"min_coverage": min_coverage}),
        n_voxel=xr.DataArray(members.n_voxel.astype(np.int64), dims=("node",)),
    )
    return schema.annotate(out)


def _find_places(ds: xr.Dataset, nodes: NodeSet) -> tuple[kernel.Members, xr.DataArray]:
    """Return the members of each node and the number by which they name each row of a run."""
    where = str(ds.attrs.get("where", ""))
    if has_grayordinates(ds):
        members = find_dense_members(nodes, read_grayordinates(ds), where=where)
        return members, xr.DataArray(np.arange(ds.sizes["voxel"]), dims="voxel")
    shape, affine = read_grid(ds)
    members = find_members(nodes, shape, affine, where=where)
    return members, ds["i"] + shape[0] * (ds["j"] + shape[1] * ds["k"])


def name_regions(ds: xr.Dataset, nodes: NodeSet) -> npt.NDArray[np.object_]:
    """Return the name of the node that each voxel lies in (voxel,), empty where it lies in none.

    Parameters
    ----------
    ds
        With the coordinates of its voxels or grayordinates.
    nodes
        Labels of an atlas; of overlapping nodes the first is named.

    Raises
    ------
    InputError
        As `find_members` or `find_dense_members`.
    """
    members, position = _find_places(ds, nodes)
    names = np.array([*nodes.names, ""], dtype=object)
    at = np.minimum(np.searchsorted(members.voxel, position.to_numpy()), members.voxel.size - 1)
    first = members.node[members.start[:-1][at]]
    named: npt.NDArray[np.object_] = names[np.where(members.voxel[at] == position.to_numpy(), first, -1)]
    return named


def find_atlas_coverage(ds: xr.Dataset) -> xr.Dataset:
    """Add how much of a node set a run covers: the scalars `atlas_coverage` and `n_uncovered`.

    Parameters
    ----------
    ds
        With `coverage` and `n_voxel` ``(node)``, as `parcellate` makes them. Lazy or in memory.

    Returns
    -------
    ds
        With `atlas_coverage`, the share of the voxels of all nodes that lie in the brain mask and have data, and
        `n_uncovered`, the nodes of which fewer than ``min_coverage`` do: those are NaN.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.
    """
    schema.validate(ds, "coverage", "n_voxel")
    coverage, size = ds["coverage"], ds["n_voxel"]
    below = (coverage < coverage.attrs["min_coverage"]) | (coverage == 0)
    return schema.annotate(ds.assign(atlas_coverage=(coverage * size).sum() / size.sum(), n_uncovered=below.sum()))


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
