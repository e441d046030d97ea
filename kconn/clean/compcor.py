"""CompCor: confounds from the signal of white matter and CSF itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.clean.frames import place, sample_mask, whole
from kconn.errors import InputError, SchemaError
from kconn.kernels import compcor, filtering
from kconn.kernels.projection import Projection, fit_projection

Array = npt.NDArray[np.float64]


def estimate_compcor(
    ds: xr.Dataset,
    region: xr.DataArray,
    *,
    n_component: int | None,
    high_pass: float | None,
    prefix: str,
    variance: float | None = None,
) -> xr.Dataset:
    """Add the leading principal components of a noise region to `confounds`.

    Mean, line and the frequencies up to ``high_pass`` are removed from each voxel of the region and it is scaled to
    unit variance; then the components of the kept frames are taken. Use the same ``high_pass`` in `denoise`: the
    components know nothing of slower drifts.

    Parameters
    ----------
    ds
        A run: `bold` ``(voxel, time)``; `sample_mask` and `confounds` if there are any; attrs ``t_r`` (s). Lazy or
        in memory.
    region
        ``(voxel)`` True inside, in memory; an eroded mask of white matter or CSF.
    n_component
        How many. Five per region is common. None: as many as ``variance`` needs.
    high_pass
        Hz. None removes mean and line alone.
    prefix
        ``"w"`` for white matter, ``"c"`` for CSF, ``"a"`` for both: the columns are ``w_comp_cor_00``, ...
    variance
        Instead of ``n_component``: the share of the variance of the region that they explain together. fMRIPrep's
        is 0.5.

    Returns
    -------
    ds
        With the columns added to `confounds`, orthonormal over the kept frames and NaN at dropped ones. Nothing is
        computed for lazy input, unless ``variance`` is given: how many columns there are is then known only after.

    Raises
    ------
    SchemaError
        Codes ``E-SCHEMA``, ``E-BAND`` and ``E-ARGUMENT``.
    InputError
        Code ``E-MASK-EMPTY``.

    References
    ----------
    Behzadi Y et al. (2007). A component based noise correction method (CompCor) for BOLD and perfusion based fMRI.
    https://doi.org/10.1016/j.neuroimage.2007.04.042
    """
    schema.validate(ds, "bold")
    inside = _check_region(region, ds)
    by_count = n_component is not None and variance is None and n_component >= 1
    by_share = n_component is None and variance is not None and 0 < variance <= 1
    if prefix not in ("a", "c", "w") or not (by_count or by_share):
        raise SchemaError(
            "E-ARGUMENT",
            f"prefix = {prefix!r}, n_component = {n_component}, variance = {variance}",
            where=place(ds),
            rule="prefix is 'a', 'c' or 'w'; n_component is at least 1, or variance above 0 and at most 1",
        )
    choices = _Choices(band=_pass_band(ds, high_pass), n_component=n_component, variance=variance, where=place(ds))

    mask = sample_mask(ds)
    block = plan_voxel_blocks(int(inside.sum()), ds.sizes["time"])
    signal = da.asarray(ds["bold"].data)[np.flatnonzero(inside)].rechunk((block, -1))
    frames = da.asarray(whole(mask).data)
    n_block, n_time = signal.numblocks[0], ds.sizes["time"]
    sums = da.blockwise(
        _gram, "bij", signal, "bt", frames, "t",
        choices=choices, new_axes={"i": n_time, "j": n_time}, adjust_chunks={"b": 1}, concatenate=True,
        dtype=np.float64, meta=np.empty((0, 0, 0)),
    )  # fmt: skip
    # One task adds the blocks in their order, so that the bits do not depend on who made them.
    sums = sums.rechunk({0: n_block})
    lazy = ds["bold"].chunks is not None or mask.chunks is not None
    if n_component is None:
        scheduler = None if lazy else "synchronous"
        made: Any = _components(sums.compute(scheduler=scheduler), frames.compute(scheduler=scheduler), choices=choices)
    else:
        made = da.blockwise(
            _components, "ik", sums, "bij", frames, "i",
            choices=choices, new_axes={"k": n_component}, concatenate=True, dtype=np.float64, meta=np.empty((0, 0)),
        )  # fmt: skip
        made = made if lazy else made.compute(scheduler="synchronous")
    names = [f"{prefix}_comp_cor_{i:02d}" for i in range(made.shape[1])]
    columns = xr.DataArray(
        made,
        dims=("time", "confound"),
        coords={"confound": names, **({"time": ds["time"]} if "time" in ds.coords else {})},
    )
    return schema.annotate(_append(ds, columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """What the tasks need to know."""

    band: tuple[int, int]
    n_component: int | None
    variance: float | None
    where: str


def _check_region(region: xr.DataArray, ds: xr.Dataset) -> npt.NDArray[np.bool_]:
    if region.dims != ("voxel",) or region.dtype != np.bool_ or region.sizes["voxel"] != ds.sizes.get("voxel"):
        raise SchemaError(
            "E-SCHEMA",
            f"the region has dims {region.dims}, shape {region.shape} and dtype {region.dtype}",
            where=place(ds),
            rule=f"it is boolean over the {ds.sizes.get('voxel')} voxels of the run",
        )
    inside = region.to_numpy()
    if not inside.any():
        raise InputError(
            "E-MASK-EMPTY",
            "the noise region holds no voxel of the run",
            where=place(ds),
            rule="a noise region holds voxels of the run",
            fix="check that the mask belongs to this run, or erode less",
        )
    return inside


def _pass_band(ds: xr.Dataset, high_pass: float | None) -> tuple[int, int]:
    n_time = ds.sizes["time"]
    if high_pass is None:
        return 1, n_time - 1
    if "t_r" not in ds.attrs:
        raise SchemaError("E-SCHEMA", "the run has no attribute 't_r'", where=place(ds), rule="a filter needs it, in s")
    try:
        filtering.check_band(n_time, t_r=ds.attrs["t_r"], high_pass=high_pass, low_pass=None)
    except SchemaError as error:
        raise error.at(place(ds)) from None
    return filtering.pass_band(n_time, t_r=ds.attrs["t_r"], high_pass=high_pass, low_pass=None)


def _append(ds: xr.Dataset, columns: xr.DataArray) -> xr.Dataset:
    made_here = {"made_here": columns["confound"].to_numpy().tolist()}
    if "confounds" not in ds:
        return ds.assign(confounds=columns.assign_attrs(made_here))
    present = ds["confounds"]
    made_here = {"made_here": [*present.attrs.get("made_here", ()), *made_here["made_here"]]}
    doubled = sorted(set(columns["confound"].to_numpy().tolist()) & set(present["confound"].to_numpy().tolist()))
    if doubled:
        raise SchemaError(
            "E-ARGUMENT",
            f"`confounds` has {doubled} already",
            where=place(ds),
            rule="regressors have different names",
            fix="choose another prefix",
        )
    joined = xr.concat([present, columns.astype(present.dtype)], dim="confound", coords="minimal", compat="override")
    return (
        ds.drop_vars("confounds")
        .drop_dims("confound", errors="ignore")
        .assign(confounds=joined.assign_attrs({**present.attrs, **made_here}))
    )


def _fit(mask: npt.NDArray[np.bool_], choices: _Choices) -> Projection:
    if not mask.any():
        raise InputError(
            "E-NO-FRAMES",
            f"sample_mask keeps none of {len(mask)} frames",
            where=choices.where,
            rule="at least one frame of a run is kept",
            fix="exclude the run, or censor less",
        )
    trend = np.zeros(len(mask))
    trend[mask] = np.arange(np.count_nonzero(mask))
    return fit_projection(trend[:, None], mask, band=choices.band)


def _gram(block: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_], *, choices: _Choices) -> Array:
    return compcor.gram(block, _fit(mask, choices))[None]


def _components(sums: Array, mask: npt.NDArray[np.bool_], *, choices: _Choices) -> Array:
    try:
        made, _ = compcor.components(
            sums.sum(axis=0), np.flatnonzero(mask), n_component=choices.n_component, variance=choices.variance
        )
    except InputError as error:
        raise error.at(choices.where) from None
    return made
