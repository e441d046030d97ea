"""Keep int16 with its scaling, or store float32: ``python -m benchmarks.bench_int16``.

Times are seconds of the processor, which other work on the machine disturbs least.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any
from uuid import uuid4

import dask
import nibabel as nib
import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.clean.denoising import denoise
from kconn.io import cubes, nifti, store
from kconn.io.store import Address, Target
from kconn.kernels.blas import single_thread
from kconn.testing import simulate_run

N_REPEAT = 5
GRID, N_TIME, T_R, SLOPE = (54, 65, 54), 400, 0.8, 2.0
ADDRESS = Address(path="sub-01/ses-1/run-1", step="ingest")


def write_image(path: Path) -> xr.Dataset:
    """Write a simulated run as int16 with a slope, uncompressed, and return all of it but ``bold``."""
    run = simulate_run(n_nodes=36, n_time=N_TIME, t_r=T_R, grid_shape=GRID)
    volume = np.zeros((*GRID, N_TIME), dtype=np.int16)
    volume[tuple(run[axis].to_numpy() for axis in "ijk")] = np.rint(run["bold"].to_numpy() / SLOPE)
    affine = np.asarray(run.attrs["affine"])
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, 4)
    image.set_sform(affine, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = T_R
    image.header.set_slope_inter(SLOPE, 0)
    image.header["vox_offset"], image.header["magic"] = 352, b"n+1"
    raw = image.header.binaryblock + b"\0\0\0\0" + volume.tobytes(order="F")
    path.write_bytes(raw)
    kept = ["confounds", "sample_mask", "i", "j", "k", "time", "confound"]
    return run[kept].drop_vars(["x", "y", "z", "node", "network", "node_i", "node_j"], errors="ignore")


def ingest(image: Path, rest: xr.Dataset, root: Path, dtype: type[np.generic]) -> float:
    """Return the seconds to stream, lay out, checksum and publish the image in one type."""
    store.create_store(root)
    header = nifti.read_header(image)
    flat_index = np.ravel_multi_index([rest[axis].to_numpy() for axis in "ijk"], GRID, order="F")
    target = Target(root=root, address=ADDRESS, key=uuid4().hex, provenance={})
    is_raw = dtype is np.int16
    attrs = {"scl_slope": header.scl_slope, "scl_inter": header.scl_inter} if is_raw else {}

    def blocks() -> Iterator[npt.NDArray[Any]]:
        n_block = max(1, 32 * 1024**2 // (2 * header.n_voxel))  # as the ingest stage
        for block in nifti.stream_frames(image, header, frames_per_block=n_block):
            yield block if is_raw else nifti.scale_block(block, header)

    start = process_time()
    cubes.write_bold_stream(
        target, blocks(), flat_index=flat_index, n_time=N_TIME, dtype=np.dtype(dtype), rest=rest, bold_attrs=attrs
    )
    return process_time() - start


def read(root: Path) -> float:
    """Return the seconds to read every block as float32, one after the other as a worker does."""
    start = process_time()
    cubes.open_group(root, ADDRESS)["bold"].data.sum(dtype=np.float64).compute()
    return process_time() - start


def clean(root: Path) -> float:
    """Return the seconds to read and denoise the run."""
    run = cubes.open_group(root, ADDRESS)
    start = process_time()
    denoise(run, confounds="24P", high_pass=0.008, low_pass=None)["denoised"].data.compute()
    return process_time() - start


def main() -> None:
    found: dict[str, dict[str, list[float]]] = {name: {"ingest": [], "read": [], "denoise": []} for name in "if"}
    with (
        tempfile.TemporaryDirectory() as folder,
        single_thread(),
        dask.config.set(scheduler="synchronous"),
    ):
        image = Path(folder) / "bold.nii"
        rest = write_image(image)
        roots = {"i": Path(folder) / "int16.zarr", "f": Path(folder) / "float32.zarr"}
        for _ in range(N_REPEAT):
            for name, dtype in (("i", np.int16), ("f", np.float32)):
                seconds = found[name]
                seconds["ingest"].append(ingest(image, rest, roots[name], dtype))
                seconds["read"].append(read(roots[name]))
                seconds["denoise"].append(clean(roots[name]))
        size = {name: _size(store.published_group(root, ADDRESS) / "bold") for name, root in roots.items()}
        same = [cubes.open_group(root, ADDRESS)["bold"].to_numpy() for root in roots.values()]
    line: dict[str, Any] = {
        "work": f"{rest.sizes['voxel']} voxels x {N_TIME} frames",
        "same_values": bool((same[0] == same[1]).all()),
    }
    for step in ("ingest", "read", "denoise"):
        line[f"int16_{step}_cpu_s"] = round(median(found["i"][step]), 3)
        line[f"float32_{step}_cpu_s"] = round(median(found["f"][step]), 3)
        line[f"{step}_ratio"] = round(median(found["f"][step]) / median(found["i"][step]), 2)
    line |= {"int16_mb": round(size["i"] / 1e6, 1), "float32_mb": round(size["f"] / 1e6, 1)}
    line["size_ratio"] = round(size["f"] / size["i"], 2)
    line["raw_int16_mb"] = round(2 * rest.sizes["voxel"] * N_TIME / 1e6, 1)
    sys.stdout.write(json.dumps(line) + "\n")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
