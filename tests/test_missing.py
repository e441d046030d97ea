from itertools import combinations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy import stats

from kconn.errors import DesignError, SchemaError
from kconn.infer.inference import permutation_test
from kconn.infer.missing import MAX_PATTERNS, Pattern, find_patterns
from kconn.infer.scheduling import DataMatrix
from kconn.kernels import glm

N_OBS = 20
GROUP = np.arange(N_OBS) % 2
WEIGHTS = {"group": [0, 1, 0]}


@pytest.fixture
def study():
    """Features 0 to 19 whole, 20 to 29 without observation 3, 30 to 34 without 3 and 8, 35 nearly empty."""
    rng = np.random.default_rng(3)
    design = np.column_stack([np.ones(N_OBS), GROUP, rng.normal(size=N_OBS)])
    data = rng.normal(size=(N_OBS, 36))
    data[:, [0, 20, 30]] += 2.5 * GROUP[:, None]
    data[3, 20:35] = np.nan
    data[8, 30:35] = np.nan
    data[2:, 35] = np.nan
    return data, design


def refit(data, design, **options):
    return permutation_test(data, design, WEIGHTS, **{"n_perm": 200, "seed": 5, "missing": "refit", **options})


def test_permutation_test__refits_each_feature_on_its_own_observations(study):
    data, design = study
    res = refit(data, design)
    for feature in (0, 20, 25, 30, 34):
        seen = np.isfinite(data[:, feature])
        pattern = Pattern(observed=seen, positions=np.array([feature]))
        seed = 5 if seen.all() else pattern.derive_seed(5)
        alone = permutation_test(data[seen][:, [feature]], design[seen], WEIGHTS, n_perm=200, seed=seed)
        for name in ("effect", "stat", "dof", "zstat", "p_unc", "partial_r"):
            np.testing.assert_allclose(res[name][0, feature], alone[name][0, 0], rtol=1e-12)
        np.testing.assert_allclose(res["p_unc_ci"][:, 0, feature], alone["p_unc_ci"][:, 0, 0], rtol=1e-12)
        assert res["n_observed"][feature] == seen.sum()
    assert res["excluded"][0].to_numpy().tolist() == [0] * 35 + [1]
    assert np.isnan(res["p_fwe"][0, 35])
    assert (res["p_fwe"][0, [0, 20, 30]] < 0.05).all()
    assert (res["dof"][0, [0, 20, 30]] == [17, 16, 15]).all()


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_permutation_test__maxima_of_patterns_are_taken_on_z(study, alternative):
    data, design = study
    res = refit(data, design, alternative=alternative)
    parts = []
    for features in (range(20), range(20, 30), range(30, 35)):
        seen = np.isfinite(data[:, features[0]])
        seed = 5 if seen.all() else Pattern(observed=seen, positions=np.array(features)).derive_seed(5)
        alone = permutation_test(
            data[seen][:, features], design[seen], WEIGHTS, n_perm=200, seed=seed, alternative=alternative
        )
        parts.append(glm.t_to_z(alone["max_stat"][:, 0].to_numpy(), seen.sum() - 3))
    expected = np.max(parts, axis=0)
    np.testing.assert_allclose(res["max_stat"][:, 0], expected, rtol=1e-12)
    z = {"two-sided": abs(res["zstat"][0]), "greater": res["zstat"][0], "less": -res["zstat"][0]}[alternative]
    p = (expected[:, None] >= z.to_numpy()[:35] - 1e-7).mean(axis=0)
    np.testing.assert_allclose(res["p_fwe"][0, :35], p, atol=1e-12)


def test_permutation_test__nothing_missing_changes_no_count(study):
    data, design = study
    whole = data[:, :20]
    plain = permutation_test(whole, design, WEIGHTS, n_perm=200, seed=5)
    res = refit(whole, design)
    for name in ("stat", "p_unc", "p_fwe", "p_fdr", "p_fwe_tails", "p_unc_ci", "p_fwe_ci"):
        np.testing.assert_array_equal(res[name], plain[name])
    assert (res["n_observed"] == N_OBS).all()


