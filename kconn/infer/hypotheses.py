"""A test in the words of the study file, and the regressors and weights that it makes of a table of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.errors import DesignError
from kconn.infer.formulas import evaluate_formula, evaluate_terms, find_terms, refuse_missing

FloatArray = npt.NDArray[np.float64]
Test = Literal["two-sample", "paired", "one-sample", "covariate", "f-test", "interaction", "repeated", "design"]
INTERCEPT: Final = "Intercept"
#: By what name a contrast weighs the value of each feature at baseline.
BASELINE: Final = "baseline"
#: Name of the contrast of a test that has one.
TESTED: Final = "tested"


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
        The tested column of ``two-sample`` and ``covariate``, the term or terms of an ``f-test``, the two columns of an
        ``interaction``, the column whose levels differ in their course in a ``repeated`` test.
    levels
        ``(A, B)``: a two-sample test of B - A. Without it the two levels that occur, sorted. In an interaction such a
        pair for each column.
    sessions
        Sessions that are averaged per subject. Without it, and without ``change``, all that occur. In a repeated test
        the sessions that are compared, the first the reference.
    change
        ``(A, B)``: the data are B - A per subject. Either may be several sessions, which are averaged first.
    baseline
        Sessions, averaged per subject, whose value of each feature is a regressor of that feature: nuisance, unless
        ``weights`` name it.
    where
        Column -> value or values of the rows that are kept.
    rows
        Whether a row of a ``design`` is a subject or a session; subjects if not given.
    weights
        Of a ``design``: column -> weight for a t, several of these for an F, or either by name.
    """

    test: Test
    formula: str = "1"
    effect: str | tuple[str, ...] | None = None
    levels: tuple[Any, Any] | Mapping[str, Any] | None = None
    sessions: tuple[str, ...] | None = None
    change: tuple[str | tuple[str, ...], str | tuple[str, ...]] | None = None
    baseline: tuple[str, ...] | None = None
    where: Mapping[str, Any] | None = None
    rows: Literal["subject", "session"] | None = None
    weights: Any = None

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Hypothesis:
        """Return the hypothesis of a ``[contrasts.NAME]`` table, whose pairs are lists."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
        if values.get("change") is not None:
            values["change"] = tuple(tuple(side) if isinstance(side, list) else side for side in values["change"])
        return cls(**values)

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The sessions before and after a change."""
        if self.change is None:
            return None
        before, after = ((side,) if isinstance(side, str) else side for side in self.change)
        return before, after

    @property
    def needed(self) -> tuple[str, ...]:
        """The sessions that a subject must have, where they are named."""
        tested = self.sessions or () if self.sides is None else (*self.sides[0], *self.sides[1])
        return tuple(dict.fromkeys((*tested, *(self.baseline or ()))))

    @property
    def span(self) -> tuple[str, str] | None:
        """The two ends of a change in words: ``the mean of pre1 and pre2``, ``post``."""
        if self.sides is None:
            return None
        before, after = (_named(side[0]) if len(side) == 1 else f"the mean of {_listed(side)}" for side in self.sides)
        return before, after

    @property
    def per_session(self) -> bool:
        """Whether a row is a session, not a subject."""
        return self.test == "repeated" or self.rows == "session"

    @property
    def effects(self) -> tuple[str, ...]:
        """The columns or terms that are tested."""
        return (self.effect,) if isinstance(self.effect, str) else self.effect or ()

    @property
    def tests_mean(self) -> bool:
        """Whether a mean is tested: relabelling flips signs."""
        return self.test in {"paired", "one-sample"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Regressors:
    """The design of a test: one row per row of the table, contrasts over its columns, and each contrast in words."""

    design: pd.DataFrame
    contrasts: dict[str, FloatArray]
    words: dict[str, str]


def build_regressors(rows: pd.DataFrame, hypothesis: Hypothesis) -> Regressors:
    """Return the design of a hypothesis.

    Parameters
    ----------
    rows
        One row per observation, with every column that the formula may name; rows of sessions have the columns
        ``subject`` and ``session`` as well.
    hypothesis
        What is tested. A two-sample test drops the rows of other levels.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA``, ``E-DESIGN-LEVELS``, ``E-COV-NAN``, ``E-CONTRAST`` or ``E-TOO-FEW``.
    """
    made = _BUILDERS[hypothesis.test](rows, hypothesis)
    n_observation, n_column = made.design.shape
    if n_observation <= n_column:
        raise DesignError(
            "E-TOO-FEW",
            f"{n_observation} {'sessions' if hypothesis.per_session else 'subjects'} for {n_column} columns",
            rule="a test needs more observations than columns",
            fix="take nuisance out, or widen the selection",
        )
    return made


def describe_data(hypothesis: Hypothesis) -> str:
    """Return what the data of a test are: ``change pre to post``, or ``connectivity``."""
    span = hypothesis.span
    return f"change {span[0]} to {span[1]}" if span else "connectivity"


def _named(session: str) -> str:
    """Return a session in words: a number says nothing alone."""
    return f"session {session}" if session.isdecimal() else session


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def tested_column(rows: pd.DataFrame, name: str) -> pd.Series[Any]:
    """Return a column of a table.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA`` if there is none of this name.
    """
    if name not in rows.columns:
        raise DesignError(
            "E-DESIGN-FORMULA",
            f"there is no column {name!r}",
            rule=f"the columns are {', '.join(map(str, rows.columns))}",
            fix="correct the name",
        )
    return rows[name]


def _two_sample(rows: pd.DataFrame, hypothesis: Hypothesis) -> Regressors:
    (effect,) = hypothesis.effects
    levels = hypothesis.levels
    pair = None if levels is None or isinstance(levels, Mapping) else levels
    rows, (first, second) = _code_levels(rows, effect, pair)
    n_second = int(rows[effect].sum())
    n_first = len(rows) - n_second
    if min(n_first, n_second) < 2:
        raise DesignError(
            "E-TOO-FEW",
            f"{effect!r} has {n_first} x {first} and {n_second} x {second}",
            rule="each group needs at least two subjects",
            fix="widen the selection",
        )
    return _one_column(rows, hypothesis, effect, f"{second} (n={n_second:,}) minus {first} (n={n_first:,})")


def _mean(rows: pd.DataFrame, hypothesis: Hypothesis) -> Regressors:
    made = _one_column(rows, hypothesis, INTERCEPT, "mean")
    nuisance = [column for column in made.design.columns if column != INTERCEPT]
    design = made.design.copy()
    # The mean is tested at the mean of the nuisance, not at its zero.
    design[nuisance] = design[nuisance] - design[nuisance].mean()
    return Regressors(design=design, contrasts=made.contrasts, words=made.words)


def _slope(rows: pd.DataFrame, hypothesis: Hypothesis) -> Regressors:
    (effect,) = hypothesis.effects
    return _one_column(rows, hypothesis, effect, f"slope on {effect}")


def _interaction(rows: pd.DataFrame, hypothesis: Hypothesis) -> Regressors:
    """Two columns of 0 and 1, or of numbers; their product is tested."""
    first, second = hypothesis.effects
    levels = hypothesis.levels if isinstance(hypothesis.levels, Mapping) else {}
    if unknown := sorted(set(levels) - set(hypothesis.effects)):
        raise DesignError(
            "E-DESIGN-LEVELS",
            f"'levels' names {unknown[0]!r}",
            rule=f"the interaction is of {first!r} and {second!r}",
            fix="correct the name",
        )
    named = []
    for effect in hypothesis.effects:
        column = tested_column(rows, effect)
        if effect in levels or column.nunique() == 2 or not pd.api.types.is_numeric_dtype(column):
            rows, (low, high) = _code_levels(rows, effect, levels.get(effect))
            named.append(f"{effect} ({high} minus {low})")
        else:
            named.append(f"slope on {effect}")
    made = evaluate_terms(hypothesis.formula, rows)[1].get(frozenset(hypothesis.effects), [])
    tested = made[0] if made else f"{first}:{second}"
    return _one_column(rows, hypothesis, tested, f"interaction of {named[0]} with {named[1]}")


def _one_column(rows: pd.DataFrame, hypothesis: Hypothesis, tested: str, what: str) -> Regressors:
    """Return the design of a formula and the t of one of its columns."""
    design = evaluate_formula(hypothesis.formula, rows)
    if tested not in design.columns:
        wanted = "do not remove the intercept" if tested == INTERCEPT else f"write '{tested.replace(':', ' * ')} + ...'"
        raise DesignError(
            "E-DESIGN-FORMULA",
            f"the formula {hypothesis.formula!r} makes the columns {', '.join(design.columns)}, not {tested!r}",
            rule="the tested column stands in the formula by its own name, as numbers",
            fix=wanted,
        )
    weights = (design.columns == tested).astype(np.float64)
    nuisance = [column for column in design.columns if column not in {tested, INTERCEPT}]
    return Regressors(
        design=design, contrasts={TESTED: weights}, words={TESTED: _sentence(hypothesis, what, nuisance, len(design))}
    )


def _several_columns(rows: pd.DataFrame, hypothesis: Hypothesis) -> Regressors:
    """Return the design of a formula and the F of all columns that the tested terms make."""
    design, made = evaluate_terms(hypothesis.formula, rows)
    wanted = [term for effect in hypothesis.effects for term in find_terms(effect)]
    for term in wanted:
        if term not in made or not made[term]:
            raise DesignError(
                "E-DESIGN-FORMULA",
                f"the formula {hypothesis.formula!r} has no term {':'.join(sorted(term))!r}",
                rule=f"its terms are {', '.join(':'.join(sorted(name)) for name in made if name != frozenset('1'))}",
                fix="put the tested terms into the formula as well",
            )
    tested = [column for term in dict.fromkeys(wanted) for column in made[term]]
    nuisance = [column for column in design.columns if column not in {*tested, INTERCEPT}]
    what = f"any effect of {', '.join(hypothesis.effects)} ({_columns_word(len(tested))})"
    return Regressors(
        design=design,
        contrasts={TESTED: _select(design, tested)},
        words={TESTED: _sentence(hypothesis, what, nuisance, len(design))},
    )


def _repeated(rows: pd.DataFrame, hypothesis: Hypothesis) -> Regressors:
    """Return a column per subject, the sessions against the first, and with an effect its course over them."""
    sessions = hypothesis.sessions or ()
    subject, session = rows["subject"].astype(str), rows["session"].astype(str)
    columns = {f"subject[{name}]": (subject == name).astype(float) for name in dict.fromkeys(subject)}
    later = {f"session[{name}]": (session == name).astype(float) for name in sessions[1:]}
    columns |= later
    tested, what = list(later), f"any difference between {', '.join(sessions)}"
    if hypothesis.effects:
        (effect,) = hypothesis.effects
        course = _code_course(rows, effect)
        products = {f"{name}:{level}": column * values for name, column in later.items() for level, values in course}
        columns |= products
        tested, what = list(products), f"any difference in the course over {', '.join(sessions)} by {effect}"
    extra = evaluate_formula(hypothesis.formula, rows).drop(columns=INTERCEPT, errors="ignore")
    design = pd.DataFrame({**columns, **{str(name): extra[name] for name in extra}}, index=rows.index)
    weights = _select(design, tested)
    words = f"{what} ({_columns_word(len(tested))})"
    return Regressors(
        design=design,
        contrasts={TESTED: weights[0] if len(weights) == 1 else weights},
        words={TESTED: _sentence(hypothesis, words, ["subject", *map(str, extra.columns)], len(design))},
    )


def _code_course(rows: pd.DataFrame, effect: str) -> list[tuple[str, pd.Series[Any]]]:
    """Return the levels of a factor against the first of them, or a column of numbers as it is."""
    column = tested_column(rows, effect)
    refuse_missing(rows, [effect])
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > 2:
        return [(effect, column.astype(float))]
    found = sorted(column.unique(), key=str)
    if len(found) < 2:
        raise DesignError(
            "E-DESIGN-LEVELS",
            f"{effect!r} has the level {', '.join(map(str, found))} alone",
            rule="courses are compared between levels that occur",
            fix="widen 'where', or take 'effect' out",
        )
    return [(f"{effect}[{level}]", (column == level).astype(float)) for level in found[1:]]


def _free(rows: pd.DataFrame, hypothesis: Hypothesis) -> Regressors:
    """Return the design of a formula and the weights as they are given."""
    design = evaluate_formula(hypothesis.formula, rows)
    columns = list(design.columns)
    if hypothesis.baseline is not None:
        if BASELINE in columns:
            raise DesignError(
                "E-DESIGN-FORMULA",
                f"the formula {hypothesis.formula!r} makes a column {BASELINE!r}, beside the key of that name",
                rule=f"'weights' know the value of each feature at baseline as {BASELINE!r}",
                fix="rename the column of the table",
            )
        columns.append(BASELINE)
    contrasts = {name: read_weights(name, weights, columns) for name, weights in _by_name(hypothesis.weights)}
    words = {}
    for name, given in _by_name(hypothesis.weights):
        tables = [given] if isinstance(given, Mapping) else given
        terms = [" and ".join(f"{weight:g} x {column}" for column, weight in table.items()) for table in tables]
        nuisance = [
            column
            for column in design.columns
            if column != INTERCEPT and not any(table.get(column) for table in tables)
        ]
        words[name] = _sentence(hypothesis, ", or ".join(terms), nuisance, len(design))
    return Regressors(design=design, contrasts=contrasts, words=words)


def _by_name(weights: Any) -> list[tuple[str, Any]]:
    """Return contrasts by name; weights without names are the one contrast of the test."""
    is_single = not isinstance(weights, Mapping) or all(isinstance(weight, int | float) for weight in weights.values())
    return [(TESTED, weights)] if is_single else list(weights.items())


def read_weights(name: str, weights: Any, columns: list[str]) -> FloatArray:
    """Return weights ``(column,)`` of a t, or ``(r, column)`` of an F, from tables column -> weight.

    Raises
    ------
    DesignError
        ``E-CONTRAST`` if a column is not in the design.
    """
    tables = [weights] if isinstance(weights, Mapping) else list(weights)
    if unknown := [column for table in tables for column in table if column not in columns]:
        raise DesignError(
            "E-CONTRAST",
            f"there is no column {unknown[0]!r} in the design",
            where="" if name == TESTED else name,
            rule=f"the formula makes the columns {', '.join(columns)}",
            fix="name these columns in 'weights'",
        )
    rows = np.array([[float(table.get(column, 0)) for column in columns] for table in tables])
    return rows[0] if isinstance(weights, Mapping) else rows


def _select(design: pd.DataFrame, tested: Iterable[str]) -> FloatArray:
    """Return the matrix ``(r, column)`` that picks columns."""
    return np.array([(design.columns == column).astype(np.float64) for column in tested])


def _code_levels(rows: pd.DataFrame, effect: str, pair: Any) -> tuple[pd.DataFrame, tuple[Any, Any]]:
    """Return the rows of two levels, with the column as 0 for the first and 1 for the second."""
    column = tested_column(rows, effect)
    refuse_missing(rows, [effect])
    found = sorted(column.unique(), key=str)
    levels = tuple(pair or found)
    if len(levels) != 2 or any(level not in found for level in levels):
        raise DesignError(
            "E-DESIGN-LEVELS",
            f"{effect!r} has the levels {', '.join(map(str, found))}; asked for {', '.join(map(str, levels))}",
            rule="a two-sample test compares two levels that occur, and so does an interaction of factors",
            fix="name two of them in 'levels', or select with 'where'; for more levels take an f-test",
        )
    rows = rows[column.isin(levels)].copy()
    rows[effect] = (rows[effect] == levels[1]).astype(np.float64)
    return rows, (levels[0], levels[1])


def _sentence(hypothesis: Hypothesis, what: str, nuisance: Iterable[str], n_row: int) -> str:
    # A factor's columns are named like sex[T.M]; the reader knows it as sex.
    others = dict.fromkeys(column.split("[")[0] for column in nuisance)
    known = f", with {', '.join(others)} as nuisance" if others else ""
    return (
        f"{describe_data(hypothesis)}: {what}{known}, {n_row:,} {'sessions' if hypothesis.per_session else 'subjects'}"
    )


def _columns_word(n_column: int) -> str:
    return f"{n_column} column{'' if n_column == 1 else 's'}"


_BUILDERS: Final[Mapping[str, Callable[[pd.DataFrame, Hypothesis], Regressors]]] = {
    "two-sample": _two_sample,
    "paired": _mean,
    "one-sample": _mean,
    "covariate": _slope,
    "f-test": _several_columns,
    "interaction": _interaction,
    "repeated": _repeated,
    "design": _free,
}
