"""Dual regression: against plain least squares and nilearn, lazily, on kept frames, and its refusals."""

import dask
import nibabel
import numpy as np
import pytest
import xarray as xr
from nilearn.maskers import NiftiMapsMasker
from statsmodels.api import OLS, add_constant

from kconn.connect.dual_regression import (
    average_maps,
    check_maps,
    extract_map_series,
    place_maps,
    regress_maps,
    regress_series,
)
from kconn.connect.parcellation import find_uncovered
from kconn.connect.spatial_maps import nodes_from_maps
from kconn.errors import InputError, SchemaError

AFFINE = np.array([[-3.0, 0, 0, 30], [0, 3, 0, -30], [0, 0, 3, -20], [0, 0, 0, 1]])
SHAPE = (9, 8, 7)
N_TIME = 40


def no_compute(*_args, **_kwargs):
    raise AssertionError("a graph was computed while building")


@pytest.fixture
def volume():
    rng = np.random.default_rng(1)
    return np.abs(rng.normal(size=(*SHAPE, 4))) * (rng.random((*SHAPE, 4)) > 0.5)


@pytest.fixture
def run(volume):
    rng = np.random.default_rng(5)
    ijk = np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE, order="F")
    signal = volume[ijk] @ rng.normal(size=(4, N_TIME)) * 10 + rng.normal(size=(len(ijk[0]), N_TIME)) * 5 + 200
    return xr.Dataset(
        {"bold": (("voxel", "time"), signal.astype(np.float32))},
        coords={
            "time": np.arange(N_TIME) * 2.0,
            **{axis: ("voxel", index.astype(np.int32)) for axis, index in zip("ijk", ijk, strict=True)},
        },
        attrs={"affine": AFFINE.tolist(), "grid_shape": list(SHAPE), "where": "sub-01"},
    )


@pytest.fixture
def maps(volume, run):
    return place_maps(volume, AFFINE, run, names=["a", "b", "c", "d"])


