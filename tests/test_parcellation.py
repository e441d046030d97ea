"""parcellate: against nilearn on real data, lazily, with coverage, and every refusal."""

import dask
import nibabel
import numpy as np
import pytest
import xarray as xr
from nilearn.image import resample_to_img
from nilearn.maskers import NiftiLabelsMasker, NiftiSpheresMasker

from kconn.connect.nodes import drop_nodes, join_nodes, nodes_from_columns, nodes_from_labels, nodes_from_spheres
from kconn.connect.parcellation import find_uncovered, parcellate
from kconn.errors import InputError, SchemaError

AFFINE = np.array([[-3.0, 0, 0, 30], [0, 3, 0, -30], [0, 0, 3, -20], [0, 0, 0, 1]])
SHAPE = (9, 8, 7)
N_TIME = 30


def no_compute(*_args, **_kwargs):
    raise AssertionError("a graph was computed while building")


def as_run(volume, mask, affine, *, name="bold"):
    """Lay a 4-D image out as a run Dataset: voxels of the mask, first axis fastest."""
    ijk = np.unravel_index(np.flatnonzero(mask.ravel(order="F")), mask.shape, order="F")
    return xr.Dataset(
        {name: (("voxel", "time"), np.ascontiguousarray(volume[ijk]))},
        coords={
            "time": np.arange(volume.shape[3]) * 2.0,
            **{axis: ("voxel", index.astype(np.int32)) for axis, index in zip("ijk", ijk, strict=True)},
        },
        attrs={
            "affine": affine.tolist(),
            "grid_shape": list(mask.shape),
            "t_r": 2.0,
            "where": "sub-01/ses-1/run-1",
        },
    )


@pytest.fixture
def volume():
    return (np.random.default_rng(5).normal(size=(*SHAPE, N_TIME)) * 30 + 1000).astype(np.float32)


@pytest.fixture
def mask():
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:-1, 1:-1, 1:] = True
    return mask


@pytest.fixture
def run(volume, mask):
    return as_run(volume, mask, AFFINE)


@pytest.fixture
def labels():
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[1:4, 1:7, 2:6] = 2
    labels[5:8, 1:7, 2:6] = 7
    labels[:, :, 0] = 11  # outside the mask
    return labels


@pytest.fixture
def atlas(labels):
    return nodes_from_labels(
        labels, AFFINE, names={2: "left", 7: "right", 11: "below"}, networks=dict.fromkeys((2, 7, 11), "x")
    )


def test_parcellate__is_the_mean_of_the_voxels(run, atlas, volume, labels):
    out = parcellate(run, atlas)
    np.testing.assert_allclose(out["timeseries"].sel(node="left"), volume[labels == 2].mean(axis=0, dtype=np.float64))
    np.testing.assert_array_equal(out["coverage"], [1, 1, 0])
    assert out["timeseries"].dtype == np.float64
    assert out["network"].to_numpy().tolist() == ["x"] * 3
    centre = AFFINE[:3, :3] @ [2, 3.5, 3.5] + AFFINE[:3, 3]
    np.testing.assert_allclose([out[axis].sel(node="left") for axis in "xyz"], centre)
    assert out["timeseries"].attrs["source"] == "bold"
    assert find_uncovered(out) == ("below",)
    assert out["timeseries"].sel(node="below").isnull().all()


def test_parcellate__prefers_denoised(run, atlas):
    run = run.assign(denoised=run["bold"] * 2)
    once, twice = parcellate(run.drop_vars("denoised"), atlas), parcellate(run, atlas)
    np.testing.assert_allclose(twice["timeseries"], 2 * once["timeseries"])
    assert twice["timeseries"].attrs["source"] == "denoised"


def test_parcellate__leaves_censored_frames_nan(run, atlas):
    kept = np.arange(N_TIME) % 6 != 1
    denoised = run.rename(bold="denoised").assign(sample_mask=("time", kept))
    denoised["denoised"] = denoised["denoised"].where(denoised["sample_mask"])
    out = parcellate(denoised, atlas)
    expected = parcellate(run, atlas)["timeseries"].sel(node="right")
    np.testing.assert_array_equal(np.isnan(out["timeseries"].sel(node="right")), ~kept)
    np.testing.assert_array_equal(out["timeseries"].sel(node="right")[kept], expected[kept])
    out = parcellate(run.assign(sample_mask=("time", kept)), atlas)
    np.testing.assert_array_equal(np.isnan(out["timeseries"].sel(node="right")), ~kept)


