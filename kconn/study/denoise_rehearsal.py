"""Denoising of a run before compute: its tables and frames are known, so what they make impossible is as well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

from kconn.clean.censoring import censor
from kconn.clean.confounds import MOTION, Header, Strategy, compute_term
from kconn.clean.denoising import check_fit, find_dependent
from kconn.clean.frames import DISPLACEMENT_COLUMNS
from kconn.clean.quality import STD_DVARS
from kconn.errors import InputError, some_of
from kconn.io import tables
from kconn.io.regressors import RunRegressors
from kconn.study.file import Study
from kconn.study.table import unless_off

#: Errors that speak of one run's motion, not of the study: the run is left out, with the reason.
LEAVES_OUT = frozenset({"E-NO-FRAMES", "E-DF"})
#: Confounds that an error names.
_NAMED: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What denoising will leave of a run.

    Attributes
    ----------
    left_out
        Why the run will be left out, where its tables tell that already.
    n_kept, df_left
        Frames and degrees of freedom that are left at most; None where the tables do not tell.
    """

    left_out: InputError | None = None
    n_kept: int | None = None
    df_left: int | None = None


def known_frames(
    found: RunRegressors | None, fd: Path | None, *, n_time: int, t_r: float, where: str = ""
) -> xr.Dataset:
    """Return a run without its signal: `confounds`, `framewise_displacement` and a mask that keeps every frame.

    Parameters
    ----------
    found
        Its tables of regressors.
    fd
        Its table of framewise displacement.
    n_time, t_r
        Frames, and seconds between them.
    where
        Place for errors.
    """
    ds = xr.Dataset({"sample_mask": ("time", np.ones(n_time, dtype=np.bool_))}, attrs={"t_r": t_r, "where": where})
    if found is not None:
        header = Header(names=found.names, compcor=found.compcor, noise_components=found.noise_components)
        ds = ds.assign(confounds=(("time", "confound"), found.values, header.attrs))
        ds = ds.assign_coords(confound=("confound", np.array(found.names, dtype=object)))
    if fd is not None:
        ds = ds.assign(framewise_displacement=("time", tables.read_vector(fd, n_time=n_time, where=where)))
    return ds


def rehearse_denoising(study: Study, run: xr.Dataset, strategy: Strategy) -> Rehearsal:
    """Return what denoising will leave of a run, as far as its tables tell.

    Parameters
    ----------
    study
        The study file.
    run
        What `known_frames` returns.
    strategy
        What is removed, without what is computed from the signal.

    Raises
    ------
    InputError
        ``E-FILE-MISSING`` or ``E-CONFOUND-COLUMN`` where motion is needed and not known; ``E-CONFOUND-RANK``;
        ``E-CONFOUND-NAN``.
    """
    _check_displacement(study, run)
    has_high_pass = unless_off(study.denoise.high_pass) is not None
    if study.denoise.dependent == "refuse" and strategy.needs_table:
        _refuse_dependent(run, strategy, has_high_pass=has_high_pass)
    try:
        kept = _choose_frames(study, run)
        n_kept, df_left = check_fit(
            run.assign(sample_mask=kept["sample_mask"]),
            confounds=strategy,
            high_pass=unless_off(study.denoise.high_pass),
            low_pass=unless_off(study.denoise.low_pass),
            filter=study.denoise.filter,
            detrend=study.denoise.detrend,
            min_dof=study.quality.min_dof,
        )
    except InputError as error:
        if error.code in LEAVES_OUT:
            return Rehearsal(left_out=error)
        # Frames that the change of the image will drop may hold anything.
        if error.code == "E-CONFOUND-NAN" and _needs_image(study, run):
            return Rehearsal()
        raise
    return Rehearsal(n_kept=n_kept, df_left=df_left)


def _choose_frames(study: Study, run: xr.Dataset) -> xr.Dataset:
    """Return the run with the frames that are kept, as far as its tables tell."""
    denoise = study.denoise
    return censor(
        run,
        fd_threshold=unless_off(denoise.fd_threshold),
        dvars_threshold=None if _needs_image(study, run) else unless_off(denoise.dvars_threshold),
        n_dummy=denoise.dummy_frames,
        n_before=denoise.censor_before,
        n_after=denoise.censor_after,
        min_segment=denoise.min_segment,
        kind=denoise.fd_kind,
        radius=unless_off(denoise.fd_radius),
        motion_filter=denoise.motion_band,
    )


def _needs_image(study: Study, run: xr.Dataset) -> bool:
    return study.denoise.dvars_threshold != "none" and not set(STD_DVARS) & set(_names(run))


def _names(run: xr.Dataset) -> list[str]:
    return run["confound"].to_numpy().tolist() if "confounds" in run else []


def _check_displacement(study: Study, run: xr.Dataset) -> None:
    """Refuse a limit on motion for a run whose motion is not known."""
    denoise, names, where = study.denoise, tuple(_names(run)), str(run.attrs["where"])
    computes = denoise.motion_filter != "none" or denoise.fd_radius != "none"
    limits = {
        "denoise.fd_threshold": (denoise.fd_threshold, denoise.fd_kind, computes),
        "quality.max_mean_fd": (study.quality.max_mean_fd, "power", False),
    }
    for key, (limit, kind, is_computed) in limits.items():
        if limit == "none" or (kind == "power" and not is_computed and "framewise_displacement" in run):
            continue
        if not is_computed and compute_term(DISPLACEMENT_COLUMNS[kind], names) is not None:
            continue
        lacking = [name for name in MOTION if compute_term(name, names) is None]
        if lacking:
            raise InputError(
                "E-CONFOUND-COLUMN" if names else "E-FILE-MISSING",
                f"the run has no framewise displacement ({kind}), and {key} is set; of the six motion parameters its"
                f" tables lack {', '.join(lacking)}",
                where=where,
                rule="framewise displacement comes from the confound table, from fd_pattern or from [regressors]",
                fix=f'add it, or set {key.split(".")[1]} = "none"',
            )


def _refuse_dependent(run: xr.Dataset, strategy: Strategy, *, has_high_pass: bool) -> None:
    kept, dependent = find_dependent(run, confounds=strategy, has_high_pass=has_high_pass)
    if dependent:
        raise InputError(
            "E-CONFOUND-RANK",
            f"the confounds {some_of(dependent, _NAMED)} are constant, or sums of the others: {some_of(kept, _NAMED)}",
            where=str(run.attrs["where"]),
            rule="no confound is a linear combination of those that are named before it",
            fix='leave them out, repair the table, or set denoise.dependent = "drop": they then cost nothing',
        )
