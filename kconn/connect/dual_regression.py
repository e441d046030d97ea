"""Dual regression: maps -> ``timeseries (node, time)`` -> ``subject_map (node, voxel)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.clean.frames import sample_mask, voxel_signal
from kconn.connect.nodes import AFFINE_TOLERANCE
from kconn.connect.parcellation import read_grid
from kconn.connect.spatial_maps import DenseMaps, SpatialMaps
from kconn.errors import InputError, SchemaError
from kconn.grayordinates import Grayordinates, find_rows, has_grayordinates, read_grayordinates
from kconn.kernels import dual_regression as kernel
from kconn.kernels.blas import single_thread

Rule = Literal["intercept", "regression", "mean"]
Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


def place_maps(
    volume: npt.NDArray[Any], affine: npt.ArrayLike, ds: xr.Dataset, *, names: Sequence[str]
) -> xr.DataArray:
    """Return spatial maps (node, voxel) on the voxels of a run.

    Parameters
    ----------
    volume
        Maps (i, j, k, node): group ICA components, probabilities.
    affine
        (4, 4) voxel to mm.
    ds
        A run with the coordinates ``i j k`` (voxel) and attrs ``affine`` and ``grid_shape``.
    names
        A name for each map.

    Raises
    ------
    InputError
        ``E-GRID`` if maps and run do not share one grid; ``E-NODES`` if the names do not fit.
    """
    shape, grid = read_grid(ds)
    _check_grid(volume, affine, shape, grid, where=str(ds.attrs.get("where", "")))
    if len(names) != volume.shape[3] or len(set(names)) != len(names):
        raise InputError(
            "E-NODES", f"{len(set(names))} different names for {volume.shape[3]} maps", rule="one name for each map"
        )
    at = tuple(ds[axis].to_numpy() for axis in "ijk")
    return xr.DataArray(volume[at].T, dims=("node", "voxel"), coords={"node": list(names)}, name="map")


def place_dense_maps(maps: DenseMaps, ds: xr.Dataset) -> xr.DataArray:
    """Return maps of grayordinates (node, voxel) on those of a run, 0 where they have none.

    Raises
    ------
    InputError
        ``E-BRAIN-MODELS`` if they have other surfaces or another volume, or nothing in common.
    """
    rows = find_dense_rows(maps, read_grayordinates(ds), where=str(ds.attrs.get("where", "")))
    placed = np.where((rows >= 0)[:, None], maps.values[rows], 0)
    return xr.DataArray(placed.T, dims=("node", "voxel"), coords={"node": list(maps.names)}, name="map")


def place_any_maps(maps: SpatialMaps | DenseMaps, ds: xr.Dataset) -> xr.DataArray:
    """Return maps (node, voxel) on the voxels or grayordinates of a run.

    Raises
    ------
    InputError
        As `place_maps` or `place_dense_maps`; ``E-BRAIN-MODELS`` if one has voxels and the other grayordinates.
    """
    where = str(ds.attrs.get("where", ""))
    check_kind(maps, is_dense=has_grayordinates(ds), where=where)
    if isinstance(maps, DenseMaps):
        return place_dense_maps(maps, ds)
    return place_maps(maps.volume, maps.affine, ds, names=maps.names)


def check_place(maps: SpatialMaps | DenseMaps, ds: xr.Dataset) -> None:
    """Refuse maps that do not lie where a run does, from its attrs and coordinates alone.

    Raises
    ------
    InputError
        As `place_any_maps`.
    """
    where = str(ds.attrs.get("where", ""))
    check_kind(maps, is_dense=has_grayordinates(ds), where=where)
    if isinstance(maps, DenseMaps):
        find_dense_rows(maps, read_grayordinates(ds), where=where)
        return
    n_i, n_j, n_k = (int(n) for n in ds.attrs["grid_shape"])
    affine = np.asarray(ds.attrs["affine"], dtype=np.float64)
    _check_grid(maps.volume, maps.affine, (n_i, n_j, n_k), affine, where=where)


def check_kind(maps: SpatialMaps | DenseMaps, *, is_dense: bool, where: str) -> None:
    """Refuse maps of voxels for grayordinates, and the other way round.

    Raises
    ------
    InputError
        ``E-BRAIN-MODELS``.
    """
    if isinstance(maps, DenseMaps) == is_dense:
        return
    voxels, grayordinates = "images of voxels", "of grayordinates"
    kinds = (voxels, "grayordinates") if is_dense else (grayordinates, "voxels")
    raise InputError(
        "E-BRAIN-MODELS",
        f"the maps are {kinds[0]}, the run has {kinds[1]}",
        where=where,
        rule="maps and runs are of one kind",
        fix="give a dscalar for CIFTI runs, and a NIfTI image for images",
    )


def find_dense_rows(maps: DenseMaps, places: Grayordinates, *, where: str) -> npt.NDArray[np.integer[Any]]:
    """Return the row of each grayordinate of a run among those of maps, -1 where they have none.

    Raises
    ------
    InputError
        As `place_dense_maps`.
    """
    rows = find_rows(places, maps.places, where=where, what="run")
    if not (rows >= 0).any():
        raise InputError(
            "E-BRAIN-MODELS",
            f"the maps have {maps.places.describe()}, none of which the run has",
            where=where,
            rule="maps and run share grayordinates",
            fix="give maps of the space and the structures of the runs",
        )
    return rows


def check_dense_maps(maps: DenseMaps, places: Grayordinates, *, where: str = "") -> None:
    """Refuse maps that cannot be regressed on a run of these grayordinates, before its data are read.

    Raises
    ------
    InputError
        As `place_dense_maps`; ``E-NODES`` if the maps are not independent of each other.
    """
    rows = find_dense_rows(maps, places, where=where)
    with single_thread():
        kernel.check_independent(maps.values[rows[rows >= 0]], where=where)


def check_maps(maps: SpatialMaps, shape: tuple[int, int, int], affine: Array, *, where: str = "") -> None:
    """Refuse maps that cannot be regressed on a run of this grid, before its data are read.

    Raises
    ------
    InputError
        ``E-GRID``; ``E-NODES`` if the maps are not independent of each other.
    """
    _check_grid(maps.volume, maps.affine, shape, affine, where=where)
    with single_thread():
        kernel.check_independent(maps.volume.reshape(-1, len(maps.names)), where=where)


def _check_grid(
    volume: npt.NDArray[Any], affine: npt.ArrayLike, shape: tuple[int, int, int], grid: Array, *, where: str
) -> None:
    apart = np.abs(np.asarray(affine, dtype=np.float64) - grid).max()
    if volume.ndim != 4 or volume.shape[:3] != shape or apart > AFFINE_TOLERANCE:
        raise InputError(
            "E-GRID",
            f"the maps have shape {volume.shape} and an affine that differs by up to {apart:.3g} mm from the run's",
            where=where,
            rule=f"shape {shape} by maps, and affine equal to {AFFINE_TOLERANCE:g} mm",
            fix="resample the maps to the grid of the run",
        )


def extract_map_series(
    ds: xr.Dataset,
    maps: SpatialMaps | DenseMaps,
    *,
    method: Literal["dual-regression", "weighted-mean"],
    min_coverage: float,
) -> xr.Dataset:
    """Add the series of spatial maps to a run, as `kconn.connect.parcellation.parcellate` does for regions.

    Parameters
    ----------
    ds
        As in `regress_maps`, with the coordinates ``i j k`` and the attrs ``affine`` and ``grid_shape``.
    maps
        On the grid of the run, or on some of its grayordinates.
    method
        ``"dual-regression"``: `regress_maps` with intercept; ``"weighted-mean"``: `average_maps`.
    min_coverage
        A map of whose weight a smaller share lies in voxels with data becomes NaN.

    Raises
    ------
    InputError, SchemaError
        As the function that does it.
    """
    placed = place_any_maps(maps, ds)
    values = maps.values if isinstance(maps, DenseMaps) else maps.volume.reshape(-1, len(maps.names))
    out = regress_maps(ds, placed, intercept=True) if method == "dual-regression" else average_maps(ds, placed)
    coverage = out["coverage"].assign_attrs(min_coverage=min_coverage)
    series = out["timeseries"].where(coverage >= min_coverage)
    size = np.count_nonzero(values, axis=0)
    out = out.assign(timeseries=series, coverage=coverage, n_voxel=("node", size))
    return schema.annotate(out.assign_coords(maps.coords()))


def regress_maps(ds: xr.Dataset, maps: xr.DataArray, *, intercept: bool) -> xr.Dataset:
    """Add the series of spatial maps: stage 1 of dual regression, the least-squares fit of all maps to every frame.

    Only voxels with data count: finite at every kept frame, not constant over them. The normal equations are summed
    in float64 over the canonical voxel blocks in order, so that chunks change no bit.

    Parameters
    ----------
    ds
        A run with ``denoised``, else ``bold``: (voxel, time). Lazy input gives a lazy result.
    maps
        (node, voxel) on the voxels of the run, for example from `place_maps`.
    intercept
        Whether a constant map is fitted as well. FSL's dual_regression takes the spatial mean off maps and frames,
        which is the same; nilearn's NiftiMapsMasker does not.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``timeseries (node, time)``, NaN at frames that are not kept, and ``coverage (node)``: the share of
        the map's absolute weight that lies in voxels with data.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` or ``E-ARGUMENT``.
    InputError
        ``E-NODES`` if maps are empty in this run or not independent (raised when computed).

    References
    ----------
    Nickerson et al. 2017, Using dual regression to investigate network shape and amplitude in functional connectivity
    analyses, doi:10.3389/fnins.2017.00115.
    """
    return _reduce_maps(ds, maps, "intercept" if intercept else "regression")


def average_maps(ds: xr.Dataset, maps: xr.DataArray) -> xr.Dataset:
    """Add the series of spatial maps as means of the voxels with data, each weighted by the map.

    Parameters
    ----------
    ds, maps
        As in `regress_maps`.

    Returns
    -------
    xr.Dataset
        As in `regress_maps`.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` or ``E-ARGUMENT``.
    InputError
        ``E-NODES`` if a map is negative somewhere or empty in this run (raised when computed).
    """
    return _reduce_maps(ds, maps, "mean")


def _reduce_maps(ds: xr.Dataset, maps: xr.DataArray, rule: Rule) -> xr.Dataset:
    """Sum block after block of the canonical grid, lazily if anything is lazy, and solve at the end."""
    signal = voxel_signal(ds, what="a series of maps")
    if maps.dims != ("node", "voxel") or maps.sizes["voxel"] != ds.sizes["voxel"]:
        raise SchemaError(
            "E-ARGUMENT",
            f"the maps have dims {dict(maps.sizes)}, the run has {ds.sizes['voxel']} voxels",
            where=str(ds.attrs.get("where", "")),
            rule="maps are (node, voxel) on the voxels of the run",
        )
    x, kept = ds[signal], sample_mask(ds)
    block = plan_voxel_blocks(*x.shape)
    where = str(ds.attrs.get("where", ""))
    if all(array.chunks is None for array in (x, maps, kept)):
        starts = range(0, x.shape[0], block)
        parts = [_normal_equations(x.data[i : i + block], maps.data[:, i : i + block], kept.data, rule) for i in starts]
        series, coverage = _solve(parts, kept.data, rule, where)
    else:
        [frames] = kept.chunk({"time": -1}).data.to_delayed()
        blocks = x.chunk({"voxel": block, "time": -1}).data.to_delayed()[:, 0]
        pieces = maps.chunk({"node": -1, "voxel": block}).data.to_delayed()[0]
        add = delayed(_normal_equations)
        parts = [add(b, m, frames, rule) for b, m in zip(blocks, pieces, strict=True)]
        lazy_series, lazy_coverage = delayed(_solve, nout=2)(parts, frames, rule, where)
        n_node, n_time = maps.shape[0], x.shape[1]
        series = da.from_delayed(lazy_series, (n_node, n_time), dtype=np.float64)
        coverage = da.from_delayed(lazy_coverage, (n_node,), dtype=np.float64)
    nodes = {name: coord for name, coord in maps.coords.items() if coord.dims == ("node",)}
    out = ds.drop_dims("node", errors="ignore").assign_coords(nodes)
    attrs = {"source": signal, "rule": rule}
    return schema.annotate(
        out.assign(timeseries=(("node", "time"), series, attrs), coverage=(("node",), coverage, {"min_coverage": 0.0}))
    )


def regress_series(ds: xr.Dataset, *, normalise: bool) -> xr.Dataset:
    """Add the run's own map of every node: stage 2 of dual regression, all series fitted to every voxel at once.

    Parameters
    ----------
    ds
        A run with ``denoised``, else ``bold``: (voxel, time), and ``timeseries (node, time)``. Lazy input gives a lazy
        result.
    normalise
        Whether the series have unit variance first, as FSL recommends (``des_norm``): a map then reflects both shape
        and amplitude of its network.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``subject_map (node, voxel)``, the coefficients, and ``subject_map_t (node, voxel)``, float32; NaN
        for voxels without data. An intercept is fitted too. A node whose series is NaN is left out of the fit, and its
        map is NaN.

    Raises
    ------
    SchemaError
        ``E-SCHEMA``.
    InputError
        ``E-NETMAT-RANK`` if the run has too few frames, ``E-NODES`` if series are not independent.
    """
    signal = voxel_signal(ds, what="dual regression")
    schema.validate(ds, "timeseries")
    x, ts, kept = ds[signal], ds["timeseries"], sample_mask(ds)
    block, where = plan_voxel_blocks(*x.shape), str(ds.attrs.get("where", ""))
    if all(array.chunks is None for array in (x, ts, kept)):
        fit = _fit(ts.data, kept.data, normalise, where)
        parts = [_regress(x.data[i : i + block], fit, kept.data) for i in range(0, x.shape[0], block)]
        both = np.concatenate(parts, axis=2)
    else:
        [frames] = kept.chunk({"time": -1}).data.to_delayed()
        [[series]] = ts.chunk({"node": -1, "time": -1}).data.to_delayed()
        blocks = x.chunk({"voxel": block, "time": -1}).data.to_delayed()[:, 0]
        fit = delayed(_fit)(series, frames, normalise, where)
        sizes = [min(block, x.shape[0] - i) for i in range(0, x.shape[0], block)]
        lazy = [
            da.from_delayed(delayed(_regress)(b, fit, frames), (2, ts.shape[0], n), dtype=np.float32)
            for b, n in zip(blocks, sizes, strict=True)
        ]
        both = da.concatenate(lazy, axis=2)
    attrs = {"source": signal, "normalise": int(normalise)}
    dims = ("node", "voxel")
    return schema.annotate(ds.assign(subject_map=(dims, both[0], attrs), subject_map_t=(dims, both[1], attrs)))


def _normal_equations(
    x: npt.NDArray[Any],
    maps: npt.NDArray[Any],
    kept: BoolArray,
    rule: Rule,
) -> tuple[tuple[Array, Array, Array], Array]:
    # One memory layout, whatever the maps came in: sums and products then have one order.
    columns = np.ascontiguousarray(maps.T, dtype=np.float64)
    whole = np.abs(columns).sum(axis=0)
    if rule != "regression":
        columns = np.column_stack([columns, np.ones(x.shape[0])])
    with single_thread():
        return kernel.normal_equations(x, columns, kept=kept), whole


def _solve(
    parts: Sequence[tuple[tuple[Array, Array, Array], Array]], kept: BoolArray, rule: Rule, where: str
) -> tuple[Array, Array]:
    whole = np.zeros_like(parts[0][1])
    for _, part_whole in parts:
        whole += part_whole
    solve = kernel.average_maps if rule == "mean" else kernel.solve_maps
    with single_thread():
        series, weight = solve([part for part, _ in parts], kept=kept, n_map=whole.size, where=where)
    return series, weight / whole


def _fit(series: Array, kept: BoolArray, normalise: bool, where: str) -> kernel.SeriesFit:  # noqa: FBT001 - as above
    with single_thread():
        return kernel.fit_series(series, kept=kept, normalise=normalise, where=where)


def _regress(x: npt.NDArray[Any], fit: kernel.SeriesFit, kept: BoolArray) -> npt.NDArray[np.float32]:
    with single_thread():
        return np.stack(kernel.regress_series(x, fit, kept=kept))
