"""The Gaussian inside a mask: against nilearn and a plain loop over pairs of voxels."""

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import smooth_img

from kconn.kernels.smoothing import sigma_in_voxels, smooth_volumes

AFFINE = np.array([[-3.0, 0, 0, 10], [0, 2.5, 0.5, -4], [0, -0.5, 3.3, 2], [0, 0, 0, 1]])


@pytest.fixture
def volumes():
    return np.random.default_rng(1).normal(size=(3, 12, 11, 10)) + 50


def test_smooth_volumes__of_a_whole_grid_equal_nilearn(volumes):
    image = nib.Nifti1Image(np.moveaxis(volumes, 0, -1), AFFINE)

    actual = smooth_volumes(volumes, np.ones(volumes.shape[1:], dtype=bool), sigma_in_voxels(6.0, AFFINE))

    np.testing.assert_allclose(actual, np.moveaxis(smooth_img(image, 6.0).get_fdata(), -1, 0), rtol=1e-12)


def normalised_loop(volume, mask, sigma):
    """Weighted mean of the neighbours in the mask, voxel by voxel; far enough from the edge of the grid."""
    places = np.argwhere(mask)
    out = np.full(volume.shape, np.nan)
    reach = [int(4 * s + 0.5) for s in sigma]
    for place in places:
        total = weight = 0.0
        for other in places:
            step = other - place
            if all(abs(d) <= r for d, r in zip(step, reach, strict=True)):
                w = np.exp(-0.5 * sum((d / s) ** 2 for d, s in zip(step, sigma, strict=True)))
                total, weight = total + w * volume[tuple(other)], weight + w
        out[tuple(place)] = total / weight
    return out


@pytest.mark.parametrize("with_nan", [False, True])
def test_smooth_volumes__inside_a_mask_equal_loop(with_nan):
    rng = np.random.default_rng(3)
    volume = rng.normal(size=(17, 17, 17)) + 10
    mask = np.zeros(volume.shape, dtype=bool)
    mask[6:11, 6:11, 6:11] = rng.random((5, 5, 5)) < 0.7
    volume[~mask] = 1e9
    valid = mask.copy()
    if with_nan:
        hole = tuple(np.argwhere(mask)[20])
        volume[hole], valid[hole] = np.nan, False
    sigma = (1.2, 0.8, 1.4)

    actual = smooth_volumes(volume[None], mask, sigma)[0]

    np.testing.assert_allclose(actual, normalised_loop(volume, valid, sigma), rtol=1e-10)


def test_smooth_volumes__keep_a_level_up_to_the_border():
    mask = np.random.default_rng(0).random((9, 9, 9)) < 0.4

    actual = smooth_volumes(np.full((1, 9, 9, 9), 7.0), mask, (1.5, 1.5, 1.5))[0]

    np.testing.assert_allclose(actual[mask], 7.0, rtol=1e-12)
    assert np.isnan(actual[~mask]).all()
