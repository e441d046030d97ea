"""The stage of QC-FC: how far motion explains connections, before and after denoising."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.clean.quality_cohort import average_subjects, estimate_qc_fc
from kconn.connect.cohort import assemble, average_runs
from kconn.connect.netmats import estimate_netmats, fisher_z
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
    series = {up.address.path: job.open(up.address) for up in job.step.upstream if up.address.step == "nodes"}
    if "cohort" in steps:
        cohorts = {"": job.open(job.step.reads("cohort").address)[["netmat", "mean_fd"]].compute()}
    else:
        cohorts = _correlate(job, series)
    made: dict[str, Any] = {}
    attrs: dict[str, Any] = {"covariates": list(job.step.params["covariates"])}
    if not cohorts:
        attrs["not_estimated"] = "every run was left out"
    for ending, cohort in cohorts.items():
        try:
            found = _estimate(job, average_subjects(cohort), _read_positions(series))
        except InputError as error:
            if error.code not in _NOT_ESTIMATED:
                raise
            attrs["not_estimated"] = error.problem
            continue
        names = [str(name) for name in found.data_vars if str(name).startswith(("qc_fc", "edge_length"))]
        made |= {f"{name}{ending}": found[name].variable for name in names if not (ending and name == "edge_length")}
        made |= {name: found[name].variable for name in ("node_i", "node_j")}
        attrs["n_subject"] = found.sizes["observation"]
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


def _correlate(job: Job, series: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Return the full correlations of the sessions in use, as Fisher z, after (``""``) and before denoising."""
    used = {path: ds for path, ds in series.items() if exclusion(ds) is None}
    rows = quality_rows(job.open(job.step.reads("quality").address))
    rows = rows[rows["path"].isin([run_of(path) for path in used])]
    short = find_short_sessions(rows, job.step.params)
    cohorts = {}
    for ending, variable in (("", "timeseries"), ("_before", "timeseries_before")):
        sessions: dict[tuple[str, str], list[xr.Dataset]] = {}
        for path, ds in used.items():
            if (place := split_path(path)[:2]) in short:
                continue
            ts = ds[variable].compute()
            plain = xr.Dataset({"timeseries": ts, "sample_mask": ts.notnull().any("node")}, attrs=ds.attrs)
            sessions.setdefault(place, []).append(fisher_z(estimate_netmats(plain, kind="corr")))
        if not sessions:
            return {}
        cube = assemble((subject, session, average_runs(runs)) for (subject, session), runs in sessions.items())
        cohorts[ending] = cube.assign(summarise_sessions(rows, cube))[["netmat", "mean_fd"]]
    return cohorts


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


def _read_positions(series: Mapping[str, xr.Dataset]) -> xr.DataArray | None:
    """Return ``(node, axis)`` in mm from the first run that has nodes, or None where they have no place."""
    for ds in series.values():
        if "timeseries" not in ds:  # left out
            continue
        if not set("xyz") <= set(ds.coords):
            return None
        places = np.stack([ds[axis].to_numpy() for axis in "xyz"], axis=1).astype(np.float64)
        return xr.DataArray(places, dims=("node", "axis"), coords={"node": ds["node"].to_numpy()})
    return None
