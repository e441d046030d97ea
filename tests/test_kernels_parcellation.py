"""Kernels of node extraction: against loops, nilearn's resampling and real atlases."""

import nibabel
import numpy as np
import pytest
from nilearn.image import resample_to_img

from kconn.kernels import parcellation as kernel


def members_of(labels, keys):
    return kernel.label_members(labels, keys=keys)


def test_label_members__lists_the_voxels_of_each_label_in_file_order():
    labels = np.zeros((3, 2, 2), dtype=np.int32)
    labels[2, 0, 0] = labels[0, 1, 1] = 5
    labels[1, 1, 0] = 9
    labels[0, 0, 1] = 7  # no key: belongs to no node
    members = members_of(labels, (5, 9))
    np.testing.assert_array_equal(members.voxel, [2, 4, 9])
    np.testing.assert_array_equal(members.node, [0, 1, 0])
    np.testing.assert_array_equal(members.start, [0, 1, 2, 3])
    np.testing.assert_array_equal(members.n_voxel, [2, 1])


def test_label_members__adds_voxels_beyond_the_field_of_view():
    labels = np.ones((2, 2, 2), dtype=np.int32)
    members = kernel.label_members(labels, keys=(1, 2), n_beyond=np.array([3, 4]))
    np.testing.assert_array_equal(members.n_voxel, [11, 4])


def test_join_members__keeps_every_node_of_a_shared_voxel():
    members = kernel.join_members(np.array([7, 3, 7]), np.array([1, 0, 0]), n_voxel=np.array([2, 1]))
    np.testing.assert_array_equal(members.voxel, [3, 7])
    np.testing.assert_array_equal(members.start, [0, 1, 3])
    np.testing.assert_array_equal(members.node, [0, 0, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_sum_members__matches_a_loop(dtype):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 9)) * 100).astype(dtype)
    labels = rng.integers(0, 5, (5, 4, 3)).astype(np.int32)
    kept = np.ones(9, dtype=bool)
    total, count = kernel.sum_members(x, np.arange(60), kept=kept, members=members_of(labels, (1, 2, 3, 4)))
    flat = labels.ravel(order="F")
    for node, key in enumerate((1, 2, 3, 4)):
        np.testing.assert_allclose(total[node], x[flat == key].astype(np.float64).sum(axis=0), rtol=1e-12)
        assert count[node] == (flat == key).sum()


def test_sum_members__counts_voxels_with_data_only():
    x = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    kept = np.array([True, True, False, True, True, True])
    x[0, 2] = np.nan  # censored frame: harmless for the voxel
    x[1, 3] = np.nan
    x[2, 4] = np.inf
    x[3] = 4
    x[4, :2] = x[4, 3:] = 4  # varies at the censored frame only
    labels = np.ones((2, 2, 2), dtype=np.int32)
    total, count = kernel.sum_members(x, np.arange(8), kept=kept, members=members_of(labels, (1,)))
    assert count.tolist() == [4]
    np.testing.assert_allclose(total[0, kept], x[[0, 5, 6, 7]][:, kept].sum(axis=0, dtype=np.float64))


def test_sum_members__finds_the_rows_of_a_masked_block():
    x = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)
    labels = np.arange(12).reshape(3, 2, 2, order="F").astype(np.int32)
    total, count = kernel.sum_members(
        x, np.array([1, 4, 5, 11]), kept=np.ones(5, dtype=bool), members=members_of(labels, (4, 11))
    )
    np.testing.assert_array_equal(count, [1, 1])
    np.testing.assert_allclose(total, x[[1, 3]])


def test_mean_members__leaves_thin_nodes_and_censored_frames_nan():
    parts = [(np.full((3, 4), 6.0), np.array([2, 1, 0])), (np.full((3, 4), 2.0), np.array([2, 0, 0]))]
    kept = np.array([True, False, True, True])
    series, coverage = kernel.mean_members(parts, kept=kept, n_voxel=np.array([4, 4, 0]), min_coverage=0.5)
    np.testing.assert_array_equal(coverage, [1, 0.25, 0])
    np.testing.assert_array_equal(series[0], [2, np.nan, 2, 2])
    assert np.isnan(series[1:]).all()


