"""Contrasts and the relabellings that each of them is tested with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.arguments import Rows
from kconn.errors import DesignError
from kconn.kernels import glm, permutation
from kconn.kernels.permutation import Shuffling
from kconn.linear_model import Model
from kconn.observations import Observations, join_rows
from kconn.permuting import Test


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Which relabellings are asked for, in the canonical order of observations."""

    n_perm: int
    seed: int
    tree: permutation.Block | None
    sign_flip: bool | str
    permutations: npt.NDArray[np.generic] | None
    signs: npt.NDArray[np.generic] | None


def read_blocks(blocks: Rows | None, observations: Observations) -> permutation.Block | None:
    """Return the exchangeability tree of a vector or table of blocks."""
    if blocks is None:
        return None
    table: npt.NDArray[Any] = join_rows(blocks, observations, what="exchangeability_blocks")
    if table.dtype.kind == "f" and np.array_equal(table, np.round(table)):
        table = table.astype(np.int64)
    return permutation.exchange_tree(table if table.ndim == 1 or table.shape[1] > 1 else table[:, 0])


def plan_tests(contrasts: Mapping[str, Any], model: Model, exchange: Exchange, *, joint: bool) -> list[Test]:
    """Return one test per contrast: the split design, its relabellings and its engine."""
    weights = {name: _read_contrast(name, given, model.columns) for name, given in contrasts.items()}
    if not weights:
        raise DesignError("E-CONTRAST", "there is no contrast", rule="at least one name with its weights")
    partitions = {}
    for name, contrast in weights.items():
        try:
            partitions[name] = glm.split_design(model.matrix, contrast)
        except DesignError as error:
            raise error.at(name) from error
    tested: dict[str, npt.NDArray[np.bool_]] = {}
    for name, contrast in weights.items():
        tested[name] = np.asarray(np.atleast_2d(contrast).any(axis=0))
    own = {name: permutation.label_rows(model.matrix[:, column]) for name, column in tested.items()}
    if joint:
        # One table for all: what any contrast tests decides which relabellings differ.
        tested = dict.fromkeys(tested, np.asarray(np.any(list(tested.values()), axis=0)))
    tests = []
    for name, partition in partitions.items():
        try:
            labels = permutation.label_rows(model.matrix[:, tested[name]])
            shuffling, kind, note = _plan_shuffling(labels, exchange)
            engine = model.plan(partition, shuffling)
        except DesignError as error:
            raise error.at(name) from error
        if joint and kind == "permutations" and own[name].max() == own[name].min():
            raise DesignError(
                "E-PERMUTATIONS",
                "no relabelling of the common table changes what this contrast tests",
                where=name,
                rule="with joint_fwe all contrasts share one table",
                fix="test a mean in a call of its own, or with sign_flip=True",
            )
        tests.append(Test(name=name, shuffling=shuffling, kind=kind, note=note, engine=engine))
    return tests


def _read_contrast(name: str, weights: Any, columns: list[str]) -> npt.NDArray[np.float64]:
    if isinstance(weights, Mapping | pd.Series):
        given = {str(column): value for column, value in weights.items()}
        unknown = sorted(set(given) - set(columns))
        if unknown:
            raise DesignError(
                "E-CONTRAST", f"no column {unknown[0]!r} in the design", where=name, rule=f"one of {columns}"
            )
        weights = [given.get(column, 0.0) for column in columns]
    try:
        return np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DesignError(
            "E-CONTRAST", f"the weights are no numbers: {error}", where=name, rule="one number per column"
        ) from error


def _plan_shuffling(labels: npt.NDArray[np.intp], exchange: Exchange) -> tuple[Shuffling, str, str]:
    """Return the table, what it consists of, and a note where this is not what was asked for."""
    tree = permutation.free_exchange(labels.size) if exchange.tree is None else exchange.tree
    if exchange.permutations is not None or exchange.signs is not None:
        return _read_user_table(labels, exchange, tree), "user table", ""
    kind: permutation.Kind = "permutations"
    note = ""
    if exchange.sign_flip is True:
        kind = "sign-flips"
    elif exchange.sign_flip == "both":
        kind = "both"
    elif labels.max() == labels.min():
        kind = "sign-flips"
        note = "signs are flipped: the tested columns are the same for all observations, so permuting changes nothing"
    shuffling = permutation.plan_shuffling(labels, n_perm=exchange.n_perm, seed=exchange.seed, tree=tree, kind=kind)
    return shuffling, kind, note


def _read_user_table(labels: npt.NDArray[np.intp], exchange: Exchange, tree: permutation.Block) -> Shuffling:
    n_distinct = 1
    if exchange.permutations is not None:
        n_distinct *= permutation.count_permutations(tree, labels)
    if exchange.signs is not None:
        n_distinct *= 2 ** len(permutation.flip_units(tree))
    shuffling = permutation.read_shuffling(exchange.permutations, exchange.signs, labels=labels, n_distinct=n_distinct)
    if shuffling.n_perm != exchange.n_perm:
        raise DesignError(
            "E-PERMUTATIONS",
            f"the table has {shuffling.n_perm} rows and n_perm={exchange.n_perm}",
            rule="a table that is supplied has n_perm rows, the identity first",
            fix=f"pass n_perm={shuffling.n_perm}",
        )
    return shuffling
