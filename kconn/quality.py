"""Quality: how far the head moved in a run and how strong its signal is; how far motion explains a cohort."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.errors import InputError
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
    signal = ds[of]
    block = plan_voxel_blocks(*signal.shape)
    blocks = da.asarray(signal.data).rechunk((block, -1))
    n_block, n_time = blocks.numblocks[0], signal.sizes["time"]
    sums = da.map_blocks(
        _dvars_sums, blocks, chunks=((1,) * n_block, (n_time + 2,)), dtype=np.float64, meta=np.empty((0, 0))
    )
    # One task adds the blocks in their order: the bits do not depend on how many workers made them.
    both = da.map_blocks(_dvars, sums.rechunk(-1), chunks=((2,), (n_time,)), dtype=np.float64, meta=np.empty((0, 0)))
    both = both if signal.chunks is not None else both.compute(scheduler="synchronous")
    return schema.annotate(ds.assign(dvars=("time", both[0]), std_dvars=("time", both[1])))


def _dvars_sums(block: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    return quality.dvars_sums(block)[None]


def _dvars(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack(quality.dvars(sums.sum(axis=0)))


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
        try:
            return framewise_displacement(ds).isel(time=slice(1, None))
        except InputError as error:  # a table of other confounds
            if error.code != "E-CONFOUND-COLUMN":
                raise
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


def estimate_qc_fc(
    ds: xr.Dataset, *, nuisance: xr.DataArray | None = None, positions: xr.DataArray | None = None
) -> xr.Dataset:
    """Add how far head motion explains connections between observations (QC-FC).

    Parameters
    ----------
    ds
        A cohort: `netmat` ``(observation, edge)`` and `mean_fd` ``(observation)`` in mm. Repeated visits count as if
        they were independent: select one per subject where that matters.
    nuisance
        ``(observation, covariate)``, such as age and sex, taken out of both; joined by the label of the observation.
    positions
        ``(node, axis)`` in mm, joined by the label of the node: asks for the dependence on distance.

    Returns
    -------
    ds
        With `qc_fc` ``(edge)``, the correlation of each edge with mean displacement across observations, `qc_fc_p`
        (two-sided, uncorrected), both NaN for an edge that is NaN in any observation; and the scalars
        `qc_fc_median` (of absolute values), `qc_fc_share` (share of edges with p < 0.05; 0.05 is what chance gives)
        and, with ``positions``, `qc_fc_distance`: Spearman's correlation of `qc_fc` with the length of the edge. After
        good denoising all are near what chance gives; negative `qc_fc_distance` is the mark of motion. In memory.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.
    InputError
        Codes ``E-ID-MISSING``, ``E-COV-NAN`` and ``E-TOO-FEW``.

    References
    ----------
    Ciric R et al. (2017). Benchmarking of participant-level confound regression strategies for the control of motion
    artifact in studies of functional connectivity. https://doi.org/10.1016/j.neuroimage.2017.03.020
    """
    schema.validate(ds, "netmat", "mean_fd")
    score = ds["mean_fd"].to_numpy().astype(np.float64)
    covariates = _join(nuisance, ds, "observation")
    _refuse_bad_scores(np.column_stack([score, covariates]), ds)

    r, p = quality.correlate_across(ds["netmat"].transpose("observation", "edge").to_numpy(), score, covariates)
    finite = np.isfinite(r)
    scalars = {
        "qc_fc_median": np.median(np.abs(r[finite])) if finite.any() else np.nan,
        "qc_fc_share": np.mean(p[finite] < 0.05) if finite.any() else np.nan,
    }
    if positions is not None:
        ends = [_positions_of(positions, ds[name].to_numpy()) for name in ("node_i", "node_j")]
        scalars["qc_fc_distance"] = quality.rank_correlation(r, np.linalg.norm(ends[0] - ends[1], axis=1))
    made = {"qc_fc": ("edge", r), "qc_fc_p": ("edge", p), **{name: ((), value) for name, value in scalars.items()}}
    return schema.annotate(ds.assign(made))


def _join(table: xr.DataArray | None, ds: xr.Dataset, dim: str) -> npt.NDArray[np.float64]:
    """Return the rows of a table in the order of the Dataset, joined by label."""
    if table is None:
        return np.empty((ds.sizes[dim], 0))
    missing = sorted(set(map(str, ds[dim].to_numpy())) - set(map(str, table[dim].to_numpy())))
    if missing:
        raise InputError("E-ID-MISSING", f"no covariates for {missing}", rule=f"every {dim} needs a row")
    return np.asarray(table.sel({dim: ds[dim].to_numpy()}).transpose(dim, ...), dtype=np.float64)


def _positions_of(positions: xr.DataArray, nodes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    missing = sorted(set(map(str, nodes)) - set(map(str, positions["node"].to_numpy())))
    if missing:
        raise InputError("E-ID-MISSING", f"no position for the nodes {missing}", rule="every node needs one")
    return np.asarray(positions.sel(node=nodes).transpose("node", ...), dtype=np.float64)


def _refuse_bad_scores(scores: npt.NDArray[np.float64], ds: xr.Dataset) -> None:
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        names = ds["observation"].to_numpy()[bad].tolist()
        raise InputError(
            "E-COV-NAN",
            f"mean displacement or a covariate of {names} is not a number",
            rule="every observation needs all of them",
            fix="leave those observations out",
        )
    if len(scores) < scores.shape[1] + 3:
        raise InputError(
            "E-TOO-FEW",
            f"{len(scores)} observations, {scores.shape[1] - 1} covariates",
            rule="a correlation needs 3 observations more than covariates, at least",
        )
