"""A Gaussian over the voxels of a mask: what lies outside neither enters nor dilutes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

Array = npt.NDArray[np.float64]
Signal = npt.NDArray[np.floating[Any]]

#: Full width at half maximum of a Gaussian with standard deviation 1.
FWHM_OF_UNIT: Final = float(np.sqrt(8 * np.log(2)))


def sigma_in_voxels(fwhm: float, affine: npt.ArrayLike) -> tuple[float, float, float]:
    """Return the standard deviation along i, j, k, in voxels, of a Gaussian of ``fwhm`` mm."""
    size = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    i, j, k = fwhm / (FWHM_OF_UNIT * size)
    return float(i), float(j), float(k)


def smooth_volumes(x: Signal, mask: npt.NDArray[np.bool_], sigma: Sequence[float]) -> Signal:
    """Return the weighted mean of the neighbours of each voxel of the mask, volume by volume.

    Normalised convolution: the smoothed signal over the smoothed mask. Voxels that are not finite are left out as if
    they were outside, and stay NaN. Beyond the edge of the volume it is mirrored, as in `scipy.ndimage`.

    Parameters
    ----------
    x
        ``(volume, a, b, c)``.
    mask
        ``(a, b, c)``.
    sigma
        Standard deviation along a, b, c in voxels.

    Returns
    -------
    smoothed
        Of the shape and type of ``x``; NaN outside the mask.

    References
    ----------
    Knutsson H, Westin CF (1993). Normalized and differential convolution. https://doi.org/10.1109/CVPR.1993.341081
    """
    out = np.full_like(x, np.nan)
    of_mask = _convolve(mask.astype(np.float64), sigma)
    for volume, target in zip(x, out, strict=True):
        valid = mask & np.isfinite(volume)
        weight = of_mask if np.array_equal(valid, mask) else _convolve(valid.astype(np.float64), sigma)
        smoothed = _convolve(np.where(valid, volume, 0.0), sigma)
        target[valid] = smoothed[valid] / weight[valid]
    return out


def _convolve(volume: Array, sigma: Sequence[float]) -> Array:
    for axis, width in enumerate(sigma):
        volume = gaussian_filter1d(volume, width, axis=axis)
    return volume
