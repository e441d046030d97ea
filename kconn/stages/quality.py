"""The stages of quality: the table of all runs, that of what they cover, motion between groups and visits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from kconn.clean.quality_cohort import MOTION_MEASURES, compare_motion
from kconn.io import tables
from kconn.stages.binding import Job, exclusion
from kconn.study.table import unless_off

#: Columns of the quality table that are numbers of a run.
_NUMBERS: Final = (
    "n_frames",
    "n_kept",
    "minutes_kept",
    "share_censored",
    "mean_fd",
    "max_fd",
    "mean_std_dvars",
    "max_std_dvars",
    "median_tsnr",
    "global_sd",
    "n_regressors",
    "df_left",
    "n_constant",
    *MOTION_MEASURES[1:],
)
#: Those of the table of what runs cover.
_COVERAGE: Final = ("atlas_coverage", "n_uncovered")


def collect_quality(job: Job) -> None:
    """Gather one row per run: how it moved, what was kept, whether and why it was left out."""
    rows = []
    for path, ds in job.open_each("denoise", (*_NUMBERS, "regressor", "regressor_kept")):
        subject, session, run = split_path(path)
        numbers = {name: float(ds[name]) if name in ds else np.nan for name in _NUMBERS}
        row = {"subject": subject, "session": session, "run": run, **numbers, "redundant": _redundant(ds)}
        rows.append({**row, "excluded": exclusion(ds) or ""})
    table = pd.DataFrame(rows)
    short = find_short_sessions(table[table["excluded"] == ""], job.step.params)
    places = zip(table["subject"], table["session"], strict=True)
    table["session_excluded"] = [short.get(place, "") for place in places]
    text = ("subject", "session", "run", "redundant", "excluded", "session_excluded")
    job.publish(_as_rows(table, text=text))


def _redundant(run: xr.Dataset) -> str:
    """Return the confounds of a run that removed nothing which the filter and those before them had left."""
    if "regressor_kept" not in run:
        return ""
    names = run["regressor"].to_numpy()[~run["regressor_kept"].to_numpy()]
    return ", ".join(map(str, names))


def collect_coverage(job: Job) -> None:
    """Gather one row per run: how much of a node set it covers, and whether and why it was left out for that."""
    rows = []
    for path, ds in job.open_each("nodes", _COVERAGE):
        if not set(_COVERAGE) <= set(ds):  # left out before it had nodes; it needs no second reason
            continue
        subject, session, run = split_path(path)
        numbers = {name: float(ds[name]) for name in _COVERAGE}
        rows.append({"subject": subject, "session": session, "run": run, **numbers, "excluded": exclusion(ds) or ""})
    text = ("subject", "session", "run", "excluded")
    table = pd.DataFrame(rows, columns=[*text[:3], *_COVERAGE, "excluded"])
    job.publish(_as_rows(table, text=text))


def _as_rows(table: pd.DataFrame, *, text: Sequence[str]) -> xr.Dataset:
    types = {str(name): object if name in text else np.float64 for name in table}
    return xr.Dataset({name: ("row", table[name].to_numpy(dtype=kind)) for name, kind in types.items()})


def compare_run_motion(job: Job) -> None:
    """Compare motion between the groups and visits that the contrasts name, over the runs and sessions in use."""
    params = job.step.params
    table = _used_rows(job.open(job.step.upstream[0].address))
    sessions = table.groupby(["subject", "session"], sort=True)[list(MOTION_MEASURES)].mean().reset_index()
    ds = xr.Dataset(
        {name: ("observation", sessions[name].to_numpy(dtype=np.float64)) for name in MOTION_MEASURES},
        coords={name: ("observation", sessions[name].to_numpy(dtype=object)) for name in ("subject", "session")},
    )
    people, _ = tables.read_people(
        job.file("participants"),
        None,
        subjects=sessions["subject"].to_numpy(dtype=str),
        id_column=params["participants_id"],
        id_format=params["participants_id_format"],
    )
    factors = {}
    for factor in params["factors"]:
        if factor["column"] in people.columns:  # a column of the sessions table splits visits, not people
            column = people[factor["column"]].dropna()
            column = column if factor["levels"] is None else column[column.isin(factor["levels"])]
            factors[factor["column"]] = {str(subject): str(level) for subject, level in column.items()}
    changes = [(str(first), str(second)) for first, second in params["changes"]]
    job.publish(compare_motion(ds, factors=factors, changes=changes, n_perm=params["n_perm"], seed=params["seed"]))


def quality_rows(quality: xr.Dataset) -> pd.DataFrame:
    """Return the rows of the quality table that are one number or word per run, with the path of the run."""
    names = [str(name) for name in quality.data_vars if quality[name].dims == ("row",)]
    table = pd.DataFrame({name: quality[name].to_numpy() for name in names})
    table["path"] = [f"sub-{row.subject}/ses-{row.session}/run-{row.run}" for row in table.itertuples(index=False)]
    return table


def _used_rows(quality: xr.Dataset) -> pd.DataFrame:
    table = quality_rows(quality)
    return table[(table["excluded"] == "") & (table["session_excluded"] == "")]


def find_short_sessions(runs: pd.DataFrame, limits: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return (subject, session) -> why the runs that are left of it are too little."""
    short = {}
    least_minutes = unless_off(limits["min_session_minutes"])
    for place, of_session in runs.groupby(["subject", "session"], sort=True):
        n_kept, minutes = of_session["n_kept"].sum(), of_session["minutes_kept"].sum(skipna=False)
        broken = []
        if n_kept < limits["min_session_frames"]:
            broken.append(f"{n_kept:.0f} frames kept in the session, fewer than {limits['min_session_frames']}")
        if least_minutes is not None and not minutes >= least_minutes:
            broken.append(f"{minutes:.2f} minutes kept in the session, fewer than {least_minutes:g}")
        if broken:
            short[str(place[0]), str(place[1])] = "; ".join(broken)
    return short


def summarise_sessions(rows: pd.DataFrame, cube: xr.Dataset) -> dict[str, Any]:
    """Return ``mean_fd`` and ``minutes_kept (observation)`` of the sessions of a cohort.

    Runs weigh the same in the mean, as their netmats do.
    """
    of_session = rows.groupby(["subject", "session"])
    moved = of_session["mean_fd"].agg(lambda values: values.mean(skipna=False))
    minutes = of_session["minutes_kept"].agg(lambda values: values.sum(skipna=False))
    places = list(zip(cube["subject"].to_numpy(), cube["session"].to_numpy(), strict=True))
    return {
        name: ("observation", np.array([float(found.loc[place]) for place in places]))
        for name, found in (("mean_fd", moved), ("minutes_kept", minutes))
    }


def run_of(path: str) -> str:
    """Return ``sub-01/ses-1/run-1`` of ``sub-01/ses-1/run-1/...``."""
    return "/".join(path.split("/")[:3])


def split_path(path: str) -> tuple[str, str, str]:
    """Return subject, session and run of ``sub-01/ses-1/run-1/...``."""
    subject, session, run = path.split("/")[:3]
    return subject.removeprefix("sub-"), session.removeprefix("ses-"), run.removeprefix("run-")
