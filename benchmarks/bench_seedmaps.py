"""Seed maps of 100 seeds against nilearn's recipe, each as it starts: ``python -m benchmarks.bench_seedmaps``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from nilearn.signal import clean

from benchmarks.side_by_side import compare
from kconn.connect.seedmaps import estimate_seed_maps

N_VOXEL, N_TIME, N_SEED = 230_000, 488, 100


def make_voxels() -> npt.NDArray[np.float32]:
    """Return series (voxel, time)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((N_VOXEL, N_TIME), dtype=np.float32) * 20 + 1000


def ours() -> Callable[[], Any]:
    """Prepare `estimate_seed_maps` of a run in memory."""
    run = xr.Dataset({"denoised": (("voxel", "time"), make_voxels())}, coords={"time": np.arange(N_TIME) * 0.8})
    seeds = run["denoised"][:N_SEED].rename(voxel="node").astype(np.float64)
    return lambda: estimate_seed_maps(run, seeds)


def nilearn() -> Callable[[], Any]:
    """Prepare the recipe of nilearn's seed-to-voxel example on arrays that are masked already."""
    warnings.simplefilter("ignore")
    brain = np.ascontiguousarray(make_voxels().T)
    seeds = brain[:, :N_SEED].copy()

    def call() -> npt.NDArray[np.float32]:
        z_brain = clean(brain, standardize="zscore_sample", detrend=False)
        z_seed = clean(seeds, standardize="zscore_sample", detrend=False)
        return np.arctanh(np.clip(z_seed.T @ z_brain / (N_TIME - 1), -1 + 1e-7, 1 - 1e-7))

    return call


def product() -> Callable[[], Any]:
    """Prepare the bare matrix product that both need."""
    rng = np.random.default_rng(0)
    voxels = rng.standard_normal((N_VOXEL, N_TIME), dtype=np.float32)
    seeds = voxels[:N_SEED].copy()
    return lambda: seeds @ voxels.T


if __name__ == "__main__":
    what = f"{N_SEED} seed maps, {N_VOXEL} voxels x {N_TIME} frames, float32 in memory"
    compare(what, ours=ours, peer=nilearn, n_repeat=5, peer_name="nilearn recipe")
    compare(what, ours=ours, peer=product, n_repeat=5, peer_name="bare matrix product")