def test_permutation_test__refit_counts_exactly():
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1], 4)
    data = rng.normal(size=(8, 3)) + group[:, None]
    data[2, 1] = data[2, 2] = data[6, 2] = np.nan
    res = permutation_test(
        data,
        np.column_stack([1 - group, group]),
        {"d": [-1, 1]},
        n_perm=5000,
        seed=0,
        missing="refit",
        alternative="greater",
    )
    for feature, n_distinct in enumerate([70, 35, 20]):
        seen = np.isfinite(data[:, feature])
        y, n_second = data[seen, feature], int(group[seen].sum())
        t = {}
        for second in combinations(range(y.size), n_second):
            chosen = np.isin(np.arange(y.size), second)
            t[second] = stats.ttest_ind(y[chosen], y[~chosen]).statistic
        observed = t[tuple(np.flatnonzero(group[seen]))]
        count = sum(value >= observed - 1e-9 for value in t.values())
        assert len(t) == n_distinct
        np.testing.assert_allclose(res["p_unc"][0, feature], count / n_distinct)
        # An exhaustive test has no sampling error.
        np.testing.assert_allclose(res["p_unc_ci"][:, 0, feature], count / n_distinct)


def test_permutation_test__sign_flips_are_shared_by_all_patterns():
    rng = np.random.default_rng(2)
    data = rng.normal(0.4, 1, size=(14, 5))
    data[4, 1] = data[[4, 5, 9], 2] = data[0, 3] = np.nan
    res = permutation_test(
        data, np.ones((14, 1)), {"mean": [1]}, n_perm=150, seed=4, missing="refit", alternative="greater"
    )
    z = np.empty((150, 5))
    for i_perm, sign in enumerate(res["sign_table"][0].to_numpy()):
        for feature in range(5):
            y = (sign * data[:, feature])[np.isfinite(data[:, feature])]
            fit = stats.ttest_1samp(y, 0)
            z[i_perm, feature] = stats.norm.ppf(stats.t.cdf(fit.statistic, y.size - 1))
    np.testing.assert_allclose(res["max_stat"][:, 0], z.max(axis=1), rtol=1e-7)
    np.testing.assert_allclose(res["p_unc"][0], (z >= z[0] - 1e-9).mean(axis=0))
    np.testing.assert_allclose(res["p_fwe"][0], (z.max(axis=1)[:, None] >= z[0] - 1e-9).mean(axis=0))


def test_permutation_test__refit_drops_nuisance_that_is_left_without_data():
    rng = np.random.default_rng(5)
    site = np.repeat([0, 1, 2], 8)
    group = np.arange(24) % 2
    design = np.column_stack([group, np.eye(3)[site]])
    data = rng.normal(size=(24, 2)) + site[:, None]
    data[site == 2, 1] = np.nan
    res = permutation_test(data, design, {"g": [1, 0, 0, 0]}, n_perm=100, seed=0, missing="refit")
    seen = site < 2
    alone = permutation_test(data[seen][:, [1]], design[seen][:, :3], {"g": [1, 0, 0]}, n_perm=100, seed=0)
    np.testing.assert_allclose(res["stat"][0, 1], alone["stat"][0, 0], rtol=1e-10)
    assert res["dof"][0].to_numpy().tolist() == [20, 13]
    # Two sites cannot be compared where one of them is missing.
    sites = permutation_test(data, design, {"s": [0, 1, 0, -1]}, n_perm=100, seed=0, missing="refit")
    assert sites["excluded"][0].to_numpy().tolist() == [0, 1]


@pytest.mark.parametrize("options", [{"variance_groups": GROUP}, {"tail": "gpd"}, {"joint_fwe": True}])
def test_permutation_test__refit_goes_with_other_options(study, options):
    data, design = study
    contrasts = {**WEIGHTS, "both": [[0, 1, 0], [0, 0, 1]]}
    res = permutation_test(data, design, contrasts, n_perm=200, seed=5, missing="refit", **options)
    assert (res["excluded"][:, :35] == 0).all()
    assert np.isfinite(res["p_fwe"][:, :35]).all()
    seen = np.isfinite(data[:, 30])
    more = {"variance_groups": GROUP[seen]} if "variance_groups" in options else {}
    alone = permutation_test(data[seen][:, 30:35], design[seen], contrasts, n_perm=200, seed=5, **more)
    np.testing.assert_allclose(res["stat"][:, 30:35], alone["stat"], rtol=1e-10)
    np.testing.assert_allclose(res["dof"][:, 30:35], alone["dof"], rtol=1e-10)
    if "joint_fwe" in options:
        assert (res["p_fwe_joint"][0, :35] >= res["p_fwe"][0, :35]).all()


