"""Quality of a run: how far the head moved, what was kept, how strong the signal is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.frames import framewise_displacement, sample_mask, whole
from kconn.kernels import quality


def estimate_quality(ds: xr.Dataset) -> xr.Dataset:
    """Add the quality of a run: one map and a few numbers.

    Parameters
    ----------
    ds
        A run: `bold` ``(voxel | column, time)``; `sample_mask`, `confounds` or `framewise_displacement`, `denoised` and
        its counts where there are any; attrs ``t_r`` (s). Lazy or in memory.

    Returns
    -------
    ds
        With `tsnr` ``(voxel | column)`` of the raw signal over the kept frames, and the scalars `n_frames`, `n_kept`,
        `minutes_kept` (NaN without ``t_r``), `median_tsnr`, `n_constant` (voxels without signal: the count of
        `denoise` if it has run, else those without tSNR), `mean_fd` and `max_fd` in mm (framewise displacement of
        all frames but the first, which has none, kept or not; NaN if the run has no source for it). `df_left` and
        `n_regressors` of `denoise` stay as they are. Nothing is computed for lazy input.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.

    References
    ----------
    Power JD et al. (2012). https://doi.org/10.1016/j.neuroimage.2011.10.018
    """
    schema.validate(ds, "bold")
    bold, mask = ds["bold"], sample_mask(ds)
    tsnr = _tsnr(bold, mask)
    moved = _displacement(ds)
    n_kept = mask.sum()
    scalars = {
        "n_frames": xr.DataArray(ds.sizes["time"]),
        "n_kept": n_kept,
        "minutes_kept": n_kept * float(ds.attrs.get("t_r", np.nan)) / 60,
        "median_tsnr": _median(tsnr),
        "n_constant": ds["n_constant"] if "n_constant" in ds else tsnr.isnull().sum(),
        "mean_fd": moved.mean("time"),
        "max_fd": moved.max("time"),
    }
    return schema.annotate(
        ds.assign({"tsnr": tsnr, **{name: scalar.reset_coords(drop=True) for name, scalar in scalars.items()}})
    )


def _tsnr(bold: xr.DataArray, mask: xr.DataArray) -> xr.DataArray:
    if bold.chunks is not None:
        # The grid of every per-voxel computation, so that bits do not depend on how the input came.
        bold = bold.chunk({bold.dims[0]: plan_voxel_blocks(*bold.shape), "time": -1})
    ratio: xr.DataArray = xr.apply_ufunc(
        quality.tsnr,
        bold,
        whole(mask),
        input_core_dims=[["time"], ["time"]],
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    return ratio


def _displacement(ds: xr.Dataset) -> xr.DataArray:
    """Return the displacement of the frames that have one; NaN where nothing is known of motion."""
    if "framewise_displacement" in ds or "confounds" in ds:
        return framewise_displacement(ds).isel(time=slice(1, None))
    return xr.DataArray(np.full(1, np.nan), dims="time")


def _median(values: xr.DataArray) -> xr.DataArray:
    median: xr.DataArray = xr.apply_ufunc(
        _finite_median,
        whole(values),
        input_core_dims=[list(values.dims)],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return median


def _finite_median(values: npt.NDArray[np.floating[Any]]) -> np.float64:
    finite = values[np.isfinite(values)]
    return np.float64(np.median(finite)) if finite.size else np.float64(np.nan)
