"""One run as its files describe it: headers, confounds, masks, companions; nothing is computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from kconn.clean.confounds import Header, select
from kconn.clean.frames import check_motion_filter
from kconn.errors import InputError, KconnError, StudyFileError
from kconn.grayordinates import has_grayordinates
from kconn.io import cifti, layout, nifti, regressors, tables
from kconn.io.layout import Run
from kconn.io.nifti_header import check_t_r
from kconn.kernels.filtering import check_band
from kconn.study.denoise_rehearsal import Rehearsal, known_frames, rehearse_denoising
from kconn.study.file import Study
from kconn.study.noise_regions import load_noise_regions
from kconn.study.table import unless_off


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
    rehearsal
        What denoising will leave of the run, as far as its tables tell.
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
    rehearsal: Rehearsal = field(default_factory=Rehearsal)

    @property
    def left_out(self) -> InputError | None:
        """Why denoising will leave the run out, where that is known."""
        return self.rehearsal.left_out

    @property
    def n_kept(self) -> int:
        """Frames that are kept at most."""
        return self.n_time if self.rehearsal.n_kept is None else self.rehearsal.n_kept

    @property
    def df_left(self) -> int | None:
        """Degrees of freedom that denoising leaves at most, where that is known."""
        return self.rehearsal.df_left

    @property
    def where(self) -> str:
        """``sub-01/ses-1/run-1``."""
        return self.run.where


@contextmanager
def collected(problems: list[KconnError], where: str = "", *, of: str = "") -> Iterator[None]:
    """Keep an error for the list, with its place, and of which part of the study file it speaks."""
    try:
        yield
    except KconnError as error:
        place = ", ".join(filter(None, (of, error.where or where)))
        problems.append(error.at(place, anew=True))


def examine(study: Study, run: Run) -> RunFacts:
    """Look at the files of one run without computing anything."""
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
    rehearsal = _check_confounds(study, facts)
    if study.makes_compcor:
        _check_noise_regions(study, facts)
    return replace(facts, rehearsal=rehearsal)


def _check_confounds(study: Study, facts: RunFacts) -> Rehearsal:
    """Read every table of regressors of a run, find in them what the study asks for, and rehearse denoising."""
    denoise, where = study.denoise, facts.where
    found = regressors.read_run_regressors(
        {role: study.folder / path for role, path in facts.files.items()},
        {name: table.form for name, table in study.regressors.items()},
        n_time=facts.n_time,
        t_r=float(facts.template.attrs["t_r"]),
        where=where,
    )
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
        header = Header(names=found.names, compcor=found.compcor, noise_components=found.noise_components)
        select(header, strategy, has_high_pass=unless_off(denoise.high_pass) is not None, where=where)
    known = known_frames(
        found,
        study.folder / facts.files["fd"] if "fd" in facts.files else None,
        n_time=facts.n_time,
        t_r=float(facts.template.attrs["t_r"]),
        where=where,
    )
    return rehearse_denoising(study, known, strategy)


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
    assert inputs.t_r is not None  # noqa: S101 - likewise
    t_r = check_t_r(inputs.t_r, "stated", where=run.where)
    table = tables.read_timeseries(
        run.timeseries, orientation=inputs.orientation, has_header=inputs.has_header, where=run.where
    )
    n_node, n_time = len(table.names), table.values.shape[1]
    names = np.array(table.names, dtype=object)
    return RunFacts(
        run=run,
        files=_files(study, run),
        space=run.space,
        n_time=n_time,
        n_voxel=n_node,
        itemsize=8,
        n_bytes=run.timeseries.stat().st_size,
        template=xr.Dataset(coords={"column": ("column", names)}, attrs={"where": run.where, "t_r": t_r}),
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
