"""The stage of the dense connectome: tiles straight into the store, or the strongest connections of each voxel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute

from kconn.connect.dense_connectome import DenseRuns, find_strongest, gather_runs, join_strongest
from kconn.errors import InputError
from kconn.infer.scheduling import count_threads
from kconn.io import checkpoints, cubes, tiles
from kconn.stages.binding import Job, exclusion


def connect_voxels(job: Job) -> None:
    """Correlate every voxel with every other, as the mean over all runs that are not left out."""
    params = job.step.params
    gathered = gather_runs(list(_open_runs(job)), tile=params["tile"])
    if params["keep"] == "full":
        _write_tiles(job, gathered, np.dtype(params["dtype"]))
    else:
        _publish_strongest(job, gathered, int(params["keep"]))


def _open_runs(job: Job) -> Iterator[xr.Dataset]:
    denoised = {up.address.path: up.address for up in job.step.upstream if up.address.step == "denoise"}
    ingested = {up.address.path: up.address for up in job.step.upstream if up.address.step == "ingest"}
    found = False
    for path, address in denoised.items():
        run = job.open(address)
        if exclusion(run) is None:
            found = True
            yield cubes.join_steps(job.open(ingested[path]).drop_vars("bold"), run)
    if not found:
        raise InputError(
            "E-NO-RUNS",
            "every run was left out",
            rule="at least one run is within the quality limits",
            fix="look at the reasons with `kconn status`, and at [quality] and [denoise] in the study file",
        )


def _write_tiles(job: Job, gathered: DenseRuns, dtype: np.dtype[Any]) -> None:
    def compute_tiles(corners: Sequence[tiles.Corner]) -> Sequence[npt.NDArray[Any]]:
        made = compute(*(gathered.compute_tile(*corner) for corner in corners))
        return [tile.astype(dtype, copy=False) for tile in made]

    shape = (gathered.n_voxel, gathered.n_voxel)
    like = xr.DataArray(
        np.broadcast_to(dtype.type(0), shape), dims=("voxel", "voxel_j"), name="dense", attrs={"tile": gathered.tile}
    )
    facts = {"n_run": len(gathered.runs), "n_frame": gathered.n_frame}
    tiles.write_upper_tiles(
        job.target,
        compute_tiles,
        like=like,
        tile=gathered.tile,
        rest=gathered.place.assign_attrs(facts),
        n_at_once=count_threads().total,
    )


def _publish_strongest(job: Job, gathered: DenseRuns, n_strongest: int) -> None:
    folder = checkpoints.step_folder(job.root, job.step.address, job.step.key)

    def parts() -> Iterator[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        starts = list(gathered.starts)
        n_at_once = count_threads().total
        for i in range(0, len(starts), n_at_once):
            batch = starts[i : i + n_at_once]
            kept = {first: checkpoints.load_arrays(folder, f"row-{first:09d}") for first in batch}
            todo = [first for first, arrays in kept.items() if arrays is None]
            made = compute(*(find_strongest(gathered, first, n_strongest) for first in todo))
            for first, (columns, values) in zip(todo, made, strict=True):
                kept[first] = {"columns": columns, "values": values}
                checkpoints.save_arrays(folder, f"row-{first:09d}", {"columns": columns, "values": values})
            for first, arrays in kept.items():
                if arrays is not None:
                    yield first, arrays["columns"], arrays["values"]

    job.publish(join_strongest(parts(), gathered))
    checkpoints.remove_step(job.root, job.step.address)
