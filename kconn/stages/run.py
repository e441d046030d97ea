"""The stages of one run: ingest, denoise, nodes, netmat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.clean.censoring import censor
from kconn.clean.denoising import denoise
from kconn.clean.despiking import despike
from kconn.clean.frames import MotionBand
from kconn.clean.quality import estimate_carpet, estimate_courses, estimate_motion, estimate_quality
from kconn.connect.dual_regression import extract_map_series
from kconn.connect.kinds import KINDS
from kconn.connect.netmats import count_frames, estimate_ar1, estimate_netmats, fisher_z
from kconn.connect.parcellation import NodeSet, find_atlas_coverage, parcellate
from kconn.connect.sliding_windows import estimate_variability, estimate_window_netmats
from kconn.connect.spatial_maps import DenseMaps, SpatialMaps, nodes_from_components
from kconn.errors import InputError, KconnError
from kconn.grayordinates import COORDS
from kconn.io import cifti, cubes, nifti, tables
from kconn.io.cifti import Parcels, SeriesHeader
from kconn.io.nifti import BoldHeader
from kconn.io.nifti_header import MatrixHeader
from kconn.kernels.smoothing import sigma_in_voxels, smooth_volumes
from kconn.stages.binding import Job, excluded, exclusion, open_denoised
from kconn.stages.regressors import add_compcor, add_regressors, chosen_strategy, without_spikes
from kconn.study.denoise_rehearsal import LEAVES_OUT
from kconn.study.nodesets import load_nodes
from kconn.study.table import unless_off

#: Bytes of volumes that the reader holds beside the row of chunks.
_STREAM_BYTES: Final = 4 * 1024 * 1024
#: What a group of node series says of the voxels behind them.
_COVERAGE: Final = ("coverage", "n_voxel", "atlas_coverage", "n_uncovered")


def ingest_run(job: Job) -> None:
    """Read one run into ``bold``, ``confounds``, ``sample_mask`` and its coordinates."""
    if job.step.params["layout"] == "tables":
        job.publish(_read_table_run(job))
    elif cifti.is_series(job.bold()):
        _ingest_cifti_run(job)
    else:
        _stream_image_run(job)


def denoise_run(job: Job) -> None:
    """Censor and denoise one run; a run beyond the quality limits is left out, with the reason."""
    params = job.step.params
    run = job.open(job.step.reads("ingest").address)
    try:
        run = censor(
            run,
            fd_threshold=unless_off(params["fd_threshold"]),
            dvars_threshold=unless_off(params["dvars_threshold"]),
            n_dummy=params["dummy_frames"],
            n_before=params["censor_before"],
            n_after=params["censor_after"],
            min_segment=params["min_segment"],
            kind=params["fd_kind"],
            radius=unless_off(params["fd_radius"]),
            motion_filter=_motion_filter(params["motion_filter"]),
        )
        # Frames are chosen on the signal as it came: a spike that is squashed no longer shows.
        ready = despike(run) if params["despike"] else run
        clean = denoise(
            add_compcor(job, ready),
            confounds=chosen_strategy(job),
            high_pass=unless_off(params["high_pass"]),
            low_pass=unless_off(params["low_pass"]),
            filter=params["filter"],
            bridge=params["bridge"],
            detrend=params["detrend"],
            standardize=params["standardize"],
            min_dof=params["min_dof"],
        )
        out = _with_quality(clean.assign(bold=run["bold"]), params)
        if reason := _beyond_limits(out, params):
            out = out.drop_vars("denoised").assign_attrs(excluded=reason)
        job.publish(out)
    except KconnError as error:
        if error.code not in LEAVES_OUT:
            raise
        out = _with_quality(run, params).assign_attrs(excluded=f"{error.code} {error.problem}")
        if error.code == "E-NO-FRAMES":
            out = out.assign(n_kept=0, minutes_kept=0.0, share_censored=1.0)
        job.publish(out)


def _motion_filter(given: str | float | list[float]) -> MotionBand:
    """Return the filter of motion as `censor` takes it: JSON has no tuples."""
    if isinstance(given, list):
        low, high = given
        return low, high
    return unless_off(given)


def extract_nodes(job: Job) -> None:
    """Average the denoised run into the series of one node set."""
    if (opened := open_denoised(job)) is None:
        return
    raw, run = opened
    params = dict(job.step.params)
    nodes = _components(job) if params["ica"] else load_nodes(params, job.paths(), raw)
    out = _extract_series(run, nodes, params)
    # The series tell whether the run is used: they are small, and one pass over the voxels makes them all.
    out = out[["timeseries", "coverage", "n_voxel", "sample_mask", "df_left"]].drop_vars(list("ijk"), errors="ignore")
    out = find_atlas_coverage(out.compute())
    if (coverage := float(out["atlas_coverage"])) < params["min_atlas_coverage"]:
        reason = f"{coverage:.0%} of the voxels of the nodes have data, less than {params['min_atlas_coverage']:.0%}"
        job.publish(out.drop_vars(["timeseries", "sample_mask", "df_left"]).assign_attrs(excluded=reason))
        return
    before = _series_before(raw, nodes, run["denoised"].attrs, params)
    job.publish(schema.annotate(out.assign(timeseries_before=before)))


def estimate_run_netmat(job: Job) -> None:
    """Estimate one kind of netmat from the series of one run, correlations as Fisher z or as r."""
    series = job.open(job.step.upstream[0].address)
    if reason := exclusion(series):
        job.publish(excluded(reason))
        return
    series = series.drop_vars(["timeseries_before", *_COVERAGE])
    params = job.step.params
    if params["kind"] == "corrsd":
        windows = estimate_window_netmats(series, kind="corr", window_s=params["window_s"], step_s=params["step_s"])
        job.publish(estimate_variability(windows))
        return
    estimator = KINDS[params["kind"]].estimator
    out = estimate_netmats(series, kind=estimator, rho=params.get("rho"), alpha=params.get("alpha"))
    if params["z"] != "none":
        out = fisher_z(out)
    if params["z"] == "ar1":  # the scale follows when the runs of the study are together
        out = estimate_ar1(out).assign(n_kept=count_frames(series))
    job.publish(out.drop_vars(["timeseries", "sample_mask", "df_left"]))


def _components(job: Job) -> SpatialMaps | DenseMaps:
    """Return the accepted components of a group ICA."""
    components = job.open(job.step.reads("ica").address)
    selected = job.open(job.step.reads("select").address)
    return nodes_from_components(components, accepted=selected["accepted"].to_numpy())


def _extract_series(run: xr.Dataset, nodes: NodeSet | SpatialMaps | DenseMaps, params: Mapping[str, Any]) -> xr.Dataset:
    """Add ``timeseries``, ``coverage`` and ``n_voxel`` of regions by their mean, of maps as asked for."""
    least = params["min_coverage"]
    if isinstance(nodes, SpatialMaps | DenseMaps):
        return extract_map_series(run, nodes, method=params["method"], min_coverage=least)
    return parcellate(run, nodes, min_coverage=least)


def _series_before(
    raw: xr.Dataset, nodes: NodeSet | SpatialMaps | DenseMaps, filters: Mapping[str, Any], params: Mapping[str, Any]
) -> xr.DataArray:
    """Return the node series without trend and frequencies, as in denoising, but with the confounds and all frames.

    So the difference that is seen in QC-FC is what confounds and censoring make, and not the filter.
    """
    kept = xr.DataArray(np.arange(raw.sizes["time"]) >= params["dummy_frames"], dims="time")
    series = _extract_series(raw.assign(sample_mask=kept), nodes, params)["timeseries"]
    plain = xr.Dataset({"bold": series.rename(node="column"), "sample_mask": kept}, attrs=raw.attrs)
    clean = denoise(
        plain,
        confounds=None,
        high_pass=filters.get("high_pass"),
        low_pass=filters.get("low_pass"),
        filter=filters.get("filter", "cosine"),
        detrend=bool(filters["detrend"]),
        min_dof=1,
    )
    return clean["denoised"].rename(column="node")


def _read_table_run(job: Job) -> xr.Dataset:
    params, where = job.step.params, job.step.where
    path = job.file("timeseries")
    assert path is not None  # noqa: S101 - the plan gives every table run its file
    table = tables.read_timeseries(
        path, orientation=params["orientation"], has_header=params["has_header"], where=where
    )
    n_time = table.values.shape[1]
    ds = xr.Dataset(
        {"bold": (("column", "time"), table.values)},
        coords={"column": ("column", np.array(table.names, dtype=object)), **_time(n_time, params["t_r"])},
        attrs={"where": where, "t_r": params["t_r"], "notes": list(table.notes)},
    )
    return _with_tables(job, ds)


def _stream_image_run(job: Job) -> None:
    params, where = job.step.params, job.step.where
    path, sidecar_t_r = job.bold(), _sidecar_t_r(job)
    header = nifti.read_header(path, where=where, t_r=params["t_r"], sidecar_t_r=sidecar_t_r)
    flat_index, ijk = _find_voxels(job, header)
    dtype, bold_attrs = _stored_as(header)
    n_block = max(1, _STREAM_BYTES // (header.n_voxel * np.dtype(header.dtype).itemsize))
    blocks = nifti.stream_frames(path, header, frames_per_block=n_block, where=where)
    fwhm = params.get("smoothing_fwhm")
    if fwhm is not None:
        dtype, bold_attrs = np.dtype(np.float32), {"fwhm": fwhm}
    rest = xr.Dataset(
        coords={axis: ("voxel", ijk[i]) for i, axis in enumerate("ijk")} | _time(header.n_time, header.t_r),
        attrs={
            "where": where,
            "t_r": header.t_r,
            "space": params["space"] or "",
            "affine": [list(row) for row in header.affine],
            "grid_shape": list(header.grid_shape),
            "stored_dtype": header.dtype,
            "qform_code": header.qform_code,
            "sform_code": header.sform_code,
            "notes": list(header.notes),
        },
    )
    cubes.write_bold_stream(
        job.target,
        _smooth(_finite(blocks, header, dtype, flat_index, where), header, flat_index, fwhm),
        flat_index=flat_index,
        n_time=header.n_time,
        dtype=dtype,
        rest=_with_tables(job, rest),
        bold_attrs=bold_attrs,
    )


def _sidecar_t_r(job: Job) -> float | None:
    sidecar = job.file("sidecar")
    return None if sidecar is None else nifti.read_sidecar_t_r(sidecar, where=job.step.where)


def _ingest_cifti_run(job: Job) -> None:
    params, where = job.step.params, job.step.where
    header = cifti.read_series_header(job.bold(), where=where, t_r=params["t_r"], sidecar_t_r=_sidecar_t_r(job))
    attrs = {
        "where": where,
        "t_r": header.t_r,
        "space": params["space"] or "",
        "series_start": header.start,
        "stored_dtype": header.matrix.dtype,
        "notes": list(header.notes),
    }
    places, time = header.places, _time(header.n_time, header.t_r)
    if isinstance(places, Parcels):
        job.publish(_with_tables(job, _read_parcels(job, header, places, time, attrs)))
        return
    dtype, bold_attrs = _stored_as(header.matrix)
    rest = xr.Dataset(coords=places.coords() | time, attrs=attrs | places.attrs())
    cubes.write_bold_rows(
        job.target,
        lambda first, n_row: _finite_rows(job.bold(), header, dtype, first, n_row, where),
        shape=(header.n_row, header.n_time),
        dtype=dtype,
        rest=_with_tables(job, rest),
        bold_attrs=bold_attrs,
    )


def _read_parcels(
    job: Job, header: SeriesHeader, places: Parcels, time: Mapping[str, Any], attrs: Mapping[str, Any]
) -> xr.Dataset:
    """Return the run of a ptseries: its parcels are columns, with the grayordinates that they were made of."""
    rows = _finite_rows(job.bold(), header, np.dtype(np.float32), 0, header.n_row, job.step.where)
    return xr.Dataset(
        {"bold": (("column", "time"), np.concatenate(list(rows)).astype(np.float64))},
        coords={
            "column": ("column", np.array(places.names, dtype=object)),
            "member_column": ("member", places.parcel),
            **places.members.coords("member"),
            **time,
        },
        attrs={**attrs, **places.members.attrs()},
    )


def _finite_rows(
    path: Path, header: SeriesHeader, dtype: np.dtype[Any], first: int, n_row: int, where: str
) -> Iterator[npt.NDArray[Any]]:
    """Yield rows in the type that is stored; one without any finite value has no data and becomes 0, as CIFTI has it.

    Raises
    ------
    InputError
        ``E-NIFTI-NAN`` if a row is finite in some frames only.
    """
    start = first
    for block in cifti.stream_rows(path, header.matrix, rows_per_block=n_row, where=where, first_row=first):
        start += len(block)
        if dtype.kind in "iu":
            yield block
            continue
        values = cifti.scale_rows(block, header.matrix)
        n_finite = np.isfinite(values).sum(axis=1)
        broken = np.flatnonzero((n_finite > 0) & (n_finite < values.shape[1]))
        if broken.size:
            frame = int(np.argmin(np.isfinite(values[broken[0]])))
            raise InputError(
                "E-NIFTI-NAN",
                f"row {start - len(block) + int(broken[0])} holds NaN or infinite values in frame {frame} and others",
                where=where,
                rule="a grayordinate has a finite value in every frame, or in none",
                fix="repair the preprocessing",
            )
        values[n_finite == 0] = 0
        yield values


def _with_tables(job: Job, ds: xr.Dataset) -> xr.Dataset:
    """Add confounds, framewise displacement and a mask that keeps every frame."""
    where, n_time = job.step.where, ds.sizes["time"]
    ds = add_regressors(job, ds)
    if (path := job.file("fd")) is not None:
        ds = ds.assign(framewise_displacement=("time", tables.read_vector(path, n_time=n_time, where=where)))
    return ds.assign(sample_mask=("time", np.ones(n_time, dtype=bool)))


def _find_voxels(job: Job, header: BoldHeader) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the flat positions, in file order, and the indices ``(3, voxel)`` of the voxels that are kept."""
    path = job.file("mask")
    if path is None:
        flat_index = np.arange(header.n_voxel)
    else:
        mask = nifti.read_mask(path, grid_shape=header.grid_shape, affine=header.affine, where=job.step.where)
        flat_index = np.flatnonzero(mask.ravel(order="F"))
    ijk = np.stack(np.unravel_index(flat_index, header.grid_shape, order="F")).astype(np.int32)
    return flat_index, ijk


