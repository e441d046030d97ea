"""From a contrast in words to data, design matrix and weights; every row joined by id, never by position."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.errors import DesignError
from kconn.infer.hypotheses import (
    TESTED,
    Hypothesis,
    Regressors,
    Test,
    build_regressors,
    describe_data,
    tested_column,
)

__all__ = ["NO_RUN", "Hypothesis", "SuppliedDesign", "Test", "TestInput", "build_test", "name_row"]

FloatArray = npt.NDArray[np.float64]
#: Why a row that a file names is not in the test.
NO_RUN: Final = "no usable run"


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppliedDesign:
    """What files of another tool say: whose rows they hold, and where they hold a design, its matrix and contrasts.

    ``ids``: one per row, as `name_row` makes them. ``design``: indexed by them. ``contrasts``: name -> weights.
    """

    ids: tuple[str, ...]
    design: pd.DataFrame | None = None
    contrasts: Mapping[str, FloatArray] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TestInput:
    """What `kconn.permutation_test` needs for one hypothesis.

    Attributes
    ----------
    data
        ``(observation, edge)``, one observation per row of the design.
    design
        Index: observation, which is the subject, or ``sub-01_ses-1`` where rows are sessions; columns: regressors.
    contrasts
        Name -> weights over the columns of ``design``, ``(column,)`` for t or ``(r, column)`` for F; with one more,
        the last, where the value at baseline is weighed.
    rows
        The rows of the tables about people behind the design, with the same index: what blocks are read from.
    sign_flip
        Whether the null is made by sign flips instead of permutations.
    left_out
        Subject, or session of a subject -> why it is not in the test.
    questions
        Contrast -> the test in one sentence.
    baseline
        ``(observation, edge)``, a regressor of each edge, or None.
    """

    __test__ = False  # no test class, whatever its name makes pytest think

    data: xr.DataArray
    design: pd.DataFrame
    contrasts: dict[str, FloatArray]
    rows: pd.DataFrame
    sign_flip: bool
    left_out: dict[str, str]
    questions: dict[str, str]
    baseline: xr.DataArray | None = None

    @property
    def is_set(self) -> bool:
        """Whether several contrasts were named, and not one without a name."""
        return list(self.contrasts) != [TESTED]


def build_test(
    netmat: xr.DataArray,
    participants: pd.DataFrame,
    sessions: pd.DataFrame | None,
    hypothesis: Hypothesis,
    *,
    supplied: SuppliedDesign | None = None,
) -> TestInput:
    """Select the observations of a hypothesis and build its design.

    Parameters
    ----------
    netmat
        ``(observation, edge)`` with coords ``subject`` and ``session`` along ``observation``.
    participants
        Indexed by subject.
    sessions
        Indexed by (subject, session), or None. Its columns are used where one session is tested, and where rows are
        sessions.
    hypothesis
        What is tested.
    supplied
        Rows, and maybe the design, of files of another tool. Observations that it does not name are left out.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA``, ``E-DESIGN-LEVELS``, ``E-COV-NAN``, ``E-CONTRAST``, ``E-ID-MISSING`` or ``E-TOO-FEW``.
    """
    present = _sessions_by_subject(netmat)
    _check_sessions(hypothesis.needed, present)
    if missing := sorted(set(present) - set(participants.index)):
        raise DesignError(
            "E-ID-MISSING",
            f"the participants table has no row for {', '.join(missing[:5])}",
            rule="every subject with data has one row",
            fix="add the rows, or take the runs out of the inputs",
        )
    left_out: dict[str, str] = {}
    select = _select_sessions if hypothesis.per_session else _select_subjects
    rows = select(participants, sessions, hypothesis, present, left_out)
    rows = _keep_where(rows, hypothesis, left_out)
    if supplied is not None:
        rows = _keep_supplied(rows, supplied, left_out)
    if len(rows) == 0:  # `empty` is also True of rows without columns
        raise DesignError(
            "E-TOO-FEW",
            "no subject is left for the test",
            rule="subjects need a run in every session of the contrast and the values that 'where' asks for",
            fix="correct 'where', 'sessions' or 'change' of the contrast",
        )
    made = _supply(rows, supplied, hypothesis) if supplied and supplied.design is not None else None
    made = made or build_regressors(rows, hypothesis)
    for row in rows.index.difference(made.design.index):
        left_out[str(row)] = f"{' or '.join(hypothesis.effects)} is another than the two levels that are compared"
    rows = rows.loc[made.design.index]
    of_subject = [
        present[subject] for subject in (rows["subject"].astype(str) if hypothesis.per_session else rows.index)
    ]
    baseline, words = None, made.words
    if hypothesis.baseline is not None:
        baseline = _observe(netmat, rows.index, [_positions(found, hypothesis.baseline) for found in of_subject])
        given = f"; given its value in {' and '.join(hypothesis.baseline)}"
        n_column = made.design.shape[1]
        words = {
            name: sentence if made.contrasts[name][..., n_column:].any() else sentence + given
            for name, sentence in words.items()
        }
    if hypothesis.per_session:
        data = _observe(
            netmat,
            rows.index,
            [[found[session]] for found, session in zip(of_subject, rows["session"].astype(str), strict=True)],
        )
    elif hypothesis.sides is not None:
        before, after = ([_positions(found, side) for found in of_subject] for side in hypothesis.sides)
        data = _observe(netmat, rows.index, after, before)
    else:
        data = _observe(netmat, rows.index, [_positions(found, hypothesis.sessions) for found in of_subject])
    return TestInput(
        data=data,
        design=made.design,
        contrasts=made.contrasts,
        rows=rows,
        sign_flip=hypothesis.tests_mean,
        left_out=left_out,
        questions=words,
        baseline=baseline,
    )


def name_row(subject: str, session: str | None = None) -> str:
    """Return the id of a row: the subject, or ``sub-01_ses-1`` where rows are sessions."""
    return subject if session is None else f"sub-{subject}_ses-{session}"


def _sessions_by_subject(netmat: xr.DataArray) -> dict[str, dict[str, int]]:
    present: dict[str, dict[str, int]] = {}
    for i, (subject, session) in enumerate(
        zip(netmat["subject"].to_numpy(), netmat["session"].to_numpy(), strict=True)
    ):
        present.setdefault(str(subject), {})[str(session)] = i
    return present


def _check_sessions(needed: Sequence[str] | None, present: Mapping[str, Mapping[str, int]]) -> None:
    known = sorted({session for sessions in present.values() for session in sessions})
    if unknown := [session for session in needed or () if session not in known]:
        raise DesignError(
            "E-ID-MISSING",
            f"no run belongs to session {unknown[0]!r}",
            rule=f"the sessions with data are {', '.join(known)}",
            fix="correct 'sessions' or 'change' of the contrast",
        )


def _find_complete(
    needed: Sequence[str], present: Mapping[str, Mapping[str, int]], left_out: dict[str, str]
) -> list[str]:
    """Return the subjects that have all of some sessions, and add the others to those left out."""
    for subject in sorted(present):
        if lacking := [session for session in needed if session not in present[subject]]:
            left_out[subject] = f"no usable run in session {', '.join(lacking)}"
    return [subject for subject in sorted(present) if subject not in left_out]


def _select_subjects(
    participants: pd.DataFrame,
    sessions: pd.DataFrame | None,
    hypothesis: Hypothesis,
    present: Mapping[str, Mapping[str, int]],
    left_out: dict[str, str],
) -> pd.DataFrame:
    """Return one row per subject that has every session that is named."""
    needed = hypothesis.needed
    people = participants.loc[_find_complete(needed, present, left_out)].copy()
    if sessions is not None and len(needed) == 1:
        rows = sessions[sessions.index.get_level_values("session") == needed[0]].droplevel("session")
        people = people.join(rows[[column for column in rows.columns if column not in people.columns]], how="left")
    return people


def _select_sessions(
    participants: pd.DataFrame,
    sessions: pd.DataFrame | None,
    hypothesis: Hypothesis,
    present: Mapping[str, Mapping[str, int]],
    left_out: dict[str, str],
) -> pd.DataFrame:
    """Return one row per session; in a repeated test of the subjects that have all of them."""
    known = sorted({session for found in present.values() for session in found})
    wanted = hypothesis.sessions or known
    subjects = _find_complete(wanted if hypothesis.test == "repeated" else (), present, left_out)
    pairs = [(subject, session) for subject in subjects for session in wanted if session in present[subject]]
    index = [name_row(subject, session) for subject, session in pairs]
    rows = participants.loc[[subject for subject, _ in pairs]].set_axis(index)
    rows = rows.assign(subject=[subject for subject, _ in pairs], session=[session for _, session in pairs])
    if sessions is not None:
        columns = [column for column in sessions.columns if column not in rows.columns]
        found = sessions[columns].reindex(pd.MultiIndex.from_tuples(pairs))
        rows = rows.join(found.set_axis(index))
    return rows


def _keep_where(rows: pd.DataFrame, hypothesis: Hypothesis, left_out: dict[str, str]) -> pd.DataFrame:
    for column, wanted in (hypothesis.where or {}).items():
        values = wanted if isinstance(wanted, list) else [wanted]
        keep = tested_column(rows, column).isin(values)
        left_out |= {str(row): f"{column} is not {' or '.join(map(str, values))}" for row in rows.index[~keep]}
        rows = rows[keep]
    return rows


def _keep_supplied(rows: pd.DataFrame, supplied: SuppliedDesign, left_out: dict[str, str]) -> pd.DataFrame:
    known = set(supplied.ids)
    left_out |= {str(row): "it is not in the list of ids" for row in rows.index if row not in known}
    left_out |= {row: NO_RUN for row in supplied.ids if row not in rows.index and row not in left_out}
    return rows[rows.index.isin(known)]


def _supply(rows: pd.DataFrame, supplied: SuppliedDesign, hypothesis: Hypothesis) -> Regressors:
    """Return the rows of a design that was supplied; none is taken by its position."""
    assert supplied.design is not None  # noqa: S101 - the caller looked
    contrasts = dict(supplied.contrasts or {})
    unit = "sessions" if hypothesis.per_session else "subjects"
    data = describe_data(hypothesis)
    words = {name: f"{data}: contrast {name} of a supplied design, {len(rows)} {unit}" for name in contrasts}
    return Regressors(design=supplied.design.loc[rows.index], contrasts=contrasts, words=words)


def _positions(found: Mapping[str, int], sessions: Collection[str] | None) -> list[int]:
    """Return the rows of some sessions of a subject, or of all, by name of the session.

    Sums of more than two depend on their order in the last bit.
    """
    return [row for session, row in sorted(found.items()) if sessions is None or session in sessions]


def _observe(
    netmat: xr.DataArray,
    names: pd.Index[Any],
    after: Sequence[Sequence[int]],
    before: Sequence[Sequence[int]] | None = None,
) -> xr.DataArray:
    """Return one observation per name: the mean of the rows at its positions, less that of those before.

    One task per block of features, however many observations there are.
    """
    netmat = netmat.transpose("observation", ...)
    combine = partial(_combine, after=after, before=before)
    if isinstance(netmat.data, da.Array):
        whole = netmat.data.rechunk({0: -1})
        values = whole.map_blocks(combine, dtype=_type_of_mean(whole.dtype), chunks=((len(after),), *whole.chunks[1:]))
    else:
        values = combine(netmat.to_numpy())
    kept = {name: coord for name, coord in netmat.coords.items() if "observation" not in coord.dims}
    observed = xr.DataArray(values, dims=netmat.dims, coords=kept, name=netmat.name, attrs=netmat.attrs)
    return observed.assign_coords(observation=("observation", np.asarray(names, dtype=object)))


def _combine(
    values: npt.NDArray[Any], *, after: Sequence[Sequence[int]], before: Sequence[Sequence[int]] | None
) -> npt.NDArray[Any]:
    return _mean_rows(values, after) if before is None else _mean_rows(values, after) - _mean_rows(values, before)


def _mean_rows(values: npt.NDArray[Any], positions: Sequence[Sequence[int]]) -> npt.NDArray[Any]:
    """Return the mean of the rows at each of some positions, those of as many rows together."""
    counts = np.array([len(rows) for rows in positions])
    out = np.empty((len(positions), *values.shape[1:]), dtype=_type_of_mean(values.dtype))
    for n_row in np.unique(counts):
        alike = np.flatnonzero(counts == n_row)
        rows = np.array([positions[int(i)] for i in alike], dtype=np.intp)
        out[alike] = values[rows[:, 0]] if n_row == 1 else values[rows].mean(axis=1)
    return out


def _type_of_mean(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of a mean: of integers it is no integer."""
    return dtype if dtype.kind == "f" else np.dtype(np.float64)
