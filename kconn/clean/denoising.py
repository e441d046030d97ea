"""From preprocessed signal to clean residuals: the one projection, fitted on the frames that are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.clean.confounds import Confounds, Header, Selection, build_columns, find_strategy, select
from kconn.clean.frames import place, sample_mask
from kconn.errors import InputError, SchemaError
from kconn.kernels import filtering, projection, residuals
from kconn.kernels.butterworth import Bridge, fit_butterworth
from kconn.kernels.components import find_redundant, remove_components
from kconn.kernels.projection import Projection
from kconn.kernels.residuals import Scale

Array = npt.NDArray[np.float64]

#: How a band is cut out; see `denoise`.
Filter = Literal["cosine", "fft", "butterworth"]

#: Degrees of freedom that denoising must leave, unless stated otherwise. With 10, r of two unrelated series still
#: scatters by 0.3; fewer would make a netmat a picture of chance.
MIN_DOF: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """What was asked for, resolved; small enough to travel with a task."""

    selection: Selection
    columns: tuple[str, ...]
    filter: Filter
    bridge: Bridge
    t_r: float
    high_pass: float | None
    low_pass: float | None
    detrend: bool
    min_dof: int
    where: str

    @property
    def regressor_names(self) -> list[str]:
        """What is removed by name: the confounds, then the noise components."""
        return [term.name for term in self.selection.terms + self.selection.noise]


def denoise(  # noqa: PLR0913 - the choices of denoising
    ds: xr.Dataset,
    *,
    confounds: Confounds,
    high_pass: float | None,
    low_pass: float | None,
    filter: Filter = "cosine",  # noqa: A002 - nilearn's word
    bridge: Bridge = "cubic",
    detrend: bool = True,
    standardize: bool | Scale = False,
    min_dof: int = MIN_DOF,
) -> xr.Dataset:
    """Remove mean, trend, frequencies and confounds from `bold`, so that no step brings back what another removed.

    With the ``"cosine"`` filter all is one orthogonal projection. Its regressors are: the constant; a linear trend;
    the cosines (DCT-II) of the whole run up to ``high_pass`` and above ``low_pass``; the confounds. They are fitted
    together on the kept frames (`sample_mask`; all if it is absent); their order has no meaning. With a low-pass,
    every dropped frame costs a degree of freedom, as does every frequency outside the band.

    With ``"butterworth"`` (order 5, forward and backward) the signal and the confounds pass through the same filter,
    then the confounds are projected out of the kept frames. Dropped frames are bridged (``bridge``) for the filter
    alone. The degrees of freedom that it takes are counted by its share of the frequencies.

    Parameters
    ----------
    ds
        A run: `bold` ``(voxel | column, time)``; `confounds` ``(time, confound)`` unless none are asked for; attrs
        ``t_r`` (s) where there is a filter. Lazy or in memory.
    confounds
        A preset, a column, a pattern, or several of them (see `kconn.clean.confounds.select_terms`), the name of a
        strategy such as ``"acompcor"``, or a `kconn.clean.confounds.Strategy`. CompCor components bring the cosine
        columns of the table along.
    high_pass, low_pass
        Edges of the band in Hz. A frequency on ``high_pass`` goes, one on ``low_pass`` stays. None: open.
    filter
        ``"cosine"``; ``"fft"``, which is the same (a hard mask on the spectrum of the mirrored series, as in CONN);
        or ``"butterworth"``. Without an edge there is none.
    bridge
        What stands in for dropped frames while the Butterworth filter runs, and nowhere else: ``"cubic"``, a spline
        through the kept ones, as nilearn; ``"linear"``; ``"lomb-scargle"``, their spectrum, as Power et al. 2014.
    detrend
        Remove a straight line: along the kept frames with cosines, along the bridged ones with Butterworth.
    standardize
        ``"zscore_sample"`` or True: unit variance (n_kept - 1). ``"psc"``: percent of the mean of the kept frames.
        ``"none"`` or False: the unit of `bold`.
    min_dof
        Degrees of freedom that must be left.

    Returns
    -------
    ds
        With `denoised`, of the dims of `bold`: float64 for float64 input (node tables), else float32; NaN at dropped
        frames and all along a voxel without signal (constant, not finite, or explained to rounding: zeros would enter
        means and correlations as if measured). With the counts `n_frames`, `n_kept`, `n_regressors` (rank, the
        constant included), `df_left` and `n_constant` (voxels without signal), and `regressor_kept` ``(regressor)``,
        False for a confound that the filter and those before it explain. The regressors by name, the band and
        the other choices are attrs of `denoised`. Nothing is computed for lazy input.

    Raises
    ------
    SchemaError
        Codes ``E-SCHEMA``, ``E-BAND`` and ``E-ARGUMENT``.
    InputError
        Codes ``E-CONFOUND-COLUMN``, ``E-CONFOUND-NAN``, ``E-NO-FRAMES`` and ``E-DF``. (Where the input is lazy, what
        depends on its values is raised when it is computed.)

    References
    ----------
    Lindquist MA, Geuter S, Wager TD, Caffo BS (2019). Modular preprocessing pipelines can reintroduce artifacts into
    fMRI data. https://doi.org/10.1002/hbm.24528
    Power JD et al. (2014). Methods to detect, characterize, and remove motion artifact in resting state fMRI.
    https://doi.org/10.1016/j.neuroimage.2013.08.048
    """
    schema.validate(ds, "bold")
    if filter not in get_args(Filter):
        raise SchemaError(
            "E-ARGUMENT", f"filter = {filter!r}", where=place(ds), rule=f"one of {', '.join(get_args(Filter))}"
        )
    if bridge not in get_args(Bridge):
        raise SchemaError(
            "E-ARGUMENT", f"bridge = {bridge!r}", where=place(ds), rule=f"one of {', '.join(get_args(Bridge))}"
        )
    if min_dof < 1:
        raise SchemaError("E-ARGUMENT", f"min_dof = {min_dof}", where=place(ds), rule="at least 1 must be left")
    scale = _resolve_scale(standardize)
    choices = _choose(
        ds,
        confounds,
        high_pass=high_pass,
        low_pass=low_pass,
        filter_=filter,
        bridge=bridge,
        detrend=detrend,
        min_dof=min_dof,
    )

    bold = ds["bold"]
    table, mask = _table(ds, choices), sample_mask(ds)
    if any(part.chunks is not None for part in (bold, table, mask)):
        clean, kept, counts = _denoise_lazily(bold, table, mask, choices, scale)
    else:
        frames = mask.to_numpy()
        fitted = _fit(table.to_numpy(), frames, choices)
        kept = _find_kept(table.to_numpy(), frames, choices)
        clean = residuals.residuals_in_blocks(
            bold.to_numpy(), fitted, block=plan_voxel_blocks(*bold.shape), scale=scale
        )
        counts = {name: np.int64(getattr(fitted, name)) for name in ("n_kept", "n_regressors", "df_left")}
        counts["n_constant"] = _count_empty(clean, fitted).sum()

    fitted_filter = None if high_pass is None and low_pass is None else filter
    made = {
        "confounds": choices.regressor_names,
        "detrend": detrend,
        "standardize": scale,
        **{name: edge for name, edge in (("high_pass", high_pass), ("low_pass", low_pass)) if edge is not None},
        **({} if fitted_filter is None else {"filter": fitted_filter}),
        **({"bridge": bridge} if fitted_filter == "butterworth" else {}),
        **({"components": choices.selection.components} if choices.selection.components != "none" else {}),
    }
    denoised = bold.copy(data=clean).assign_attrs(made)
    scalars = {name: xr.DataArray(value) for name, value in counts.items()}
    if choices.regressor_names:
        names = np.array(choices.regressor_names, dtype=object)
        ds = ds.assign(regressor_kept=("regressor", kept)).assign_coords(regressor=("regressor", names))
    if choices.selection.spikes:
        every = np.ones(ds.sizes["time"], dtype=np.bool_)
        ds = ds.assign(n_spikes=(~mask).sum().reset_coords(drop=True), sample_mask=("time", every))
    return schema.annotate(ds.assign({"denoised": denoised, "n_frames": xr.DataArray(ds.sizes["time"]), **scalars}))


def check_fit(
    ds: xr.Dataset,
    *,
    confounds: Confounds,
    high_pass: float | None,
    low_pass: float | None,
    filter: Filter = "cosine",  # noqa: A002 - nilearn's word
    detrend: bool = True,
    min_dof: int = MIN_DOF,
) -> tuple[int, int]:
    """Raise what `denoise` would raise about the confounds and the frames of a run, whose signal is not needed.

    Parameters
    ----------
    ds
        A run without `bold`, in memory: `confounds` ``(time, confound)``, `sample_mask` ``(time)``; attrs ``t_r`` (s).
    confounds, high_pass, low_pass, filter, detrend, min_dof
        As in `denoise`. A Butterworth filter is left aside: it costs more to set up than all else here, and what it
        takes is counted when the run is denoised.

    Returns
    -------
    n_kept, df_left
        Frames that are kept, and degrees of freedom that denoising leaves of them.

    Raises
    ------
    SchemaError
        Codes ``E-SCHEMA`` and ``E-BAND``.
    InputError
        Codes ``E-CONFOUND-COLUMN``, ``E-CONFOUND-NAN``, ``E-NO-FRAMES`` and ``E-DF``.
    """
    choices = _choose(
        ds,
        confounds,
        high_pass=high_pass,
        low_pass=low_pass,
        filter_=filter,
        bridge="cubic",
        detrend=detrend,
        min_dof=min_dof,
    )
    if filter == "butterworth":
        choices = replace(choices, filter="cosine", high_pass=None, low_pass=None)
    fitted = _fit(_table(ds, choices).to_numpy(), sample_mask(ds).to_numpy(), choices)
    return fitted.n_kept, fitted.df_left


def find_dependent(ds: xr.Dataset, *, confounds: Confounds, has_high_pass: bool) -> tuple[list[str], list[str]]:
    """Return which confounds of a run are linearly independent, and which the constant and those before them explain.

    Parameters
    ----------
    ds
        A run without `bold`, in memory: `confounds` ``(time, confound)``. Frames in which any of those that are asked
        for is not finite do not count, n/a in the first apart.
    confounds, has_high_pass
        As in `kconn.clean.confounds.select`.
    """
    selection, columns = _resolve(ds, confounds, has_high_pass=has_high_pass)
    terms = selection.terms + selection.noise
    if not terms:
        return [], []
    regressors = build_columns(ds["confounds"].to_numpy(), columns, terms)
    there: npt.NDArray[np.bool_] = np.asarray(np.isfinite(regressors).all(axis=1))
    if not there.any():
        return [term.name for term in terms], []
    mean = projection.fit_projection(np.empty((len(there), 0)), there, band=(1, len(there) - 1))
    dependent = find_redundant(np.where(there[:, None], regressors, 0.0), mean)
    sides: dict[bool, list[str]] = {False: [], True: []}
    for term, depends in zip(terms, dependent.tolist(), strict=True):
        sides[depends].append(term.name)
    return sides[False], sides[True]


def _choose(  # noqa: PLR0913 - the choices of denoising
    ds: xr.Dataset,
    confounds: Confounds,
    *,
    high_pass: float | None,
    low_pass: float | None,
    filter_: Filter,
    bridge: Bridge,
    detrend: bool,
    min_dof: int,
) -> _Choices:
    """Return the choices of denoising, resolved against the table and the length of a run."""
    selection, columns = _resolve(ds, confounds, has_high_pass=high_pass is not None)
    return _Choices(
        selection=selection,
        columns=columns,
        filter=filter_,
        bridge=bridge,
        t_r=_resolve_t_r(ds, high_pass=high_pass, low_pass=low_pass),
        high_pass=high_pass,
        low_pass=low_pass,
        detrend=detrend,
        min_dof=min_dof,
        where=place(ds),
    )


def _resolve_t_r(ds: xr.Dataset, *, high_pass: float | None, low_pass: float | None) -> float:
    """Return the repetition time, if the band is one that a run of this length has; 1 where there is no filter."""
    if high_pass is None and low_pass is None:
        return 1.0
    if "t_r" not in ds.attrs:
        raise SchemaError(
            "E-SCHEMA", "the run has no attribute 't_r'", where=place(ds), rule="a filter needs it", fix="set it, in s"
        )
    t_r = float(ds.attrs["t_r"])
    try:
        filtering.check_band(ds.sizes["time"], t_r=t_r, high_pass=high_pass, low_pass=low_pass)
    except SchemaError as error:
        raise error.at(place(ds)) from None
    return t_r


def _resolve(ds: xr.Dataset, confounds: Confounds, *, has_high_pass: bool) -> tuple[Selection, tuple[str, ...]]:
    """Return the regressors to make and the columns of the table."""
    strategy = find_strategy(confounds)
    if not strategy.needs_table:
        return Selection(spikes=strategy.spikes == "censored"), ()
    schema.validate(ds, "confounds")
    names = tuple(map(str, ds["confounds"]["confound"].to_numpy().tolist()))
    header = Header.of(names, ds["confounds"].attrs)
    return select(header, strategy, has_high_pass=has_high_pass, where=place(ds)), names


def _resolve_scale(standardize: bool | Scale) -> Scale:  # noqa: FBT001 - the public word of nilearn, passed on
    if isinstance(standardize, bool):
        return "zscore_sample" if standardize else "none"
    if standardize not in get_args(Scale):
        raise SchemaError(
            "E-ARGUMENT", f"standardize = {standardize!r}", rule=f"one of {', '.join(get_args(Scale))}, True, False"
        )
    return standardize


def _table(ds: xr.Dataset, choices: _Choices) -> xr.DataArray:
    """Return the confound table as float64, without columns where none are asked for."""
    if choices.columns:
        return ds["confounds"].astype(np.float64)
    return xr.DataArray(np.empty((ds.sizes["time"], 0)), dims=("time", "confound"))


def _denoise_lazily(
    bold: xr.DataArray, table: xr.DataArray, mask: xr.DataArray, choices: _Choices, scale: Scale
) -> tuple[Any, Any, dict[str, Any]]:
    """Return residuals, independent regressors and counts as Dask arrays; one task makes the fit for all blocks."""
    fitted = delayed(_fit, pure=True)(table.data, mask.data, choices)
    blocks = (plan_voxel_blocks(*bold.shape), -1)
    signal = da.rechunk(bold.data, blocks) if bold.chunks is not None else da.from_array(bold.to_numpy(), chunks=blocks)
    dtype = residuals.result_dtype(bold.dtype)
    clean = da.map_blocks(
        residuals.residuals, signal, projection=fitted, scale=scale, dtype=dtype, meta=np.empty((0, 0), dtype)
    )
    empty = da.map_blocks(
        _count_empty, clean, projection=fitted, drop_axis=1, chunks=((1,) * clean.numblocks[0],), dtype=np.int64
    )
    counts = {
        name: da.from_delayed(delayed(_read_count, pure=True)(fitted, name), shape=(), dtype=np.int64)
        for name in ("n_kept", "n_regressors", "df_left")
    }
    kept = da.from_delayed(
        delayed(_find_kept, pure=True)(table.data, mask.data, choices),
        shape=(len(choices.regressor_names),),
        dtype=np.bool_,
    )
    return clean, kept, {**counts, "n_constant": empty.sum()}


def _read_count(projection: Projection, name: str) -> np.int64:
    """Return a count as an array scalar: a stored Dask array must be one."""
    return np.int64(getattr(projection, name))


def _count_empty(clean: npt.NDArray[np.floating[Any]], projection: Projection) -> npt.NDArray[np.int64]:
    """Return ``(1,)``: how many voxels of a block have no signal. One kept frame tells."""
    return np.array([np.count_nonzero(np.isnan(clean[:, projection.kept[0]]))], dtype=np.int64)


def _fit(table: Array, mask: npt.NDArray[np.bool_], choices: _Choices) -> Projection:
    """Return the projection of a run, or say why there is none."""
    selection = choices.selection
    regressors, fitted_mask = _make_regressors(table, mask, choices)
    n_term, n_noise, n_named = len(selection.terms), len(selection.noise), len(selection.all_terms)
    confounds, noise, signal, spikes = np.split(regressors, [n_term, n_term + n_noise, n_named], axis=1)
    fitted = _FITS[choices.filter](np.hstack([confounds, spikes]), fitted_mask, choices)
    if selection.noise:
        fitted = remove_components(fitted, noise, signal, oblique=selection.components == "nonaggressive")
    if fitted.df_left < choices.min_dof:
        raise InputError(
            "E-DF",
            f"{fitted.df_left} degrees of freedom are left of {np.count_nonzero(mask)} kept frames (of {len(mask)}),"
            f" after the filter, {len(selection.terms) + len(selection.noise)} confounds and the trend",
            where=choices.where,
            rule=f"min_dof = {choices.min_dof} must be left; under a cosine low-pass a dropped frame costs one more",
            fix="widen the band, choose fewer confounds, raise fd_threshold, or exclude the run",
        )
    return fitted


def _find_kept(table: Array, mask: npt.NDArray[np.bool_], choices: _Choices) -> npt.NDArray[np.bool_]:
    """Return ``(regressor,)`` which of the regressors removes something that those before it and the filter do not."""
    regressors, fitted_mask = _make_regressors(table, mask, choices)
    base = _FITS[choices.filter](np.empty((len(mask), 0)), fitted_mask, choices)
    return ~find_redundant(regressors[:, : len(choices.regressor_names)], base)


def _make_regressors(
    table: Array, mask: npt.NDArray[np.bool_], choices: _Choices
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the confounds, the noise, the signal and the spikes ``(time, column)``, and the frames of the fit."""
    kept = np.flatnonzero(mask)
    if kept.size == 0:
        raise InputError(
            "E-NO-FRAMES",
            f"sample_mask keeps none of {len(mask)} frames",
            where=choices.where,
            rule="at least one frame of a run is kept",
            fix="exclude the run, or censor less",
        )
    regressors = build_columns(table, choices.columns, choices.selection.all_terms)
    _refuse_nan(regressors, kept, choices)
    if not choices.selection.spikes:
        return regressors, mask
    # What a frame with a regressor of its own holds otherwise has no effect.
    regressors = np.where(mask[:, None], regressors, 0.0)
    return np.hstack([regressors, np.eye(len(mask))[:, ~mask]]), np.ones_like(mask)


