"""A run of HCP size through a worker that never holds it."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
import zarr

from kconn.chunks import plan_voxel_blocks

N_VOXEL, N_TIME = 91_282, 1_200
#: What the process may take on top of what it needs for a run of 1,000 voxels.
MAX_RISE_MIB = 200

SCRIPT = """
import resource, sys
import dask, xarray as xr
from kconn.clean.denoising import denoise
run = xr.open_zarr(sys.argv[1], consolidated=False)
with dask.config.set(scheduler="synchronous"):
    clean = denoise(run, confounds="36P", high_pass=0.008, low_pass=0.09, filter=sys.argv[3])[["denoised", "df_left"]]
    clean.drop_encoding().to_zarr(sys.argv[2], zarr_format=3, consolidated=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_run(path, n_voxel):
    rng = np.random.default_rng(0)
    block = plan_voxel_blocks(N_VOXEL, N_TIME)
    names = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "white_matter", "csf", "global_signal"]
    xr.Dataset({"confounds": (("time", "confound"), rng.normal(size=(N_TIME, 9)))}, attrs={"t_r": 0.72}).to_zarr(
        path, zarr_format=3, consolidated=False
    )
    root = zarr.open_group(path, mode="a")
    labels = root.create_array("confound", shape=9, dtype="str", dimension_names=["confound"])
    labels[:] = np.array(names)
    bold = root.create_array(
        "bold", shape=(n_voxel, N_TIME), chunks=(block, N_TIME), dtype="f4", dimension_names=["voxel", "time"]
    )
    for start in range(0, n_voxel, block):
        n = min(block, n_voxel - start)
        bold[start : start + n] = rng.standard_normal((n, N_TIME), dtype=np.float32) * 20 + 1000


def peak_mib(tmp_path, n_voxel, kind):
    run = tmp_path / f"run-{n_voxel}.zarr"
    if not run.exists():
        write_run(run, n_voxel)
    target = tmp_path / f"clean-{n_voxel}-{kind}.zarr"
    command = [sys.executable, "-c", SCRIPT, str(run), str(target), kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert xr.open_zarr(target, consolidated=False)["denoised"].shape == (n_voxel, N_TIME)
    return float(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cosine", "butterworth"])
def test_denoise__never_holds_a_run_of_hcp_size(tmp_path, kind):
    small = peak_mib(tmp_path, 1_000, kind)

    large = peak_mib(tmp_path, N_VOXEL, kind)

    # The run alone is 418 MiB, the result as much again.
    assert large - small < MAX_RISE_MIB, (small, large)
