"""Regressors of a run from any table: confounds, motion of other packages, component series and lists, events."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.errors import InputError
from kconn.io.cells import MISSING, Cells, is_number, read_cells, refuse_cells, to_numbers
from kconn.io.streams import open_stream
from kconn.io.tables import ConfoundTable, check_header, read_confounds, read_vector

#: What wrote a table: a named header (or stated columns), SPM's ``rp_*.txt``, FSL's ``.par``, HCP's
#: ``Movement_Regressors.txt``, MELODIC's mixing matrix, or BIDS events.
Format = Literal["table", "spm", "fsl", "hcp", "mixing", "events"]
#: Shapes of the response of blood flow, in nilearn's words.
Hrf = Literal["spm", "spm + derivative", "glover", "glover + derivative"]

_TRANSLATIONS: Final = ("trans_x", "trans_y", "trans_z")
_ROTATIONS: Final = ("rot_x", "rot_y", "rot_z")
_MOTION: Final = _TRANSLATIONS + _ROTATIONS
#: Format -> names of its columns, in fMRIPrep's words; translations are in mm.
_COLUMNS_OF: Final[dict[str, tuple[str, ...]]] = {
    "spm": _MOTION,
    "fsl": _ROTATIONS + _TRANSLATIONS,
    "hcp": _MOTION + tuple(f"{name}_derivative1" for name in _MOTION),
}
#: Component series are numbered from 1, as the lists of components number them.
COMPONENT: Final = "component_{:02d}"
_ROTATION: Final = re.compile(r"rot_[xyz](_derivative1)?")
#: Half a turn in steps of a frame is no head; degrees taken for radians are.
_MAX_ROTATION: Final = np.pi / 2
_HCP: Final = re.compile(r"Movement_Regressors(_dt)?\.txt")
_MAX_JSON_BYTES: Final = 64 * 1024 * 1024
_LABELS: Final = re.compile(r"\[?[\s,\d]*\]?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableForm:
    """How a table of regressors is to be read.

    Parameters
    ----------
    format
        What wrote it.
    columns
        Names for a table that has no header; only with the format ``"table"``.
    rotations
        Unit of the columns ``rot_x``, ``rot_y``, ``rot_z`` and their differences in a ``"table"``.
    prefix
        Put before every name.
    hrf
        For events: what they are convolved with.
    slice_time_ref
        For events: at which share of the repetition time a frame stands; 0 its start, 0.5 its middle.
    """

    format: Format = "table"
    columns: tuple[str, ...] = ()
    rotations: Literal["radians", "degrees"] = "radians"
    prefix: str = ""
    hrf: Hrf = "spm"
    slice_time_ref: float = 0.0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> TableForm:
        """Return the form that plain data describe."""
        return cls(**{**fields, "columns": tuple(fields.get("columns", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRegressors:
    """All regressors of a run.

    Attributes
    ----------
    values
        ``(time, confound)`` float64, NaN for n/a.
    names
        Unique.
    compcor
        Component -> its region (``a`` both tissues, ``w`` white matter, ``c`` CSF, ``t`` by temporal variance) and the
        share of the variance of the region that it and those before it explain, for components whose sidecar says so.
    noise_components
        Numbers, from 1, of the ICA components that are noise; None where there is no list.
    notes
        For the report.
    """

    values: npt.NDArray[np.float64]
    names: tuple[str, ...]
    compcor: Mapping[str, tuple[str, float]]
    noise_components: tuple[int, ...] | None
    notes: tuple[str, ...]


def read_run_regressors(
    files: Mapping[str, Path], forms: Mapping[str, TableForm], *, n_time: int, t_r: float, where: str = ""
) -> RunRegressors | None:
    """Read every table of regressors of a run into one, or return None where there is none.

    Parameters
    ----------
    files
        Role -> path: ``confounds`` (a table with a header, or HCP's ``Movement_Regressors.txt``),
        ``relative_rms`` (HCP's ``Movement_RelativeRMS.txt``: the displacement after Jenkinson, fMRIPrep's ``rmsd``),
        ``confounds_sidecar``, ``mixing``, ``noise``, and ``regressors:NAME``. Other roles are not looked at.
    forms
        ``NAME`` -> how that table is to be read.
    n_time
        Frames of the run.
    t_r
        Repetition time in s.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-CONFOUND-ROWS``, ``E-CONFOUND-NAN``, ``E-COMPONENTS``, ``E-EVENTS``, ``E-SIDECAR``, ``E-TABLE``,
        ``E-TABLE-SHAPE`` and ``E-FILE-MISSING``.
    """
    found: list[tuple[str, ConfoundTable]] = []
    if "confounds" in files:
        found.append(("the confound table", _read_confounds_of(files["confounds"], n_time=n_time, where=where)))
    if "relative_rms" in files:
        rms = read_vector(files["relative_rms"], n_time=n_time, where=where, what="relative displacement")
        found.append(("the relative displacement", ConfoundTable(values=rms[:, None], names=("rmsd",), notes=())))
    if "mixing" in files:
        form = TableForm(format="mixing")
        found.append(("the mixing matrix", read_regressors(files["mixing"], form, n_time=n_time, where=where)))
    for name, form in forms.items():
        path = files[f"regressors:{name}"]
        if form.format == "events":
            table = read_events(
                path,
                n_time=n_time,
                t_r=t_r,
                hrf=form.hrf,
                slice_time_ref=form.slice_time_ref,
                prefix=form.prefix,
                where=where,
            )
        else:
            table = read_regressors(path, form, n_time=n_time, where=where)
        found.append((f"regressors.{name}", table))
    if not found:
        return None
    _refuse_doubles([(name, what) for what, table in found for name in table.names], where=where)
    names = tuple(name for _, table in found for name in table.names)
    noise = None
    if "noise" in files:
        n_component = len(found[[what for what, _ in found].index("the mixing matrix")][1].names)
        noise = read_component_list(files["noise"], n_component=n_component, where=where)
    sidecar = files.get("confounds_sidecar")
    return RunRegressors(
        values=np.hstack([table.values for _, table in found]),  # noqa: PD011 - no DataFrame
        names=names,
        compcor={} if sidecar is None else read_compcor_sidecar(sidecar, names=names, where=where),
        noise_components=noise,
        notes=tuple(note for _, table in found for note in table.notes),
    )


def _read_confounds_of(path: Path, *, n_time: int, where: str) -> ConfoundTable:
    """Read a confound table with a header, or one that is HCP's by its name."""
    if _HCP.fullmatch(path.name):
        return read_regressors(path, TableForm(format="hcp"), n_time=n_time, where=where)
    return read_confounds(path, n_time=n_time, where=where)


def _refuse_doubles(names: Sequence[tuple[str, str]], *, where: str) -> None:
    owner: dict[str, str] = {}
    for name, what in names:
        if name in owner:
            raise InputError(
                "E-TABLE",
                f"{owner[name]} and {what} both have a column {name!r}",
                where=where,
                rule="the regressors of a run have different names",
                fix="give [regressors] a prefix, or leave one of the tables out",
            )
        owner[name] = what


def read_regressors(path: Path, form: TableForm, *, n_time: int, where: str = "") -> ConfoundTable:
    """Read a table of regressors, one row per frame, with names in fMRIPrep's words where it holds motion.

    SPM writes translations (mm), then rotations (radians); FSL the rotations first; HCP translations, rotations in
    degrees, and the backward differences of both. Rotations are returned in radians.

    Parameters
    ----------
    path
        The table; TSV, CSV or text with blanks between the numbers.
    form
        How it is to be read.
    n_time
        Frames of the run.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-CONFOUND-ROWS``; ``E-TABLE-SHAPE`` for another number of columns; ``E-CONFOUND-NAN`` for infinite values
        and, but in the ``"table"`` format, any that is missing; ``E-TABLE`` for text in a column, a header that is
        missing or not expected, and rotations that cannot be radians.
    """
    what = "table of regressors"
    if form.format == "table" and not form.columns:
        table = read_confounds(path, n_time=n_time, where=where)
        return _named(table.values, table.names, form, notes=table.notes, where=where)
    cells = read_cells(path, where=where, what=what)
    if not any(is_number(cell) for cell in cells.rows[0]):
        raise cells.error(
            "E-TABLE",
            f"starts with a row of words, {' '.join(cells.rows[0][:4])[:50]!r} ...",
            rule="a table whose columns are stated has no header",
            fix="leave `columns` away to take the names of the header, or correct `format`",
        )
    names = form.columns or _COLUMNS_OF.get(form.format) or _count_names(cells.n_column)
    if cells.n_column != len(names):
        raise cells.error(
            "E-TABLE-SHAPE",
            f"has {cells.n_column} columns, {len(names)} are expected: {', '.join(names[:12])}",
            rule="one name per column, in their order",
            fix="correct `format` or `columns` in [regressors]",
        )
    _refuse_rows(cells, len(cells.rows), n_time)
    values = to_numbers(cells, missing=MISSING)
    bad = np.isinf(values) if form.format == "table" else ~np.isfinite(values)
    refuse_cells(cells, bad, code="E-CONFOUND-NAN", first_row=0, names=names)
    return _named(values, names, form, notes=(), where=where)


def _count_names(n_column: int) -> tuple[str, ...]:
    return tuple(COMPONENT.format(i + 1) for i in range(n_column))


def _named(
    values: npt.NDArray[np.float64], names: tuple[str, ...], form: TableForm, *, notes: tuple[str, ...], where: str
) -> ConfoundTable:
    """Return the table with rotations in radians and the prefix put before its names."""
    turns = np.array([_ROTATION.fullmatch(name) is not None for name in names])
    if form.format == "hcp" or form.rotations == "degrees":
        values = np.where(turns, np.deg2rad(values), values)
    elif turns.any() and (largest := np.nanmax(np.abs(values[:, turns]), initial=0.0)) > _MAX_ROTATION:
        raise InputError(
            "E-TABLE",
            f"a rotation is {largest:.3g} radians in the table of regressors",
            where=where,
            rule="rotations are in radians: a head turns by less than a quarter turn",
            fix='state rotations = "degrees", or correct `format`: SPM has rotations last, FSL first',
        )
    return ConfoundTable(values=values, names=tuple(form.prefix + name for name in names), notes=notes)


def _refuse_rows(cells: Cells, n_row: int, n_time: int) -> None:
    if n_row != n_time:
        raise cells.error(
            "E-CONFOUND-ROWS",
            f"has {n_row} rows, the run has {n_time} frames",
            rule="one row per frame",
            fix="give the table of this run; if dummy frames were cut from one of them, cut them from both",
        )


def read_component_list(path: Path, *, n_component: int, where: str = "") -> tuple[int, ...]:
    """Read which ICA components are noise, numbered from 1 and sorted.

    Understood are ICA-AROMA's list (``1,2,5``), FIX's and Melview's ``hand_labels_noise.txt`` and
    ``fix4melview_*.txt``, whose last line is the list (``[1, 2, 5]``, also where it is empty), and the numbers of
    HCP's ``Noise.txt`` with blanks between them.

    Parameters
    ----------
    path
        The list.
    n_component
        Columns of the mixing matrix.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-COMPONENTS`` if there is no such line, or it names a component twice or one that does not exist.
    """
    what = "list of noise components"
    with open_stream(path, where=where, what=what) as stream:
        raw = stream.read_up_to(_MAX_JSON_BYTES)
    lines = [line.strip() for line in raw.decode("utf-8-sig", errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    problem = ""
    numbers: list[int] = []
    if not _LABELS.fullmatch(last):
        problem = f"ends with {last[:40]!r}"
    else:
        numbers = [int(number) for number in re.findall(r"\d+", last)]
        if absent := [number for number in numbers if not 1 <= number <= n_component]:
            problem = f"names the components {absent}; the mixing matrix has {n_component}, numbered from 1"
        elif len(set(numbers)) < len(numbers):
            problem = "names a component twice"
    if problem:
        raise InputError(
            "E-COMPONENTS",
            f"the {what} {problem}",
            where=where,
            rule="its last line is the numbers of the noise components, from 1, with commas or blanks between them",
            fix="give the list that belongs to this mixing matrix",
        )
    return tuple(sorted(numbers))


def read_compcor_sidecar(path: Path, *, names: Sequence[str], where: str = "") -> dict[str, tuple[str, float]]:
    """Read of which region each CompCor column is, and how much variance is explained up to it.

    Parameters
    ----------
    path
        ``*_desc-confounds_timeseries.json`` of fMRIPrep; only entries with a ``Mask`` and
        ``CumulativeVarianceExplained`` that are columns count.
    names
        Columns of the table.
    where
        Place for errors.

    Returns
    -------
    Column -> region (``a``, ``w``, ``c``, ``t``) and share, in the order of the columns.

    Raises
    ------
    InputError
        ``E-SIDECAR`` if the file is no JSON object.
    """
    with open_stream(path, where=where, what="JSON sidecar") as stream:
        raw = stream.read_up_to(_MAX_JSON_BYTES)
    try:
        content = json.loads(raw.decode("utf-8-sig"))
        entries = {name: content[name] for name in names if isinstance(content.get(name), dict)}
    except (ValueError, AttributeError, RecursionError):
        raise InputError(
            "E-SIDECAR",
            f"the JSON sidecar of the confounds ({len(raw)} bytes) is no JSON object",
            where=where,
            rule="an object with an entry per column",
            fix="give the sidecar as fMRIPrep wrote it, or remove it",
        ) from None
    regions = {"combined": "a", "WM": "w", "CSF": "c"}
    out: dict[str, tuple[str, float]] = {}
    for name, entry in entries.items():
        share = entry.get("CumulativeVarianceExplained")
        region = "t" if entry.get("Method") == "tCompCor" else regions.get(str(entry.get("Mask")))
        if region is not None and isinstance(share, int | float) and not isinstance(share, bool):
            out[name] = (region, float(share))
    return out


def read_events(
    path: Path,
    *,
    n_time: int,
    t_r: float,
    hrf: Hrf,
    slice_time_ref: float = 0.0,
    prefix: str = "",
    where: str = "",
) -> ConfoundTable:
    """Read BIDS events and return the response to each kind of trial, as nilearn's first-level designs have it.

    Parameters
    ----------
    path
        ``*_events.tsv`` with ``onset`` and ``duration`` in s from the first frame, and ``trial_type``; without that
        column all events are one kind, ``event``. ``modulation``, where there is one, scales them.
    n_time
        Frames of the run.
    t_r
        Repetition time in s.
    hrf
        The response.
    slice_time_ref
        At which share of the repetition time a frame stands: 0 its start, 0.5 its middle.
    prefix
        Put before every name.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-EVENTS``; ``E-TABLE`` for a malformed table.

    References
    ----------
    Glover GH (1999). Deconvolution of impulse response in event-related BOLD fMRI.
    https://doi.org/10.1006/nimg.1998.0419
    """
    cells = read_cells(path, where=where, what="table of events")
    names = tuple(cells.rows[0])
    check_header(cells, names)
    if missing := [name for name in ("onset", "duration") if name not in names]:
        raise _bad_events(cells, f"has no column {missing[0]!r}, only {', '.join(names)}")
    if len(cells.rows) == 1:
        raise _bad_events(cells, "has no event")
    column = {name: [row[i] for row in cells.rows[1:]] for i, name in enumerate(names)}
    numbers: dict[str, list[float]] = {}
    for name in ("onset", "duration", "modulation"):
        if name not in column:
            continue
        cells_of = ["0" if name == "duration" and cell in MISSING else cell for cell in column[name]]
        numbers[name] = [float(cell) if is_number(cell) else np.nan for cell in cells_of]
        if not np.isfinite(numbers[name]).all():
            row = int(np.flatnonzero(~np.isfinite(numbers[name]))[0])
            raise _bad_events(cells, f"holds {column[name][row][:30]!r} as {name} in row {row + 2}")
    if min(numbers["duration"]) < 0:
        raise _bad_events(cells, "holds a negative duration")
    if min(numbers["onset"]) >= n_time * t_r:
        raise _bad_events(cells, f"holds no event before the end of the run, at {n_time * t_r:g} s")
    kinds = column.get("trial_type", ["event"] * (len(cells.rows) - 1))
    if any(kind in MISSING for kind in kinds):
        raise _bad_events(cells, "holds an event without trial_type")
    events = pd.DataFrame({"trial_type": [re.sub(r"\W+", "_", kind) for kind in kinds], **numbers})
    design = _convolve(events, (np.arange(n_time, dtype=np.float64) + slice_time_ref) * t_r, hrf)
    return ConfoundTable(
        values=design.to_numpy(dtype=np.float64), names=tuple(prefix + str(name) for name in design), notes=()
    )


def _convolve(events: pd.DataFrame, frame_times: npt.NDArray[np.float64], hrf: Hrf) -> pd.DataFrame:
    # Seconds to import; few studies have a task.
    from nilearn.glm.first_level import make_first_level_design_matrix  # noqa: PLC0415

    make: Callable[..., Any] = make_first_level_design_matrix
    design: pd.DataFrame = make(frame_times, events, hrf_model=hrf, drift_model=None)
    return design.drop(columns="constant")


def _bad_events(cells: Cells, problem: str) -> InputError:
    return cells.error(
        "E-EVENTS",
        problem,
        rule="a row per event with onset and duration in s, and its trial_type",
        fix="correct the table, as BIDS describes it",
    )
