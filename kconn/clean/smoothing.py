"""Spatial smoothing of a run inside its mask."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.chunks import BLOCK_BYTES
from kconn.clean.frames import place
from kconn.errors import SchemaError
from kconn.grayordinates import has_grayordinates
from kconn.kernels.smoothing import sigma_in_voxels, smooth_volumes


def smooth(ds: xr.Dataset, *, fwhm: float) -> xr.Dataset:
    """Replace `bold` by its weighted mean over neighbouring voxels, with a Gaussian of ``fwhm`` mm.

    Only voxels of the run enter (normalised convolution inside the mask), so that nothing bleeds in from outside and
    borders keep their level. Where the mask is the whole volume this is ``nilearn.image.smooth_img``.

    Each frame is smoothed for itself. Lazy input is taken in chunks of all voxels by a few frames; what follows needs
    all frames of some voxels, so one of the two has to be held or stored between. Where ``fwhm`` is in the study
    file, frames are smoothed as they are read from the image, and no run is ever held.

    Parameters
    ----------
    ds
        A run: `bold` ``(voxel, time)`` with ``i j k`` on ``voxel`` and the attrs ``affine`` and ``grid_shape``. Not
        finite values are left out, and stay NaN.
    fwhm
        Full width at half maximum in mm.

    Returns
    -------
    ds
        With `bold` as float32 (float64 for float64 input), and ``fwhm`` among its attrs.

    Raises
    ------
    SchemaError
        Codes ``E-ARGUMENT`` and ``E-SMOOTH``: grayordinates and node tables have no grid. A surface is to be smoothed
        along the surface, before it comes here.

    References
    ----------
    Knutsson H, Westin CF (1993). Normalized and differential convolution. https://doi.org/10.1109/CVPR.1993.341081
    """
    schema.validate(ds, "bold")
    check_fwhm(fwhm, where=place(ds))
    has_grid = {"i", "j", "k"} <= set(ds.coords) and {"affine", "grid_shape"} <= set(ds.attrs)
    if "voxel" not in ds["bold"].dims or not has_grid or has_grayordinates(ds):
        raise SchemaError(
            "E-SMOOTH",
            f"'bold' has dims {tuple(map(str, ds['bold'].dims))} without a place on a grid",
            where=place(ds),
            rule="smoothing needs voxels of a volume: coordinates i, j, k, attrs affine and grid_shape",
            fix="smooth surfaces along the surface before (wb_command -cifti-smoothing), or switch smoothing off",
        )
    bold = ds["bold"]
    places = [ds[axis].data for axis in "ijk"]
    shape = tuple(int(n) for n in ds.attrs["grid_shape"])
    sigma = sigma_in_voxels(fwhm, ds.attrs["affine"])
    dtype = np.dtype(np.float64 if bold.dtype == np.float64 else np.float32)
    if bold.chunks is None:
        data: Any = _smooth_columns(bold.to_numpy().astype(dtype), np.stack(places), shape=shape, sigma=sigma)
    else:
        n_frame = max(1, BLOCK_BYTES // (dtype.itemsize * max(1, bold.sizes["voxel"])))
        frames = da.rechunk(bold.data, (-1, n_frame)).astype(dtype)
        data = da.map_blocks(
            _smooth_columns,
            frames,
            ijk=delayed(np.stack, pure=True)(places),
            shape=shape,
            sigma=sigma,
            dtype=dtype,
            meta=np.empty((0, 0), dtype),
        )
    return schema.annotate(ds.assign(bold=bold.copy(data=data).assign_attrs(fwhm=fwhm)))


def check_fwhm(fwhm: float, *, where: str) -> None:
    """Refuse a width that is not a positive length.

    Raises
    ------
    SchemaError
        Code ``E-ARGUMENT``.
    """
    if not 0 < fwhm < np.inf:
        raise SchemaError("E-ARGUMENT", f"fwhm = {fwhm}", where=where, rule="it is above 0 mm")


def _smooth_columns(
    x: npt.NDArray[np.floating[Any]],
    ijk: npt.NDArray[np.integer[Any]],
    shape: tuple[int, ...],
    sigma: tuple[float, ...],
) -> npt.NDArray[np.floating[Any]]:
    """Smooth ``x (voxel, frame)``, one frame at a time."""
    mask = np.zeros(shape, dtype=np.bool_)
    mask[tuple(ijk)] = True
    volume = np.full((1, *shape), np.nan, dtype=x.dtype)
    out = np.empty_like(x)
    for t in range(x.shape[1]):
        volume[(0, *ijk)] = x[:, t]
        out[:, t] = smooth_volumes(volume, mask, sigma)[(0, *ijk)]
    return out
