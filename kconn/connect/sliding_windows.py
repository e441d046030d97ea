"""Connections that change within a run: ``timeseries (node, time)`` -> ``netmat (window, edge)``, and how much."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.connect.netmats import (
    FULL_RANK,
    UNBOUNDED,
    UNKNOWN_DF,
    Estimator,
    NetmatKind,
    choose_estimator,
    edge_coords,
    estimate_edges,
    kept_frames,
)
from kconn.errors import InputError, SchemaError
from kconn.kernels import netmats as kernel

Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

#: A window is NaN when fewer of its frames are kept than this share.
MIN_SHARE: Final = 0.5


def estimate_window_netmats(
    ds: xr.Dataset, *, kind: NetmatKind, window_s: float, step_s: float, rho: float | None = None
) -> xr.Dataset:
    """Return the network matrix of each window of a run.

    Only kept frames count. A window of which less than half is kept, or in which no matrix can be estimated, is NaN.
    Where a band-pass was applied, windows shorter than the longest period that it passes show fluctuations that no
    connection made.

    Parameters
    ----------
    ds
        With ``timeseries (node, time)`` of one run; lazy input gives a lazy result.
    kind, rho
        As in `kconn.estimate_netmats`.
    window_s, step_s
        Length of a window, and from the start of one to the start of the next, in s; both become whole frames.

    Returns
    -------
    xr.Dataset
        ``netmat (window, edge)``, as r; the coordinate ``window`` is the onset in s. Attrs of ``netmat``: ``kind``,
        ``rho`` (where it has one), ``z`` = "none", ``window_s``, ``step_s``.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` if ``timeseries`` or ``t_r`` is missing; ``E-ARGUMENT`` as `kconn.estimate_netmats`, and for
        windows of fewer than four frames or without a step.
    InputError
        ``E-NO-FRAMES`` if the run is shorter than a window.

    References
    ----------
    Hutchison et al. 2013, doi:10.1016/j.neuroimage.2013.05.079; Leonardi and Van De Ville 2015,
    doi:10.1016/j.neuroimage.2014.09.007, for the length of a window.
    """
    schema.validate(ds, "timeseries")
    penalties = {} if rho is None else {"rho": float(rho)}
    length, starts = plan_windows(
        ds.sizes["time"], t_r=_t_r(ds), window_s=window_s, step_s=step_s, where=str(ds.attrs.get("where", ""))
    )
    ts, kept = ds["timeseries"], kept_frames(ds)
    n_node = ds.sizes["node"]
    edges = xr.apply_ufunc(
        partial(
            _estimate_windows,
            estimator=choose_estimator(kind, penalties),
            full_rank=kind in FULL_RANK,
            starts=starts,
            length=length,
        ),
        ts.chunk({"node": -1, "time": -1}) if ts.chunks is not None else ts,
        kept.chunk({"time": -1}) if kept.chunks is not None else kept,
        input_core_dims=[["node", "time"], ["time"]],
        output_core_dims=[["window", "edge"]],
        keep_attrs=False,
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"window": starts.size, "edge": n_node * (n_node - 1) // 2}},
    )
    attrs = {"kind": kind, **penalties, "z": "none", "window_s": float(window_s), "step_s": float(step_s)}
    out = xr.Dataset({"netmat": edges.assign_attrs(attrs)}, attrs=ds.attrs)
    return schema.annotate(out.assign_coords(edge_coords(ds)).assign_coords(window=ds["time"].to_numpy()[starts]))


def estimate_variability(ds: xr.Dataset) -> xr.Dataset:
    """Return how much each edge changes within a run: the sd of its Fisher z over windows.

    Parameters
    ----------
    ds
        With ``netmat (window, edge)``, as r; windows that are NaN do not count.

    Returns
    -------
    xr.Dataset
        ``netmat (edge)`` with the attr ``z`` = "sd" and ``n_window (edge)``, over how many windows it is; NaN where
        there are fewer than three.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if ``netmat`` is a covariance, or z already.
    """
    schema.validate(ds, "netmat")
    attrs = ds["netmat"].attrs
    if attrs.get("kind") in UNBOUNDED or attrs.get("z", "none") != "none":
        raise SchemaError(
            "E-ARGUMENT",
            f"netmat is of kind {attrs.get('kind')!r} with z = {attrs.get('z')!r}",
            where=str(ds.attrs.get("where", "")),
            rule="variability is that of Fisher's z of a correlation",
        )
    z = xr.apply_ufunc(kernel.fisher_z, ds["netmat"], dask="parallelized", output_dtypes=[np.float64])
    n_window = z.notnull().sum("window")
    sd = z.std("window", ddof=1, skipna=True).where(n_window >= 3)
    out = ds.drop_dims("window").assign(netmat=sd.assign_attrs({**attrs, "z": "sd"}), n_window=n_window)
    return schema.annotate(out)


def plan_windows(
    n_time: int, *, t_r: float, window_s: float, step_s: float, where: str = ""
) -> tuple[int, npt.NDArray[np.intp]]:
    """Return the frames of a window and the first frame of each.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` for windows of fewer than four frames, or without a step.
    InputError
        ``E-NO-FRAMES`` if the run is shorter than a window.
    """
    length, step = round(window_s / t_r), round(step_s / t_r)
    if length < 4 or step < 1:
        raise SchemaError(
            "E-ARGUMENT",
            f"window_s = {window_s:g} and step_s = {step_s:g} are {length} and {step} frames of {t_r:g} s",
            where=where,
            rule="a window has at least 4 frames, a step at least 1",
        )
    if n_time < length:
        raise InputError(
            "E-NO-FRAMES",
            f"the run has {n_time} frames, a window {length}",
            where=where,
            rule="a run holds at least one window",
            fix="shorten window_s, or leave the run out",
        )
    return length, np.arange(0, n_time - length + 1, step)


def _t_r(ds: xr.Dataset) -> float:
    if "t_r" not in ds.attrs:
        raise SchemaError(
            "E-SCHEMA",
            "the repetition time is not known",
            where=str(ds.attrs.get("where", "")),
            rule="the Dataset has the attribute t_r, in s",
        )
    return float(ds.attrs["t_r"])


def _estimate_windows(
    ts: Array,
    kept: BoolArray,
    *,
    estimator: Estimator,
    full_rank: bool,
    starts: npt.NDArray[np.intp],
    length: int,
) -> Array:
    """Estimate window by window: ts (node, time), kept (time,) -> (window, edge)."""
    n_node = ts.shape[-2]
    edges = np.full((starts.size, n_node * (n_node - 1) // 2), np.nan)
    for i, start in enumerate(starts):
        span = slice(start, start + length)
        frames = kept[span] & ~np.isnan(ts[:, span]).all(axis=0)
        if frames.sum() < max(3, MIN_SHARE * length):
            continue
        try:
            edges[i], _ = estimate_edges(
                ts[:, span], kept[span], np.array(UNKNOWN_DF), estimator=estimator, full_rank=full_rank, where=""
            )
        except InputError:
            # What cannot be estimated in this window: NaN, as the docstring says.
            continue
    return edges
