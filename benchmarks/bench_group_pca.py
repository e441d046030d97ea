"""Peak memory of a group PCA of 8 runs of HCP's size: ``python -m benchmarks.bench_group_pca [FRAMES [VOXELS]]``.

Runs are simulated block by block into a Zarr store, reduced one by one, and merged as a study merges them. Every
result lies on disk before the next begins, as in a study. One JSON line: the highest resident memory, and seconds.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Final

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from kconn.chunks import plan_voxel_blocks
from kconn.connect.decomposition import merge_reduced, reduce_run
from kconn.connect.merge_tree import plan_merges

N_RUN, N_VOXEL, N_TIME, N_SOURCE = 8, 91_282, 1200, 30
#: GB that all of it may take.
LIMIT_GB: Final = 4.0


def simulate_run(path: Path, seed: int, *, n_voxel: int, n_time: int) -> xr.Dataset:
    """Write a run of a few sources and noise, block by block, and open it lazily."""
    rng = np.random.default_rng(seed)
    courses = rng.standard_normal((N_SOURCE, n_time), dtype=np.float32)
    width = plan_voxel_blocks(n_voxel, n_time)
    array = zarr.create_array(
        path, name="denoised", shape=(n_voxel, n_time), chunks=(width, n_time), dtype="f4", compressors=None
    )
    weights = np.random.default_rng(0)
    for first in range(0, n_voxel, width):
        n = min(width, n_voxel - first)
        maps = weights.standard_normal((n, N_SOURCE), dtype=np.float32)
        array[first : first + n] = maps @ courses + 5 * rng.standard_normal((n, n_time), dtype=np.float32)
    lazy = da.from_zarr(str(path), component="denoised")
    return xr.Dataset({"denoised": (("voxel", "time"), lazy)})


def put_away(ds: xr.Dataset, path: Path) -> xr.Dataset:
    """Write a result, and open it again lazily."""
    ds.chunk({"voxel": plan_voxel_blocks(ds.sizes["voxel"], ds.sizes["component"])}).to_zarr(path, consolidated=False)
    return xr.open_zarr(path, consolidated=False)


def measure(folder: Path, *, n_voxel: int, n_time: int) -> dict[str, float]:
    """Return the highest resident memory in GB, and the seconds that reducing and merging took."""
    n_row = 2 * n_time - 1
    found, seconds = {}, {"reduce_s": 0.0, "merge_s": 0.0}
    for i in range(N_RUN):
        run = simulate_run(folder / f"run{i}", i, n_voxel=n_voxel, n_time=n_time)
        start = perf_counter()
        found[f"sub-{i:02d}"] = put_away(reduce_run(run, n_component=n_row), folder / f"reduced{i}")
        seconds["reduce_s"] += perf_counter() - start
    for merge in plan_merges(found):
        start = perf_counter()
        merged = merge_reduced([found[part] for part in merge.parts], n_component=n_row)
        found[merge.name] = put_away(merged, folder / f"merged-{merge.name}")
        seconds["merge_s"] += perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"peak_rss_gb": round(peak, 2), **{name: round(value, 1) for name, value in seconds.items()}}


def main() -> None:
    """Measure with the sizes of the command line."""
    sizes = [int(text) for text in sys.argv[1:]]
    n_time, n_voxel = (*sizes, N_TIME, N_VOXEL)[:2] if len(sizes) != 1 else (sizes[0], N_VOXEL)
    with tempfile.TemporaryDirectory() as folder:
        line = measure(Path(folder), n_voxel=n_voxel, n_time=n_time)
    work = f"group PCA of {N_RUN} runs, {n_voxel} grayordinates x {n_time} frames"
    sys.stdout.write(json.dumps({"work": work, "limit_gb": LIMIT_GB, **line}) + "\n")


if __name__ == "__main__":
    main()
