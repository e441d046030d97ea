"""Exchangeability blocks and variance groups from columns of the tables about people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.errors import DesignError
from kconn.infer.formulas import refuse_missing
from kconn.infer.hypotheses import tested_column

Exchange = Literal["within", "whole", "both"]


def code_blocks(rows: pd.DataFrame, columns: Sequence[str], *, exchange: Exchange) -> pd.DataFrame:
    """Return exchangeability blocks as PALM numbers them.

    Parameters
    ----------
    rows
        One row per observation.
    columns
        One column, or the levels of a multi-level table, the outermost first.
    exchange
        Of one column: whether observations are exchanged within blocks (positive labels), blocks as wholes (negative
        ones), or both (a level of one block around them). Several columns, and one with negative numbers, say it by
        their signs; text stands for positive labels.

    Returns
    -------
    pandas.DataFrame
        Whole numbers, one column per level, with the index of ``rows``.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA`` if there is no such column, ``E-COV-NAN`` if a label is missing, ``E-BLOCKS`` if labels are
        no whole numbers, or ``exchange`` is given where signs say it.
    """
    levels = {column: _number(rows, column) for column in columns}
    table = np.column_stack(list(levels.values()))
    return pd.DataFrame(sign_blocks(table, exchange=exchange), index=rows.index)


def sign_blocks(table: npt.NDArray[np.integer[Any]], *, exchange: Exchange) -> npt.NDArray[np.int64]:
    """Return labels ``(n_obs, n_level)`` with the signs, or the level, that ``exchange`` means.

    Raises
    ------
    DesignError
        ``E-BLOCKS`` if ``exchange`` is given where signs or several levels say it.
    """
    labels = np.asarray(table, dtype=np.int64)
    if exchange == "within":
        return labels
    if labels.shape[1] > 1 or (labels < 0).any():
        raise DesignError(
            "E-BLOCKS",
            f"exchange is {exchange!r}, and the blocks have {labels.shape[1]} level(s) or negative labels",
            rule="levels and negative labels say themselves what is exchanged",
            fix="leave 'exchange' out, or give one column without negative labels",
        )
    if exchange == "whole":
        return -labels
    return np.column_stack([np.ones(len(labels), dtype=np.int64), labels])


def read_groups(rows: pd.DataFrame, column: str) -> pd.Series[Any]:
    """Return the variance group of each row.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA`` or ``E-COV-NAN``.
    """
    groups = tested_column(rows, column)
    refuse_missing(rows, [column])
    return groups.astype(str)


def refuse_dependent(rows: pd.DataFrame) -> None:
    """Refuse several sessions of one subject that any relabelling may tear apart.

    Raises
    ------
    DesignError
        ``E-BLOCKS``.
    """
    counts = rows["subject"].value_counts()
    if counts.max() > 1:
        raise DesignError(
            "E-BLOCKS",
            f"subject {counts.index[0]!r} has {counts.iloc[0]} sessions, and no exchangeability blocks are named",
            rule="sessions of one subject depend on each other",
            fix="set exchangeability_blocks = \"subject\", with exchange = 'within' or 'whole'",
        )


def _number(rows: pd.DataFrame, column: str) -> npt.NDArray[np.int64]:
    """Return the labels of a column as they stand if they are whole numbers, else numbered from 1."""
    values = tested_column(rows, column)
    refuse_missing(rows, [column])
    if not pd.api.types.is_numeric_dtype(values):
        return np.asarray(np.unique(values.astype(str), return_inverse=True)[1] + 1, dtype=np.int64)
    numbers = values.to_numpy(dtype=np.float64)
    if (numbers != np.round(numbers)).any() or (numbers == 0).any():
        raise DesignError(
            "E-BLOCKS",
            f"the blocks in {column!r} hold {numbers[(numbers != np.round(numbers)) | (numbers == 0)][0]:g}",
            rule="labels are text or whole numbers other than 0",
            fix="number the blocks from 1",
        )
    return numbers.astype(np.int64)
