"""Dense connectomes: every voxel with every other, in tiles, of one run or as the mean over many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.clean.frames import sample_mask, voxel_signal
from kconn.connect.nodes import NodeSet
from kconn.connect.parcellation import parcellate
from kconn.connect.voxels import PLACE_ATTRS, check_same_grid, voxel_key
from kconn.errors import InputError
from kconn.kernels import dense as kernel
from kconn.kernels.blas import single_thread

Single = npt.NDArray[np.float32]

#: Voxels along each side of a tile: 64 MiB of float32.
TILE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """A run, and where its voxels are among those that all runs share."""

    signal: Any
    kept: npt.NDArray[np.bool_]
    at: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseRuns:
    """Runs on their common voxels, ready to be multiplied; `gather_runs` makes them.

    Attributes
    ----------
    n_voxel
        Voxels that all runs have.
    n_frame
        Kept frames of all runs.
    tile
        Voxels along each side of a tile.
    """

    runs: tuple[_Run, ...]
    place: xr.Dataset
    n_voxel: int
    n_frame: int
    tile: int

    @property
    def starts(self) -> range:
        """First voxel of each row of tiles."""
        return range(0, self.n_voxel, self.tile)

    def compute_tile(self, first: int, first_j: int) -> Any:
        """Return a task that makes the tile (voxel, voxel_j) which begins at two voxels: the mean of r over runs."""
        made = None
        for run in self.runs:
            rows, columns = (self._slice(run, start) for start in (first, first_j))
            made = delayed(_add_run, pure=False)(made, rows, columns, run.kept, len(self.runs))
        return made

    def size(self, first: int) -> int:
        """Return the voxels of the row of tiles that begins at ``first``."""
        return min(self.tile, self.n_voxel - first)

    def _slice(self, run: _Run, first: int) -> Any:
        at = run.at[first : first + self.tile]
        block = run.signal[at[0] : at[-1] + 1]
        return block if block.shape[0] == at.size else block[at - at[0]]


def gather_runs(runs: Sequence[xr.Dataset], *, tile: int = TILE) -> DenseRuns:
    """Return runs on the voxels that all of them have.

    Parameters
    ----------
    runs
        Each with ``denoised``, else ``bold``: (voxel, time).
    tile
        Voxels along each side of a tile.

    Raises
    ------
    InputError
        ``E-GRID`` if the runs lie on different grids; ``E-MASK-EMPTY`` if they share no voxel.
    """
    check_same_grid(runs)
    keys = [voxel_key(run) for run in runs]
    common = reduce(np.intersect1d, keys)
    if not common.size:
        raise InputError("E-MASK-EMPTY", "the runs share no voxel", rule="every run has data in at least one voxel")
    gathered = []
    for run, key in zip(runs, keys, strict=True):
        signal = run[voxel_signal(run, what="a dense connectome")].transpose("voxel", "time")
        gathered.append(
            _Run(signal=signal.data, kept=sample_mask(run).to_numpy(), at=np.searchsorted(key, common).astype(np.intp))
        )
    at = gathered[0].at
    place = xr.Dataset(
        coords={name: coord[at] for name, coord in runs[0].coords.items() if coord.dims == ("voxel",)},
        attrs={name: runs[0].attrs[name] for name in PLACE_ATTRS if name in runs[0].attrs},
    )
    n_frame = sum(int(run.kept.sum()) for run in gathered)
    return DenseRuns(runs=tuple(gathered), place=place, n_voxel=common.size, n_frame=n_frame, tile=tile)


def estimate_dense_connectome(runs: Sequence[xr.Dataset], *, tile: int = TILE) -> xr.Dataset:
    """Return the correlation of every voxel with every other, lazily: a tile at a time is in memory.

    Of several runs it is the mean of their r, which is that of their standardised series joined end to end, each run
    weighing the same.

    Parameters
    ----------
    runs
        Each with ``denoised``, else ``bold``: (voxel, time), on one grid.
    tile
        Voxels along each side of a tile. It changes no number but for rounding.

    Returns
    -------
    xr.Dataset
        ``dense (voxel, voxel_j)`` float32, on the voxels that all runs have; NaN where a run has no signal. Tiles
        below the diagonal are those above it, turned.

    Raises
    ------
    InputError
        As `gather_runs`.
    """
    gathered = gather_runs(runs, tile=tile)
    starts = list(gathered.starts)
    upper = {
        (i, j): da.from_delayed(
            gathered.compute_tile(starts[i], starts[j]),
            (gathered.size(starts[i]), gathered.size(starts[j])),
            dtype=np.float32,
        )
        for i in range(len(starts))
        for j in range(i, len(starts))
    }
    rows = [[upper[i, j] if i <= j else upper[j, i].T for j in range(len(starts))] for i in range(len(starts))]
    out = gathered.place.assign(dense=(("voxel", "voxel_j"), da.block(rows), {"tile": tile}))
    return schema.annotate(out.assign_attrs(n_run=len(runs), n_frame=gathered.n_frame))


def mirror_tiles(ds: xr.Dataset) -> xr.Dataset:
    """Return ``dense (voxel, voxel_j)`` whole, where only the tiles on and above the diagonal are stored. Lazy.

    Parameters
    ----------
    ds
        With ``dense``, whose attr ``tile`` says how large its tiles are.
    """
    schema.validate(ds, "dense")
    tile = int(ds["dense"].attrs["tile"])
    chunked = ds["dense"].chunk({"voxel": tile, "voxel_j": tile}).data
    tiles, n = chunked.blocks, chunked.numblocks[0]
    rows = [[tiles[i, j] if i <= j else tiles[j, i].T for j in range(n)] for i in range(n)]
    return ds.assign(dense=(("voxel", "voxel_j"), da.block(rows), ds["dense"].attrs))


def find_strongest(gathered: DenseRuns, first: int, n_strongest: int) -> Any:
    """Return a task that makes the lists of one row of tiles, from the diagonal on.

    Its result is ``columns, values (voxel, rank)`` for the voxels from ``first`` on: of each its strongest connections
    with the voxels of this row of tiles, and for those of the row itself with all from ``first`` on.
    """
    lists = delayed(kernel.start_strongest, pure=False)(gathered.n_voxel - first, n_strongest)
    for first_j in gathered.starts:
        if first_j >= first:
            tile = gathered.compute_tile(first, first_j)
            lists = delayed(_keep_both, pure=False)(lists, tile, first, first_j)
    return lists


def join_strongest(parts: Iterator[tuple[int, npt.NDArray[np.int32], Single]], gathered: DenseRuns) -> xr.Dataset:
    """Return the strongest connections of every voxel from the lists of all rows of tiles.

    Parameters
    ----------
    parts
        First voxel, columns and values of each, as `find_strongest` makes them.
    gathered
        The runs.

    Returns
    -------
    xr.Dataset
        ``neighbour (voxel, rank)``, the position of the other voxel, -1 where there is none, and ``neighbour_r (voxel,
        rank)``, the strongest first by size.
    """
    columns: npt.NDArray[np.int32] | None = None
    values: Single | None = None
    for first, part_columns, part_values in parts:
        if columns is None or values is None:
            columns, values = kernel.start_strongest(gathered.n_voxel, part_columns.shape[1])
        columns[first:], values[first:] = kernel.merge_strongest(
            columns[first:], values[first:], part_columns, part_values
        )
    out = gathered.place.assign(neighbour=(("voxel", "rank"), columns), neighbour_r=(("voxel", "rank"), values))
    return schema.annotate(out.assign_attrs(n_run=len(gathered.runs), n_frame=gathered.n_frame))


def estimate_strongest(runs: Sequence[xr.Dataset], *, n_strongest: int, tile: int = TILE) -> xr.Dataset:
    """Return the strongest connections of every voxel, without ever holding the dense connectome.

    Parameters
    ----------
    runs, tile
        As in `estimate_dense_connectome`.
    n_strongest
        Connections per voxel.

    Returns
    -------
    xr.Dataset
        As `join_strongest`.
    """
    gathered = gather_runs(runs, tile=tile)
    parts = ((first, *find_strongest(gathered, first, n_strongest).compute()) for first in gathered.starts)
    return join_strongest(parts, gathered)


def estimate_parcel_connectome(runs: Sequence[xr.Dataset], nodes: NodeSet) -> xr.Dataset:
    """Return the mean of a dense connectome within and between nodes, without ever making it.

    The mean of r over all pairs of voxels of two nodes is the product of the means of their standardised series. A
    voxel with itself counts within its node, as in the dense connectome.

    Parameters
    ----------
    runs
        As in `estimate_dense_connectome`.
    nodes
        Which voxels make a node; those without signal in a run do not count there.

    Returns
    -------
    xr.Dataset
        ``dense_mean (node, node_j)``, the mean over runs, lazy if a run is. Attrs ``n_run`` and ``n_frame``.

    Raises
    ------
    InputError
        ``E-GRID`` or ``E-BRAIN-MODELS`` if the runs do not lie where the first does, and as
        `kconn.connect.parcellation.parcellate`.
    """
    check_same_grid(runs)
    means = []
    for run in runs:
        signal = voxel_signal(run, what="a dense connectome")
        kept = sample_mask(run).to_numpy()
        unit = xr.apply_ufunc(
            kernel.unit_rows,
            run[signal].transpose("voxel", "time").chunk(time=-1) if run[signal].chunks else run[signal],
            kwargs={"kept": kept},
            input_core_dims=[["time"]],
            output_core_dims=[["time"]],
            exclude_dims={"time"},
            dask="parallelized",
            dask_gufunc_kwargs={"output_sizes": {"time": int(kept.sum())}},
            output_dtypes=[np.float32],
        )
        place = run.drop_dims("time").drop_dims("node", errors="ignore")
        series = parcellate(place.assign(denoised=unit), nodes, min_coverage=0)["timeseries"]
        means.append(series.dot(series.rename(node="node_j"), dim="time"))
    mean = sum(means[1:], start=means[0]) / len(means)
    n_frame = sum(int(sample_mask(run).sum()) for run in runs)
    out = xr.Dataset({"dense_mean": mean.drop_vars(set(mean.coords) - {"node", "node_j"})})
    return schema.annotate(out.assign_attrs(n_run=len(runs), n_frame=n_frame))


def _add_run(
    made: Single | None,
    rows: npt.NDArray[Any],
    columns: npt.NDArray[Any],
    kept: npt.NDArray[np.bool_],
    n_run: int,
) -> Single:
    """Add what one run contributes to a tile."""
    a, b = (kernel.unit_rows(np.asarray(x), kept=kept, weight=1 / n_run) for x in (rows, columns))
    with single_thread():
        return kernel.add_products(made, a, b)


def _keep_both(
    lists: tuple[npt.NDArray[np.int32], Single], tile: Single, first: int, first_j: int
) -> tuple[npt.NDArray[np.int32], Single]:
    """Put one tile into the lists of its rows, and turned into those of its columns."""
    columns, values = lists[0].copy(), lists[1].copy()
    kernel.keep_strongest(tile, first, first_j, columns[: len(tile)], values[: len(tile)])
    if first_j > first:
        below = slice(first_j - first, first_j - first + tile.shape[1])
        kernel.keep_strongest(np.ascontiguousarray(tile.T), first_j, first, columns[below], values[below])
    return columns, values
