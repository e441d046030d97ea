"""The stages of the cohort: the cube of netmats, and one test per contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from kconn import schema
from kconn.connect.cohort import (
    EDGE_COORDS,
    assemble,
    assemble_amplitude_cohort,
    average_runs,
    project_tangent,
    scale_to_unrelated,
)
from kconn.connect.families import average_families, select_families, spread_family
from kconn.connect.netmats import estimate_amplitudes
from kconn.connect.reliability import estimate_icc
from kconn.errors import InputError
from kconn.io import tables
from kconn.kernels.clusters import Neighbours
from kconn.stages.binding import Job, exclusion
from kconn.stages.quality import find_short_sessions, quality_rows, run_of, split_path, summarise_sessions
from kconn.stages.running import bind_checkpoint
from kconn.study.contrasts import arrange_test, describe_exchange, run_test
from kconn.study.surfaces import STRUCTURE_OF
from kconn.study.test_tables import OF_STATISTIC

#: Why a subject is in no test of a cohort that it could have been in.
NOTHING_LEFT: Final = "every run or session was left out"
#: What a cohort is made of: the matrix of a run, and what FSLNets' z needs to know of it.
_OF_MATRIX: Final = ("netmat", *EDGE_COORDS, "ar1", "n_kept")
#: Files of a test that are tables about people or surfaces; the others are those of its ``files``.
_NOT_OF_DESIGN: Final = frozenset({"participants", "sessions", *STRUCTURE_OF})
#: Keys of ``[permutation]`` for features that are tested each by itself.
_ALONE: Final[dict[str, Any]] = {"statistic": "edge", **dict.fromkeys(OF_STATISTIC - {"stopping"})}


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
    within = set(rows["path"])
    used = {
        path: result for path, result in opened.items() if run_of(path) in within and split_path(path)[:2] not in short
    }
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
    chosen = select_runs(job, dict(job.open_each("netmat", _OF_MATRIX)))
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
    cube = _with_bare_labels(cube)
    cube = schema.annotate(cube.assign(summarise_sessions(chosen.rows, cube)))
    job.publish(cube.assign_attrs(chosen.left_out()))


def _with_bare_labels(cube: xr.Dataset) -> xr.Dataset:
    """Return a cohort whose subjects and sessions are labels without ``sub-`` and ``ses-``."""
    for name, prefix in (("subject", "sub-"), ("session", "ses-")):
        labels = [str(label).removeprefix(prefix) for label in cube[name].to_numpy()]
        cube = cube.assign_coords({name: ("observation", np.array(labels, dtype=object))})
    return cube


def average_blocks(job: Job) -> None:
    """Average the edges of every block of each session."""
    cohort = job.open(job.step.upstream[0].address)
    rows = [(block, *pair) for block, pairs in job.step.params["blocks"].items() for pair in pairs]
    out = average_families(cohort, rows)
    job.publish(out[["family_mean", "n_edge"]].assign_attrs(without_runs=cohort.attrs["without_runs"]))


def assemble_amplitudes(job: Job) -> None:
    """Average the amplitude of every node over the runs of each session and stack the sessions."""
    amplitudes = {
        path: ds if exclusion(ds) else estimate_amplitudes(ds)[["amplitude"]] for path, ds in job.open_each("nodes")
    }
    chosen = select_runs(job, amplitudes)
    runs = (
        (f"sub-{subject}", f"ses-{session}", ds)
        for (subject, session, _), ds in ((split_path(path), ds) for path, ds in chosen.used.items())
    )
    job.publish(_with_bare_labels(assemble_amplitude_cohort(runs)).assign_attrs(chosen.left_out()))


def estimate_edge_reliability(job: Job) -> None:
    """Estimate the ICC of every edge between sessions or between runs; says why not where too few subjects are left."""
    params = job.step.params
    cohort = job.open(job.step.reads("cohort").address)
    compared = params["sessions"] or params["runs"]
    cube = cohort if params["runs"] is None else _stack_runs(job, set(map(str, cohort["observation"].to_numpy())))
    attrs = {"between": "sessions" if params["runs"] is None else "runs", "compared": compared, "kind": params["icc"]}
    if cube is None:
        job.publish(xr.Dataset(attrs={**attrs, "not_estimated": "no run is left"}))
        return
    try:
        kept = cube.isel(observation=np.isin(cube["subject"].to_numpy().astype(str), params["subjects"]))
        out = estimate_icc(kept, compared, kind=params["icc"])
    except InputError as error:
        if error.code != "E-TOO-FEW":
            raise
        job.publish(xr.Dataset(attrs={**attrs, "not_estimated": error.problem}))
        return
    job.publish(out.assign_attrs(attrs, n_subject=out["icc"].attrs["n_subject"]))


def _stack_runs(job: Job, observations: set[str]) -> xr.Dataset | None:
    """Return the netmats of runs of sessions that are in the cohort, the run in place of the session."""
    used = {
        path: run
        for path, run in job.open_each("netmat", _OF_MATRIX)
        if exclusion(run) is None and "_".join(path.split("/")[:2]) in observations
    }
    if not used:
        return None
    runs = list(used.values())
    if job.step.params["z"] == "ar1":
        runs = scale_to_unrelated(runs, seed=job.step.params["seed"])
    cube = assemble((split_path(path)[0], split_path(path)[2], run) for path, run in zip(used, runs, strict=True))
    return project_tangent(cube) if job.step.params["kind"] == "tangent" else cube


def test_contrast(job: Job) -> None:
    """Test one contrast, or several under one design, over the edges of the cohort."""
    cohort = job.open(job.step.upstream[0].address)
    netmat, without_runs = cohort["netmat"], cohort.attrs["without_runs"]
    family = job.step.params.get("family")
    if family is None:
        job.publish(run_contrast(job, netmat, without_runs=without_runs))
        return
    (inside,) = select_families(cohort, [(family["name"], *pair) for pair in family["edges"]]).values()
    result = run_contrast(job, netmat.isel(edge=inside), without_runs=without_runs)
    questions = [f"{question}; the family {family['name']} alone" for question in result.attrs["questions"]]
    told = {"question": questions[0]} if "question" in result.attrs else {}
    result = result.assign_attrs(told, questions=questions, family=family["name"], family_edges=family["edges"])
    job.publish(spread_family(result, inside, netmat.to_dataset(name="netmat")))


def test_features(job: Job) -> None:
    """Test one contrast over blocks of edges or over nodes, each by itself."""
    cohort = job.open(job.step.upstream[0].address)
    data = cohort[job.step.params["variable"]].transpose("observation", ...)
    job.publish(run_contrast(job, data, without_runs=cohort.attrs["without_runs"], alone=True))


def run_contrast(
    job: Job,
    data: xr.DataArray,
    *,
    without_runs: Sequence[str],
    neighbours: Neighbours | None = None,
    alone: bool = False,
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
    alone
        Whether features are tested each by itself, whatever the statistic of the contrast: they have no neighbours.
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
    permutation = {**params["permutation"], "max_mem": job.step.max_mem, **(_ALONE if alone else {})}
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