def test_mean_members__of_an_uncovered_node_is_nan_even_without_a_minimum():
    series, _ = kernel.mean_members(
        [(np.zeros((1, 2)), np.array([0]))], kept=np.ones(2, bool), n_voxel=np.array([3]), min_coverage=0.0
    )
    assert np.isnan(series).all()


def as_image(labels, affine):
    return nibabel.Nifti1Image(labels.astype(np.int32), affine)


def nilearn_resampled(labels, affine, target_affine, shape):
    target = as_image(np.zeros(shape), target_affine)
    image = resample_to_img(
        as_image(labels, affine), target, interpolation="nearest", force_resample=True, copy_header=True
    )
    return image.get_fdata().astype(int)


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (np.diag([-2.0, 2, 2, 1]), (12, 10, 9)),  # left and right exchanged
        (np.diag([3.0, 3, 3, 1]), (8, 7, 6)),  # larger voxels
        (np.diag([1.0, 2.5, 4, 1]), (20, 9, 5)),
        (np.array([[0.0, 2, 0, 0], [2, 0.1, 0, 0], [0.3, 0, -2, 16], [0, 0, 0, 1]]), (10, 12, 9)),  # axes exchanged
    ],
)
def test_resample_labels__equals_nilearn(target, shape):
    labels = np.random.default_rng(3).integers(0, 6, (12, 10, 9)).astype(np.int32)
    affine = np.diag([2.0, 2, 2, 1])
    target = target.copy()
    if target[0, 0] < 0:
        target[0, 3] = 22
    expected = nilearn_resampled(labels, affine, target, shape)
    assert expected.any()
    np.testing.assert_array_equal(kernel.resample_labels(labels, affine, target, shape), expected)


@pytest.mark.parametrize("name", ["Schaefer2018_100Parcels_7Networks_order_FSLMNI152_2mm", "MIST_122"])
def test_resample_labels__equals_nilearn_on_real_grids(shared_data, name):
    atlas = nibabel.load(shared_data / "atlases" / f"{name}.nii.gz")
    folder = shared_data / "studyforrest_bold"
    run = nibabel.load(folder / "sub-02_task-objectcategories_run-1_bold.nii.gz")
    other = nibabel.load(shared_data / "atlases" / "canica_resting_state_20IC_4mm.nii.gz")
    labels = np.rint(np.asarray(atlas.dataobj)).astype(np.int32)
    for target in (run, other):
        actual = kernel.resample_labels(labels, atlas.affine, target.affine, target.shape[:3])
        np.testing.assert_array_equal(actual, nilearn_resampled(labels, atlas.affine, target.affine, target.shape[:3]))


def test_extended_grid__holds_every_label_and_the_grid_itself():
    labels = np.zeros((20, 20, 20), dtype=np.int32)
    labels[2:18, 4:9, 5:15] = 1
    affine = np.diag([2.0, 2, 2, 1])
    target = np.diag([-4.0, 4, 4, 1])
    target[:3, 3] = (30, 8, 4)
    shape = (4, 5, 3)
    wide, wide_shape, inside = kernel.extended_grid(labels, affine, target, shape)
    everything = kernel.resample_labels(labels, affine, wide, wide_shape)
    np.testing.assert_array_equal(everything[inside], kernel.resample_labels(labels, affine, target, shape))
    mm = (wide @ np.array([s.start for s in inside] + [1]))[:3]
    np.testing.assert_allclose(mm, target[:3, 3])
    assert not any(everything.take(edge, axis).any() for axis in range(3) for edge in (0, -1))


def test_centres_of_mass__are_in_mm():
    labels = np.zeros((4, 4, 4), dtype=np.int32)
    labels[0, 0, 0] = labels[2, 0, 0] = 3
    labels[1, 2, 3] = 8
    affine = np.array([[-2.0, 0, 0, 10], [0, 2, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]])
    np.testing.assert_allclose(kernel.centres_of_mass(labels, affine, (3, 8)), [[8, 20, 30], [8, 24, 36]])


def test_sum_members__of_no_voxel_is_nothing():
    none = kernel.join_members(np.empty(0, int), np.empty(0, int), n_voxel=np.zeros(2, int))
    total, count = kernel.sum_members(np.ones((3, 4)), np.arange(3), kept=np.ones(4, dtype=bool), members=none)
    assert total.tolist() == [[0] * 4] * 2
    assert count.tolist() == [0, 0]
