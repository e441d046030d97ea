"""estimate_seed_maps: against nilearn's recipe, lazily, and its refusals."""

import dask
import nibabel
import numpy as np
import pytest
import xarray as xr
from nilearn.maskers import NiftiMasker, NiftiSpheresMasker

from kconn.connect.parcellation import nodes_from_spheres, parcellate
from kconn.connect.seedmaps import estimate_seed_maps
from kconn.errors import SchemaError

AFFINE = np.array([[-3.0, 0, 0, 30], [0, 3, 0, -30], [0, 0, 3, -20], [0, 0, 0, 1]])
SHAPE = (9, 8, 7)
N_TIME = 60
SEEDS = nodes_from_spheres([("acc", 18, -15, -5), ("pcc", 9, -18, -8)], radius_mm=5)


def no_compute(*_args, **_kwargs):
    raise AssertionError("a graph was computed while building")


@pytest.fixture
def volume():
    rng = np.random.default_rng(5)
    shared = rng.normal(size=N_TIME)
    noise = rng.normal(size=(*SHAPE, N_TIME))
    return (30 * (noise + shared * np.linspace(-1, 1, SHAPE[0])[:, None, None, None]) + 1000).astype(np.float32)


@pytest.fixture
def run(volume):
    ijk = np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE, order="F")
    return xr.Dataset(
        {"bold": (("voxel", "time"), np.ascontiguousarray(volume[ijk]))},
        coords={
            "time": np.arange(N_TIME) * 2.0,
            **{axis: ("voxel", index.astype(np.int32)) for axis, index in zip("ijk", ijk, strict=True)},
        },
        attrs={"affine": AFFINE.tolist(), "grid_shape": list(SHAPE), "where": "sub-01"},
    )


def test_estimate_seed_maps__equals_nilearn_recipe(run, volume):
    """The recipe of nilearn's example on seed-to-voxel correlation: z-score both, dot product, arctanh."""
    image = nibabel.Nifti1Image(volume, AFFINE)
    mask = nibabel.Nifti1Image(np.ones(SHAPE, dtype=np.uint8), AFFINE)
    seeds = [(18.0, -15.0, -5.0), (9.0, -18.0, -8.0)]
    seed = NiftiSpheresMasker(seeds, radius=5, mask_img=mask, standardize="zscore_sample").fit_transform(image)
    masker = NiftiMasker(mask_img=mask, standardize="zscore_sample")
    brain = masker.fit_transform(image)
    expected = masker.inverse_transform(np.arctanh(brain.T @ seed / (N_TIME - 1)).T).get_fdata()
    actual = estimate_seed_maps(run, SEEDS)["seed_map"]
    assert actual.dims == ("node", "voxel")
    at = tuple(run[axis].to_numpy() for axis in "ijk")
    np.testing.assert_allclose(actual.T, expected[at], atol=1e-5)


def test_estimate_seed_maps__uses_kept_frames_of_denoised(run):
    kept = np.arange(N_TIME) % 4 != 0
    cut = run.isel(time=kept)
    cleaned = run.rename(bold="denoised").assign(sample_mask=("time", kept))
    cleaned["denoised"] = cleaned["denoised"].where(cleaned["sample_mask"])
    actual = estimate_seed_maps(cleaned, SEEDS)["seed_map"]
    np.testing.assert_allclose(actual, estimate_seed_maps(cut, SEEDS)["seed_map"], atol=1e-6)


@pytest.mark.parametrize("chunks", [{}, {"voxel": 1}, {"voxel": 77, "time": 11}])
@pytest.mark.parametrize("block_bytes", [None, 4 * N_TIME * 100])
def test_estimate_seed_maps__lazy_equals_eager_bit_for_bit(run, chunks, block_bytes, monkeypatch):
    if block_bytes:
        monkeypatch.setattr("kconn.chunks.BLOCK_BYTES", block_bytes)
    eager = estimate_seed_maps(run, SEEDS)
    with dask.config.set(scheduler=no_compute):
        lazy = estimate_seed_maps(run.chunk(chunks), SEEDS)
    with dask.config.set(scheduler="threads"):
        xr.testing.assert_identical(lazy.compute(), eager)


def test_estimate_seed_maps__takes_series(run):
    ts = parcellate(run, SEEDS)["timeseries"]
    by_series = estimate_seed_maps(run, ts)
    np.testing.assert_array_equal(by_series["seed_map"], estimate_seed_maps(run, SEEDS)["seed_map"])
    assert by_series["node"].to_numpy().tolist() == ["acc", "pcc"]
    lazy = estimate_seed_maps(run.chunk(voxel=50), ts.chunk(node=1))
    np.testing.assert_array_equal(lazy["seed_map"], by_series["seed_map"])


def test_estimate_seed_maps__of_constant_voxels_is_nan(run):
    run["bold"][17] = 4
    z = estimate_seed_maps(run, SEEDS)["seed_map"]
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(z).any("node")), [17])


def test_estimate_seed_maps__refuses_what_does_not_fit(run):
    ts = parcellate(run, SEEDS)["timeseries"]
    with pytest.raises(SchemaError, match=r"E-ARGUMENT.*60 frames"):
        estimate_seed_maps(run, ts.isel(time=slice(1, None)))
    table = xr.Dataset({"bold": ts.rename(node="column")})
    with pytest.raises(SchemaError, match=r"E-SCHEMA.*\(voxel, time\)"):
        estimate_seed_maps(table, ts)