def test_permutation_test__refit_within_and_between_blocks():
    rng = np.random.default_rng(6)
    pair = np.repeat(np.arange(1, 9), 2)
    visit = np.tile([-0.5, 0.5], 8)
    design = np.column_stack([visit, np.eye(8).repeat(2, axis=0)])
    data = rng.normal(size=(16, 2))
    data[[3, 8], 1] = np.nan
    weights = {"change": np.eye(1, 9)[0]}
    options = {"n_perm": 1000, "seed": 0, "missing": "refit"}
    res = permutation_test(data, design, weights, exchangeability_blocks=pair, **options)
    whole = np.isin(pair, pair[[3, 8]], invert=True)
    alone = permutation_test(
        data[whole][:, [1]],
        design[whole][:, [0, *np.unique(pair[whole])]],
        {"c": np.eye(1, 7)[0]},
        n_perm=1000,
        seed=0,
        exchangeability_blocks=pair[whole],
    )
    # A subject with one visit says nothing of the change: 6 pairs are left, 64 exchanges.
    np.testing.assert_allclose(res["stat"][0, 1], alone["stat"][0, 0], rtol=1e-9)
    np.testing.assert_allclose(res["p_unc"][0, 1], alone["p_unc"][0, 0], atol=1e-12)
    between = np.column_stack([np.ones(16), np.repeat(np.arange(8) % 2, 2)])
    blocks = permutation_test(data, between, {"g": [0, 1]}, exchangeability_blocks=-pair, **options)
    # Whole pairs are exchanged with whole pairs: of 6 subjects (3 and 3, or 2 and 4) that have both visits.
    assert (blocks["excluded"] == 0).all()
    n_first = int((between[whole, 1] == 0).sum() / 2)
    count = blocks["p_unc"][0, 1].item() * [20, 15][n_first != 3]
    np.testing.assert_allclose(count, np.round(count), atol=1e-9)


def test_permutation_test__refit_is_the_same_however_it_is_read(study):
    data, design = study
    ids = [f"s{i:02d}" for i in range(N_OBS)]
    named = xr.DataArray(data, dims=("observation", "edge"), coords={"observation": ids})
    frame = named.to_pandas()[[]].assign(one=1.0, group=design[:, 1], age=design[:, 2])
    expected = refit(named, frame)
    shuffled = named[np.random.default_rng(0).permutation(N_OBS)]
    xr.testing.assert_identical(refit(shuffled, frame), expected)
    lazy = named.copy(data=da.from_array(data, chunks=(7, 9)))
    xr.testing.assert_identical(refit(lazy, frame, max_mem=60_000_000), expected)


def test_find_patterns__groups_features(study):
    data, _ = study
    patterns = find_patterns(DataMatrix(values=data, order=np.arange(N_OBS)))
    assert [pattern.n_obs for pattern in patterns] == [20, 19, 18, 2]
    assert patterns[1].positions.tolist() == list(range(20, 30))
    assert patterns[1].derive_seed(1) != patterns[2].derive_seed(1)


def test_permutation_test__refuses_what_cannot_be_refitted(study):
    data, design = study
    with pytest.raises(SchemaError, match="permutations"):
        refit(data, design, permutations=np.tile(np.arange(N_OBS), (200, 1)))
    with pytest.raises(SchemaError, match="feature_covariates"):
        refit(data, design, feature_covariates=np.zeros_like(data) + np.arange(N_OBS)[:, None] ** 2)
    with pytest.raises(SchemaError, match="missing"):
        refit(data, design, statistic="cluster-extent", neighbours=np.array([[0, 1]]), threshold=2.0)
    with pytest.raises(DesignError, match="with missing values"):
        refit(data[:, 35:], design)
    many = np.random.default_rng(0).normal(size=(N_OBS, MAX_PATTERNS + 30))
    many[np.random.default_rng(1).uniform(size=many.shape) < 0.3] = np.nan
    with pytest.raises(DesignError) as error:
        refit(many, design)
    assert error.value.code == "E-PATTERNS"
