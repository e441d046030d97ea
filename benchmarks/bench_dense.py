"""Tiles of a dense connectome against the bare matrix product: ``python -m benchmarks.bench_dense``.

Each side computes one row of tiles with as many threads as there are cores, one tile to a thread, as a worker does.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute
from threadpoolctl import threadpool_limits

from benchmarks.side_by_side import compare
from kconn.cluster import cores
from kconn.connect.dense_connectome import TILE, find_strongest, gather_runs

N_VOXEL, N_TIME = 4 * TILE, 1200


def make_voxels() -> npt.NDArray[np.float32]:
    """Return series (voxel, time)."""
    return np.random.default_rng(0).standard_normal((N_VOXEL, N_TIME), dtype=np.float32) * 20 + 1000


def gathered() -> Any:
    """Return the run, ready to be multiplied."""
    voxels = make_voxels()
    run = xr.Dataset(
        {"denoised": (("voxel", "time"), voxels)},
        coords={
            "i": ("voxel", np.arange(N_VOXEL)),
            "j": ("voxel", np.zeros(N_VOXEL, dtype=int)),
            "k": ("voxel", np.zeros(N_VOXEL, dtype=int)),
        },
        attrs={"grid_shape": [N_VOXEL, 1, 1], "affine": np.eye(4).tolist()},
    )
    return gather_runs([run])


def tiles() -> Callable[[], Any]:
    """Prepare a row of tiles, from series to r."""
    runs = gathered()
    starts = list(runs.starts)
    return lambda: compute(*(runs.compute_tile(0, j) for j in starts), scheduler="threads")


def strongest() -> Callable[[], Any]:
    """Prepare the 64 strongest connections from the same row of tiles."""
    runs = gathered()
    return lambda: find_strongest(runs, 0, 64).compute(scheduler="threads")


def product() -> Callable[[], Any]:
    """Prepare the bare products of the same blocks."""
    voxels = make_voxels()
    blocks = [voxels[i : i + TILE] for i in range(0, N_VOXEL, TILE)]

    def call() -> list[npt.NDArray[np.float32]]:
        with threadpool_limits(1), ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(lambda block: blocks[0] @ block.T, blocks))

    return call


if __name__ == "__main__":
    what = f"4 tiles of {TILE} x {TILE}, {N_TIME} frames, float32 in memory"
    compare(what, ours=tiles, peer=product, peer_name="bare matrix product")
    compare(f"64 strongest of {what}", ours=strongest, peer=product, peer_name="bare matrix product")
