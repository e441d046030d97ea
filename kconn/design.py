"""From a contrast in words to data, design matrix and weights; every row joined by subject, never by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import xarray as xr

from kconn.errors import DesignError
from kconn.formulas import evaluate_formula, refuse_missing

Test = Literal["two-sample", "paired", "one-sample", "covariate"]
_INTERCEPT: Final = "Intercept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One test in the words of the study file.

    Attributes
    ----------
    test
        What is tested.
    formula
        Columns of the tables: the tested one and the nuisance.
    effect
        The tested column, for ``two-sample`` and ``covariate``.
    levels
        ``(A, B)``: a two-sample test of B - A. Without it the two levels that occur, sorted.
    sessions
        Sessions that are averaged per subject. Without it, and without ``change``, all that occur.
    change
        ``(A, B)``: the data are B - A per subject.
    where
        Column -> value or values of the subjects that are kept.
    """

    test: Test
    formula: str = "1"
    effect: str | None = None
    levels: tuple[Any, Any] | None = None
    sessions: tuple[str, ...] | None = None
    change: tuple[str, str] | None = None
    where: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Hypothesis:
        """Return the hypothesis of a ``[contrasts.NAME]`` table, whose pairs are lists."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestInput:
    """What `kconn.permutation_test` needs for one hypothesis.

    Attributes
    ----------
    data
        ``(observation, edge)``, one observation per subject.
    design
        Index: subject; columns: regressors.
    weights
        Contrast over the columns of ``design``.
    sign_flip
        Whether the null is made by sign flips instead of permutations.
    left_out
        Subject -> why it is not in the test.
    question
        The test in one sentence.
    """

    __test__ = False  # no test class, whatever its name makes pytest think

    data: xr.DataArray
    design: pd.DataFrame
    weights: np.ndarray[Any, np.dtype[np.float64]]
    sign_flip: bool
    left_out: dict[str, str]
    question: str


def build_test(
    netmat: xr.DataArray, participants: pd.DataFrame, sessions: pd.DataFrame | None, hypothesis: Hypothesis
) -> TestInput:
    """Select the observations of a hypothesis and build its design.

    Parameters
    ----------
    netmat
        ``(observation, edge)`` with coords ``subject`` and ``session`` along ``observation``.
    participants
        Indexed by subject.
    sessions
        Indexed by (subject, session), or None. Its columns are used where one session is tested.
    hypothesis
        What is tested.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA``, ``E-DESIGN-LEVELS``, ``E-COV-NAN``, ``E-ID-MISSING`` or ``E-TOO-FEW``.
    """
    needed = hypothesis.change or hypothesis.sessions
    present = _sessions_by_subject(netmat)
    _check_sessions(needed, present)
    people, left_out = _select_people(participants, sessions, hypothesis, present)
    design, weights, question = _build_design(people, hypothesis)
    for subject in people.index.difference(design.index):
        left_out[str(subject)] = f"{hypothesis.effect} is another than the two levels that are compared"
    rows = [_observe(netmat, subject, hypothesis) for subject in design.index]
    data = xr.concat(rows, dim="observation", coords="minimal", compat="override", join="exact")
    data = data.assign_coords(observation=("observation", np.asarray(design.index, dtype=object)))
    return TestInput(
        data=data,
        design=design,
        weights=weights,
        sign_flip=hypothesis.test in {"paired", "one-sample"},
        left_out=left_out,
        question=question,
    )


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


def _select_people(
    participants: pd.DataFrame,
    sessions: pd.DataFrame | None,
    hypothesis: Hypothesis,
    present: Mapping[str, Mapping[str, int]],
) -> tuple[pd.DataFrame, dict[str, str]]:
    needed = hypothesis.change or hypothesis.sessions or ()
    left_out = {}
    if missing := sorted(set(present) - set(participants.index)):
        raise DesignError(
            "E-ID-MISSING",
            f"the participants table has no row for {', '.join(missing[:5])}",
            rule="every subject with data has one row",
            fix="add the rows, or take the runs out of the inputs",
        )
    for subject in sorted(present):
        if lacking := [session for session in needed if session not in present[subject]]:
            left_out[subject] = f"no usable run in session {', '.join(lacking)}"
    people = participants.loc[[subject for subject in sorted(present) if subject not in left_out]].copy()
    if sessions is not None and len(needed) == 1:
        rows = sessions[sessions.index.get_level_values("session") == needed[0]].droplevel("session")
        people = people.join(rows[[column for column in rows.columns if column not in people.columns]], how="left")
    for column, wanted in (hypothesis.where or {}).items():
        values = wanted if isinstance(wanted, list) else [wanted]
        keep = _column(people, column).isin(values)
        left_out |= {
            str(subject): f"{column} is not {' or '.join(map(str, values))}" for subject in people.index[~keep]
        }
        people = people[keep]
    if len(people) == 0:  # `empty` is also True of rows without columns
        raise DesignError(
            "E-TOO-FEW",
            "no subject is left for the test",
            rule="subjects need a run in every session of the contrast and the values that 'where' asks for",
            fix="correct 'where', 'sessions' or 'change' of the contrast",
        )
    return people, left_out


def _build_design(
    people: pd.DataFrame, hypothesis: Hypothesis
) -> tuple[pd.DataFrame, np.ndarray[Any, np.dtype[np.float64]], str]:
    if hypothesis.test == "two-sample":
        people, what = _code_groups(people, hypothesis)
    else:
        what = {"paired": "mean", "one-sample": "mean", "covariate": f"slope on {hypothesis.effect}"}[hypothesis.test]
    tested = hypothesis.effect or _INTERCEPT
    design = evaluate_formula(hypothesis.formula, people)
    if tested not in design.columns:
        raise DesignError(
            "E-DESIGN-FORMULA",
            f"the formula {hypothesis.formula!r} makes the columns {', '.join(design.columns)}, not {tested!r}",
            rule="the tested column stands in the formula by its own name, as numbers",
            fix=f"write '{tested} + ...'" if hypothesis.effect else "do not remove the intercept",
        )
    if tested == _INTERCEPT:  # the mean is tested at the mean of the nuisance, not at its zero
        nuisance = [column for column in design.columns if column != _INTERCEPT]
        design[nuisance] = design[nuisance] - design[nuisance].mean()
    n_observation, n_column = design.shape
    if n_observation <= n_column:
        raise DesignError(
            "E-TOO-FEW",
            f"{n_observation} subjects for {n_column} columns",
            rule="a test needs more observations than columns",
            fix="take nuisance out, or widen the selection",
        )
    weights = (design.columns == tested).astype(np.float64)
    of = f"change {hypothesis.change[0]} to {hypothesis.change[1]}" if hypothesis.change else "connectivity"
    # A factor's columns are named like sex[T.M]; the reader knows it as sex.
    others = dict.fromkeys(column.split("[")[0] for column in design.columns if column not in {tested, _INTERCEPT})
    nuisance_words = f", with {', '.join(others)} as nuisance" if others else ""
    return design, weights, f"{of}: {what}{nuisance_words}, {n_observation} subjects"


def _code_groups(people: pd.DataFrame, hypothesis: Hypothesis) -> tuple[pd.DataFrame, str]:
    """Return the people of the two levels, with the tested column as 0 for A and 1 for B."""
    effect = str(hypothesis.effect)
    column = _column(people, effect)
    refuse_missing(people, [effect])
    found = sorted(column.unique(), key=str)
    levels = hypothesis.levels or tuple(found)
    if len(levels) != 2 or any(level not in found for level in levels):
        raise DesignError(
            "E-DESIGN-LEVELS",
            f"{effect!r} has the levels {', '.join(map(str, found))}; asked for {', '.join(map(str, levels))}",
            rule="a two-sample test compares two levels that occur",
            fix="name two of them in 'levels', or select with 'where'",
        )
    people = people[column.isin(levels)].copy()
    people[effect] = (people[effect] == levels[1]).astype(np.float64)
    n_second = int(people[effect].sum())
    n_first = len(people) - n_second
    if min(n_first, n_second) < 2:
        raise DesignError(
            "E-TOO-FEW",
            f"{effect!r} has {n_first} x {levels[0]} and {n_second} x {levels[1]}",
            rule="each group needs at least two subjects",
            fix="widen the selection",
        )
    return people, f"{levels[1]} (n={n_second}) minus {levels[0]} (n={n_first})"


def _observe(netmat: xr.DataArray, subject: Any, hypothesis: Hypothesis) -> xr.DataArray:
    """Return the ``(edge)`` row of one subject: the mean of its sessions, or the change between two."""
    rows = netmat[netmat["subject"].to_numpy() == subject]
    by_session = rows["session"].to_numpy()
    if hypothesis.change:
        before, after = (
            rows[np.asarray(by_session == session)].squeeze("observation") for session in hypothesis.change
        )
        row = after.drop_vars(["observation", "session"]) - before.drop_vars(["observation", "session"])
    else:
        wanted = hypothesis.sessions or tuple(map(str, by_session))
        row = rows[np.isin(by_session.astype(str), wanted)].mean("observation", skipna=False)
    return row.drop_vars(["observation", "subject", "session"], errors="ignore")


def _column(people: pd.DataFrame, name: str) -> pd.Series[Any]:
    if name not in people.columns:
        raise DesignError(
            "E-DESIGN-FORMULA",
            f"there is no column {name!r}",
            rule=f"the columns are {', '.join(map(str, people.columns))}",
            fix="correct the name",
        )
    return people[name]
