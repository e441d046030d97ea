"""Node series and seed maps against nilearn: ``python -m benchmarks.bench_parcellate``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import xarray as xr
from nilearn.maskers import NiftiLabelsMasker, NiftiSpheresMasker
from nilearn.signal import clean

from benchmarks.side_by_side import compare
from kconn.chunks import plan_voxel_blocks
from kconn.connect.parcellation import nodes_from_labels, nodes_from_spheres, parcellate
from kconn.connect.seedmaps import estimate_seed_maps

SHAPE, N_TIME, N_NODE, N_SEED = (72, 88, 60), 300, 200, 100
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def make_labels() -> npt.NDArray[np.int32]:
    """Return blocks of voxels, numbered from 1, inside a brain-like half of the grid."""
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    block = 1 + i // 9 + 8 * (j // 18) + 40 * (k // 12)
    return np.where(make_mask(), block, 0).astype(np.int32)


def make_mask() -> npt.NDArray[np.bool_]:
    """Return an ellipsoid of about half of the voxels."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return sum(axis**2 for axis in axes) < 1


def make_voxels() -> npt.NDArray[np.float32]:
    """Return the series (voxel, time) of the mask, first axis fastest."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((int(make_mask().sum()), N_TIME), dtype=np.float32) * 20 + 1000


def make_image() -> nibabel.Nifti1Image:
    """Return the same series as a 4-D image in memory."""
    index = np.unravel_index(np.flatnonzero(make_mask().ravel(order="F")), SHAPE, order="F")
    volume = np.zeros((*SHAPE, N_TIME), dtype=np.float32, order="F")
    volume[index] = make_voxels()
    return nibabel.Nifti1Image(volume, AFFINE)


def make_run() -> xr.Dataset:
    """Return the same series as a run."""
    index = np.unravel_index(np.flatnonzero(make_mask().ravel(order="F")), SHAPE, order="F")
    return xr.Dataset(
        {"denoised": (("voxel", "time"), make_voxels())},
        coords={
            "time": np.arange(N_TIME) * 0.8,
            **{axis: ("voxel", at.astype(np.int32)) for axis, at in zip("ijk", index, strict=True)},
        },
        attrs={"affine": AFFINE.tolist(), "grid_shape": list(SHAPE)},
    )


def make_seeds(n: int) -> list[tuple[float, float, float]]:
    """Return sphere centres in mm, well inside the mask."""
    rng = np.random.default_rng(1)
    return [tuple(2 * rng.uniform(0.35, 0.65, 3) * SHAPE) for _ in range(n)]


def labels_ours() -> Callable[[], Any]:
    """Prepare `parcellate` of a label atlas."""
    run, nodes = make_run(), nodes_from_labels(make_labels(), AFFINE)
    return lambda: parcellate(run, nodes)


def labels_nilearn() -> Callable[[], Any]:
    """Prepare nilearn's masker of the same."""
    warnings.simplefilter("ignore")
    image = make_image()
    masker = NiftiLabelsMasker(nibabel.Nifti1Image(make_labels(), AFFINE), resampling_target=None, standardize=None)
    masker.fit()
    return lambda: masker.transform(image)


def spheres_ours() -> Callable[[], Any]:
    """Prepare `parcellate` of spheres."""
    nodes = nodes_from_spheres([(str(i), *seed) for i, seed in enumerate(make_seeds(N_SEED))], radius_mm=5)
    run = make_run()
    return lambda: parcellate(run, nodes)


def spheres_nilearn() -> Callable[[], Any]:
    """Prepare nilearn's masker of the same."""
    warnings.simplefilter("ignore")
    mask = nibabel.Nifti1Image(make_mask().astype(np.uint8), AFFINE)
    image = make_image()
    masker = NiftiSpheresMasker(make_seeds(N_SEED), radius=5, mask_img=mask, allow_overlap=True, standardize=None)
    masker.fit()
    return lambda: masker.transform(image)


def maps_ours() -> Callable[[], Any]:
    """Prepare `estimate_seed_maps` of given series, block by block on the threads of Dask."""
    run = make_run()
    seeds = run["denoised"][:N_SEED].rename(voxel="node").drop_vars(list("ijk")).astype(np.float64)
    lazy = run.chunk(voxel=plan_voxel_blocks(run.sizes["voxel"], N_TIME))
    return lambda: estimate_seed_maps(lazy, seeds)["seed_map"].compute(scheduler="threads")


def maps_nilearn() -> Callable[[], Any]:
    """Prepare the recipe of nilearn's seed-to-voxel example on arrays that are masked already."""
    warnings.simplefilter("ignore")
    brain = np.ascontiguousarray(make_voxels().T)
    seeds = brain[:, :N_SEED].copy()

    def recipe() -> npt.NDArray[np.float32]:
        z_brain = clean(brain, standardize="zscore_sample", detrend=False)
        z_seed = clean(seeds, standardize="zscore_sample", detrend=False)
        return np.arctanh(np.clip(z_seed.T @ z_brain / (N_TIME - 1), -1 + 1e-7, 1 - 1e-7))

    return recipe


if __name__ == "__main__":
    n_voxel = int(make_mask().sum())
    what = f"{n_voxel} voxels x {N_TIME} frames, float32 in memory"
    compare(f"{N_NODE} labels, {what}", ours=labels_ours, peer=labels_nilearn, peer_name="NiftiLabelsMasker")
    compare(
        f"{N_SEED} spheres of 5 mm, {what}", ours=spheres_ours, peer=spheres_nilearn, peer_name="NiftiSpheresMasker"
    )
    compare(f"{N_SEED} seed maps, {what}", ours=maps_ours, peer=maps_nilearn, peer_name="nilearn recipe")