def test_parcellate__counts_only_voxels_with_data(run, atlas, labels):
    flat = np.ravel_multi_index([run[axis] for axis in "ijk"], SHAPE, order="F")
    of_left = np.flatnonzero(labels.ravel(order="F")[flat] == 2)
    run["bold"][of_left[:20]] = 3.0
    run["bold"][of_left[20:45], 4] = np.nan
    out = parcellate(run, atlas)
    assert out["coverage"].sel(node="left") == 27 / 72
    assert find_uncovered(out) == ("left", "below")
    out = parcellate(run, atlas, min_coverage=0.375)
    assert find_uncovered(out) == ("below",)
    expected = run["bold"][of_left[45:]].mean("voxel", dtype=np.float64)
    np.testing.assert_allclose(out["timeseries"].sel(node="left"), expected, rtol=1e-12)


@pytest.mark.parametrize("chunks", [{}, {"voxel": 1}, {"voxel": 13, "time": 7}, {"voxel": 50}])
@pytest.mark.parametrize("block_bytes", [None, 4 * N_TIME * 17])
def test_parcellate__lazy_equals_eager_bit_for_bit(run, atlas, chunks, block_bytes, monkeypatch):
    if block_bytes:
        monkeypatch.setattr("kconn.chunks.BLOCK_BYTES", block_bytes)
    run = run.assign(sample_mask=("time", np.arange(N_TIME) != 4))
    eager = parcellate(run, atlas)
    with dask.config.set(scheduler=no_compute):
        lazy = parcellate(run.chunk(chunks), atlas)
        assert lazy["timeseries"].chunks is not None
    with dask.config.set(scheduler="threads"):
        xr.testing.assert_identical(lazy.compute(), eager)


def test_parcellate__takes_lazy_coordinates(run, atlas):
    """A store opened lazily has i, j, k and sample_mask on Dask as well."""
    run = run.assign(sample_mask=("time", np.arange(N_TIME) != 4))
    lazy = run.chunk(voxel=40).assign_coords({axis: run[axis].chunk(voxel=11) for axis in "ijk"})
    with dask.config.set(scheduler=no_compute):
        out = parcellate(lazy, atlas)
    np.testing.assert_array_equal(out["timeseries"], parcellate(run, atlas)["timeseries"])


def test_parcellate__does_not_depend_on_the_order_of_voxels(run, atlas):
    shuffled = run.isel(voxel=np.random.default_rng(0).permutation(run.sizes["voxel"]))
    np.testing.assert_allclose(
        parcellate(shuffled, atlas)["timeseries"], parcellate(run, atlas)["timeseries"], rtol=1e-12
    )


def test_parcellate__replaces_the_nodes_of_another_set(run, atlas):
    first = parcellate(run, nodes_from_spheres([("seed", 15, -15, -5)], radius_mm=5))
    assert parcellate(first, atlas)["node"].to_numpy().tolist() == ["left", "right", "below"]


def test_parcellate__of_spheres_equals_nilearn(run, volume, mask):
    image, mask_image = nibabel.Nifti1Image(volume, AFFINE), nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE)
    seeds = [(18.0, -15.0, -5.0), (15.0, -12.5, -4.0), (10.0, -20.0, -8.0)]
    masker = NiftiSpheresMasker(seeds, radius=6, mask_img=mask_image, allow_overlap=True, standardize=None)
    expected = masker.fit_transform(image)
    nodes = nodes_from_spheres([(f"s{i}", *seed) for i, seed in enumerate(seeds)], diameter_mm=12)
    np.testing.assert_allclose(parcellate(run, nodes, min_coverage=0)["timeseries"].T, expected, rtol=1e-6)


def test_parcellate__of_a_sphere_at_the_border_counts_what_is_beyond(run):
    corner = AFFINE[:3, :3] @ [1, 3, 3] + AFFINE[:3, 3]
    nodes = nodes_from_spheres([("edge", *corner), ("inside", 18, -15, -5)], radius_mm=3)
    out = parcellate(run, nodes, min_coverage=0.9)
    np.testing.assert_allclose(out["coverage"], [6 / 7, 1])
    assert find_uncovered(out) == ("edge",)


@pytest.fixture(scope="module")
def forrest(shared_data):
    folder = shared_data / "studyforrest_bold"
    image = nibabel.load(folder / "sub-02_task-objectcategories_run-1_bold.nii.gz")
    data = np.asarray(image.dataobj, dtype=np.float32)
    mask = data.mean(axis=3) > 200
    return image, mask, as_run(data, mask, image.affine)


