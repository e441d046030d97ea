"""Small groups, written and read beside xarray: ``python -m benchmarks.bench_groups``.

A group like that of a denoised run of node series: some numbers, a few courses of frames, labels. Both sides have one
thread of Zarr and the same codecs, chunks and kind of store, so that what differs is the way there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.side_by_side import compare
from kconn.io import variables
from kconn.io.disk_zarr import DiskZarr

N_GROUP, N_NODE, N_TIME, N_NUMBER = 20, 55, 490, 22


def make_group() -> xr.Dataset:
    """Return a Dataset of 29 variables."""
    rng = np.random.default_rng(0)
    numbers: dict[str, Any] = {f"number_{i:02d}": float(value) for i, value in enumerate(rng.normal(size=N_NUMBER))}
    courses = {name: ("time", rng.normal(size=N_TIME), {"units": "1"}) for name in ("global_signal", "std_dvars")}
    of_nodes = {name: ("column", rng.normal(size=N_NODE)) for name in ("tsnr", "mean")}
    kept = {"sample_mask": ("time", np.ones(N_TIME, dtype=np.bool_))}
    labels = np.array([f"n{i:02d}" for i in range(N_NODE)], dtype=object)
    coords = {"column": ("column", labels), "time": ("time", np.arange(N_TIME) * 0.735)}
    return xr.Dataset({**numbers, **courses, **of_nodes, **kept}, coords=coords, attrs={"t_r": 0.735})


def write_ours(folder: Path, ds: xr.Dataset) -> None:
    """Write the group some times."""
    for i in range(N_GROUP):
        shutil.rmtree(folder / str(i), ignore_errors=True)
        variables.write_dataset(DiskZarr(folder / str(i)), ds)


def write_theirs(folder: Path, ds: xr.Dataset) -> None:
    """Write the group some times with xarray."""
    for i in range(N_GROUP):
        shutil.rmtree(folder / str(i), ignore_errors=True)
        encoding = {
            name: {
                "compressors": variables.choose_compressors(variable.dtype, variable.size),
                **({"chunks": variable.shape} if variable.ndim else {}),
            }
            for name, variable in ds.variables.items()
        }
        ds.to_zarr(
            DiskZarr(folder / str(i)), zarr_format=3, consolidated=False, encoding=encoding, write_empty_chunks=True
        )


def read_ours(folder: Path) -> None:
    """Read all groups."""
    for i in range(N_GROUP):
        variables.read_dataset(DiskZarr(folder / str(i), read_only=True))


def read_theirs(folder: Path) -> None:
    """Read all groups with xarray."""
    for i in range(N_GROUP):
        xr.open_zarr(DiskZarr(folder / str(i), read_only=True), consolidated=False, chunks=None).load()


def prepare(work: Callable[..., None], folder: Path, *, reads: bool) -> Callable[[], None]:
    """Return the call to time; what is read is there."""
    ds = make_group()
    if not reads:
        return partial(work, folder / work.__name__, ds)
    write_ours(folder / work.__name__, ds)
    return partial(work, folder / work.__name__)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="kconn-bench-") as made:
        place = Path(made)
        n_variable = len(make_group().variables)
        for words, ours, theirs, does_read in (
            ("write", write_ours, write_theirs, False),
            ("read", read_ours, read_theirs, True),
        ):
            compare(
                f"{words} {N_GROUP} groups of {n_variable} small variables, beside xarray",
                ours=partial(prepare, ours, place, reads=does_read),
                peer=partial(prepare, theirs, place, reads=does_read),
            )
