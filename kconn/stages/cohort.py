"""The stages of the cohort: the cube of netmats, and one test per contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from kconn import schema
from kconn.connect.cohort import assemble, average_runs, project_tangent, scale_to_unrelated
from kconn.errors import InputError
from kconn.io import tables
from kconn.kernels.clusters import Neighbours
from kconn.stages.binding import Job, exclusion
from kconn.stages.quality import find_short_sessions, quality_rows, run_of, split_path, summarise_sessions
from kconn.stages.running import bind_checkpoint
from kconn.study.contrasts import arrange_test, describe_exchange, run_test
from kconn.study.surfaces import STRUCTURE_OF

#: Why a subject is in no test of a cohort that it could have been in.
NOTHING_LEFT: Final = "every run or session was left out"
#: Files of a test that are tables about people or surfaces; the others are those of its ``files``.
_NOT_OF_DESIGN: Final = frozenset({"participants", "sessions", *STRUCTURE_OF})


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The runs that make a cohort.

    Attributes
    ----------
    rows
        Their rows of the quality table.
    used
        Path -> result of each run that is used.
    short
        (subject, session) -> why too little is left of it.
    subjects
        All subjects that have a run, used or not.
    """

    rows: pd.DataFrame
    used: dict[str, xr.Dataset]
    short: dict[tuple[str, str], str]
    subjects: set[str]

    def left_out(self) -> dict[str, Any]:
        """Return what the cohort says of those that are not in it."""
        present = {split_path(path)[0] for path in self.used}
        return {
            "without_runs": sorted(self.subjects - present),
            "short_sessions": {f"{subject}/{session}": why for (subject, session), why in sorted(self.short.items())},
        }


def select_runs(job: Job, opened: dict[str, xr.Dataset]) -> Selection:
    """Return the runs, of those given by path, that are within the limits of runs and sessions.

    Raises
    ------
    InputError
        ``E-NO-RUNS``.
    """
    rows = quality_rows(job.open(job.step.reads("quality").address))
    subjects = {split_path(path)[0] for path in opened}
    rows = rows[rows["path"].isin([run_of(path) for path, result in opened.items() if exclusion(result) is None])]
    short = find_short_sessions(rows, job.step.params)
    used = {path: result for path, result in opened.items() if run_of(path) in set(rows["path"])}
    used = {path: result for path, result in used.items() if split_path(path)[:2] not in short}
    if not used:
        raise InputError(
            "E-NO-RUNS",
            "every run was left out",
            rule="at least one run is within the quality limits",
            fix="look at the reasons with `kconn status`, and at [quality] and [denoise] in the study file",
        )
    return Selection(rows=rows, used=used, short=short, subjects=subjects)


def assemble_cohort(job: Job) -> None:
    """Average the runs of each session and stack the sessions into ``netmat (observation, edge)``."""
    params = job.step.params
    chosen = select_runs(
        job, {up.address.path: job.open(up.address) for up in job.step.upstream if up.address.step == "netmat"}
    )
    runs = list(chosen.used.values())
    if params["z"] == "ar1":
        runs = scale_to_unrelated(runs, seed=params["seed"])
    sessions: dict[tuple[str, str], list[xr.Dataset]] = {}
    for path, run in zip(chosen.used, runs, strict=True):
        sessions.setdefault(split_path(path)[:2], []).append(run)
    cube = assemble(
        (f"sub-{subject}", f"ses-{session}", average_runs(runs)) for (subject, session), runs in sessions.items()
    )
    if params["kind"] == "tangent":
        cube = project_tangent(cube)
    for name, prefix in (("subject", "sub-"), ("session", "ses-")):
        labels = [str(label).removeprefix(prefix) for label in cube[name].to_numpy()]
        cube = cube.assign_coords({name: ("observation", np.array(labels, dtype=object))})
    cube = schema.annotate(cube.assign(summarise_sessions(chosen.rows, cube)))
    job.publish(cube.assign_attrs(chosen.left_out()))


def test_contrast(job: Job) -> None:
    """Test one contrast, or several under one design, over the edges of the cohort."""
    cohort = job.open(job.step.upstream[0].address)
    job.publish(run_contrast(job, cohort["netmat"], without_runs=cohort.attrs["without_runs"]))


def run_contrast(
    job: Job, data: xr.DataArray, *, without_runs: Sequence[str], neighbours: Neighbours | None = None
) -> xr.Dataset:
    """Return the test of the contrast of a job on any features of the cohort.

    Parameters
    ----------
    job
        Its parameters hold the contrast.
    data
        ``(observation, feature)`` with ``subject`` and ``session`` along ``observation``.
    without_runs
        Subjects whose runs were all left out.
    neighbours
        Of grayordinates, where the statistic looks at them.
    """
    params = job.step.params
    participants, sessions = tables.read_people(
        job.file("participants"),
        job.file("sessions"),
        subjects=data["subject"].to_numpy().astype(str),
        id_column=params["participants_id"],
        id_format=params["participants_id_format"],
    )
    files = {role: job.folder / path for role, path in job.step.files.items() if role not in _NOT_OF_DESIGN}
    permutation = {**params["permutation"], "max_mem": job.step.max_mem}
    arrangement = arrange_test(data, participants, sessions, {**params, "permutation": permutation}, files)
    test = arrangement.test
    result = run_test(arrangement, neighbours=neighbours, checkpoint=bind_checkpoint(job.root, job.step))
    left_out = dict.fromkeys(without_runs, NOTHING_LEFT) | test.left_out
    questions = list(test.questions.values())
    if not test.is_set:
        result = result.isel(contrast=0).assign_coords(contrast=job.step.address.path.split("/")[3])
        result = result.assign_attrs(question=questions[0])
    weights, n_column = [np.atleast_2d(found) for found in test.contrasts.values()], len(test.design.columns)
    if test.baseline is not None:
        result = result.assign_attrs(baseline_weights=[found[:, n_column:].ravel().tolist() for found in weights])
    result = result.assign_attrs(
        questions=questions,
        test=params["hypothesis"]["test"],
        formula=params["hypothesis"]["formula"],
        regressors=list(test.design.columns),
        weights=[found[:, :n_column].tolist() for found in weights],
        exchange=describe_exchange(arrangement),
        n_variance_group=0 if arrangement.variance_groups is None else arrangement.variance_groups.nunique(),
        n_observation=len(test.design),
        left_out=[f"{row}: {reason}" for row, reason in sorted(left_out.items())],
    )
    design = test.design.loc[result["observation"].to_numpy()]
    return result.assign(design=(("observation", "regressor"), design.to_numpy()))
