"""The frames of a run that are kept: by motion, by change of the image, and by what lies around."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.clean.frames import Displacement, MotionBand, framewise_displacement, place, sample_mask, whole
from kconn.clean.quality import with_std_dvars
from kconn.errors import InputError, SchemaError
from kconn.kernels import motion

Array = npt.NDArray[np.float64]


def censor(  # noqa: PLR0913 - each is one reason to drop a frame
    ds: xr.Dataset,
    *,
    fd_threshold: float | None,
    dvars_threshold: float | None = None,
    n_dummy: int = 0,
    n_before: int = 0,
    n_after: int = 0,
    min_segment: int = 1,
    kind: Displacement = "power",
    radius: float | None = None,
    motion_filter: MotionBand = None,
) -> xr.Dataset:
    """Mark the frames to keep: `sample_mask` ``(time)``, True = kept.

    A frame is dropped when the head moved more than ``fd_threshold`` since the frame before, when the image changed
    by more than ``dvars_threshold``, when it is one of the first ``n_dummy``, or when a `sample_mask` that is already
    there drops it. Then, for each frame that moved or changed too much, ``n_before`` frames before it and ``n_after``
    after it go; then every stretch of fewer than ``min_segment`` kept frames.

    The displacement is the one of `kconn.clean.frames.framewise_displacement`: Power's, or with ``kind="jenkinson"``
    the root mean square, which is about half of it for the same movement; given in the run, else computed. It is stored
    as `framewise_displacement` ``(time)`` in mm. The first frame has no displacement: n/a there counts as 0.

    Parameters
    ----------
    ds
        A run.
    fd_threshold
        Millimetres; a frame at the threshold is kept. None: no frame is dropped for motion.
    dvars_threshold
        Multiples of the change that is to be expected (`std_dvars`: the variable, else the confound of that name, else
        computed from `bold`). None: no frame is dropped for that.
    n_dummy
        Frames at the start, before the magnetisation is steady.
    n_before, n_after
        Frames around each that moved or changed too much.
    min_segment
        Shortest stretch of kept frames that is worth keeping. 1: any.
    kind
        Which displacement the threshold is for.
    radius
        Sphere in mm on which rotations count; the displacement is then computed, not read. None: 50 for Power's, 80
        for Jenkinson's.
    motion_filter
        Hz: takes breathing out of the motion parameters before displacement is computed from them. A pair is the band
        of a notch, a number the edge of a low-pass; see `kconn.kernels.motion.without_breathing`.

    Raises
    ------
    SchemaError
        Codes ``E-ARGUMENT``, ``E-BAND`` and ``E-SCHEMA``.
    InputError
        Codes ``E-NO-FRAMES``, ``E-CONFOUND-COLUMN`` and ``E-CONFOUND-NAN``. (Where the input is lazy, what depends on
        its values is raised when it is computed.)

    References
    ----------
    Power JD et al. (2012). https://doi.org/10.1016/j.neuroimage.2011.10.018
    Nichols T (2017). https://doi.org/10.48550/arXiv.1704.01469
    Fair DA et al. (2020). https://doi.org/10.1016/j.neuroimage.2019.116400
    Gratton C et al. (2020). https://doi.org/10.1016/j.neuroimage.2020.116866
    """
    where = place(ds)
    for name, threshold in (("fd_threshold", fd_threshold), ("dvars_threshold", dvars_threshold)):
        if threshold is not None and not threshold > 0:
            raise SchemaError("E-ARGUMENT", f"{name} = {threshold}", where=where, rule="it is above 0, or None")
    if min(n_dummy, n_before, n_after) < 0 or min_segment < 1:
        raise SchemaError(
            "E-ARGUMENT",
            f"n_dummy = {n_dummy}, n_before = {n_before}, n_after = {n_after}, min_segment = {min_segment}",
            where=where,
            rule="n_dummy, n_before and n_after are 0 or more frames, min_segment 1 or more",
        )

    moved = changed = xr.zeros_like(sample_mask(ds), dtype=np.float64)
    out = ds
    if fd_threshold is not None:
        moved = framewise_displacement(ds, kind=kind, radius=radius, motion_filter=motion_filter)
        out = out.assign(framewise_displacement=moved) if kind == "power" else out
    if dvars_threshold is not None:
        out = with_std_dvars(out)
        changed = out["std_dvars"]
    kept = xr.apply_ufunc(
        _keep_frames,
        whole(sample_mask(ds)),
        whole(moved),
        whole(changed),
        kwargs={
            "fd_threshold": np.inf if fd_threshold is None else fd_threshold,
            "dvars_threshold": np.inf if dvars_threshold is None else dvars_threshold,
            "n_dummy": n_dummy,
            "around": (n_before, n_after),
            "min_segment": min_segment,
            "where": where,
        },
        input_core_dims=[["time"], ["time"], ["time"]],
        output_core_dims=[["time"]],
        dask="parallelized",
        output_dtypes=[np.bool_],
    )
    return schema.annotate(out.assign(sample_mask=kept))


def _keep_frames(  # noqa: PLR0913 - the reasons of `censor`, resolved
    mask: npt.NDArray[np.bool_],
    displacement: Array,
    change: Array,
    *,
    fd_threshold: float,
    dvars_threshold: float,
    n_dummy: int,
    around: tuple[int, int],
    min_segment: int,
    where: str,
) -> npt.NDArray[np.bool_]:
    for what, values in (("framewise displacement", displacement), ("DVARS", change)):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise InputError(
                "E-CONFOUND-NAN",
                f"{what} is not a number in frame {bad[0]} ({bad.size} such frames)",
                where=where,
                rule="only the first frame may be n/a",
                fix="repair the table",
            )
    calm = (displacement <= fd_threshold) & (change <= dvars_threshold)
    kept = mask & motion.widen_gaps(calm, n_before=around[0], n_after=around[1])
    kept[:n_dummy] = False
    kept = motion.drop_short_segments(kept, min_segment=min_segment)
    if not kept.any():
        raise InputError(
            "E-NO-FRAMES",
            f"none of {len(mask)} frames is kept: the first {n_dummy} are dropped, the head moves"
            f" {np.median(displacement):.3g} mm per frame in the median, the threshold is {fd_threshold:g} mm,"
            f" {around[0]} frames before and {around[1]} after go too, the shortest stretch is {min_segment}",
            where=where,
            rule="at least one frame of a run is kept",
            fix="exclude the run, raise fd_threshold, or lower min_segment",
        )
    return kept
