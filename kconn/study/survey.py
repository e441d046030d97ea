"""Everything about a study that can be checked before any compute: runs, headers, tables, atlases, designs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from kconn.connect.dual_regression import check_place
from kconn.errors import InputError, KconnError, StudyFileError, first_of
from kconn.infer.design import NO_RUN
from kconn.infer.formulas import evaluate_formula
from kconn.io import layout, layout_hcp, tables
from kconn.io.layout import Run
from kconn.io.objects import ObjectFolder
from kconn.study.contrasts import Arrangement, arrange_test
from kconn.study.examination import RunFacts, collected, examine
from kconn.study.family_checks import check_families, check_reliability
from kconn.study.file import Study
from kconn.study.node_checks import check_brain_models, check_map_grids, check_map_statistics, check_nodes
from kconn.study.nodesets import load_templates
from kconn.study.rehearsal import rehearse_test
from kconn.study.voxel_checks import check_dense_time, check_one_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found, and everything that is wrong with it.

    Attributes
    ----------
    runs
        Runs that can be read.
    found
        Runs that were found, of every subject.
    participants, sessions
        The tables; participants has a row without columns per subject where there is no table.
    node_coords
        Node set -> the coordinates of its nodes: names, and networks, hemispheres and places where they are known.
    left_out
        Subject -> why no run of it is used.
    problems
        What has to be put right before the study can run.
    """

    runs: tuple[RunFacts, ...]
    found: tuple[Run, ...]
    participants: pd.DataFrame
    sessions: pd.DataFrame | None
    node_coords: Mapping[str, xr.Dataset]
    left_out: Mapping[str, str]
    problems: tuple[KconnError, ...]

    @property
    def node_names(self) -> dict[str, tuple[str, ...]]:
        """Node set -> names of its nodes."""
        return {name: tuple(map(str, coords["node"].to_numpy())) for name, coords in self.node_coords.items()}

    def refuse_problems(self) -> None:
        """Raise the first problem, saying how many there are.

        Raises
        ------
        KconnError
        """
        if self.problems:
            raise first_of(self.problems)


def survey_study(study: Study, *, without: Collection[str] = ()) -> Survey:
    """Look at every input of a study without computing anything.

    Parameters
    ----------
    study
        The study file.
    without
        Places of runs that are treated as if they were not there (yet), such as ``sub-01/ses-1/run-1``.

    Raises
    ------
    KconnError
        Where nothing can be said at all: no run was found. All else is in ``problems``.
    """
    problems: list[KconnError] = []
    runs = [run for run in find_runs(study) if run.where not in without]
    found = tuple(runs)
    participants, sessions = tables.bare_rows(run.subject for run in runs), None
    with collected(problems):
        participants, sessions = read_people(study, runs)
    left_out: dict[str, str] = {}
    if not problems:
        runs, left_out = _include(study, runs, participants, problems)
    are_known = not problems
    _check_outputs(study, problems)
    facts: list[RunFacts] = []
    for run in runs:
        with collected(problems, run.where):
            facts.append(examine(study, run))
    if facts and all(run.left_out for run in facts):
        problems.extend(run.left_out for run in facts if run.left_out)
    check_brain_models(facts, problems)
    node_coords = check_nodes(study, facts, problems)
    check_map_grids(study, facts, problems)
    check_map_statistics(study, facts, problems)
    _check_voxelwise(study, facts, problems)
    if are_known:
        _check_covariates(study, runs, participants, problems)
        check_families(study, node_coords, problems)
        check_reliability(study, [run.run for run in facts], participants, problems)
        _check_contrasts(study, runs, participants, sessions, problems)
    return Survey(
        runs=tuple(facts),
        found=found,
        participants=participants,
        sessions=sessions,
        node_coords=node_coords,
        left_out=left_out,
        problems=tuple(problems),
    )


def _check_voxelwise(study: Study, facts: list[RunFacts], problems: list[KconnError]) -> None:
    """Check what is made of the voxels of all runs together: group ICA and the dense connectome."""
    for name, table in study.ica.items():
        with collected(problems, of=f"ica.{name}"):
            check_one_grid([run.template for run in facts])
            templates = load_templates({role: study.folder / path for role, path in table.files().items()})
            if templates is not None and facts:
                check_place(templates, facts[0].template)
    if study.dense is not None:
        with collected(problems, of="dense"):
            check_one_grid([run.template for run in facts])
            wanted = study.dense.sessions
            runs = [run for run in facts if wanted is None or run.run.session in wanted]
            if not runs:
                raise InputError(
                    "E-NO-RUNS",
                    f"there is no run of the sessions {wanted}",
                    rule="sessions of [dense] exist",
                    fix=f"the sessions are {', '.join(sorted({run.run.session for run in facts}))}",
                )
            n_voxel = max(run.n_voxel for run in runs)
            check_dense_time(n_voxel, sum(run.n_time for run in runs), max_hours=study.dense.max_hours)


def find_runs(study: Study) -> list[Run]:
    """Return the runs of a study, sorted."""
    inputs = study.inputs
    root = study.folder / inputs.root
    if inputs.layout == "fmriprep":
        return layout.find_runs_fmriprep(root, task=inputs.task, space=inputs.space, res=inputs.res, den=inputs.den)
    if inputs.layout == "hcp":
        return layout_hcp.find_runs_hcp(root, task=inputs.task, variant=inputs.variant)
    pattern, fd, confounds = str(inputs.pattern), inputs.fd_pattern, inputs.confounds_pattern
    if inputs.layout == "images":
        runs = layout.find_runs_images(
            root, pattern=pattern, mask_pattern=inputs.mask_pattern, fd_pattern=fd, confounds_pattern=confounds
        )
    elif inputs.layout == "cifti":
        runs = layout.find_runs_cifti(root, pattern=pattern, fd_pattern=fd, confounds_pattern=confounds)
    else:
        runs = layout.find_runs_tables(root, pattern=pattern, fd_pattern=fd, confounds_pattern=confounds)
    return [replace(run, task=inputs.task, space=inputs.space) for run in runs]