def test_parcellate__of_a_real_run_equals_nilearn(forrest, shared_data):
    image, mask, run = forrest
    name = "Schaefer2018_100Parcels_7Networks_order_FSLMNI152_2mm.nii.gz"
    atlas = nibabel.load(shared_data / "atlases" / name)
    nodes = nodes_from_labels(np.asarray(atlas.dataobj), atlas.affine, resample=True)
    out = parcellate(run, nodes, min_coverage=0)

    target = nibabel.Nifti1Image(np.zeros(mask.shape), image.affine)
    resampled = resample_to_img(atlas, target, interpolation="nearest", force_resample=True, copy_header=True)
    inside = np.where(mask, resampled.get_fdata(), 0).astype(np.int32)
    masker = NiftiLabelsMasker(nibabel.Nifti1Image(inside, image.affine), resampling_target=None, standardize=None)
    expected = masker.fit_transform(image).T
    found = [str(int(key)) for key in np.unique(inside) if key]
    assert len(found) == 97
    np.testing.assert_allclose(out["timeseries"].sel(node=found), expected, rtol=1e-6)
    whole = np.bincount(resampled.get_fdata().astype(int).ravel(), minlength=101)[1:]
    assert (out["coverage"] <= np.bincount(inside.ravel(), minlength=101)[1:] / np.maximum(whole, 1)).all()


def test_parcellate__of_a_real_run_in_spheres_equals_nilearn(forrest):
    image, mask, run = forrest
    seeds = [(1.0, 55.0, 20.0), (-44.0, 13.0, 30.0), (0.0, 22.0, 35.0)]
    mask_image = nibabel.Nifti1Image(mask.astype(np.uint8), image.affine)
    # As float: of an int16 image nilearn 0.14.1 cuts the means of spheres down to whole numbers.
    image = nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)
    expected = NiftiSpheresMasker(seeds, radius=10, mask_img=mask_image, standardize=None).fit_transform(image)
    nodes = nodes_from_spheres([(f"s{i}", *seed) for i, seed in enumerate(seeds)], radius_mm=10)
    np.testing.assert_allclose(parcellate(run, nodes, min_coverage=0)["timeseries"].T, expected, rtol=1e-6)


def test_parcellate__refuses_another_grid(run, labels):
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.01
    with pytest.raises(InputError, match=r"E-GRID \[sub-01/ses-1/run-1\].*LAS.*resample") as error:
        parcellate(run, nodes_from_labels(labels, shifted))
    assert "9 x 8 x 7 voxels of 3 x 3 x 3 mm" in str(error.value)
    flipped = nodes_from_labels(labels[::-1], np.diag([-1.0, 1, 1, 1]) @ AFFINE)
    with pytest.raises(InputError, match=r"RAS.*LAS"):
        parcellate(run, flipped)
    almost = AFFINE + 5e-4
    assert parcellate(run, nodes_from_labels(labels, almost))["timeseries"].sizes["node"] == 3


def test_parcellate__resampled_to_the_other_hand_gives_the_same_series(run, labels, atlas):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    mirrored = nodes_from_labels(labels[::-1], AFFINE @ flip, resample=True)
    np.testing.assert_array_equal(parcellate(run, mirrored)["timeseries"], parcellate(run, atlas)["timeseries"])


def test_parcellate__counts_what_a_resampled_atlas_has_beyond_the_run(run):
    labels = np.zeros((9, 8, 14), dtype=np.int16)
    labels[2:6, 2:6, 4:12] = 1
    out = parcellate(run, nodes_from_labels(labels, AFFINE, resample=True), min_coverage=0)
    assert out["coverage"] == 3 / 8


def test_parcellate__refuses_nodes_elsewhere(run, labels):
    away = AFFINE.copy()
    away[1, 3] += 500
    with pytest.raises(InputError, match=r"E-NODES.*none of the 3 nodes lies within"):
        parcellate(run, nodes_from_labels(labels, away, resample=True))
    with pytest.raises(InputError, match="E-NODES"):
        parcellate(run, nodes_from_spheres([("far", 500, 0, 0)], radius_mm=5))


def test_parcellate__refuses_a_run_that_covers_no_node(run):
    below = np.zeros(SHAPE, dtype=np.int16)
    below[:, :, 0] = 1
    nodes = nodes_from_labels(below, AFFINE)
    with pytest.raises(InputError, match=r"E-NODES \[sub-01/ses-1/run-1\] none of the 1 nodes is covered"):
        parcellate(run, nodes)
    lazy = parcellate(run.chunk(), nodes)
    with pytest.raises(InputError, match="E-NODES"):
        lazy.compute()