def _fit_cosines(regressors: Array, mask: npt.NDArray[np.bool_], choices: _Choices) -> Projection:
    if choices.detrend:
        # Along the kept frames, not the seconds: so does nilearn.signal.clean, and the two stay comparable to rounding.
        trend = np.zeros(len(mask))
        trend[mask] = np.arange(np.count_nonzero(mask))
        regressors = np.column_stack([trend, regressors])
    band = filtering.pass_band(len(mask), t_r=choices.t_r, high_pass=choices.high_pass, low_pass=choices.low_pass)
    return projection.fit_projection(regressors, mask, band=band)


def _fit_butterworth(regressors: Array, mask: npt.NDArray[np.bool_], choices: _Choices) -> Projection:
    if choices.high_pass is None and choices.low_pass is None:
        return _fit_cosines(regressors, mask, choices)
    try:
        butterworth = fit_butterworth(
            np.flatnonzero(mask),
            t_r=choices.t_r,
            high_pass=choices.high_pass,
            low_pass=choices.low_pass,
            detrend=choices.detrend,
            bridge=choices.bridge,
        )
    except InputError as error:
        raise error.at(choices.where) from None
    return projection.fit_filtered(regressors, butterworth, n_time=len(mask))


_FITS: Final[dict[Filter, Callable[[Array, npt.NDArray[np.bool_], _Choices], Projection]]] = {
    "cosine": _fit_cosines,
    "fft": _fit_cosines,
    "butterworth": _fit_butterworth,
}


def _refuse_nan(regressors: Array, kept: npt.NDArray[np.intp], choices: _Choices) -> None:
    broken = ~np.isfinite(regressors[kept]).all(axis=0)
    if broken.any():
        i_term = int(np.flatnonzero(broken)[0])
        frames = kept[~np.isfinite(regressors[kept, i_term])]
        raise InputError(
            "E-CONFOUND-NAN",
            f"the confound {choices.selection.all_terms[i_term].name!r} is not finite in frame {frames[0]} and"
            f" {frames.size - 1} other kept frames ({int(broken.sum())} such confounds)",
            where=choices.where,
            rule="only the first frame may be n/a: a difference has nothing before it there, and 0 is put in",
            fix="repair the table, choose other confounds, or censor those frames",
        )
