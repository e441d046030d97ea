"""smooth: laziness, the order of steps, refusals."""

import dask
import numpy as np
import pytest
import xarray as xr

from kconn.clean.denoising import denoise
from kconn.clean.smoothing import smooth
from kconn.errors import KconnError
from kconn.kernels.smoothing import sigma_in_voxels, smooth_volumes

AFFINE = np.diag([3.0, 3.0, 4.0, 1.0])


@pytest.fixture
def run():
    rng = np.random.default_rng(2)
    mask = rng.random((7, 6, 5)) < 0.6
    ijk = np.argwhere(mask).T
    return xr.Dataset(
        {
            "bold": (("voxel", "time"), rng.normal(size=(mask.sum(), 60)) * 5 + 300),
            "confounds": (("time", "confound"), rng.normal(size=(60, 3))),
        },
        coords={"confound": ["a", "b", "c"], **{axis: ("voxel", ijk[n]) for n, axis in enumerate("ijk")}},
        attrs={"t_r": 2.0, "affine": AFFINE.tolist(), "grid_shape": [7, 6, 5]},
    )


def test_smooth__equals_the_kernel(run):
    at = tuple(run[axis].to_numpy() for axis in "ijk")
    mask = np.zeros((7, 6, 5), dtype=bool)
    mask[at] = True
    volumes = np.full((60, 7, 6, 5), np.nan)
    volumes[(slice(None), *at)] = run["bold"].to_numpy().T

    actual = smooth(run, fwhm=6.0)

    expected = smooth_volumes(volumes, mask, sigma_in_voxels(6.0, AFFINE))[(slice(None), *at)].T
    np.testing.assert_array_equal(actual["bold"], expected)
    assert actual["bold"].attrs["fwhm"] == 6.0


@pytest.mark.parametrize("chunks", [{"voxel": 11, "time": 7}, {"time": 1}])
def test_smooth__is_lazy_and_has_the_same_bits_for_any_chunks(run, chunks, monkeypatch):
    def no_compute(*_args, **_kwargs):
        raise AssertionError("computed while building the graph")

    monkeypatch.setattr("kconn.clean.smoothing.BLOCK_BYTES", 4 * 8 * run.sizes["voxel"])
    with dask.config.set(scheduler=no_compute):
        lazy = smooth(run.chunk(chunks), fwhm=5.0)

    assert lazy["bold"].data.chunks[1][0] == 4
    xr.testing.assert_identical(lazy.compute(scheduler="sync"), smooth(run, fwhm=5.0))


@pytest.mark.parametrize("choices", [{"filter": "cosine"}, {"filter": "butterworth"}])
def test_smooth__before_or_after_the_projection_is_the_same(run, choices):
    # Both are linear, one in space and one in time: their order has no meaning.
    choices = {"confounds": ["a", "b", "c"], "high_pass": 0.01, "low_pass": 0.1, **choices}

    before = denoise(smooth(run, fwhm=6.0), **choices)["denoised"]

    after = smooth(run.assign(bold=denoise(run, **choices)["denoised"]), fwhm=6.0)["bold"]
    np.testing.assert_allclose(before, after, atol=1e-9)


@pytest.mark.parametrize(
    ("code", "spoil", "fwhm"),
    [
        ("E-ARGUMENT", lambda ds: ds, 0.0),
        ("E-ARGUMENT", lambda ds: ds, float("nan")),
        ("E-SMOOTH", lambda ds: ds.drop_vars("k"), 5.0),
        ("E-SMOOTH", lambda ds: ds.assign_coords(structure=("voxel", np.full(ds.sizes["voxel"], "CORTEX_LEFT"))), 5.0),
        ("E-SMOOTH", lambda ds: ds.drop_attrs(), 5.0),
        ("E-SMOOTH", lambda ds: ds.drop_vars(list("ijk")).rename(voxel="column"), 5.0),
    ],
)
def test_smooth__refuses(run, code, spoil, fwhm):
    with pytest.raises(KconnError) as caught:
        smooth(spoil(run), fwhm=fwhm)

    assert caught.value.code == code
