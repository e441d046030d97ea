"""The frames of a run: how far the head moved in each, and which are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.confounds import MOTION, compute_term, select_terms
from kconn.errors import SchemaError
from kconn.kernels import motion

Array = npt.NDArray[np.float64]
#: How displacement is measured: Power et al. 2012 or Jenkinson et al. 2002.
Displacement = Literal["power", "jenkinson"]

#: Radius in mm of the sphere on which each of them measures rotations.
RADIUS: Final = {"power": 50.0, "jenkinson": 80.0}
_KERNELS: Final[dict[str, Callable[..., Array]]] = {
    "power": motion.framewise_displacement,
    "jenkinson": motion.rms_displacement,
}
#: The column of fMRIPrep's table that holds it.
_COLUMNS: Final = {"power": "framewise_displacement", "jenkinson": "rmsd"}


def framewise_displacement(ds: xr.Dataset, *, kind: Displacement = "power") -> xr.DataArray:
    """Return the framewise displacement ``(time)`` of a run, in mm.

    Power's is the variable ``framewise_displacement`` if there is one; else the confound of that name; else computed
    from the six motion parameters (translations in mm, rotations in radians) on a sphere of 50 mm. Jenkinson's is the
    confound ``rmsd``, else computed on a sphere of 80 mm about the origin. The first frame is 0.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA`` if the run has no source for it.
    InputError
        Code ``E-CONFOUND-COLUMN`` if the confound table has none.

    References
    ----------
    Power JD et al. (2012). https://doi.org/10.1016/j.neuroimage.2011.10.018
    Jenkinson M et al. (2002). https://doi.org/10.1006/nimg.2002.1132
    """
    if kind == "power" and "framewise_displacement" in ds:
        given = ds["framewise_displacement"]
    elif "confounds" in ds:
        given = _displacement_of(ds["confounds"], kind, place(ds))
    else:
        raise SchemaError(
            "E-SCHEMA",
            "the run has neither 'framewise_displacement' nor 'confounds'",
            where=place(ds),
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


def _displacement_of(confounds: xr.DataArray, kind: Displacement, where: str) -> xr.DataArray:
    names = tuple(confounds["confound"].to_numpy().tolist())
    ready = compute_term(_COLUMNS[kind], names)
    if ready is not None:
        return confounds.sel(confound=ready.source)
    terms = select_terms(names, MOTION, where=where)
    computed: xr.DataArray = xr.apply_ufunc(
        _KERNELS[kind],
        whole(confounds.sel(confound=[term.source for term in terms])),
        kwargs={"radius": RADIUS[kind]},
        input_core_dims=[["time", "confound"]],
        output_core_dims=[["time"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return computed


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