def _stored_as(header: BoldHeader | MatrixHeader) -> tuple[np.dtype[Any], dict[str, float]]:
    """Keep small integers as they are on disk, with their scaling beside them; all else becomes float32."""
    dtype = np.dtype(header.dtype).newbyteorder("=")
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        return dtype, {"scl_slope": header.scl_slope, "scl_inter": header.scl_inter}
    return np.dtype(np.float32), {}


def _finite(
    blocks: Iterator[npt.NDArray[Any]],
    header: BoldHeader,
    dtype: np.dtype[Any],
    flat_index: npt.NDArray[np.int64],
    where: str,
) -> Iterator[npt.NDArray[Any]]:
    """Yield the blocks in the type that is stored, refusing values inside the mask that are not finite."""
    n_seen = 0
    for block in blocks:
        if dtype.kind in "iu":
            yield block
            continue
        values = nifti.scale_block(block, header)
        bad = ~np.isfinite(values[:, flat_index]).all(axis=1)
        if bad.any():
            raise InputError(
                "E-NIFTI-NAN",
                f"frame {n_seen + int(np.argmax(bad))} holds NaN or infinite values inside the mask",
                where=where,
                rule="every voxel of the mask has a finite value in every frame",
                fix="repair the preprocessing, or use a mask that leaves these voxels out",
            )
        n_seen += len(block)
        yield values


