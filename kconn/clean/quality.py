"""Quality of a run: how far the head moved, how strong and how steady the signal is, and a picture of all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.clean.confounds import MOTION, compute_term
from kconn.clean.frames import framewise_displacement, sample_mask, whole
from kconn.errors import InputError
from kconn.kernels import motion, quality

#: The column of fMRIPrep's confound table that holds standardised DVARS, now and before version 1.1.
STD_DVARS: Final = ("std_dvars", "stdDVARS")


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


def estimate_motion(ds: xr.Dataset) -> xr.Dataset:
    """Add how much each of the six parameters of motion changes from frame to frame.

    Parameters
    ----------
    ds
        A run, with `confounds` ``(time, confound)`` in mm and radians where there are any. Lazy or in memory.

    Returns
    -------
    ds
        With the scalars `step_trans_x step_trans_y step_trans_z` in mm and `step_rot_x step_rot_y step_rot_z` in
        degrees: the mean absolute difference between a frame and the one before, over all frames, kept or not. NaN
        where the run has no such column.

    References
    ----------
    Motoyama Y et al. (2019). https://doi.org/10.1038/s41598-019-49360-1
    """
    names = tuple(ds["confounds"]["confound"].to_numpy().tolist()) if "confounds" in ds else ()
    made = {}
    for name in MOTION:
        term = compute_term(name, names)
        if term is None:
            made[f"step_{name}"] = xr.DataArray(np.nan)
            continue
        step: xr.DataArray = xr.apply_ufunc(
            motion.mean_steps,
            whole(ds["confounds"].sel(confound=term.source)),
            input_core_dims=[["time"]],
            dask="parallelized",
            output_dtypes=[np.float64],
        )
        unit = 180 / np.pi if name.startswith("rot") else 1.0
        made[f"step_{name}"] = (step * unit).drop_vars("confound")
    return schema.annotate(ds.assign(made))


def estimate_courses(ds: xr.Dataset) -> xr.Dataset:
    """Add the courses that tell a steady run from a spoilt one, and their summaries.

    Parameters
    ----------
    ds
        A run: `bold` ``(voxel | column, time)``; `confounds` or `framewise_displacement` where there are any. Lazy or
        in memory.

    Returns
    -------
    ds
        With `framewise_displacement` ``(time)`` where the run has a source for it; `std_dvars` ``(time)``, that of the
        confound table (`std_dvars`, before fMRIPrep 1.1 `stdDVARS`), else as in `estimate_dvars`; `global_signal`
        ``(time)``, the mean over voxels; and the scalars `mean_std_dvars`, `max_std_dvars` (all frames but the first)
        and `global_sd`, the standard deviation of the global signal over the kept frames in percent of its mean.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.
    """
    schema.validate(ds, "bold")
    if (moved := _find_displacement(ds)) is not None:
        ds = ds.assign(framewise_displacement=moved.reset_coords(drop=True))
    ds = with_std_dvars(ds)
    signal = ds["bold"]
    sums = _over_blocks(quality.signal_sums, signal, n_out=signal.sizes["time"] + 1)
    mean = xr.DataArray(sums[:-1] / sums[-1], dims="time")
    later = ds["std_dvars"].isel(time=slice(1, None))
    spread: xr.DataArray = xr.apply_ufunc(
        quality.relative_spread,
        whole(mean),
        whole(sample_mask(ds)),
        input_core_dims=[["time"], ["time"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    made = {"mean_std_dvars": later.mean("time"), "max_std_dvars": later.max("time"), "global_sd": spread}
    scalars = {name: scalar.reset_coords(drop=True) for name, scalar in made.items()}
    return schema.annotate(ds.assign({"global_signal": mean, **scalars}))


def with_std_dvars(ds: xr.Dataset) -> xr.Dataset:
    """Add `std_dvars` ``(time)``, from the confound table where it is there: it is of the same formula."""
    if "std_dvars" in ds:
        return ds
    names = ds["confounds"]["confound"].to_numpy().tolist() if "confounds" in ds else []
    found = next((name for name in STD_DVARS if name in names), None)
    if found is None:
        return estimate_dvars(ds)
    filled: xr.DataArray = xr.apply_ufunc(
        motion.fill_first_frame,
        whole(ds["confounds"].sel(confound=found)).astype(np.float64),
        input_core_dims=[["time"]],
        output_core_dims=[["time"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return ds.assign(std_dvars=filled.drop_vars("confound"))


def estimate_carpet(ds: xr.Dataset) -> xr.Dataset:
    """Add a small picture of a run: `carpet` and, after `denoise`, `carpet_denoised` ``(carpet_row, time)``.

    At most 200 voxels, evenly spread over the mask, in the order of their correlation with the global signal before
    denoising; each without its line, as whole numbers of 1/40 standard deviations, cut at 3; -128 where there is no
    value. Both pictures show the same voxels in the same order.

    Parameters
    ----------
    ds
        A run: `bold` and, where there is one, `denoised` ``(voxel | column, time)``; `global_signal` as
        `estimate_courses` makes it. Lazy or in memory.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.

    References
    ----------
    Power JD (2017). A simple but useful way to assess fMRI scan qualities.
    https://doi.org/10.1016/j.neuroimage.2016.08.009
    Aquino KM et al. (2020). https://doi.org/10.1016/j.neuroimage.2020.116614
    """
    schema.validate(ds, "bold", "global_signal")
    signals = {"carpet": ds["bold"]}
    if "denoised" in ds:
        signals["carpet_denoised"] = ds["denoised"]
    place = str(ds["bold"].dims[0])
    chosen = quality.carpet_rows(ds.sizes[place])
    rows = [whole(signal.isel({place: chosen}).reset_coords(drop=True)) for signal in signals.values()]
    pictures = xr.apply_ufunc(
        _draw_carpets,
        whole(ds["global_signal"]),
        whole(sample_mask(ds)),
        *(row.drop_vars(place, errors="ignore").rename({place: "carpet_row"}) for row in rows),
        input_core_dims=[["time"], ["time"], *[["carpet_row", "time"]] * len(rows)],
        output_core_dims=[["picture", "carpet_row", "time"]],
        dask="parallelized",
        output_dtypes=[np.int8],
        dask_gufunc_kwargs={"output_sizes": {"picture": len(rows)}},
    )
    made = {name: pictures.isel(picture=i).reset_coords(drop=True) for i, name in enumerate(signals)}
    return schema.annotate(ds.assign(made))


def _draw_carpets(
    global_signal: npt.NDArray[np.float64], kept: npt.NDArray[np.bool_], *signals: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.int8]:
    order = quality.carpet_order(signals[0], global_signal, kept)
    return np.stack([quality.carpet(signal[order], kept) for signal in signals])


def estimate_dvars(ds: xr.Dataset, *, of: str = "bold") -> xr.Dataset:
    """Add how much the whole image changes from frame to frame: `dvars` and `std_dvars` ``(time)``.

    The root mean square, over voxels, of the difference from the frame before; and the same as a multiple of what
    the variance and the lag-1 autocorrelation of the voxels lead to expect (the ``std_dvars`` of fMRIPrep). All frames
    enter, kept or not; constant voxels do not. 0 in the first frame.

    Parameters
    ----------
    ds
        A run: ``of`` ``(voxel | column, time)``. Lazy or in memory.
    of
        The variable to look at: `bold`, or another of its dims without dropped frames.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.

    References
    ----------
    Power JD et al. (2012). https://doi.org/10.1016/j.neuroimage.2011.10.018
    Nichols T (2017). https://doi.org/10.48550/arXiv.1704.01469
    """
    schema.validate(ds, of)
    n_time = ds.sizes["time"]
    sums = _over_blocks(quality.dvars_sums, ds[of], n_out=n_time + 2)
    both = (
        da.map_blocks(_dvars, sums, new_axis=0, chunks=((2,), (n_time,)), dtype=np.float64, meta=np.empty((0, 0)))
        if isinstance(sums, da.Array)
        else _dvars(sums)
    )
    return schema.annotate(ds.assign(dvars=("time", both[0]), std_dvars=("time", both[1])))


def _dvars(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack(quality.dvars(sums))


def _over_blocks(kernel: Callable[[Any], npt.NDArray[np.float64]], signal: xr.DataArray, *, n_out: int) -> Any:
    """Return the sums ``(n_out,)`` that a kernel makes of each block of voxels, added up; lazy for a lazy signal."""
    blocks = da.asarray(signal.data).rechunk((plan_voxel_blocks(*signal.shape), -1))
    sums = da.map_blocks(
        _as_row,
        blocks,
        kernel=kernel,
        chunks=((1,) * blocks.numblocks[0], (n_out,)),
        dtype=np.float64,
        meta=np.empty((0, 0)),
    )
    # One task adds the blocks in their order: the bits do not depend on how many workers made them.
    total = da.map_blocks(
        _add_rows, sums.rechunk(-1), drop_axis=0, chunks=((n_out,),), dtype=np.float64, meta=np.empty(0)
    )
    return total if signal.chunks is not None else total.compute(scheduler="synchronous")


def _as_row(
    block: npt.NDArray[np.floating[Any]], kernel: Callable[[Any], npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    return kernel(block)[None]


def _add_rows(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(sums.sum(axis=0))


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
    moved = _find_displacement(ds)
    return xr.DataArray(np.full(1, np.nan), dims="time") if moved is None else moved.isel(time=slice(1, None))


def _find_displacement(ds: xr.Dataset) -> xr.DataArray | None:
    """Return the displacement of all frames, or None where the run has no source for it."""
    if "framewise_displacement" not in ds and "confounds" not in ds:
        return None
    try:
        return framewise_displacement(ds)
    except InputError as error:  # a table of other confounds
        if error.code != "E-CONFOUND-COLUMN":
            raise
        return None


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
