"""Everything about a study that can be checked before any compute: runs, headers, tables, atlases, designs."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.confounds import MOTION, Header, build_columns, compute_term, select, select_terms
from kconn.contrasts import Arrangement, arrange_test
from kconn.design import NO_RUN
from kconn.dual_regression import check_maps
from kconn.errors import InputError, KconnError, StudyFileError, first_of
from kconn.frames import DISPLACEMENT_COLUMNS, check_motion_filter
from kconn.grayordinates import has_grayordinates, read_grayordinates
from kconn.io import cifti, layout, layout_hcp, nifti, regressors, tables
from kconn.io.layout import Run
from kconn.kernels.filtering import check_band
from kconn.kinds import KINDS
from kconn.netmats import PARTIAL_KINDS, check_rank
from kconn.nodes import AFFINE_TOLERANCE
from kconn.nodesets import load_nodes, load_templates
from kconn.noise_regions import load_noise_regions
from kconn.parcellation import Columns, NodeSet, find_dense_members, find_members
from kconn.rehearsal import rehearse_test
from kconn.sliding_windows import plan_windows
from kconn.spatial_maps import SpatialMaps
from kconn.study import NodesTable, Study, unless_off
from kconn.voxel_checks import check_dense_time, check_one_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of one run before its data are read.

    Attributes
    ----------
    run
        Labels and files.
    files
        Role -> path relative to the study file.
    space
        BIDS space, or None.
    n_time, n_voxel, itemsize
        Frames, voxels or columns, bytes per stored value.
    n_bytes
        Size of the file.
    template
        A Dataset with the grid or the columns and the attrs of the run, but no data.
    regions
        Role -> path of the masks that CompCor is computed from.
    """

    run: Run
    files: Mapping[str, str]
    space: str | None
    n_time: int
    n_voxel: int
    itemsize: int
    n_bytes: int
    template: xr.Dataset = field(repr=False)
    regions: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """``sub-01/ses-1/run-1``."""
        return self.run.where


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
    node_names
        Node set -> names of its nodes.
    left_out
        Subject -> why no run of it is used.
    problems
        What has to be put right before the study can run.
    """

    runs: tuple[RunFacts, ...]
    found: tuple[Run, ...]
    participants: pd.DataFrame
    sessions: pd.DataFrame | None
    node_names: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str]
    problems: tuple[KconnError, ...]

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
    with _collected(problems):
        participants, sessions = read_people(study, runs)
    left_out: dict[str, str] = {}
    if not problems:
        runs, left_out = _include(study, runs, participants, problems)
    are_known = not problems
    _check_outputs(study, problems)
    facts: list[RunFacts] = []
    for run in runs:
        with _collected(problems, run.where):
            facts.append(_examine(study, run))
    _check_brain_models(facts, problems)
    node_names = _check_nodes(study, facts, problems)
    _check_map_grids(study, facts, problems)
    _check_map_statistics(study, problems)
    _check_voxelwise(study, facts, problems)
    if are_known:
        _check_contrasts(study, runs, participants, sessions, problems)
    return Survey(
        runs=tuple(facts),
        found=found,
        participants=participants,
        sessions=sessions,
        node_names=node_names,
        left_out=left_out,
        problems=tuple(problems),
    )


def _check_voxelwise(study: Study, facts: list[RunFacts], problems: list[KconnError]) -> None:
    """Check what is made of the voxels of all runs together: group ICA and the dense connectome."""
    for name, table in study.ica.items():
        with _collected(problems, of=f"ica.{name}"):
            check_one_grid([run.template for run in facts])
            load_templates({role: study.folder / path for role, path in table.files().items()})
    if study.dense is not None:
        with _collected(problems, of="dense"):
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


@contextmanager
def _collected(problems: list[KconnError], where: str = "", *, of: str = "") -> Iterator[None]:
    """Keep an error for the list, with its place, and of which part of the study file it speaks."""
    try:
        yield
    except KconnError as error:
        place = ", ".join(filter(None, (of, error.where or where)))
        problems.append(error.at(place, anew=True))


def _include(
    study: Study, runs: list[Run], participants: pd.DataFrame, problems: list[KconnError]
) -> tuple[list[Run], dict[str, str]]:
    """Apply ``[inputs] include``; every subject with a run must have a row."""
    left_out: dict[str, str] = {}
    subjects = {run.subject for run in runs}
    with _collected(problems):
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


def _examine(study: Study, run: Run) -> RunFacts:
    facts = _choose_examination(study, run)(study, run)
    denoise, template = study.denoise, facts.template
    high_pass, low_pass = map(unless_off, (denoise.high_pass, denoise.low_pass))
    check_band(facts.n_time, t_r=float(template.attrs["t_r"]), high_pass=high_pass, low_pass=low_pass)
    if denoise.motion_band is not None:
        check_motion_filter(denoise.motion_band, t_r=float(template.attrs["t_r"]), where=run.where)
    if denoise.smoothing_fwhm != "none" and "grid_shape" not in template.attrs:
        raise StudyFileError(
            "E-SMOOTH",
            f"denoise.smoothing_fwhm = {denoise.smoothing_fwhm}, and the run has no grid of voxels",
            where=run.where,
            rule="only volumes are smoothed; node series have no neighbours, and a surface is smoothed along itself",
            fix='set smoothing_fwhm = "none"',
        )
    _check_confounds(study, facts)
    if study.makes_compcor:
        _check_noise_regions(study, facts)
    return facts


def _check_confounds(study: Study, facts: RunFacts) -> None:
    """Read every table of regressors of a run and find in them what the study asks for."""
    denoise, where = study.denoise, facts.where
    found = regressors.read_run_regressors(
        {role: study.folder / path for role, path in facts.files.items()},
        {name: table.form for name, table in study.regressors.items()},
        n_time=facts.n_time,
        t_r=float(facts.template.attrs["t_r"]),
        where=where,
    )
    names = () if found is None else found.names
    strategy = replace(study.strategy, compcor=()) if study.makes_compcor else study.strategy
    if found is None and strategy.needs_table:
        raise InputError(
            "E-FILE-MISSING",
            f"the run has no confound table, and denoise.confounds is {denoise.confounds!r}",
            where=where,
            rule="confounds come from a table beside the run, or from [regressors]",
            fix='add the table, or set confounds = "none"',
        )
    if found is not None and strategy.needs_table:
        header = Header(names=names, compcor=found.compcor, noise_components=found.noise_components)
        selection = select(header, strategy, has_high_pass=unless_off(denoise.high_pass) is not None, where=where)
        # Frames that censoring drops may hold anything; which those are is known when the run is denoised.
        if denoise.fd_threshold == denoise.dvars_threshold == "none":
            values = build_columns(found.values, names, selection.all_terms)
            _refuse_missing(values[denoise.dummy_frames :], [term.name for term in selection.all_terms], facts)
    computes = denoise.motion_filter != "none" or denoise.fd_radius != "none"
    if denoise.fd_threshold != "none" and (computes or denoise.fd_kind != "power" or "fd" not in facts.files):
        if found is None:
            raise InputError(
                "E-FILE-MISSING",
                "the run has no framewise displacement, and denoise.fd_threshold is set",
                where=where,
                rule="framewise displacement comes from the confound table, from fd_pattern or from [regressors]",
                fix='add it, or set fd_threshold = "none"',
            )
        if computes or compute_term(DISPLACEMENT_COLUMNS[denoise.fd_kind], names) is None:
            select_terms(names, MOTION, where=where)


def _refuse_missing(values: npt.NDArray[np.float64], names: list[str], facts: RunFacts) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        i_row, i_column = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            "E-CONFOUND-NAN",
            f"the confound {names[i_column]!r} is not finite in frame {facts.n_time - len(values) + i_row}"
            f" ({int(bad.any(axis=0).sum())} such confounds)",
            where=facts.where,
            rule="only the first frame may be n/a: a difference has nothing before it there, and 0 is put in",
            fix="repair the table, or choose other confounds",
        )


def _check_noise_regions(study: Study, facts: RunFacts) -> None:
    if has_grayordinates(facts.template):
        raise InputError(
            "E-BRAIN-MODELS",
            "CompCor from masks needs voxels of white matter and CSF, the run has grayordinates",
            where=facts.where,
            rule="[compcor] goes with images",
            fix="read the components from the confound table of the run: take [compcor] away",
        )
    attrs, grid_shape = facts.template.attrs, tuple(facts.template.attrs["grid_shape"])
    inside = np.ones(grid_shape, dtype=np.bool_)
    if (mask := facts.files.get("mask")) is not None:
        inside = nifti.read_mask(
            study.folder / mask, grid_shape=inside.shape, affine=attrs["affine"], where=facts.where
        )
    load_noise_regions(
        {role: study.folder / path for role, path in facts.regions.items()},
        study.strategy.compcor,
        erode=study.compcor.erode,
        affine=attrs["affine"],
        inside=inside,
        where=facts.where,
    )


def _choose_examination(study: Study, run: Run) -> Callable[[Study, Run], RunFacts]:
    if study.inputs.layout == "tables":
        return _examine_table
    return _examine_cifti if run.bold is not None and cifti.is_series(run.bold) else _examine_image


def _examine_cifti(study: Study, run: Run) -> RunFacts:
    inputs = study.inputs
    assert run.bold is not None  # noqa: S101 - the layout gives every CIFTI run its file
    sidecar_t_r = None if run.sidecar is None else nifti.read_sidecar_t_r(run.sidecar, where=run.where)
    header = cifti.read_series_header(run.bold, where=run.where, t_r=inputs.t_r, sidecar_t_r=sidecar_t_r)
    attrs: dict[str, Any] = {"where": run.where, "t_r": header.t_r}
    if isinstance(header.places, cifti.Parcels):
        coords: dict[str, Any] = {"column": ("column", np.array(header.places.names, dtype=object))}
    else:
        coords = header.places.coords()
        attrs |= header.places.attrs()
    dtype = np.dtype(header.matrix.dtype)
    return RunFacts(
        run=run,
        files=_files(study, run),
        space=run.space,
        n_time=header.n_time,
        n_voxel=header.n_row,
        itemsize=dtype.itemsize if dtype.kind in "iu" and dtype.itemsize <= 2 else 4,
        n_bytes=run.bold.stat().st_size,
        template=xr.Dataset(coords=coords, attrs=attrs),
    )


def _examine_image(study: Study, run: Run) -> RunFacts:
    inputs = study.inputs
    assert run.bold is not None  # noqa: S101 - the layout gives every image run its file
    sidecar_t_r = None if run.sidecar is None else nifti.read_sidecar_t_r(run.sidecar, where=run.where)
    header = nifti.read_header(run.bold, where=run.where, t_r=inputs.t_r, sidecar_t_r=sidecar_t_r)
    attrs = {"where": run.where, "t_r": header.t_r, "affine": header.affine, "grid_shape": list(header.grid_shape)}
    n_voxel = header.n_voxel
    if inputs.mask == "brain":
        if run.mask is None:
            raise InputError(
                "E-FILE-MISSING",
                "the run has no brain mask",
                where=run.where,
                rule="inputs.mask is 'brain'",
                fix='add its desc-brain_mask, or set mask = "none"',
            )
        mask = nifti.read_mask(run.mask, grid_shape=header.grid_shape, affine=header.affine, where=run.where)
        n_voxel = int(mask.sum())
    itemsize = np.dtype(header.dtype).itemsize
    return RunFacts(
        run=run,
        files=_files(study, run),
        space=run.space,
        n_time=header.n_time,
        n_voxel=n_voxel,
        itemsize=itemsize if np.dtype(header.dtype).kind in "iu" and itemsize <= 2 else 4,
        n_bytes=run.bold.stat().st_size,
        template=xr.Dataset(attrs=attrs),
        regions=_regions(study, run),
    )


def _examine_table(study: Study, run: Run) -> RunFacts:
    inputs = study.inputs
    assert run.timeseries is not None  # noqa: S101 - the layout gives every table run its file
    assert inputs.orientation is not None  # noqa: S101 - the study file states it for this layout
    table = tables.read_timeseries(
        run.timeseries, orientation=inputs.orientation, has_header=inputs.has_header, where=run.where
    )
    n_node, n_time = len(table.names), table.values.shape[1]  # noqa: PD011 - no DataFrame
    if (fd := run.fd) is not None:
        tables.read_vector(fd, n_time=n_time, where=run.where)
    names = np.array(table.names, dtype=object)
    return RunFacts(
        run=run,
        files=_files(study, run),
        space=run.space,
        n_time=n_time,
        n_voxel=n_node,
        itemsize=8,
        n_bytes=run.timeseries.stat().st_size,
        template=xr.Dataset(coords={"column": ("column", names)}, attrs={"where": run.where, "t_r": inputs.t_r}),
    )


#: Endings of a confound table -> those of its sidecar, of the mixing matrix and of AROMA's list beside it.
_SIDECARS: Final = {"_timeseries.tsv": "_timeseries.json", "_regressors.tsv": "_regressors.json"}
_STEMS: Final = ("_desc-confounds_timeseries.tsv", "_desc-confounds_regressors.tsv", "_bold_confounds.tsv")
_BESIDE: Final = {
    "mixing": ("_desc-MELODIC_mixing.tsv", "_bold_MELODICmix.tsv"),
    "noise": ("_AROMAnoiseICs.csv", "_bold_AROMAnoiseICs.csv"),
}


def _files(study: Study, run: Run) -> dict[str, str]:
    found: dict[str, Path | None] = {
        "bold": run.bold,
        "timeseries": run.timeseries,
        "mask": run.mask if study.inputs.mask == "brain" else None,
        "confounds": run.confounds,
        "sidecar": run.sidecar,
        "fd": run.fd,
        "relative_rms": run.relative_rms,
    }
    root = study.folder / study.inputs.root
    if run.confounds is not None:
        found["confounds_sidecar"] = layout.find_beside(run.confounds, root, _SIDECARS)
        if study.strategy.components != "none":
            for role, endings in _BESIDE.items():
                beside = (layout.find_beside(run.confounds, root, dict.fromkeys(_STEMS, ending)) for ending in endings)
                found[role] = next((path for path in beside if path is not None), None)
        if found.get("mixing") is None:
            found.pop("noise", None)
    return _relative(study, {**found, **_companions(study, run, ("regressors:", "mixing", "noise"))})


def _regions(study: Study, run: Run) -> dict[str, str]:
    return _relative(study, _companions(study, run, ("white_matter", "csf"))) if study.makes_compcor else {}


def _companions(study: Study, run: Run, roles: tuple[str, ...]) -> dict[str, Path]:
    """Return the files that patterns of the study file describe for a run."""
    root = study.folder / study.inputs.root
    return {
        role: layout.find_companion(root, pattern, run, what=role.replace(":", ".").replace("_", " "))
        for role, pattern in study.patterns.items()
        if role.startswith(roles)
    }


def _relative(study: Study, found: Mapping[str, Path | None]) -> dict[str, str]:
    return {role: os.path.relpath(path, study.folder) for role, path in found.items() if path is not None}


def _check_brain_models(facts: list[RunFacts], problems: list[KconnError]) -> None:
    """Refuse runs whose grayordinates are not those of the first: maps of a cohort need one row per place."""
    dense = [run for run in facts if has_grayordinates(run.template)]
    for run in dense[1:]:
        if run.template.attrs["brain_models"] != dense[0].template.attrs["brain_models"]:
            mine, first = (read_grayordinates(each.template).describe() for each in (run, dense[0]))
            problems.append(
                InputError(
                    "E-BRAIN-MODELS",
                    f"it has {mine}; {dense[0].where} has {first}",
                    where=run.where,
                    rule="all runs have the same grayordinates, in the same order",
                    fix="make all runs with the same version and settings of their pipeline",
                )
            )
    if dense and len(dense) < len(facts):
        other = next(run for run in facts if not has_grayordinates(run.template))
        problems.append(
            InputError(
                "E-BRAIN-MODELS",
                "it is no series of grayordinates, others are",
                where=other.where,
                rule="all runs of a study are of one kind",
                fix="correct the pattern in [inputs]",
            )
        )


def _check_nodes(study: Study, facts: list[RunFacts], problems: list[KconnError]) -> dict[str, tuple[str, ...]]:
    """Load every node set and place it on the grid of every run; a grid that was seen is not tried again."""
    names_of: dict[str, tuple[str, ...]] = {}
    for name, table in study.nodes.items():
        if table.ica is not None:
            names_of[name] = study.ica[table.ica].accepted()
            _check_components(study, name, table, facts, problems)
            continue
        seen: dict[Any, tuple[str, ...]] = {}
        for run in facts:
            grid = _grid(run)
            with _collected(problems, run.where, of=f"nodes.{name}"):
                if grid not in seen:
                    seen[grid] = ()
                    nodes = _load(study, table, run)
                    _place(nodes, run)
                    seen[grid] = nodes.names
                    if study.contrasts:
                        _check_number(table, nodes)
                if table.netmats:
                    _check_kinds(study, run, len(seen[grid]))
        names_of[name] = max(seen.values(), key=len, default=())
    return names_of


def _check_components(
    study: Study, name: str, table: NodesTable, facts: list[RunFacts], problems: list[KconnError]
) -> None:
    """Check what is made of components that nobody has seen yet, from their number."""
    n_node = len(study.ica[str(table.ica)].accepted())
    for run in facts:
        with _collected(problems, run.where, of=f"nodes.{name}"):
            if "affine" not in run.template.attrs:
                raise InputError(
                    "E-BRAIN-MODELS",
                    "components of grayordinates cannot be nodes",
                    rule="components are fitted to volumes",
                    fix="export them, and take them as an atlas or as maps of volumes",
                )
            if table.netmats:
                _check_kinds(study, run, n_node)


def _check_number(table: NodesTable, nodes: NodeSet | SpatialMaps) -> None:
    if table.netmats and len(nodes.names) < 2:
        raise InputError(
            "E-NODES",
            f"the node set has the node {nodes.names[0]!r} alone",
            rule="a connection that can be tested needs two nodes",
            fix="write netmats = false and seed_maps = true, or add nodes",
        )


def _check_map_statistics(study: Study, problems: list[KconnError]) -> None:
    """Refuse statistics of clusters of voxels without saying which voxels are neighbours."""
    if not any(table.map_kinds() for table in study.nodes.values()):
        return
    for name in study.contrasts:
        options = study.permutation_of(name)
        if options.statistic not in {"edge", "voxel", "nbs"} and options.neighbours is None:
            problems.append(
                StudyFileError(
                    "E-STUDY-VALUE",
                    f"contrasts.{name} has statistic = {options.statistic!r} and no neighbours, and there are maps",
                    rule="of voxels, 6, 18 or 26 are neighbours",
                    fix="write neighbours = 26 in the contrast or in [permutation]",
                )
            )


def _check_map_grids(study: Study, facts: list[RunFacts], problems: list[KconnError]) -> None:
    """Refuse runs on several grids where maps of them are to be put together."""
    if not any(table.map_kinds() for table in study.nodes.values()):
        return
    images = [run for run in facts if "affine" in run.template.attrs]
    for run in images[1:]:
        with _collected(problems, run.where, of="maps"):
            first, here = (np.asarray(other.template.attrs["affine"]) for other in (images[0], run))
            shapes = [list(other.template.attrs["grid_shape"]) for other in (images[0], run)]
            if shapes[0] != shapes[1] or np.abs(first - here).max() > AFFINE_TOLERANCE:
                raise InputError(
                    "E-GRID",
                    f"the run is on a grid of {shapes[1]}, that of {images[0].where} on {shapes[0]}, or their affines "
                    "differ",
                    rule=f"maps of one cohort share one grid, shape equal and affine equal to {AFFINE_TOLERANCE:g} mm",
                    fix="resample the runs to one grid, or take seed_maps and subject_maps out of [nodes]",
                )


def _check_kinds(study: Study, run: RunFacts, n_node: int) -> None:
    """Refuse kinds of netmat that the longest series this run can give is too short for."""
    table = study.connectivity
    for name in table.kinds:
        kind = KINDS[name]
        if kind.needs_rank or (table.z == "ar1" and kind.estimator in PARTIAL_KINDS):
            check_rank(run.n_time, n_node)
        if name == "corrsd":
            t_r = float(run.template.attrs["t_r"])
            plan_windows(run.n_time, t_r=t_r, window_s=table.window_s, step_s=table.step_s)


def _grid(run: RunFacts) -> Any:
    if "column" in run.template.coords:
        return tuple(run.template["column"].to_numpy())
    if has_grayordinates(run.template):
        return run.template.attrs["brain_models"]
    return (tuple(run.template.attrs["grid_shape"]), np.asarray(run.template.attrs["affine"]).tobytes())


def _load(study: Study, table: NodesTable, run: RunFacts) -> NodeSet | SpatialMaps:
    files = {role: study.folder / path for role, path in table.files().items()}
    return load_nodes(table.model_dump(mode="json"), files, run.template)


def _place(nodes: NodeSet | SpatialMaps, run: RunFacts) -> None:
    if isinstance(nodes, NodeSet) and isinstance(nodes.source, Columns):
        return
    if "column" in run.template.coords:
        raise InputError(
            "E-NODES",
            "an atlas, maps or spheres need images, these runs are tables of node series",
            rule="columns are the nodes of tables",
            fix='write columns = "all"',
        )
    attrs = run.template.attrs
    if has_grayordinates(run.template):
        if isinstance(nodes, SpatialMaps):
            raise InputError(
                "E-BRAIN-MODELS",
                "the maps are images of voxels, the run has grayordinates",
                rule="maps and runs are of one kind",
                fix="take a dlabel as node set, or runs that are images",
            )
        find_dense_members(nodes, read_grayordinates(run.template), where=run.where)
        return
    if isinstance(nodes, SpatialMaps):
        check_maps(nodes, tuple(attrs["grid_shape"]), np.asarray(attrs["affine"]), where=run.where)
        return
    find_members(nodes, tuple(attrs["grid_shape"]), np.asarray(attrs["affine"]), where=run.where)


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
        with _collected(problems, of=f"contrasts.{name}"):
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
    """Return the call that tests a contrast of a study; see `kconn.contrasts.arrange_test`."""
    contrast = study.contrasts[name]
    params = {"hypothesis": contrast.hypothesis, "permutation": study.permutation_of(name).model_dump(mode="json")}
    files = {role: study.folder / path for role, path in contrast.roles.items()}
    return arrange_test(cohort, participants, sessions, params, files)
