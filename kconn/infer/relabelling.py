"""Contrasts and the relabellings that each of them is tested with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.errors import DesignError
from kconn.infer.arguments import Rows
from kconn.infer.linear_model import Model
from kconn.infer.observations import Observations, join_rows
from kconn.infer.permuting import Test
from kconn.kernels import permutation
from kconn.kernels.permutation import Shuffling


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Weights ``(regressor,)`` or ``(r, regressor)``, and the columns that tell relabellings apart."""

    name: str
    weights: npt.NDArray[np.float64]
    tested: npt.NDArray[np.bool_]


def read_contrasts(contrasts: Mapping[str, Any], model: Model, *, joint: bool) -> list[Contrast]:
    """Return contrasts as weights of regressors; jointly corrected ones share what tells relabellings apart."""
    weights = {name: _read_contrast(name, given, model) for name, given in contrasts.items()}
    if not weights:
        raise DesignError("E-CONTRAST", "there is no contrast", rule="at least one name with its weights")
    tested = {name: np.asarray(np.atleast_2d(given).any(axis=0)) for name, given in weights.items()}
    if joint:
        every = {found.size for found in tested.values()}
        if every == {len(model.regressors)}:
            tested = dict.fromkeys(tested, np.asarray(np.any(list(tested.values()), axis=0)))
    return [Contrast(name=name, weights=given, tested=tested[name]) for name, given in weights.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Contrasts and, for each, its test on all observations."""

    contrasts: list[Contrast]
    tests: list[Test]
    model: Model
    exchange: Exchange


def plan_tests(contrasts: list[Contrast], model: Model, exchange: Exchange) -> Plan:
    """Return one test per contrast: the split design, its relabellings and its engine."""
    tests = [_plan_test(contrast, model, exchange) for contrast in contrasts]
    return Plan(contrasts=contrasts, tests=tests, model=model, exchange=exchange)


def _plan_test(contrast: Contrast, model: Model, exchange: Exchange) -> Test:
    try:
        partition = model.split(contrast.weights)
        shuffling, kind, note = _plan_shuffling(model.label(contrast.tested), exchange)
        if kind == "permutations":
            refuse_idle(model, contrast.weights)
        engine = model.plan(partition, shuffling)
    except DesignError as error:
        raise error.at(contrast.name) from error
    return Test(name=contrast.name, shuffling=shuffling, kind=kind, note=note, engine=engine)


def refuse_idle(model: Model, weights: npt.NDArray[np.float64]) -> None:
    """Refuse to permute for a contrast whose own tested columns are the same for all observations."""
    own = model.label(np.asarray(np.atleast_2d(weights).any(axis=0)))
    if own.max() == own.min():
        raise DesignError(
            "E-PERMUTATIONS",
            "no relabelling of the common table changes what this contrast tests",
            rule="with joint_fwe all contrasts share one table",
            fix="test a mean in a call of its own, or with sign_flip=True",
        )


def _read_contrast(name: str, weights: Any, model: Model) -> npt.NDArray[np.float64]:
    columns = model.regressors
    if isinstance(weights, Mapping | pd.Series):
        given = {str(column): value for column, value in weights.items()}
        unknown = sorted(set(given) - set(columns))
        if unknown:
            raise DesignError(
                "E-CONTRAST", f"no column {unknown[0]!r} in the design", where=name, rule=f"one of {columns}"
            )
        weights = [given.get(column, 0.0) for column in columns]
    try:
        given_weights = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DesignError(
            "E-CONTRAST", f"the weights are no numbers: {error}", where=name, rule="one number per column"
        ) from error
    if model.has_feature_covariates and given_weights.shape[-1:] == (len(model.columns),):
        # A covariate that a contrast says nothing of is nuisance.
        return np.concatenate([given_weights, np.zeros((*given_weights.shape[:-1], 1))], axis=-1)
    return given_weights


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
