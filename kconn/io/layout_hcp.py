"""Where the runs of an HCP-style study are: dtseries below ``MNINonLinear/Results``, with the motion beside them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kconn.errors import InputError
from kconn.io import layout
from kconn.io.identifiers import canonical_label
from kconn.io.layout import NO_LABEL, Run

#: Space of every dense series that the HCP pipelines write into ``MNINonLinear``.
SPACE: Final = "fsLR"
#: Label of the task of every ``rfMRI`` run.
REST: Final = "rest"
MOTION: Final = "Movement_Regressors.txt"
RELATIVE_RMS: Final = "Movement_RelativeRMS.txt"

_ENDING: Final = ".dtseries.nii"
_RESULTS: Final = f"*/MNINonLinear/Results/*/*{_ENDING}"
# 100307, or HCA6002236_V1_MR: subject, visit, and the mark of a magnetic resonance session.
_FOLDER: Final = re.compile(
    r"(?P<subject>(?:sub-)?[A-Za-z0-9]+)(?:_(?!MR$)(?P<visit>(?:ses-)?[A-Za-z0-9]+))?(?:_MR)?", re.ASCII
)
# rfMRI_REST1_LR, tfMRI_WM_RL, rfMRI_REST1_7T_PA.
_RUN: Final = re.compile(
    r"(?P<kind>[rt])fMRI_(?P<scan>[A-Za-z0-9]+)(?:_(?P<field>7T))?_(?P<direction>LR|RL|AP|PA)", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """A dtseries as its path describes it."""

    path: Path
    folder: str
    name: str
    parts: re.Match[str]
    variant: str

    @property
    def task(self) -> str:
        """``rest``, or the task of a ``tfMRI`` run."""
        return REST if self.parts["kind"] == "r" else self.parts["scan"]


def looks_like_hcp(root: Path) -> bool:
    """Return whether a folder holds subjects with ``MNINonLinear/Results``."""
    return next(root.glob("*/MNINonLinear/Results"), None) is not None


def find_runs_hcp(root: Path, *, task: str | None = None, variant: str | None = None) -> list[Run]:
    """Find ``<subject>/MNINonLinear/Results/<run>/<run>_<variant>.dtseries.nii`` below a folder.

    A run is named by kind (``rfMRI``, ``tfMRI``), scan and phase encoding direction (``LR RL AP PA``); files that are
    named otherwise, as the concatenation ``rfMRI_REST``, are no runs. Where the folder of a subject states a visit
    (``HCA6002236_V1_MR``), that is the session and ``rfMRI_REST1_AP`` the run ``REST1AP``. Where it states none
    (``100307``), the scan is the session, as each was made on its own day: ``rfMRI_REST1_LR`` is run ``LR`` of session
    ``REST1``.

    Parameters
    ----------
    root
        Folder of the subjects.
    task
        ``tfMRI`` task, as ``WM``; resting state if None.
    variant
        What stands between run and ``.dtseries.nii``, as ``Atlas_MSMAll_hp0_clean``; needed if there are several.

    Returns
    -------
    Runs sorted by subject, session and run, with `MOTION` and `RELATIVE_RMS` where they are there.

    Raises
    ------
    InputError
        ``E-NO-RUNS`` saying what was found; ``E-AMBIGUOUS`` if variants are several and none was chosen;
        ``E-FILE-MISSING`` if a run lacks the variant, the folder does not exist, or a file lies outside it; ``E-ID``;
        ``E-ID-DUPLICATE``.
    """
    root = layout.check_root(root)
    series = _of_task(_find_series(root), task or REST)
    variant = _choose_variant(series, variant)
    chosen = [one for one in series if one.variant == variant]
    names = {(one.folder, one.name) for one in chosen}
    if lacking := sorted({(one.folder, one.name) for one in series} - names):
        raise InputError(
            "E-FILE-MISSING",
            f"{len(lacking)} runs have no {variant}{_ENDING}, the first is {lacking[0][1]}",
            where=lacking[0][0],
            rule="every run has the same variant",
            fix="finish its preprocessing, choose another inputs.variant, or move the run out of the folder",
        )
    runs = [_to_run(one, root) for one in chosen]
    layout.check_runs(runs)
    return sorted(runs, key=lambda run: (run.subject, run.session, run.run))


def list_variants(root: Path, *, task: str | None = None) -> dict[str, int]:
    """Return the variants of the series of a task, sorted, with how many runs have each.

    Raises
    ------
    InputError
        ``E-FILE-MISSING`` if the folder does not exist; ``E-NO-RUNS``.
    """
    series = _of_task(_find_series(layout.check_root(root)), task or REST)
    return dict(sorted(Counter(one.variant for one in series).items()))


def _find_series(root: Path) -> list[_Series]:
    found = []
    for path in sorted(root.glob(_RESULTS)):
        name, folder = path.parent.name, path.relative_to(root).parts[0]
        parts = _RUN.fullmatch(name)
        variant = path.name.removeprefix(f"{name}_").removesuffix(_ENDING)
        if parts is not None and path.name == f"{name}_{variant}{_ENDING}" and variant.startswith("Atlas"):
            found.append(_Series(path=path, folder=folder, name=name, parts=parts, variant=variant))
    return found


def _of_task(series: list[_Series], task: str) -> list[_Series]:
    kept = [one for one in series if one.task == task]
    if kept:
        return kept
    found = Counter(one.task for one in series)
    raise layout.no_runs(
        f"no dtseries of task {task!r} was found; there are {layout.listed(found)}"
        if found
        else "no <subject>/MNINonLinear/Results/<run>/<run>_Atlas*.dtseries.nii was found, with <run> as rfMRI_REST1_LR"
    )


def _choose_variant(series: list[_Series], variant: str | None) -> str:
    found = Counter(one.variant for one in series)
    if variant is None and len(found) > 1:
        raise InputError(
            "E-AMBIGUOUS",
            f"there are {len(found)} variants of the series: {layout.listed(found)}",
            rule="runs of one study have one surface registration and one cleaning",
            fix="state inputs.variant in the study file",
        )
    if variant is not None and variant not in found:
        raise layout.no_runs(f"no series is {variant}{_ENDING}; there are {layout.listed(found)}")
    return variant or next(iter(found))


def _to_run(one: _Series, root: Path) -> Run:
    parts = _FOLDER.fullmatch(one.folder)
    subject, visit = (one.folder, None) if parts is None else (parts["subject"], parts["visit"])
    scan, how = one.parts["scan"], (one.parts["field"] or "") + one.parts["direction"]
    session, run = (scan, how) if visit is None else (visit, scan + how)
    return Run(
        subject=canonical_label(subject, prefix="sub"),
        session=canonical_label(session or NO_LABEL, prefix="ses"),
        run=run,
        bold=layout.inside(one.path, root),
        confounds=layout.beside(one.path, root, [MOTION]),
        relative_rms=layout.beside(one.path, root, [RELATIVE_RMS]),
        task=one.task,
        space=SPACE,
    )
