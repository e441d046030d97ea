"""Random small designs: every number of the test against relabellings listed and models refitted one by one."""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from kconn.errors import DesignError
from kconn.infer.inference import permutation_test

N_FEATURE, MANY = 6, 6000


@dataclass(frozen=True, kw_only=True)
class Case:
    """A design, its contrast as rows of weights, and what may change places."""

    data: np.ndarray
    design: np.ndarray
    weights: np.ndarray
    blocks: np.ndarray | None
    flips: bool

    @property
    def tested(self):
        return self.design[:, (self.weights != 0).any(axis=0)]


@st.composite
def cases(draw):
    """Unbalanced groups, a covariate or both; nuisance or none; blocks within or whole; signs; t or F."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_obs = draw(st.integers(5, 7))
    kind = draw(st.sampled_from(["group", "levels", "covariate", "mean"]))
    exchange = "signs" if kind == "mean" else draw(st.sampled_from(["any", "within", "whole", "signs"]))
    if exchange == "whole":
        n_obs = 6
    columns = [np.ones(n_obs)]
    if kind == "group":
        columns.append((np.arange(n_obs) < draw(st.integers(1, n_obs - 2))).astype(float))
    if kind == "levels":
        level = np.arange(n_obs) % 3
        columns += [(level == 1).astype(float), (level == 2).astype(float)]
    if kind == "covariate":
        n_obs = min(n_obs, 6)
        columns = [np.ones(n_obs), rng.normal(size=n_obs)]
    if draw(st.booleans()):
        columns.append(rng.normal(size=n_obs))
    design = np.column_stack(columns)
    tested = {"mean": [0], "levels": [1, 2]}.get(kind, [1])
    blocks = None
    if exchange == "within":
        blocks = 1 + (np.arange(n_obs) >= draw(st.integers(2, n_obs - 2))).astype(int)
    if exchange == "whole":
        blocks = -(1 + np.arange(n_obs) // draw(st.sampled_from([2, 3])))
    return Case(
        data=rng.normal(size=(n_obs, N_FEATURE)),
        design=design,
        weights=np.eye(design.shape[1])[tested],
        blocks=blocks,
        flips=exchange == "signs",
    )


def list_exchanges(case):
    """Return every order of the observations that the blocks allow."""
    n_obs = len(case.data)
    if case.blocks is None:
        return list(permutations(range(n_obs)))
    parts = [np.flatnonzero(case.blocks == label) for label in np.unique(case.blocks)[::-1]]
    if case.blocks[0] < 0:
        parts = [np.flatnonzero(case.blocks == label) for label in dict.fromkeys(case.blocks.tolist())]
        return [tuple(np.concatenate(order).tolist()) for order in permutations(parts)]
    orders = []
    for chosen in product(*(permutations(part.tolist()) for part in parts)):
        order = np.empty(n_obs, dtype=int)
        for part, moved in zip(parts, chosen, strict=True):
            order[part] = moved
        orders.append(tuple(order.tolist()))
    return orders


def refit(case, order, signs):
    """Return t, or F, of the residuals of the nuisance model on the model with its rows moved."""
    nuisance = case.design[:, ~(case.weights != 0).any(axis=0)]
    e = case.data - nuisance @ np.linalg.lstsq(nuisance, case.data, rcond=None)[0] if nuisance.size else case.data
    model = signs[:, None] * case.design[order]
    b, *_ = np.linalg.lstsq(model, e, rcond=None)
    dof = len(model) - model.shape[1]
    variance = ((e - model @ b) ** 2).sum(axis=0) / dof
    effect = case.weights @ b
    spread = case.weights @ np.linalg.inv(model.T @ model) @ case.weights.T
    if len(effect) == 1:
        return effect[0] / np.sqrt(spread[0, 0] * variance)
    return (effect * np.linalg.solve(spread, effect)).sum(axis=0) / len(effect) / variance


@settings(deadline=None, max_examples=40)
@given(case=cases(), alternative=st.sampled_from(["two-sided", "greater", "less"]))
def test_permutation_test__equals_an_enumeration_of_any_small_design(case, alternative):
    weights = case.weights[0] if len(case.weights) == 1 else case.weights
    options = {} if case.blocks is None else {"exchangeability_blocks": case.blocks}
    try:
        res = permutation_test(
            case.data,
            case.design,
            {"c": weights},
            n_perm=MANY,
            seed=0,
            alternative=alternative,
            sign_flip=case.flips,
            **options,
        ).isel(contrast=0)
    except DesignError:  # too few degrees of freedom, or no exchange that changes the tested columns
        reject()
    assert bool(res["exhaustive"])
    n_obs = len(case.data)
    n_perm = res.sizes["permutation"]
    tables = {"permutation_table": np.tile(np.arange(n_obs), (n_perm, 1)), "sign_table": np.ones((n_perm, n_obs))}
    orders, signs = (res[name].to_numpy() if name in res else plain for name, plain in tables.items())
    if case.flips:
        assert {tuple(row) for row in signs.tolist()} == set(product([1, -1], repeat=n_obs))
    else:
        # One order for each arrangement of the tested columns, and it is one that the blocks allow.
        allowed = list_exchanges(case)
        assert {tuple(row) for row in orders.tolist()} <= set(allowed)
        arranged = {tuple(case.tested[list(order)].ravel()) for order in allowed}
        found = [tuple(case.tested[order].ravel()) for order in orders]
        assert len(found) == len(set(found)) == len(arranged)
        assert set(found) == arranged
    stat = np.stack([refit(case, order, sign) for order, sign in zip(orders, signs, strict=True)])
    np.testing.assert_allclose(res["stat"], stat[0], rtol=1e-8)
    if len(case.weights) == 1:
        stat = {"two-sided": np.abs(stat), "greater": stat, "less": -stat}[alternative]
    bar = stat[0] - 1e-7 * np.maximum(1, np.abs(stat[0]))
    np.testing.assert_allclose(res["p_unc"], (stat >= bar).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(res["p_fwe"], (stat.max(axis=1)[:, None] >= bar).mean(axis=0), rtol=1e-12)