def test_parcellate__refuses_a_run_without_a_grid(run, atlas):
    del run.attrs["affine"]
    with pytest.raises(SchemaError, match=r"E-SCHEMA.*affine"):
        parcellate(run.drop_vars("j"), atlas)


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_parcellate__refuses_a_coverage_that_is_no_share(run, atlas, share):
    with pytest.raises(SchemaError, match=r"E-ARGUMENT.*min_coverage"):
        parcellate(run, atlas, min_coverage=share)


@pytest.fixture
def table():
    x = np.random.default_rng(0).normal(size=(4, N_TIME))
    x[2] = 5
    return xr.Dataset(
        {"bold": (("column", "time"), x)},
        coords={"column": ["gsr", "a", "b", "c"], "time": np.arange(N_TIME) * 2.0},
        attrs={"where": "sub-01"},
    )


@pytest.mark.parametrize("chunks", [None, {}, {"column": 1, "time": 7}])
def test_parcellate__selects_columns_by_name(table, chunks):
    nodes = nodes_from_columns(["c", "gsr", "b", "a"], exclude=["gsr"], networks={"a": "n", "b": "n", "c": "m"})
    kept = np.arange(N_TIME) != 3
    run = table.assign(sample_mask=("time", kept))
    out = parcellate(run if chunks is None else run.chunk(chunks), nodes)
    assert out["node"].to_numpy().tolist() == ["c", "b", "a"]
    assert out["network"].to_numpy().tolist() == ["m", "n", "n"]
    np.testing.assert_array_equal(out["timeseries"][0, kept], table["bold"][3, kept])
    np.testing.assert_array_equal(out["timeseries"][2, kept], table["bold"][1, kept])
    assert out["timeseries"][:, 3].isnull().all()
    assert find_uncovered(out) == ("b",)
    assert out["bold"].sizes["column"] == 4


def test_parcellate__refuses_columns_that_are_absent(table, run):
    with pytest.raises(InputError, match=r"E-ID-MISSING.*'z'"):
        parcellate(table, nodes_from_columns(["a", "z"]))
    with pytest.raises(SchemaError, match="selects columns of a table"):
        parcellate(run, nodes_from_columns(["a"]))


def test_join_nodes__puts_structures_in_place_of_spheres(run, atlas, labels):
    spheres = nodes_from_spheres(
        [("amygdala", 18, -15, -5), ("pcc", 9, -18, -8)], radius_mm=4, networks={"amygdala": "limbic", "pcc": "dmn"}
    )
    structures = nodes_from_labels(np.where(labels == 2, labels, 0), AFFINE, names={2: "whole amygdala"})
    nodes = join_nodes(drop_nodes(spheres, ["amygdala"]), structures)
    out = parcellate(run, nodes)
    assert out["node"].to_numpy().tolist() == ["pcc", "whole amygdala"]
    assert out["network"].to_numpy().tolist() == ["dmn", ""]
    np.testing.assert_array_equal(out["timeseries"][0], parcellate(run, spheres)["timeseries"].sel(node="pcc"))
    np.testing.assert_array_equal(out["timeseries"][1], parcellate(run, atlas)["timeseries"].sel(node="left"))
    np.testing.assert_allclose([out[axis][0] for axis in "xyz"], [9, -18, -8])


def test_join_nodes__lets_nodes_share_voxels(run, atlas):
    again = nodes_from_labels(atlas.source.volume, AFFINE, names={2: "left2", 7: "right2", 11: "below2"})
    out = parcellate(run, join_nodes(atlas, again))
    np.testing.assert_array_equal(out["timeseries"][:3], out["timeseries"][3:])
    np.testing.assert_array_equal(out["coverage"], [1, 1, 0, 1, 1, 0])


def test_drop_nodes__of_every_kind(run, atlas, table):
    expected = parcellate(run, atlas)["timeseries"].sel(node=["right"])
    np.testing.assert_array_equal(parcellate(run, drop_nodes(atlas, ["left", "below"]))["timeseries"], expected)
    spheres = nodes_from_spheres([("a", 18, -15, -5), ("b", 9, -18, -8)], radius_mm=4)
    both = join_nodes(atlas, spheres)
    left = drop_nodes(both, ["left", "below", "a"])
    assert left.names == ("right", "b")
    np.testing.assert_array_equal(
        parcellate(run, left)["timeseries"], parcellate(run, both)["timeseries"].sel(node=["right", "b"])
    )
    assert drop_nodes(both, atlas.names).names == ("a", "b")
    columns = join_nodes(nodes_from_columns(["a", "b"]), nodes_from_columns(["c"]))
    assert parcellate(table, drop_nodes(columns, ["b"]))["node"].to_numpy().tolist() == ["a", "c"]
