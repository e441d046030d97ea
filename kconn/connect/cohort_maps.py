"""The cohort of maps: maps of runs -> sessions -> ``seed_map (observation, node, voxel)``, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Final, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.chunks import plan_map_cube
from kconn.connect.nodes import AFFINE_TOLERANCE
from kconn.connect.parcellation import read_grid
from kconn.connect.voxels import PLACE_ATTRS
from kconn.errors import InputError, SchemaError
from kconn.grayordinates import COORDS, has_grayordinates
from kconn.kernels.cohort import mean_present
from kconn.kernels.masks import Bits, locate_voxels, pack_voxels, unpack_voxels

MapVariable = Literal["seed_map", "subject_map"]
#: Coordinates of ``node`` that a cohort keeps.
NODE_COORDS: Final = ("node", "network", "hemisphere", "x", "y", "z")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _RunMaps:
    """The maps of one run, read where they are needed, and its voxels on the grid."""

    maps: xr.Variable
    bits: Bits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Grid:
    shape: tuple[int, int, int]
    affine: npt.NDArray[Any]
    nodes: tuple[str, ...]
    first: xr.Dataset
    place: str

    @property
    def n_voxel(self) -> int:
        return prod(self.shape)


def mark_data(ds: xr.Dataset, variable: MapVariable) -> xr.Dataset:
    """Add ``has_data (voxel)``: where any of the maps of a run is not NaN. Lazy input gives a lazy result."""
    schema.validate(ds, variable)
    return schema.annotate(ds.assign(has_data=ds[variable].notnull().any("node", keep_attrs=False)))


def assemble_maps(
    runs: Iterable[tuple[str, str, xr.Dataset]], *, variable: MapVariable, min_share: float = 1.0
) -> xr.Dataset:
    """Return the cohort of the maps of all runs, lazily: never more than one block of voxels is in memory.

    The runs of a session are averaged; a voxel that is NaN in one run is the mean over the others. The cohort has the
    voxels that have data in at least ``min_share`` of the sessions: with 1 the intersection of their masks. Where a
    session has no data, it is NaN.

    Parameters
    ----------
    runs
        Subject ("01"), session and a Dataset with ``variable (node, voxel)`` from `kconn.estimate_seed_maps` or
        `kconn.regress_series`, ``has_data (voxel)`` from `mark_data`, ``i j k`` and the attrs ``affine`` and
        ``grid_shape``. Voxels are in the order of the file.
    variable
        ``"seed_map"`` or ``"subject_map"``.
    min_share
        Above 0, at most 1.

    Returns
    -------
    xr.Dataset
        ``variable (observation, node, voxel)`` float32, sorted by subject and session, and ``n_missing (voxel)``: in
        how many observations a voxel has no data.

    Raises
    ------
    InputError
        ``E-GRID`` if the runs are not on one grid, ``E-BRAIN-MODELS`` if they have other grayordinates,
        ``E-NODES`` if they have other nodes or there is none,
        ``E-MASK-EMPTY`` if no voxel has data in enough sessions.
    SchemaError
        ``E-ARGUMENT`` or ``E-SCHEMA``.
    """
    if not 0 < min_share <= 1:
        raise SchemaError("E-ARGUMENT", f"min_share is {min_share}", rule="above 0, at most 1")
    sessions, has_data, grid = _gather_runs(runs, variable)
    rows = sorted(sessions)
    count = np.zeros(grid.n_voxel, dtype=np.int32)
    for row in rows:
        count += unpack_voxels(has_data[row], grid.n_voxel)
    flat = np.flatnonzero(count >= max(1, ceil(min_share * len(rows) - 1e-9)))
    if not flat.size:
        raise InputError(
            "E-MASK-EMPTY",
            f"no voxel has data in {min_share:.0%} of the {len(rows)} sessions; the best has it in {count.max()}",
            rule="a cohort of maps has voxels",
            fix="check the masks of the runs, or lower min_share",
        )
    values = _lay_out([sessions[row] for row in rows], len(grid.nodes), flat)
    attrs = {**grid.first[variable].attrs, "min_share": min_share}
    out = xr.Dataset(
        {variable: (("observation", "node", "voxel"), values, attrs), "n_missing": ("voxel", len(rows) - count[flat])},
        coords={
            "observation": ("observation", np.array([f"sub-{subject}_ses-{session}" for subject, session in rows])),
            "subject": ("observation", np.array([subject for subject, _ in rows], dtype=object)),
            "session": ("observation", np.array([session for _, session in rows], dtype=object)),
            **_place_coords(grid, flat),
            **{name: grid.first[name].variable for name in NODE_COORDS if name in grid.first.coords},
        },
        attrs={name: grid.first.attrs[name] for name in PLACE_ATTRS if name in grid.first.attrs},
    )
    return schema.annotate(out)


Row = tuple[str, str]


def _gather_runs(
    runs: Iterable[tuple[str, str, xr.Dataset]], variable: MapVariable
) -> tuple[dict[Row, list[_RunMaps]], dict[Row, Bits], _Grid]:
    """Return the runs of every session, the voxels where it has data, and the grid that all share."""
    sessions: dict[Row, list[_RunMaps]] = {}
    has_data: dict[Row, Bits] = {}
    grid: _Grid | None = None
    for subject, session, ds in runs:
        schema.validate(ds, variable, "has_data")
        place = str(ds.attrs.get("where", f"sub-{subject}/ses-{session}"))
        shape, affine, flat = _locate(ds)
        nodes = tuple(map(str, ds["node"].to_numpy()))
        here = _Grid(shape=shape, affine=affine, nodes=nodes, first=ds, place=place)
        grid = grid or here
        _refuse_difference(grid, here)
        if (np.diff(flat) <= 0).any():
            raise SchemaError(
                "E-SCHEMA", "its voxels are not in the order of the file", where=place, rule="first axis fastest"
            )
        row = (str(subject), str(session))
        bits = pack_voxels(flat, grid.n_voxel)
        sessions.setdefault(row, []).append(_RunMaps(maps=ds[variable].variable, bits=bits))
        data = pack_voxels(flat[ds["has_data"].to_numpy()], grid.n_voxel)
        has_data[row] = has_data[row] | data if row in has_data else data
    if grid is None:
        raise InputError("E-NODES", "there is no map to put together", rule="at least one")
    return sessions, has_data, grid


def _locate(
    ds: xr.Dataset,
) -> tuple[tuple[int, int, int], npt.NDArray[np.floating[Any]], npt.NDArray[np.intp]]:
    """Return the grid of a run and the flat positions of its voxels; grayordinates count as a grid of one row."""
    if has_grayordinates(ds):
        n_place = ds.sizes["voxel"]
        return (n_place, 1, 1), np.eye(4), np.arange(n_place)
    shape, affine = read_grid(ds)
    flat = np.ravel_multi_index(tuple(ds[axis].to_numpy() for axis in "ijk"), shape, order="F")
    return shape, affine, flat


def _place_coords(grid: _Grid, flat: npt.NDArray[np.intp]) -> dict[str, Any]:
    """Return the coordinates of the voxels of the cohort."""
    if has_grayordinates(grid.first):
        return {name: ("voxel", grid.first[name].to_numpy()[flat]) for name in COORDS}
    places = np.unravel_index(flat, grid.shape, order="F")
    return {axis: ("voxel", at.astype(np.int32)) for axis, at in zip("ijk", places, strict=True)}


def _refuse_difference(first: _Grid, here: _Grid) -> None:
    apart = np.abs(first.affine - here.affine).max()
    models = [grid.first.attrs.get("brain_models") for grid in (first, here)]
    if models[0] != models[1]:
        raise InputError(
            "E-BRAIN-MODELS",
            f"the run has other grayordinates than {first.place}",
            where=here.place,
            rule="maps of one cohort have the same grayordinates in the same order",
            fix="make all runs with the same version and settings of their pipeline",
        )
    if first.shape != here.shape or apart > AFFINE_TOLERANCE:
        raise InputError(
            "E-GRID",
            f"the run is on a grid of {here.shape}, that of {first.place} on {first.shape}; their affines differ by up "
            f"to {apart:.3g} mm",
            where=here.place,
            rule=f"maps of one cohort share one grid, shape equal and affine equal to {AFFINE_TOLERANCE:g} mm",
            fix="resample the runs to one grid",
        )
    if first.nodes != here.nodes:
        raise InputError(
            "E-NODES",
            f"the nodes differ from those of {first.place}",
            where=here.place,
            rule="all runs of a cohort have the same nodes in the same order",
            fix="use one node set for all",
        )


def _lay_out(rows: Sequence[Sequence[_RunMaps]], n_node: int, flat: npt.NDArray[np.intp]) -> da.Array:
    """Return (observation, node, voxel) float32, one task per block of all observations, one node to a chunk."""
    per_node, per_voxel = plan_map_cube(len(rows), n_node, flat.size)
    gather, shared = delayed(_gather_block, pure=False), delayed(tuple(rows), traverse=False, pure=False)
    blocks = [
        [
            da.from_delayed(
                gather(shared, slice(node, min(node + per_node, n_node)), flat[voxel : voxel + per_voxel]),
                (len(rows), min(per_node, n_node - node), min(per_voxel, flat.size - voxel)),
                dtype=np.float32,
            )
            for voxel in range(0, flat.size, per_voxel)
        ]
        for node in range(0, n_node, per_node)
    ]
    cube: da.Array = da.block(blocks).rechunk({1: 1})
    return cube


def _gather_block(
    rows: Sequence[Sequence[_RunMaps]], nodes: slice, wanted: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    out = np.empty((len(rows), nodes.stop - nodes.start, wanted.size), dtype=np.float32)
    for i_row, runs in enumerate(rows):
        parts = [_read(run, nodes, wanted) for run in runs]
        out[i_row] = parts[0] if len(parts) == 1 else mean_present(np.stack(parts, axis=-1))
    return out


def _read(run: _RunMaps, nodes: slice, wanted: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    first, end, place = locate_voxels(run.bits, wanted)
    found = run.maps[nodes, first:end].to_numpy()
    values = np.full((found.shape[0], wanted.size), np.nan, dtype=np.float32)
    there = place >= 0
    values[:, there] = found[:, place[there]]
    return values