def _smooth(
    blocks: Iterator[npt.NDArray[Any]], header: BoldHeader, flat_index: npt.NDArray[np.int64], fwhm: float | None
) -> Iterator[npt.NDArray[Any]]:
    """Yield the blocks smoothed inside the mask, frame by frame; as they are where no width is given."""
    if fwhm is None:
        yield from blocks
        return
    # In the order of the file i runs fastest: as a C array, volumes are (k, j, i).
    grid = header.grid_shape[::-1]
    sigma = sigma_in_voxels(fwhm, header.affine)[::-1]
    mask = np.zeros(header.n_voxel, dtype=np.bool_)
    mask[flat_index] = True
    for block in blocks:
        yield smooth_volumes(block.reshape(-1, *grid), mask.reshape(grid), sigma).reshape(len(block), -1)


def _time(n_time: int, t_r: float) -> dict[str, Any]:
    return {"time": ("time", np.arange(n_time) * t_r, {"units": "s"})}


def _with_quality(run: xr.Dataset, params: Mapping[str, Any]) -> xr.Dataset:
    """Return what denoising adds to a run: the residuals, the kept frames, and the quality."""
    out = without_spikes(estimate_carpet(estimate_courses(estimate_motion(estimate_quality(run)))))
    share = 1 - out["n_kept"] / max(1, run.sizes["time"] - params["dummy_frames"])
    out = schema.annotate(out.assign(share_censored=share))
    return out.drop_vars(["bold", "confounds", *COORDS, "member_column", "confound"], errors="ignore")


#: Quality limit -> the number that it is for, and what is said of a run beyond it.
_LEAST: Final = {
    "min_frames": ("n_kept", "{:.0f} frames kept, fewer than {}"),
    "min_minutes": ("minutes_kept", "{:.2f} minutes kept, fewer than {}"),
}
_MOST: Final = {
    "max_mean_fd": ("mean_fd", "mean framewise displacement {:.3f} mm, above {}"),
    "max_censored": ("share_censored", "{:.1%} of the frames dropped, more than {:.0%}"),
    "max_std_dvars": ("mean_std_dvars", "mean standardised DVARS {:.3f}, above {}"),
}


def _beyond_limits(found: xr.Dataset, limits: Mapping[str, Any]) -> str:
    """Return which quality limits a run breaks, or an empty string."""
    broken = []
    for rules, sign in ((_LEAST, 1), (_MOST, -1)):
        for name, (measure, words) in rules.items():
            limit = unless_off(limits[name])
            if limit is not None and sign * float(found[measure]) < sign * limit:
                broken.append(words.format(float(found[measure]), limit))
    return "; ".join(broken)
