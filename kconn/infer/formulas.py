"""Formulas over the columns of a table: sums of terms with arithmetic and a few functions in them, never code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import count
from typing import Final

import numpy as np
import pandas as pd
from formulaic import Formula, SimpleFormula, model_matrix
from formulaic.errors import FormulaicError

from kconn.errors import DesignError

#: What may be called, beside NumPy's functions of one number. None looks at the order of the rows.
FUNCTIONS: Final = frozenset(
    {"C", "I", "bs", "cc", "center", "cr", "cs", "exp", "exp10", "exp2", "log", "log10", "log2", "poly", "scale"}
)
#: Codings of factors, as in ``C(group, contr.sum)``.
CODINGS: Final = frozenset({"diff", "helmert", "poly", "sas", "sum", "treatment"})
_ARITHMETIC: Final = (
    ast.BinOp,
    ast.Call,
    ast.Compare,
    ast.Constant,
    ast.Expression,
    ast.List,
    ast.Tuple,
    ast.UnaryOp,
    ast.cmpop,
    ast.expr_context,
    ast.keyword,
    ast.operator,
    ast.unaryop,
)
#: What formulaic raises for a formula that it cannot read or evaluate.
_REFUSED: Final = (
    FormulaicError,
    ArithmeticError,
    AttributeError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
)


def evaluate_formula(formula: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return the design matrix of a formula: one row per row of the table, one column per regressor.

    Parameters
    ----------
    formula
        Wilkinson notation without a left-hand side, such as ``"group + age"``. The intercept is implied.
    table
        One row per observation.

    Returns
    -------
    pandas.DataFrame
        Float64, with the index of the table.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA``, or ``E-COV-NAN`` where a cell is missing or a function of it is not finite.

    References
    ----------
    Wilkinson GN, Rogers CE (1973). https://doi.org/10.2307/2346786
    """
    return evaluate_terms(formula, table)[0]


def evaluate_terms(formula: str, table: pd.DataFrame) -> tuple[pd.DataFrame, dict[frozenset[str], list[str]]]:
    """Return the design matrix of a formula as `evaluate_formula` does, and which columns each term made.

    A term is known by its factors, as `find_terms` names them: ``group:sex`` and ``sex:group`` are one.
    """
    try:
        terms = Formula(formula)
        if not isinstance(terms, SimpleFormula):
            raise _refusal(formula, table, "it has several sides or parts")
        refuse_missing(table, sorted(_find_columns(terms, formula, table)))
        with np.errstate(all="ignore"):  # what is not finite is refused below, in words
            matrix = model_matrix(terms, table, na_action="raise", context={})
    except DesignError:
        raise
    except _REFUSED as error:
        raise _refusal(formula, table, _reason(error)) from error
    design = pd.DataFrame(np.asarray(matrix, dtype=np.float64), index=table.index, columns=list(matrix.columns))
    if not np.isfinite(design.to_numpy()).all():
        raise DesignError(
            "E-COV-NAN",
            f"{formula!r} gives values that are not finite",
            rule="a design matrix holds finite numbers",
            fix="look at the covariates, and at functions such as log in the formula",
        )
    made = {
        frozenset(factor.expr for factor in term.factors): [str(design.columns[i]) for i in positions]
        for term, positions in matrix.model_spec.term_indices.items()
    }
    return design, made


def find_terms(formula: str) -> list[frozenset[str]]:
    """Return the terms of a formula without its intercept, each as the set of its factors.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA``.
    """
    try:
        terms = Formula(f"0 + {formula}")
        return [frozenset(factor.expr for factor in term.factors) for term in terms]
    except _REFUSED as error:
        raise DesignError(
            "E-DESIGN-FORMULA",
            f"{formula!r} is no term: {_reason(error)}",
            rule="a term stands in a formula, such as group, group:sex or bs(age, df=3)",
            fix="correct the name of the term",
        ) from error


def _reason(error: Exception) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("\n")[0] or type(error).__name__


def _find_columns(terms: SimpleFormula, formula: str, table: pd.DataFrame) -> set[str]:
    """Return the columns that a formula names, refusing all that is neither a column nor arithmetic."""
    names: set[str] = set()
    for factor in (factor for term in terms for factor in term.factors):
        if factor.eval_method.value == "lookup":
            names.add(factor.expr)
        elif factor.eval_method.value == "python":
            for name in _find_names(factor.expr):
                if name is None:
                    raise _refusal(formula, table, f"{factor.expr!r} is more than arithmetic")
                names.add(name)
    columns = set(map(str, table.columns))
    if unknown := sorted(names - columns):
        raise _refusal(formula, table, f"there is no column {unknown[0]!r}")
    return names


def _find_names(expression: str) -> Iterator[str | None]:
    """Yield the columns in an expression, and None for what is not allowed in one."""
    quoted = re.findall(r"`([^`]*)`", expression)  # names that are no words stand in backquotes
    numbers = count()
    nodes = [ast.parse(re.sub(r"`[^`]*`", lambda _: f"_quoted_{next(numbers)}", expression), mode="eval").body]
    while nodes:
        node: ast.AST = nodes.pop()
        if isinstance(node, ast.Name):
            number = node.id.removeprefix("_quoted_")
            yield quoted[int(number)] if number != node.id else node.id
        elif _is_coding(node):
            continue
        elif not isinstance(node, _ARITHMETIC) or (isinstance(node, ast.Call) and not _may_call(node.func)):
            yield None
        else:
            children = [child for child in ast.iter_child_nodes(node) if child is not getattr(node, "func", None)]
            nodes += children  # type: ignore[arg-type]  # a node of any kind


def _is_coding(node: ast.AST) -> bool:
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return named and node.value.id == "contr" and node.attr in CODINGS  # type: ignore[attr-defined]  # narrowed above


def _may_call(function: ast.expr) -> bool:
    if _is_coding(function):
        return True
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "np":
        return isinstance(getattr(np, function.attr, None), np.ufunc)
    return isinstance(function, ast.Name) and function.id in FUNCTIONS


def refuse_missing(table: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a cell that is missing in a column that a test uses.

    Raises
    ------
    DesignError
        ``E-COV-NAN``, naming the subject.
    """
    for column in columns:
        missing = table[column].isna()
        if missing.any():
            raise DesignError(
                "E-COV-NAN",
                f"{column!r} is missing",
                where=f"sub-{str(table.index[missing][0]).removeprefix('sub-')}",
                rule="every row of a test has every covariate",
                fix="complete the table, or leave the row out with 'include' or 'where'",
            )


def _refusal(formula: str, table: pd.DataFrame, reason: str) -> DesignError:
    return DesignError(
        "E-DESIGN-FORMULA",
        f"{formula!r} cannot be evaluated: {reason}",
        rule=f"a sum of terms such as 'group + age'; the columns are {', '.join(map(str, table.columns)) or 'none'}",
        fix="correct the formula",
    )