def read_people(study: Study, runs: Iterable[Run]) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return the participants table, with a bare row per subject where there is none, and the sessions table."""
    inputs = study.inputs
    paths = (None if name is None else study.folder / name for name in (inputs.participants, inputs.sessions))
    return tables.read_people(
        *paths,
        subjects=[run.subject for run in runs],
        id_column=inputs.participants_id,
        id_format=inputs.participants_id_format,
    )


def _include(
    study: Study, runs: list[Run], participants: pd.DataFrame, problems: list[KconnError]
) -> tuple[list[Run], dict[str, str]]:
    """Apply ``[inputs] include``; every subject with a run must have a row."""
    left_out: dict[str, str] = {}
    subjects = {run.subject for run in runs}
    with collected(problems):
        tables.check_ids(sorted(subjects), participants.index, what="participants table")
    for column, wanted in study.inputs.include.items():
        if column not in participants.columns:
            problems.append(
                StudyFileError(
                    "E-STUDY-VALUE",
                    f"inputs.include names the column {column!r}",
                    rule=f"the participants table has {', '.join(map(str, participants.columns))}",
                    fix="correct the name",
                )
            )
            continue
        values = wanted if isinstance(wanted, list) else [wanted]
        out = participants.index[~participants[column].isin(values)]
        left_out |= {str(subject): f"{column} is not {' or '.join(map(str, values))}" for subject in out}
    left_out |= {str(subject): "no run was found" for subject in participants.index if subject not in subjects}
    included = [run for run in runs if run.subject not in left_out]
    if not included:
        problems.append(
            InputError(
                "E-NO-RUNS",
                "inputs.include leaves no subject that has a run",
                rule="at least one run is used",
                fix="correct inputs.include",
            )
        )
    return included, left_out


def _check_outputs(study: Study, problems: list[KconnError]) -> None:
    """Refuse a store or report that cannot be where the study file wants it."""
    for key, path in (("store", study.store), ("report", study.report)):
        if isinstance(path, ObjectFolder):  # a bucket is asked when it is opened
            continue
        above = next(folder for folder in path.parents if folder.exists())
        if not above.is_dir() or (path.exists() and path.is_dir() != (key == "store")):
            problems.append(
                StudyFileError(
                    "E-STUDY-VALUE",
                    f"study.{key} = {getattr(study.study, key)!r} cannot be written: something else is in the way",
                    rule="the store is a folder of its own, the report a file; what is above them are folders",
                    fix=f"name another place in [study] {key}",
                )
            )


def _check_covariates(study: Study, runs: list[Run], participants: pd.DataFrame, problems: list[KconnError]) -> None:
    """Evaluate the covariates of QC-FC for everybody who has a run."""
    if names := study.quality.qc_fc_covariates:
        with collected(problems, of="quality.qc_fc_covariates"):
            evaluate_formula(" + ".join(names), participants.loc[sorted({run.subject for run in runs})])


def _check_contrasts(
    study: Study,
    runs: list[Run],
    participants: pd.DataFrame,
    sessions: pd.DataFrame | None,
    problems: list[KconnError],
) -> None:
    """Build the design of every contrast as if every run were usable."""
    netmat = expect_cohort(runs)
    for name in study.contrasts:
        with collected(problems, of=f"contrasts.{name}"):
            arrangement = arrange_contrast(study, name, netmat, participants, sessions)
            _refuse_strangers(arrangement)
            rehearse_test(arrangement)


def _refuse_strangers(arrangement: Arrangement) -> None:
    """Refuse a list of ids that names a row without any run; one whose runs are left out later is listed instead."""
    if strangers := [row for row, reason in arrangement.test.left_out.items() if reason == NO_RUN]:
        raise InputError(
            "E-ID-EXTRA",
            f"the list of ids names {', '.join(strangers[:5])}, which has no run",
            rule="every id of a supplied design is that of an observation",
            fix="correct the list; ids are labels such as sub-01, or sub-01_ses-1 where rows are sessions",
        )


def expect_cohort(runs: Iterable[Run]) -> xr.DataArray:
    """Return the cohort as it will be if every run is usable: ``(observation, edge)`` of zeros, with its labels."""
    observations = sorted({(run.subject, run.session) for run in runs})
    return xr.DataArray(
        np.zeros((len(observations), 1)),
        dims=("observation", "edge"),
        coords={
            "observation": ("observation", np.array([f"{subject}/{session}" for subject, session in observations])),
            "subject": ("observation", np.array([subject for subject, _ in observations], dtype=object)),
            "session": ("observation", np.array([session for _, session in observations], dtype=object)),
        },
    )


def arrange_contrast(
    study: Study, name: str, cohort: xr.DataArray, participants: pd.DataFrame, sessions: pd.DataFrame | None
) -> Arrangement:
    """Return the call that tests a contrast of a study; see `kconn.study.contrasts.arrange_test`."""
    files = {role: study.folder / path for role, path in study.contrasts[name].roles.items()}
    return arrange_test(cohort, participants, sessions, study.test_params(name), files)
