"""The frames of a run: how far the head moved in each, and which are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.clean.confounds import MOTION, compute_term, select_terms
from kconn.errors import SchemaError
from kconn.kernels import motion

Array = npt.NDArray[np.float64]
#: How displacement is measured: Power et al. 2012 or Jenkinson et al. 2002.
Displacement = Literal["power", "jenkinson"]
#: What is taken out of motion before displacement is computed, in Hz: the band of a notch, or the edge of a low-pass.
MotionBand = tuple[float, float] | float | None

#: Radius in mm of the sphere on which each of them measures rotations.
RADIUS: Final = {"power": 50.0, "jenkinson": 80.0}
_KERNELS: Final[dict[str, Callable[..., Array]]] = {
    "power": motion.framewise_displacement,
    "jenkinson": motion.rms_displacement,
}
#: The column of fMRIPrep's table that holds it.
DISPLACEMENT_COLUMNS: Final = {"power": "framewise_displacement", "jenkinson": "rmsd"}


def framewise_displacement(
    ds: xr.Dataset, *, kind: Displacement = "power", radius: float | None = None, motion_filter: MotionBand = None
) -> xr.DataArray:
    """Return the framewise displacement ``(time)`` of a run, in mm.

    Power's is the variable ``framewise_displacement`` if there is one; else the confound of that name; else computed
    from the six motion parameters (translations in mm, rotations in radians) on a sphere of 50 mm. Jenkinson's is the
    confound ``rmsd``, else computed on a sphere of 80 mm about the origin. The first frame is 0. With a ``radius`` or a
    ``motion_filter`` it is always computed.

    Parameters
    ----------
    ds
        A run.
    kind
        Which displacement.
    radius
        Of the sphere, in mm.
    motion_filter
        Hz: the band of a notch or the edge of a low-pass for the motion parameters.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA`` if the run has no source for it, ``E-ARGUMENT``, ``E-BAND``.
    InputError
        Code ``E-CONFOUND-COLUMN`` if the confound table has none.

    References
    ----------
    Power JD et al. (2012). https://doi.org/10.1016/j.neuroimage.2011.10.018
    Jenkinson M et al. (2002). https://doi.org/10.1006/nimg.2002.1132
    """
    where = place(ds)
    if kind not in get_args(Displacement):
        raise SchemaError("E-ARGUMENT", f"kind = {kind!r}", where=where, rule=f"one of {get_args(Displacement)}")
    if radius is not None and not radius > 0:
        raise SchemaError("E-ARGUMENT", f"radius = {radius}", where=where, rule="it is above 0 mm, or None")
    may_read = radius is None and motion_filter is None
    if kind == "power" and may_read and "framewise_displacement" in ds:
        given = ds["framewise_displacement"]
    elif "confounds" in ds:
        ready = compute_term(DISPLACEMENT_COLUMNS[kind], _names(ds)) if may_read else None
        given = ds["confounds"].sel(confound=ready.source) if ready else _compute(ds, kind, radius, motion_filter)
    else:
        raise SchemaError(
            "E-SCHEMA",
            "the run has neither 'framewise_displacement' nor 'confounds'",
            where=where,
            rule="one of them is needed to know how far the head moved",
            fix="give a confound table or a table of framewise displacement, or do not censor by displacement",
        )
    filled: xr.DataArray = xr.apply_ufunc(
        motion.fill_first_frame,
        whole(given, "time").astype(np.float64),
        input_core_dims=[["time"]],
        output_core_dims=[["time"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return filled.rename("framewise_displacement").drop_vars("confound", errors="ignore")


def _names(ds: xr.Dataset) -> tuple[str, ...]:
    return tuple(ds["confounds"]["confound"].to_numpy().tolist())


def _compute(ds: xr.Dataset, kind: Displacement, radius: float | None, motion_filter: MotionBand) -> xr.DataArray:
    """Return the displacement that follows from the motion parameters."""
    confounds, where = ds["confounds"], place(ds)
    t_r = 1.0
    if motion_filter is not None:
        t_r = float(ds.attrs.get("t_r", np.nan))
        check_motion_filter(motion_filter, t_r=t_r, where=where)
    terms = select_terms(_names(ds), MOTION, where=where)
    computed: xr.DataArray = xr.apply_ufunc(
        _displacement,
        whole(confounds.sel(confound=[term.source for term in terms])),
        kwargs={"kind": kind, "radius": radius or RADIUS[kind], "motion_filter": motion_filter, "t_r": t_r},
        input_core_dims=[["time", "confound"]],
        output_core_dims=[["time"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return computed


def _displacement(
    parameters: Array, *, kind: Displacement, radius: float, motion_filter: MotionBand, t_r: float
) -> Array:
    if motion_filter is not None:
        parameters = motion.without_breathing(parameters, t_r=t_r, band=motion_filter)
    return _KERNELS[kind](parameters, radius=radius)


def check_motion_filter(motion_filter: tuple[float, float] | float, *, t_r: float, where: str) -> None:
    """Refuse a band that the frames of a run cannot show.

    Raises
    ------
    SchemaError
        Code ``E-BAND``.
    """
    nyquist = 0.5 / t_r
    if isinstance(motion_filter, tuple):
        low, high = (motion.fold_frequency(edge, t_r=t_r) for edge in motion_filter)
        if 0 < motion_filter[0] < motion_filter[1] and low != high and 0 < (low + high) / 2 < nyquist:
            return
        rule = "a notch has two edges above 0 Hz, the lower one first, that lie apart where the frames show them"
    else:
        if 0 < motion_filter < nyquist:
            return
        rule = f"a low-pass lies between 0 and the Nyquist frequency {nyquist:g} Hz"
    raise SchemaError(
        "E-BAND",
        f"motion_filter = {motion_filter} Hz at t_r = {t_r:g} s",
        where=where,
        rule=rule,
        fix="choose another band, or switch the filter off: at long t_r breathing cannot be told from motion",
    )


def voxel_signal(ds: xr.Dataset, *, what: str) -> str:
    """Return the name of the signal of a run, ``denoised`` rather than ``bold``, which must have voxels.

    Parameters
    ----------
    ds
        A run.
    what
        Who needs voxels, for the error.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.
    """
    signal = "denoised" if "denoised" in ds else "bold"
    schema.validate(ds, signal)
    if "voxel" not in ds[signal].dims:
        raise SchemaError(
            "E-SCHEMA",
            f"{signal!r} has dims {tuple(map(str, ds[signal].dims))}",
            where=place(ds),
            rule=f"{what} needs (voxel, time)",
        )
    return signal


def sample_mask(ds: xr.Dataset) -> xr.DataArray:
    """Return which frames of a run are kept: `sample_mask`, or all of them where nobody has censored."""
    if "sample_mask" in ds:
        schema.validate(ds, "sample_mask")
        return ds["sample_mask"]
    return xr.DataArray(np.ones(ds.sizes["time"], dtype=np.bool_), dims="time")


def whole(array: xr.DataArray, *dims: str) -> xr.DataArray:
    """Return a lazy array as one chunk along ``dims``, or along all of them; one in memory as it is."""
    if array.chunks is None:
        return array
    return array.chunk(dict.fromkeys(dims or map(str, array.dims), -1))


def place(ds: xr.Dataset) -> str:
    """Return the run that an error should name, as ``sub-01/ses-1/run-1``."""
    return str(ds.attrs.get("where", ""))
