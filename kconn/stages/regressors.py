"""Regressors in the stages of a run: read from all its tables, and CompCor computed from masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.clean.compcor import estimate_compcor
from kconn.clean.confounds import Header, Strategy, find_strategy, keep_columns
from kconn.io.regressors import TableForm, read_run_regressors
from kconn.stages.binding import Job
from kconn.study.noise_regions import load_noise_regions
from kconn.study.table import unless_off


def add_regressors(job: Job, ds: xr.Dataset) -> xr.Dataset:
    """Add `confounds` ``(time, confound)``: the columns of its tables that may be kept, with what is known as attrs."""
    forms = {name: TableForm.of(fields) for name, fields in job.step.params.get("regressors", {}).items()}
    files = {role: job.folder / path for role, path in job.step.files.items()}
    found = read_run_regressors(files, forms, n_time=ds.sizes["time"], t_r=float(ds.attrs["t_r"]), where=job.step.where)
    if found is None:
        return ds
    kept = keep_columns(found.names, job.step.params.get("columns", []))
    names = tuple(found.names[i] for i in kept)
    compcor = {name: entry for name, entry in found.compcor.items() if name in names}
    header = Header(names=names, compcor=compcor, noise_components=found.noise_components)
    table = xr.Variable(("time", "confound"), found.values[:, kept], header.attrs)
    return ds.assign(confounds=table).assign_coords(confound=("confound", np.array(names, dtype=object)))


def chosen_strategy(job: Job) -> Strategy:
    """Return what the step removes."""
    params = job.step.params
    return Strategy.of(params["strategy"]) if "strategy" in params else find_strategy(params["confounds"])


def add_compcor(job: Job, run: xr.Dataset) -> xr.Dataset:
    """Add the CompCor components that are computed from masks; columns of the table with their names give way."""
    params, strategy = job.step.params, chosen_strategy(job)
    if "erode" not in params:
        return run
    ijk = tuple(run[axis].to_numpy() for axis in "ijk")
    inside: npt.NDArray[np.bool_] = np.zeros(tuple(run.attrs["grid_shape"]), dtype=np.bool_)
    inside[ijk] = True
    regions = load_noise_regions(
        {role: job.folder / path for role, path in job.step.files.items()},
        strategy.compcor,
        erode=params["erode"],
        affine=run.attrs["affine"],
        inside=inside,
        where=job.step.where,
    )
    if "confounds" in run:
        theirs = tuple(f"{region}_comp_cor_" for region in strategy.compcor)
        kept = [name for name in run["confound"].to_numpy().tolist() if not str(name).startswith(theirs)]
        run = run.sel(confound=kept)
    for region, mask in regions.items():
        run = estimate_compcor(
            run,
            xr.DataArray(mask[ijk], dims="voxel"),
            n_component=strategy.n_component if strategy.variance is None else None,
            variance=strategy.variance,
            high_pass=unless_off(params["high_pass"]),
            prefix=region,
        )
    return run


def without_spikes(run: xr.Dataset) -> xr.Dataset:
    """Return the quality of a run that counts no frame which a regressor of its own took out: it holds no data."""
    if "n_spikes" not in run:
        return run
    n_kept = run["n_kept"] - run["n_spikes"]
    return schema.annotate(run.assign(n_kept=n_kept, minutes_kept=run["minutes_kept"] * n_kept / run["n_kept"]))