@pytest.mark.parametrize("intercept", [True, False])
def test_regress_maps__equals_least_squares(run, maps, intercept):
    out = regress_maps(run, maps, intercept=intercept)
    design = maps.to_numpy().T
    design = np.column_stack([design, np.ones(len(design))]) if intercept else design
    expected = np.linalg.lstsq(design, run["bold"].to_numpy().astype(np.float64))[0][:4]
    np.testing.assert_allclose(out["timeseries"], expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(out["coverage"], 1)
    assert out["node"].to_numpy().tolist() == ["a", "b", "c", "d"]


def test_regress_maps__with_intercept_is_fsl_demeaning(run, maps):
    demeaned = maps - maps.mean("voxel")
    x = run["bold"].astype(np.float64)
    expected = np.linalg.lstsq(demeaned.to_numpy().T, (x - x.mean("voxel")).to_numpy())[0]
    np.testing.assert_allclose(regress_maps(run, maps, intercept=True)["timeseries"], expected, atol=1e-8)


def test_regress_maps__equals_nilearn(run, maps, volume):
    image = np.zeros((*SHAPE, N_TIME), dtype=np.float32)
    image[tuple(run[axis].to_numpy() for axis in "ijk")] = run["bold"].to_numpy()
    mask = nibabel.Nifti1Image(np.ones(SHAPE, dtype=np.uint8), AFFINE)
    masker = NiftiMapsMasker(
        nibabel.Nifti1Image(volume, AFFINE), mask_img=mask, standardize=None, keep_masked_maps=False
    )
    expected = masker.fit_transform(nibabel.Nifti1Image(image, AFFINE))
    np.testing.assert_allclose(regress_maps(run, maps, intercept=False)["timeseries"].T, expected, rtol=1e-4, atol=1e-4)


def test_regress_maps__leaves_voxels_without_data_out(run, maps):
    run["bold"][:40] = 7
    run["bold"][40:60, 3] = np.nan
    kept = np.arange(N_TIME) % 8 != 5
    run = run.assign(sample_mask=("time", kept))
    run["bold"] = run["bold"].where(run["sample_mask"])
    out = regress_maps(run, maps, intercept=True)
    expected = regress_maps(run.isel(voxel=slice(60, None), time=kept), maps[:, 60:], intercept=True)
    np.testing.assert_allclose(out["timeseries"][:, kept], expected["timeseries"], rtol=1e-9)
    assert out["timeseries"][:, ~kept].isnull().all()
    np.testing.assert_allclose(out["coverage"], maps[:, 60:].sum("voxel") / maps.sum("voxel"))
    assert find_uncovered(out) == ()


@pytest.mark.parametrize("normalise", [True, False])
def test_regress_series__equals_statsmodels(run, maps, normalise):
    kept = np.arange(N_TIME) % 8 != 5
    run["bold"][17] = 3
    ds = regress_maps(run.assign(sample_mask=("time", kept)), maps, intercept=True)
    out = regress_series(ds, normalise=normalise)
    design = ds["timeseries"].to_numpy()[:, kept].T
    design = (design - design.mean(axis=0)) / design.std(axis=0, ddof=1) if normalise else design
    for voxel in (0, 100, 333):
        fitted = OLS(run["bold"].to_numpy()[voxel, kept].astype(np.float64), add_constant(design)).fit()
        np.testing.assert_allclose(out["subject_map"][:, voxel], fitted.params[1:], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(out["subject_map_t"][:, voxel], fitted.tvalues[1:], rtol=1e-5, atol=1e-6)
    assert out["subject_map"][:, 17].isnull().all()
    assert out["subject_map"].dtype == np.float32


def test_regress_series__finds_the_maps_again(run, maps):
    found = regress_series(regress_maps(run, maps, intercept=True), normalise=True)["subject_map"]
    for i in range(4):
        assert np.corrcoef(found[i], maps[i])[0, 1] > 0.9


@pytest.mark.parametrize("chunks", [{}, {"voxel": 77, "time": 11}])
@pytest.mark.parametrize("block_bytes", [None, 4 * N_TIME * 100])
def test_dual_regression__lazy_equals_eager_bit_for_bit(run, maps, chunks, block_bytes, monkeypatch):
    if block_bytes:
        monkeypatch.setattr("kconn.chunks.BLOCK_BYTES", block_bytes)
    run = run.assign(sample_mask=("time", np.arange(N_TIME) != 4))
    eager = regress_series(regress_maps(run, maps, intercept=True), normalise=True)
    with dask.config.set(scheduler=no_compute):
        lazy = regress_series(regress_maps(run.chunk(chunks), maps.chunk(node=1), intercept=True), normalise=True)
    with dask.config.set(scheduler="threads"):
        xr.testing.assert_identical(lazy.compute(), eager)


def test_regress_maps__refuses_maps_that_cannot_be_told_apart(run, maps):
    copied = xr.concat([maps, maps[:1].assign_coords(node=["copy"])], "node")
    with pytest.raises(InputError, match=r"E-NODES \[sub-01\] the 5 maps are not independent"):
        regress_maps(run, copied, intercept=False)
    summed = xr.concat([maps, maps.sum("node").expand_dims(node=["sum"])], "node")
    with pytest.raises(InputError, match="not independent"):
        regress_maps(run, summed, intercept=False)
    empty = maps.copy(deep=True)
    empty[2] = 0
    with pytest.raises(InputError, match=r"E-NODES \[sub-01\] map 3 of 4 is zero"):
        regress_maps(run, empty, intercept=True)


def test_regress_maps__refuses_what_does_not_fit(run, maps):
    with pytest.raises(SchemaError, match=r"E-ARGUMENT \[sub-01\]"):
        regress_maps(run, maps[:, 1:], intercept=True)
    table = xr.Dataset({"bold": (("column", "time"), np.ones((3, 9)))})
    with pytest.raises(SchemaError, match="E-SCHEMA"):
        regress_maps(table, maps, intercept=True)


def test_place_maps__refuses_another_grid_and_bad_names(run, volume):
    with pytest.raises(InputError, match="E-GRID"):
        place_maps(volume[1:], AFFINE, run, names=list("abcd"))
    with pytest.raises(InputError, match="E-GRID"):
        place_maps(volume, AFFINE + 0.01, run, names=list("abcd"))
    with pytest.raises(InputError, match=r"E-NODES 3 different names for 4 maps"):
        place_maps(volume, AFFINE, run, names=list("abca"))


def test_regress_series__refuses_too_few_frames(run, maps):
    ds = regress_maps(run.isel(time=slice(0, 5)), maps, intercept=True)
    with pytest.raises(InputError, match=r"E-NETMAT-RANK \[sub-01\] 5 kept frames"):
        regress_series(ds, normalise=True)
    ds = regress_maps(run, maps, intercept=True)
    ds["timeseries"][1] = ds["timeseries"][0] * 2
    with pytest.raises(InputError, match="not independent"):
        regress_series(ds, normalise=True)


def test_average_maps__is_the_weighted_mean(run, maps):
    run["bold"][:40] = 7
    out = average_maps(run, maps)
    weight = maps.to_numpy()[:, 40:]
    expected = weight @ run["bold"].to_numpy()[40:].astype(np.float64) / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(out["timeseries"], expected, rtol=1e-10)
    np.testing.assert_allclose(out["coverage"], weight.sum(axis=1) / maps.sum("voxel"))


def test_average_maps__refuses_weights_below_zero(run, maps):
    signed = maps.copy(deep=True)
    signed[1, 5] = -0.2
    with pytest.raises(InputError, match=r"E-NODES \[sub-01\] map 2 of 4 is negative"):
        average_maps(run, signed)
    empty = maps.copy(deep=True)
    empty[2] = 0
    with pytest.raises(InputError, match=r"E-NODES \[sub-01\] map 3 of 4 is zero"):
        average_maps(run, empty)


@pytest.mark.parametrize("method", ["dual-regression", "weighted-mean"])
def test_extract_map_series__is_nan_below_the_coverage_rule(run, volume, method):
    volume[..., 1] = 0
    volume[0, :, :, 1] = 3
    run["bold"][::9] = 4  # i = 0: the whole of map 2
    run["bold"][1] += 1
    volume[1, 0, 0, 1] = 0.5
    nodes = nodes_from_maps(volume, AFFINE, names={1: "a", 2: "b", 3: "c", 4: "d"})
    out = extract_map_series(run, nodes, method=method, min_coverage=0.5)
    assert find_uncovered(out) == ("b",)
    assert np.flatnonzero(out["timeseries"].isnull().any("time")).tolist() == [1]
    assert {"x", "y", "z"} <= set(out.coords)


def test_regress_series__leaves_nodes_without_series_out(run, maps):
    ds = regress_maps(run, maps, intercept=True)
    expected = regress_series(ds.isel(node=[0, 2, 3]), normalise=True)
    ds["timeseries"][1] = np.nan
    out = regress_series(ds, normalise=True)
    assert out["subject_map"][1].isnull().all()
    np.testing.assert_array_equal(out["subject_map"][[0, 2, 3]], expected["subject_map"])


def test_check_maps__refuses_before_data_are_read(volume):
    check_maps(nodes_from_maps(volume, AFFINE), SHAPE, AFFINE)
    with pytest.raises(InputError, match="E-GRID"):
        check_maps(nodes_from_maps(volume, AFFINE), (9, 8, 6), AFFINE)
    copied = np.concatenate([volume, volume[..., :1] + volume[..., 1:2]], axis=3)
    with pytest.raises(InputError, match=r"E-NODES \[sub-7\].*not independent"):
        check_maps(nodes_from_maps(copied, AFFINE), SHAPE, AFFINE, where="sub-7")


def test_nodes_from_maps__refuses_what_is_no_map(volume):
    for value, problem in ((np.nan, "map 3 of 4 holds NaN"), (0.0, "map 3 of 4 is zero throughout")):
        bad = volume.copy()
        bad[..., 2] = value
        with pytest.raises(InputError, match=f"E-NODES {problem}"):
            nodes_from_maps(bad, AFFINE)
    with pytest.raises(InputError, match="E-ATLAS names: the table has 2 rows"):
        nodes_from_maps(volume, AFFINE, names={1: "a", 2: "b"})
    with pytest.raises(InputError, match="several maps are named 'a'"):
        nodes_from_maps(volume, AFFINE, names={1: "a", 2: "b", 3: "a", 4: "c"})
    with pytest.raises(InputError, match=r"E-NODES.*\(i, j, k, map\)"):
        nodes_from_maps(volume[..., 0], AFFINE)


def test_nodes_from_maps__places_nodes_at_their_peaks(volume):
    volume[2, 3, 4, 1] = -99
    coords = nodes_from_maps(volume, AFFINE, networks=dict.fromkeys(range(1, 5), "N")).coords()
    assert [coords[axis][1][1] for axis in "xyz"] == [24.0, -21.0, -8.0]
    assert coords["network"][1].tolist() == ["N"] * 4
