import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.oneway import anova_oneway
from statsmodels.stats.weightstats import ttest_ind

from kconn.errors import DesignError
from kconn.infer.inference import permutation_test
from kconn.kernels import glm, tallies, welch
from kconn.kernels.permutation import plan_shuffling

N_OBS = 26
GROUPS = np.repeat([0, 1], [9, 17])


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(5)
    return rng.normal(size=(N_OBS, 12)) * np.where(GROUPS, 3.0, 1.0)[:, None] + 0.5 * GROUPS[:, None]


def two_groups():
    return np.column_stack([GROUPS == 0, GROUPS == 1]).astype(float)


def test_plan_welch__equals_welch_without_nuisance(values):
    engine = welch.plan_welch(glm.split_design(two_groups(), np.array([-1.0, 1])), GROUPS)
    seen = engine.observe(values)
    expected = stats.ttest_ind(values[GROUPS == 1], values[GROUPS == 0], equal_var=False)
    np.testing.assert_allclose(seen.stat, expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(seen.dof, expected.df, rtol=1e-9)
    np.testing.assert_allclose(2 * stats.norm.sf(np.abs(seen.zstat)), expected.pvalue, rtol=1e-8)
    statistic, pvalue, dof = ttest_ind(values[GROUPS == 1], values[GROUPS == 0], usevar="unequal")
    np.testing.assert_allclose(seen.stat, statistic, rtol=1e-9)
    np.testing.assert_allclose(seen.dof, dof, rtol=1e-9)
    np.testing.assert_allclose(2 * stats.norm.sf(np.abs(seen.zstat)), pvalue, rtol=1e-8)


def test_plan_welch__g_equals_welch_anova(values):
    three = np.arange(N_OBS) % 3
    design = np.eye(3)[three]
    contrast = np.array([[1.0, -1, 0], [0, 1, -1]])
    seen = welch.plan_welch(glm.split_design(design, contrast), three).observe(values)
    for j in range(values.shape[1]):
        peer = anova_oneway(values[:, j], groups=three, use_var="unequal", welch_correction=True)
        np.testing.assert_allclose(seen.stat[j], peer.statistic, rtol=1e-9)
        np.testing.assert_allclose(seen.dof[j], peer.df_denom, rtol=1e-9)
        np.testing.assert_allclose(stats.norm.sf(seen.zstat[j]), peer.pvalue, rtol=1e-8)


def by_definition(design, contrast, y):
    """Winkler et al. 2014, equation 3, one feature and one model at a time."""
    beta = np.linalg.pinv(design) @ y
    residual = y - design @ beta
    leverage = 1 - np.diag(design @ np.linalg.pinv(design))
    weight = np.empty(len(y))
    for group in np.unique(GROUPS):
        here = group == GROUPS
        weight[here] = leverage[here].sum() / (residual[here] ** 2).sum()
    rows = np.atleast_2d(contrast)
    inner = np.linalg.inv(rows @ np.linalg.inv(design.T @ (weight[:, None] * design)) @ rows.T)
    if len(rows) == 1:
        return (rows @ beta).item() * np.sqrt(inner.item())
    spread = sum(
        (1 - weight[group == GROUPS].sum() / weight.sum()) ** 2 / leverage[group == GROUPS].sum() for group in (0, 1)
    ) / (len(rows) * (len(rows) + 2))
    return (rows @ beta) @ inner @ (rows @ beta) / len(rows) / (1 + 2 * (len(rows) - 1) * spread)


@pytest.mark.parametrize("contrast", [[-1.0, 1, 0, 0], [[-1.0, 1, 0, 0], [0, 0, 1, 0]]], ids=["v", "G"])
def test_compare__equals_a_refit_of_every_relabelling(values, contrast):
    rng = np.random.default_rng(1)
    design = np.column_stack([two_groups(), rng.normal(size=(N_OBS, 2))])
    contrast = np.array(contrast)
    partition = glm.split_design(design, contrast)
    engine = welch.plan_welch(partition, GROUPS)
    shuffling = plan_shuffling(np.arange(N_OBS), n_perm=30, seed=1, kind="both")
    rows = engine.build(shuffling.part(0, 30))
    stat, _ = engine._statistic(rows, engine.prepare(values))
    residual = glm.regress_out(values, partition.nuisance)
    for i_perm in range(30):
        moved = np.empty_like(residual)
        moved[shuffling.permutations[i_perm]] = shuffling.signs[i_perm][:, None] * residual
        expected = [by_definition(design, contrast, y) for y in moved.T]
        np.testing.assert_allclose(stat[i_perm], expected, rtol=1e-8)


def test_tally__counts_and_extremes_of_z(values):
    engine = welch.plan_welch(glm.split_design(two_groups(), np.array([-1.0, 1])), GROUPS)
    shuffling = plan_shuffling(GROUPS, n_perm=200, seed=1)
    compared = engine.observe(values).compared
    blocks = list(tallies.iterate_blocks(values, engine, compared, "float64"))
    found = tallies.tally(blocks, engine, shuffling.part(1, 200), compared, "float64")
    z = engine.compare(engine.build(shuffling.part(1, 200)), engine.prepare(values))
    observed = engine.observe(values).zstat
    np.testing.assert_allclose(found.highest, [np.abs(z).max(axis=1), z.max(axis=1), -z.min(axis=1)])
    at_least = [np.abs(z) >= np.abs(observed), z >= observed, z <= observed]
    np.testing.assert_array_equal(found.counts, np.sum(at_least, axis=1))


def test_permutation_test__variance_groups(values):
    data = values.copy()
    data[3, 2] = np.nan
    res = permutation_test(data, two_groups(), {"d": [-1, 1]}, n_perm=500, seed=0, variance_groups=GROUPS)
    assert res["stat_kind"].item() == "v"
    assert np.isnan(res["stat"][0, 2])
    assert res["dof"][0].std() > 0
    np.testing.assert_allclose(res["max_stat"][0, 0], np.abs(res["zstat"]).max())
    pooled = permutation_test(data, two_groups(), {"d": [-1, 1]}, n_perm=500, seed=0)
    np.testing.assert_allclose(res["effect"], pooled["effect"])
    assert (res["p_unc"] != pooled["p_unc"]).any()


def test_plan_welch__refuses_a_group_without_residuals(values):
    lonely = np.zeros(N_OBS)
    lonely[0] = 1
    design = np.column_stack([np.ones(N_OBS), lonely, np.arange(N_OBS)])
    with pytest.raises(DesignError, match="residual degrees of freedom") as caught:
        permutation_test(values, design, {"x": [0, 0, 1]}, n_perm=100, seed=0, variance_groups=lonely)
    assert caught.value.code == "E-BLOCKS"
