"""Seed maps: ``denoised (voxel, time)`` and seeds -> ``seed_map (node, voxel)``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.clean.frames import sample_mask, voxel_signal
from kconn.connect.nodes import NodeSet
from kconn.connect.parcellation import parcellate
from kconn.errors import SchemaError
from kconn.kernels import seedmaps as kernel
from kconn.kernels.blas import count_threads, single_thread


def estimate_seed_maps(ds: xr.Dataset, seeds: NodeSet | xr.DataArray, *, min_coverage: float = 0.5) -> xr.Dataset:
    """Add the correlation of each seed with every voxel, as Fisher's z.

    Only frames of ``sample_mask`` count, where there is one. Constant voxels, voxels with a NaN at a kept frame, and
    seeds without data are NaN. |r| is cut at 1 - 2^-23, so that |z| is at most 8.32 and never infinite.

    Parameters
    ----------
    ds
        A run with ``denoised``, else ``bold``: (voxel, time). Lazy input gives a lazy result.
    seeds
        A node set, whose mean series are taken from the run, or series (node, time) with the frames of the run.
    min_coverage
        As in `kconn.connect.parcellation.parcellate`; for node sets only.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``seed_map (node, voxel)`` float32; with a node set also its ``timeseries`` and ``coverage``.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` if the run has no voxels, ``E-ARGUMENT`` if the seed series have other frames.
    InputError
        As in `kconn.connect.parcellation.parcellate`.
    """
    signal = voxel_signal(ds, what="a seed map")
    if isinstance(seeds, NodeSet):
        ds = parcellate(ds, seeds, min_coverage=min_coverage)
        ts = ds["timeseries"]
    else:
        ts = seeds
        _check_series(ts, ds)
        ds = ds.drop_dims("node", errors="ignore").assign_coords(
            {name: coord for name, coord in ts.coords.items() if coord.dims == ("node",)}
        )

    kept = sample_mask(ds)
    z = _apply(ts, ds[signal], kept)
    seed_map = xr.DataArray(z, dims=("node", "voxel"), attrs={"source": signal, "z": "fisher"})
    return schema.annotate(ds.assign(seed_map=seed_map))


def _check_series(ts: xr.DataArray, ds: xr.Dataset) -> None:
    if ts.dims != ("node", "time") or ts.sizes["time"] != ds.sizes["time"]:
        raise SchemaError(
            "E-ARGUMENT",
            f"the seed series have dims {dict(ts.sizes)}, the run has {ds.sizes['time']} frames",
            where=str(ds.attrs.get("where", "")),
            rule="seed series are (node, time), with the frames of the run",
        )


def _apply(ts: xr.DataArray, x: xr.DataArray, kept: xr.DataArray) -> Any:
    """Correlate block after block of the canonical grid, lazily if anything is lazy."""
    block = plan_voxel_blocks(*x.shape)
    if all(array.chunks is None for array in (ts, x, kept)):
        z = np.empty((ts.shape[0], x.shape[0]), dtype=np.float32)

        def fill(i: int) -> None:
            _map_block(ts.data, x.data[i : i + block], kept.data, out=z[:, i : i + block])

        with ThreadPoolExecutor(count_threads()) as pool:
            list(pool.map(fill, range(0, x.shape[0], block)))
        return z

    blocks = x.chunk({"voxel": block, "time": -1}).data.to_delayed()[:, 0]
    [[series]] = ts.chunk({"node": -1, "time": -1}).data.to_delayed()
    [frames] = kept.chunk({"time": -1}).data.to_delayed()
    map_block = delayed(_map_block)
    sizes = [min(block, x.shape[0] - i) for i in range(0, x.shape[0], block)]
    maps = [
        da.from_delayed(map_block(series, b, frames), (ts.shape[0], n), dtype=np.float32)
        for b, n in zip(blocks, sizes, strict=True)
    ]
    return da.concatenate(maps, axis=1)


def _map_block(
    seeds: npt.NDArray[Any],
    x: npt.NDArray[Any],
    kept: npt.NDArray[np.bool_],
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    with single_thread():
        return kernel.seed_maps(seeds, x, kept=kept, out=out)
