"""The stage of QC-FC: how far motion explains connections, before and after denoising."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import groupby
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.clean.quality_cohort import average_subjects, estimate_qc_fc, refuse_bad_scores
from kconn.connect.cohort import assemble, average_runs
from kconn.connect.netmats import NODE_LABELS, estimate_netmats, fisher_z
from kconn.errors import InputError
from kconn.infer.formulas import evaluate_formula
from kconn.io import tables
from kconn.stages.binding import Job, exclusion
from kconn.stages.quality import find_short_sessions, quality_rows, run_of, split_path, summarise_sessions

#: Errors that speak of what the cohort holds: too few subjects, or no motion known. QC-FC is then not estimated.
_NOT_ESTIMATED: Final = frozenset({"E-TOO-FEW", "E-COV-NAN"})


def estimate_cohort_qc_fc(job: Job) -> None:
    """Correlate edges with motion over subjects.

    Of a cohort of netmats as they are tested; else of the full correlations of a node set, after denoising and before.
    Says why not where it cannot be done.
    """
    steps = {up.address.step for up in job.step.upstream}
    made: dict[str, Any] = {}
    attrs: dict[str, Any] = {"covariates": list(job.step.params["covariates"])}
    try:
        cohorts = {"": _open_cohort(job)} if "cohort" in steps else _correlate(job)
        if not cohorts:
            attrs["not_estimated"] = "every run was left out"
        positions = _read_positions(job)
        for ending, cohort in cohorts.items():
            found = _estimate(job, average_subjects(cohort), positions)
            names = [str(name) for name in found.data_vars if str(name).startswith(("qc_fc", "edge_length"))]
            made |= {
                f"{name}{ending}": found[name].variable for name in names if not (ending and name == "edge_length")
            }
            made |= {name: found[name].variable for name in ("node_i", "node_j")}
            attrs["n_subject"] = found.sizes["observation"]
    except InputError as error:
        if error.code not in _NOT_ESTIMATED:
            raise
        attrs["not_estimated"] = error.problem
    job.publish(xr.Dataset(made, attrs=attrs).set_coords([name for name in ("node_i", "node_j") if name in made]))


def _estimate(job: Job, subjects: xr.Dataset, positions: xr.DataArray | None) -> xr.Dataset:
    params = job.step.params
    return estimate_qc_fc(
        subjects,
        nuisance=_read_covariates(job, subjects["subject"].to_numpy().astype(str)),
        positions=positions,
        n_perm=params["n_perm"],
        seed=params["seed"],
    )


def _open_cohort(job: Job) -> xr.Dataset:
    cohort = job.open(job.step.reads("cohort").address)
    return cohort[["netmat", "mean_fd"]].compute()


def _correlate(job: Job) -> dict[str, xr.Dataset]:
    """Return the full correlations of the sessions in use, as Fisher z, after (``""``) and before denoising.

    Raises
    ------
    InputError
        Where nothing can be made of their motion, before any series is read.
    """
    rows = quality_rows(job.open(job.step.reads("quality").address))
    used = {run_of(path) for path, ds in job.open_each("nodes", ()) if exclusion(ds) is None}
    rows = rows[rows["path"].isin(used)]
    short = find_short_sessions(rows, job.step.params)
    rows = rows[[place not in short for place in zip(rows["subject"], rows["session"], strict=True)]]
    if rows.empty:
        return {}
    moved = rows.groupby("subject")["mean_fd"].agg(lambda values: values.mean(skipna=False))
    refuse_bad_scores(np.array(moved, dtype=np.float64)[:, np.newaxis], moved.index.to_numpy())
    cohorts = {}
    for ending, variable in (("", "timeseries"), ("_before", "timeseries_before")):
        cube = assemble(_correlate_sessions(job, variable, set(rows["path"])))
        cohorts[ending] = cube.assign(summarise_sessions(rows, cube))[["netmat", "mean_fd"]]
    return cohorts


def _correlate_sessions(job: Job, variable: str, used: Container[str]) -> Iterator[tuple[str, str, xr.Dataset]]:
    """Yield subject, session and mean correlations of one session after the other."""
    opened = ((path, ds) for path, ds in job.open_each("nodes", (variable, *NODE_LABELS)) if run_of(path) in used)
    for (subject, session), of_session in groupby(opened, key=lambda found: split_path(found[0])[:2]):
        yield subject, session, average_runs([_correlate_run(ds, variable) for _, ds in of_session])


def _correlate_run(ds: xr.Dataset, variable: str) -> xr.Dataset:
    ts = ds[variable].compute()
    run = xr.Dataset({"timeseries": ts, "sample_mask": ts.notnull().any("node")}, attrs=ds.attrs)
    return fisher_z(estimate_netmats(run, kind="corr"))


def _read_covariates(job: Job, subjects: npt.NDArray[np.str_]) -> xr.DataArray | None:
    """Return ``(observation, covariate)`` of the participants table, or None where none are named."""
    names = job.step.params["covariates"]
    if not names:
        return None
    people, _ = tables.read_people(
        job.file("participants"),
        None,
        subjects=subjects,
        id_column=job.step.params["participants_id"],
        id_format=job.step.params["participants_id_format"],
    )
    design = evaluate_formula(" + ".join(names), people.loc[list(subjects)])
    return xr.DataArray(
        design.to_numpy(dtype=np.float64), dims=("observation", "covariate"), coords={"observation": list(subjects)}
    )


def _read_positions(job: Job) -> xr.DataArray | None:
    """Return ``(node, axis)`` in mm from the first run that has nodes, or None where they have no place."""
    for _, ds in job.open_each("nodes", ("node", *"xyz")):
        if "node" not in ds:  # left out
            continue
        if not set("xyz") <= set(ds.coords):
            return None
        places = np.stack([ds[axis].to_numpy() for axis in "xyz"], axis=1).astype(np.float64)
        return xr.DataArray(places, dims=("node", "axis"), coords={"node": ds["node"].to_numpy()})
    return None
