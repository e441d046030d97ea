"""The stages of the cohort: the quality table, the cube of netmats, and one test per contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import xarray as xr

from kconn.cohort import assemble, average_runs, project_tangent, scale_to_unrelated
from kconn.design import Hypothesis, build_test
from kconn.errors import InputError
from kconn.inference import permutation_test
from kconn.io import tables
from kconn.stages.binding import Job, exclusion
from kconn.stages.running import bind_checkpoint

#: Columns of the quality table that are numbers of a denoised run.
_NUMBERS: Final = (
    "n_frames",
    "n_kept",
    "minutes_kept",
    "mean_fd",
    "max_fd",
    "median_tsnr",
    "n_regressors",
    "df_left",
    "n_constant",
)


def collect_quality(job: Job) -> None:
    """Gather one row per run: how it moved, what was kept, whether and why it was left out."""
    rows = []
    for up in job.step.upstream:
        ds = job.open(up.address)
        subject, session, run = split_path(up.address.path)
        numbers = {name: float(ds[name]) if name in ds else np.nan for name in _NUMBERS}
        rows.append({"subject": subject, "session": session, "run": run, **numbers, "excluded": exclusion(ds) or ""})
    table = pd.DataFrame(rows)
    text = ("subject", "session", "run", "excluded")
    job.publish(
        xr.Dataset(
            {name: ("row", table[name].to_numpy(dtype=object if name in text else np.float64)) for name in table}
        )
    )


def assemble_cohort(job: Job) -> None:
    """Average the runs of each session and stack the sessions into ``netmat (observation, edge)``."""
    params = job.step.params
    runs: list[xr.Dataset] = []
    places: list[tuple[str, str]] = []
    subjects = set()
    for up in job.step.upstream:
        subject, session, _ = split_path(up.address.path)
        subjects.add(subject)
        netmat = job.open(up.address)
        if exclusion(netmat) is None:
            runs.append(netmat)
            places.append((subject, session))
    if not runs:
        raise InputError(
            "E-NO-RUNS",
            "every run was left out",
            rule="at least one run is within the quality limits",
            fix="look at the reasons with `kconn status`, and at [quality] and [denoise] in the study file",
        )
    if params["z"] == "ar1":
        runs = scale_to_unrelated(runs, seed=params["seed"])
    sessions: dict[tuple[str, str], list[xr.Dataset]] = {}
    for place, run in zip(places, runs, strict=True):
        sessions.setdefault(place, []).append(run)
    cube = assemble(
        (f"sub-{subject}", f"ses-{session}", average_runs(runs)) for (subject, session), runs in sessions.items()
    )
    if params["kind"] == "tangent":
        cube = project_tangent(cube)
    for name, prefix in (("subject", "sub-"), ("session", "ses-")):
        labels = [str(label).removeprefix(prefix) for label in cube[name].to_numpy()]
        cube = cube.assign_coords({name: ("observation", np.array(labels, dtype=object))})
    job.publish(cube.assign_attrs(without_runs=sorted(subjects - {subject for subject, _ in sessions})))


def test_contrast(job: Job) -> None:
    """Test one contrast over the edges of the cohort."""
    cohort = job.open(job.step.upstream[0].address)
    job.publish(run_contrast(job, cohort["netmat"], without_runs=cohort.attrs["without_runs"]))


def run_contrast(job: Job, data: xr.DataArray, *, without_runs: Sequence[str]) -> xr.Dataset:
    """Return the test of the contrast of a job on any features of the cohort.

    Parameters
    ----------
    job
        Its parameters hold the contrast.
    data
        ``(observation, feature)`` with ``subject`` and ``session`` along ``observation``.
    without_runs
        Subjects whose runs were all left out.
    """
    params = job.step.params
    participants, sessions = tables.read_people(
        job.file("participants"),
        job.file("sessions"),
        subjects=data["subject"].to_numpy().astype(str),
        id_column=params["participants_id"],
        id_format=params["participants_id_format"],
    )
    hypothesis = Hypothesis.of(params["hypothesis"])
    test = build_test(data, participants, sessions, hypothesis)
    result = permutation_test(
        test.data,
        test.design,
        {"tested": test.weights},
        n_perm=params["n_perm"],
        seed=params["seed"],
        alternative=params["alternative"],
        sign_flip=test.sign_flip,
        checkpoint=bind_checkpoint(job.root, job.step),
    )
    left_out = dict.fromkeys(without_runs, "every run was left out") | test.left_out
    result = (
        result.isel(contrast=0)
        .assign_coords(contrast=job.step.address.path.split("/")[3])
        .assign_attrs(
            question=test.question,
            test=hypothesis.test,
            formula=hypothesis.formula,
            regressors=list(test.design.columns),
            n_observation=len(test.design),
            left_out=[f"{subject}: {reason}" for subject, reason in sorted(left_out.items())],
        )
    )
    return result.assign(design=(("observation", "regressor"), test.design.to_numpy()))


def split_path(path: str) -> tuple[str, str, str]:
    """Return subject, session and run of ``sub-01/ses-1/run-1/...``."""
    subject, session, run = path.split("/")[:3]
    return subject.removeprefix("sub-"), session.removeprefix("ses-"), run.removeprefix("run-")
