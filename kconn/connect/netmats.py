"""Network matrices: ``timeseries (..., node, time)`` -> ``netmat (..., edge)``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.errors import InputError, SchemaError
from kconn.kernels import netmats as kernel
from kconn.kernels import nulls
from kconn.kernels.blas import single_thread
from kconn.kernels.sparse_precision import graphical_lasso_partial

Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
Estimator = Callable[[Array], Array]
NetmatKind = Literal["cov", "corr", "rcorr", "partial", "ridgep", "glasso", "ledoit", "ledoitp"]

#: Kind -> estimator of (..., time, node) -> (..., node, node). Those in `PENALTY` take a penalty as well.
ESTIMATORS: Final[dict[str, Callable[..., Array]]] = {
    "cov": kernel.covariance,
    "corr": kernel.correlation,
    "rcorr": kernel.correlation_without_mean,
    "partial": kernel.partial_correlation,
    "ridgep": kernel.ridge_partial,
    "glasso": graphical_lasso_partial,
    "ledoit": kernel.ledoit_wolf,
    "ledoitp": kernel.ledoit_wolf_partial,
}
#: Kind -> what its penalty is called.
PENALTY: Final[dict[str, str]] = {"ridgep": "rho", "glasso": "alpha"}
#: Kinds that need more frames than nodes.
FULL_RANK: Final = frozenset({"partial"})
#: Kinds that are no correlation, so that Fisher's z means nothing.
UNBOUNDED: Final = frozenset({"cov"})
#: Partial correlations that FSLNets knows, and all of its kinds that it turns to z.
PARTIAL_KINDS: Final = frozenset({"partial", "ridgep"})
AR1_KINDS: Final = PARTIAL_KINDS | {"corr", "rcorr"}
#: Coordinates of ``node`` that edges have of both of their ends.
NODE_LABELS: Final = ("node", "network", "hemisphere")
#: Stands for "nobody said what denoising took".
UNKNOWN_DF: Final = -1


def estimate_netmats(
    ds: xr.Dataset, *, kind: NetmatKind, rho: float | None = None, alpha: float | None = None
) -> xr.Dataset:
    """Add the network matrix of each run.

    Only kept frames count: those of ``sample_mask``, where there is one, at which not every node is NaN. Dead nodes
    (NaN at a kept frame, or constant but for rounding, see `kconn.kernels.netmats.find_dead_nodes`) get NaN edges,
    the other edges are those of the remaining nodes; `find_dead` lists them.

    Parameters
    ----------
    ds
        With ``timeseries (..., node, time)``; lazy input gives a lazy result. ``df_left``, if present, holds the
        degrees of freedom that denoising left, the mean already taken off.
    kind
        ``cov`` (divided by n - 1), ``corr`` (Pearson), ``rcorr`` (Pearson after regressing out the mean of the
        nodes), ``partial`` (all other nodes regressed out of both), ``ridgep`` (the same with an L2 penalty,
        FSLNets' formula), ``glasso`` (the same with an L1 penalty: the graphical lasso), ``ledoit`` (Pearson shrunk
        by the rule of Ledoit and Wolf) or ``ledoitp`` (partial from that).
    rho
        The penalty of ``ridgep``, above 0; FSLNets' users often take 0.1 to 1.
    alpha
        The penalty of ``glasso``, above 0, of standardised series.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``netmat (..., edge)``, coordinates ``node_i node_j`` (edge), upper triangle row by row (and
        ``network_i network_j`` where the nodes have the coordinate ``network``), and ``dead_node (..., node)``. Attrs
        of ``netmat``: ``kind``, ``rho`` or ``alpha`` (where it has one), ``z`` = "none".

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` if ``timeseries`` is missing; ``E-ARGUMENT`` if the kind is unknown or a penalty does not fit it.
    InputError
        ``E-NETMAT-RANK`` if ``partial`` has too few frames for the nodes; ``E-NO-FRAMES`` if fewer than three frames
        are kept; ``E-NODES`` if fewer than two nodes are alive; ``E-NETMAT-CONVERGENCE`` if ``glasso`` finds
        no solution. With lazy input these come when computed.

    References
    ----------
    Smith et al. 2011, Network modelling methods for FMRI, doi:10.1016/j.neuroimage.2010.08.063.
    """
    schema.validate(ds, "timeseries")
    penalties = {name: float(value) for name, value in (("rho", rho), ("alpha", alpha)) if value is not None}
    estimator = choose_estimator(kind, penalties)
    ts = ds["timeseries"]
    kept = kept_frames(ds)
    n_node = ds.sizes["node"]
    edges, dead = xr.apply_ufunc(
        partial(
            estimate_edges,
            estimator=estimator,
            full_rank=kind in FULL_RANK,
            where=str(ds.attrs.get("where", "")),
        ),
        ts.chunk({"node": -1, "time": -1}) if ts.chunks is not None else ts,
        kept.chunk({"time": -1}) if kept.chunks is not None else kept,
        ds.get("df_left", xr.DataArray(UNKNOWN_DF)),
        input_core_dims=[["node", "time"], ["time"], []],
        output_core_dims=[["edge"], ["node"]],
        keep_attrs=False,
        dask="parallelized",
        output_dtypes=[np.float64, np.bool_],
        dask_gufunc_kwargs={"output_sizes": {"edge": n_node * (n_node - 1) // 2}},
    )
    attrs = {"kind": kind, **penalties, "z": "none"}
    out = ds.assign_coords(edge_coords(ds)).assign(netmat=edges.assign_attrs(attrs), dead_node=dead)
    return schema.annotate(out)


def fisher_z(ds: xr.Dataset) -> xr.Dataset:
    """Return ``ds`` with ``netmat`` turned from r to z = arctanh(r), and its attr ``z`` set to "fisher".

    r is cut at 1 - 1e-10 (`kconn.kernels.netmats.R_CLIP`), so that |z| is at most 11.86 and never infinite.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if ``netmat`` is a covariance, or z already.
    """
    schema.validate(ds, "netmat")
    kind, z = ds["netmat"].attrs.get("kind"), ds["netmat"].attrs.get("z", "none")
    if kind in UNBOUNDED or z != "none":
        raise SchemaError(
            "E-ARGUMENT",
            f"netmat is of kind {kind!r} with z = {z!r}",
            where=str(ds.attrs.get("where", "")),
            rule="Fisher's z is taken once, of a correlation",
            fix="use kind 'corr', 'partial' or 'ridgep', or leave z at 'none'",
        )
    z_values = xr.apply_ufunc(
        kernel.fisher_z, ds["netmat"], dask="parallelized", output_dtypes=[np.float64], keep_attrs=True
    )
    return schema.annotate(ds.assign(netmat=z_values.assign_attrs(z="fisher")))


def ar1_z(ds: xr.Dataset, *, ar1: float | None = None, seed: int = 0) -> xr.Dataset:
    """Return ``ds`` with ``netmat`` turned from r to FSLNets' z: arctanh(r) over its sd among unrelated series.

    Unrelated series of the same length and autocorrelation scatter around zero with a known sd; in units of it, z is
    about standard normal where nothing is connected. For full correlations the sd has a closed form, for partial ones
    it is simulated. As in FSLNets, ``ridgep`` is scaled by the sd of the unregularised partial correlation.

    Parameters
    ----------
    ds
        With ``netmat (..., edge)`` of kind ``corr``, ``rcorr``, ``partial`` or ``ridgep``, as r, and the
        ``timeseries`` it was made of. Lazy input gives a lazy result.
    ar1
        The AR(1) coefficient of all series; FSLNets takes the median over all nodes and runs of a study. If not
        given, each run takes the median of its own nodes.
    seed
        Of the simulation; the same seed gives the same scale.

    Returns
    -------
    xr.Dataset
        With attr ``z`` = "ar1" of ``netmat``, and ``z_scale (...)``, what arctanh(r) was multiplied by.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if ``netmat`` is of another kind, z already, or ``ar1`` not within (-1, 1).
    InputError
        ``E-NETMAT-RANK`` if there are too few frames for the unregularised partial correlation.

    References
    ----------
    FSLNets, nets_netmats; Smith et al. 2011, doi:10.1016/j.neuroimage.2010.08.063.
    """
    schema.validate(ds, "netmat", "timeseries")
    kind, z = ds["netmat"].attrs.get("kind"), ds["netmat"].attrs.get("z", "none")
    if kind not in AR1_KINDS or z != "none":
        raise SchemaError(
            "E-ARGUMENT",
            f"netmat is of kind {kind!r} with z = {z!r}",
            where=str(ds.attrs.get("where", "")),
            rule=f"FSLNets' z is taken once, of {', '.join(sorted(AR1_KINDS))}",
            fix="use fisher_z",
        )
    if ar1 is not None and not -1 < ar1 < 1:
        raise SchemaError("E-ARGUMENT", f"ar1 is {ar1}", rule="a stationary series has -1 < ar1 < 1")
    ts, kept = ds["timeseries"], kept_frames(ds)
    scale = xr.apply_ufunc(
        partial(_null_scales, ar1=ar1, seed=seed, kind=kind, where=str(ds.attrs.get("where", ""))),
        ts.chunk({"node": -1, "time": -1}) if ts.chunks is not None else ts,
        kept.chunk({"time": -1}) if kept.chunks is not None else kept,
        input_core_dims=[["node", "time"], ["time"]],
        keep_attrs=False,
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    attrs = {**ds["netmat"].attrs, "z": "ar1", **({"seed": seed} if kind in PARTIAL_KINDS else {})}
    z_values = scale * fisher_z(ds)["netmat"]
    netmat = z_values.transpose(*ds["netmat"].dims).assign_attrs(attrs)
    return schema.annotate(ds.assign(netmat=netmat, z_scale=scale))


def estimate_ar1(ds: xr.Dataset) -> xr.Dataset:
    """Add ``ar1 (..., node)``, the AR(1) coefficient of each series over its kept frames; NaN for dead nodes.

    Parameters
    ----------
    ds
        With ``timeseries (..., node, time)``; lazy input gives a lazy result.
    """
    schema.validate(ds, "timeseries")
    ts, kept = ds["timeseries"], kept_frames(ds)
    ar1 = xr.apply_ufunc(
        _lag_ones,
        ts.chunk({"node": -1, "time": -1}) if ts.chunks is not None else ts,
        kept.chunk({"time": -1}) if kept.chunks is not None else kept,
        input_core_dims=[["node", "time"], ["time"]],
        output_core_dims=[["node"]],
        keep_attrs=False,
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return schema.annotate(ds.assign(ar1=ar1))


def estimate_amplitudes(ds: xr.Dataset) -> xr.Dataset:
    """Add ``amplitude (..., node)``, the sd (n - 1) of each series over its kept frames: FSLNets' ``amp``.

    Parameters
    ----------
    ds
        With ``timeseries (..., node, time)``; lazy input gives a lazy result. A node that is NaN at a kept frame is
        NaN, unless all nodes are.
    """
    schema.validate(ds, "timeseries")
    ts = ds["timeseries"].where(kept_frames(ds))
    censored = ts.isnull().all("node")
    broken = ts.where(~censored, 0).isnull().any("time")
    sd = ts.std("time", ddof=1, skipna=True, keep_attrs=False).where(~broken)
    return schema.annotate(ds.assign(amplitude=sd))


def edge_coords(ds: xr.Dataset) -> dict[str, xr.Variable]:
    """Return ``node_i node_j`` of the dimension ``edge``, and likewise networks and hemispheres where nodes have them.

    Parameters
    ----------
    ds
        With the coordinate ``node``.
    """
    rows, columns = np.triu_indices(ds.sizes["node"], 1)
    ends = {"i": xr.Variable("edge", rows), "j": xr.Variable("edge", columns)}
    found = {name: ds[name].variable.to_base_variable() for name in NODE_LABELS if name in ds.coords}
    return {f"{name}_{end}": values.isel(node=at) for name, values in found.items() for end, at in ends.items()}


def find_dead(ds: xr.Dataset) -> tuple[str, ...]:
    """Return the nodes that are dead anywhere in ``dead_node (..., node)``, which this computes."""
    schema.validate(ds, "dead_node")
    dead = ds["dead_node"]
    anywhere = dead.any([dim for dim in dead.dims if dim != "node"]).to_numpy()
    return tuple(map(str, ds["node"].to_numpy()[anywhere]))


def choose_estimator(kind: str, penalties: dict[str, float]) -> Estimator:
    """Return the estimator of one kind, its penalty bound.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if the kind is unknown or a penalty does not fit it.
    """
    if kind not in ESTIMATORS:
        raise SchemaError("E-ARGUMENT", f"kind is {kind!r}", rule=f"it is one of {', '.join(ESTIMATORS)}")
    wanted = PENALTY.get(kind)
    for name, value in penalties.items():
        if name != wanted:
            owner = next(other for other, its in PENALTY.items() if its == name)
            raise SchemaError(
                "E-ARGUMENT",
                f"{name} is {value:g} for kind {kind!r}",
                rule=f"{name} belongs to {owner!r}",
                fix=f"leave {name} out, or choose kind {owner!r}",
            )
    if wanted is None:
        return ESTIMATORS[kind]
    penalty = penalties.get(wanted, np.nan)
    if not (np.isfinite(penalty) and penalty > 0):
        raise SchemaError(
            "E-ARGUMENT",
            f"{wanted} is {penalties.get(wanted)} for kind {kind!r}",
            rule="the penalty is stated, finite and above 0",
            fix=f"set {wanted}, for example 0.1",
        )
    return partial(ESTIMATORS[kind], **penalties)


def kept_frames(ds: xr.Dataset) -> xr.DataArray:
    """Return ``sample_mask``, or that every frame is kept."""
    return ds["sample_mask"] if "sample_mask" in ds else xr.ones_like(ds["time"], dtype=bool)


def count_frames(ds: xr.Dataset) -> xr.DataArray:
    """Return the frames ``(...)`` that netmats are made of: kept, and not NaN in every node."""
    counted: xr.DataArray = (kept_frames(ds) & ds["timeseries"].notnull().any("node")).sum("time")
    return counted


def _lag_ones(ts: Array, kept: BoolArray) -> Array:
    """Run by run: ts (..., node, time), kept (..., time) -> (..., node)."""
    lead = ts.shape[:-2]
    kept = np.broadcast_to(kept, (*lead, ts.shape[-1]))
    ar1 = np.full(ts.shape[:-1], np.nan)
    for run in np.ndindex(lead):
        frames = kept[run] & ~np.isnan(ts[run]).all(axis=0)
        alive = ~kernel.find_dead_nodes(ts[run][:, frames].T)
        ar1[run][alive] = nulls.lag_one(ts[run][alive].T.astype(np.float64), kept=frames)
    return ar1


def null_scale(ar1: float, *, kind: str, n_frame: int, n_node: int, seed: int = 0, where: str = "") -> float:
    """Return what FSLNets multiplies arctanh(r) by: 1 / its sd among unrelated series.

    Parameters
    ----------
    ar1
        The AR(1) coefficient of all series.
    kind
        ``corr`` or ``rcorr``, in closed form; ``partial`` or ``ridgep``, by simulation.
    n_frame, n_node
        Kept frames, and nodes that are alive.
    seed
        Of the simulation.
    where
        The run, for the message.

    Raises
    ------
    InputError
        ``E-NETMAT-RANK`` if there are too few frames for the unregularised partial correlation.
    """
    if kind not in PARTIAL_KINDS:
        return nulls.null_scale_full(ar1, n_frame=n_frame)
    check_rank(n_frame, n_node, where=where)
    return nulls.null_scale_partial(ar1, n_frame=n_frame, n_node=n_node, seed=seed)


def _null_scales(ts: Array, kept: BoolArray, *, ar1: float | None, seed: int, kind: str, where: str) -> Array:
    """Run by run: ts (..., node, time), kept (..., time) -> (...)."""
    lead = ts.shape[:-2]
    kept = np.broadcast_to(kept, (*lead, ts.shape[-1]))
    coefficients = _lag_ones(ts, kept)
    scales = np.empty(lead)
    with single_thread():
        for run in np.ndindex(lead):
            alive = ~np.isnan(coefficients[run])
            n_frame = int((kept[run] & ~np.isnan(ts[run]).all(axis=0)).sum())
            a = float(np.median(coefficients[run][alive])) if ar1 is None else ar1
            scales[run] = null_scale(a, kind=kind, n_frame=n_frame, n_node=int(alive.sum()), seed=seed, where=where)
    return scales


def estimate_edges(
    ts: Array, kept: BoolArray, df_left: npt.NDArray[Any], *, estimator: Estimator, full_rank: bool, where: str
) -> tuple[Array, BoolArray]:
    """Estimate run by run: ts (..., node, time), kept (..., time), df_left (...) -> (..., edge), (..., node)."""
    lead, n_node = ts.shape[:-2], ts.shape[-2]
    kept, df_left = np.broadcast_to(kept, (*lead, ts.shape[-1])), np.broadcast_to(df_left, lead)
    edges = np.full((*lead, n_node * (n_node - 1) // 2), np.nan)
    dead = np.empty((*lead, n_node), dtype=bool)
    with single_thread():
        for run in np.ndindex(lead):
            frames = kept[run] & ~np.isnan(ts[run]).all(axis=0)
            x = (ts[run] if frames.all() else ts[run][:, frames]).T.astype(np.float64, copy=False)
            if x.shape[0] < 3:
                raise InputError(
                    "E-NO-FRAMES",
                    f"{x.shape[0]} of {ts.shape[-1]} frames are left",
                    where=where,
                    rule="a netmat needs at least 3",
                    fix="relax the censoring threshold or leave the run out",
                )
            dead[run] = kernel.find_dead_nodes(x)
            alive = ~dead[run]
            _check_alive(int(alive.sum()), n_node, where)
            if full_rank:
                df = None if df_left[run] == UNKNOWN_DF else int(df_left[run])
                check_rank(x.shape[0], int(alive.sum()), df_left=df, where=where)
            edges[run] = _edges_of_alive(x, alive, estimator, where)
    return edges, dead


def _edges_of_alive(x: Array, alive: BoolArray, estimator: Estimator, where: str) -> Array:
    try:
        matrix = estimator(x if alive.all() else x[:, alive])
    except InputError as error:
        raise error.at(where) from None
    if not alive.all():
        whole = np.full((alive.size, alive.size), np.nan)
        whole[np.ix_(alive, alive)] = matrix
        matrix = whole
    return kernel.pack_edges(matrix)


def _check_alive(n_alive: int, n_node: int, where: str) -> None:
    if n_alive < 2:
        raise InputError(
            "E-NODES",
            f"{n_alive} of {n_node} nodes carry a signal",
            where=where,
            rule="a netmat needs at least 2",
            fix="check coverage and orientation of the node series",
        )


def check_rank(n_frame: int, n_node: int, *, df_left: int | None = None, where: str = "") -> None:
    """Refuse an unregularised inverse that does not exist.

    Parameters
    ----------
    n_frame
        Kept frames.
    n_node
        Nodes.
    df_left
        Degrees of freedom that denoising left of them, the mean already taken off, if known.
    where
        The run, for the message.

    Raises
    ------
    InputError
        ``E-NETMAT-RANK`` unless the frames, less one for the mean and those that denoising took, exceed the nodes.
    """
    df = n_frame - 1 if df_left is None else min(n_frame - 1, df_left)
    if df <= n_node:
        lost = "" if df_left is None else f" ({df_left} degrees of freedom left by denoising)"
        raise InputError(
            "E-NETMAT-RANK",
            f"{n_frame} kept frames{lost} cannot tell {n_node} nodes apart",
            where=where,
            rule=f"a partial correlation without penalty needs more than {n_node} degrees of freedom, here {df}",
            fix="use kind = 'ridgep' with a penalty rho (for example 0.1), fewer nodes or longer runs",
        )
