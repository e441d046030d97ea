import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import xarray as xr
from scipy.linalg import null_space

from kconn.errors import DesignError, SchemaError
from kconn.infer.inference import permutation_test
from kconn.kernels.feature_covariates import plan_feature_covariates, split_with_covariate
from kconn.kernels.permutation import plan_shuffling

N_OBS, N_FEATURE = 18, 7
GROUP = np.arange(N_OBS) % 3


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(2)
    covariate = rng.normal(size=(N_OBS, N_FEATURE)) + 0.5 * (GROUP == 1)[:, None]
    values = rng.normal(size=(N_OBS, N_FEATURE)) + covariate + 10
    design = np.column_stack([GROUP == 0, GROUP == 1, GROUP == 2, rng.normal(size=N_OBS)]).astype(float)
    return values, covariate, design


T = np.array([1.0, -1, 0, 0])


#: Contrasts of the columns of the design and of the covariate: nuisance, tested alone, with columns, against one.
CONTRASTS = {
    "t": [1.0, -1, 0, 0, 0],
    "covariate": [0.0, 0, 0, 0, -2],
    "column against covariate": [0.0, 0, 0, 1, -0.5],
    "F": [[1.0, -1, 0, 0, 0], [0, 1, -1, 0, 0]],
    "F with covariate": [[1.0, -1, 0, 0, 0], [0, 0, 0, 0, 1]],
    "F whose rows differ in the covariate": [[1.0, -1, 0, 0, 1], [-2, 2, 0, 0, 3]],
    "F against covariate": [[1.0, -1, 0, 0, 0.5], [0, 1, -1, 0, -1]],
}


def fit(y, design, covariate, contrast):
    model = sm.OLS(y, np.column_stack([design, covariate])).fit()
    return model, (model.t_test(contrast) if np.ndim(contrast) == 1 else model.f_test(contrast))


@pytest.mark.parametrize("contrast", CONTRASTS.values(), ids=CONTRASTS)
def test_permutation_test__each_feature_has_its_own_model(study, contrast):
    values, covariate, design = study
    res = permutation_test(
        values, design, {"c": contrast}, n_perm=20, seed=0, feature_covariates=covariate, convention="palm"
    ).sel(contrast="c")
    for j in range(N_FEATURE):
        model, test = fit(values[:, j], design, covariate[:, j], contrast)
        one = res.isel(feature=j)
        np.testing.assert_allclose(one["dof"], model.df_resid)
        if np.ndim(contrast) > 1:
            np.testing.assert_allclose(one["stat"], test.fvalue, rtol=1e-9)
            continue
        np.testing.assert_allclose(one["stat"], test.tvalue.item(), rtol=1e-9)
        np.testing.assert_allclose(one["effect"], test.effect.item(), rtol=1e-9)
        # PALM's d is the effect of the whole range of the tested regressor, 0 included.
        regressor = model.model.exog @ model.normalized_cov_params @ np.array(contrast)
        regressor /= contrast @ model.normalized_cov_params @ np.array(contrast)
        span = max(regressor.max(), 0) - min(regressor.min(), 0)
        np.testing.assert_allclose(one["cohen_d"], span * test.effect.item() / np.sqrt(model.mse_resid), rtol=1e-9)


@pytest.mark.parametrize("kind", ["permutations", "both"])
@pytest.mark.parametrize("contrast", CONTRASTS.values(), ids=CONTRASTS)
def test_compare__equals_a_refit_of_every_relabelling(study, contrast, kind):
    values, covariate, design = study
    partition = split_with_covariate(design, np.array(contrast))
    shuffling = plan_shuffling(GROUP, n_perm=25, seed=1, kind=kind)
    engine = plan_feature_covariates(partition, shuffling)
    e = engine.prepare(np.concatenate([values, covariate]))
    stat = engine.to_stat(engine.compare(engine.build(shuffling.part(0, 25)), e))
    for i_perm in range(25):
        order = shuffling.permutations[i_perm]
        sign = np.ones(N_OBS) if shuffling.signs is None else shuffling.signs[i_perm]
        for j in range(N_FEATURE):
            nuisance = np.column_stack([design, covariate[:, j]]) @ null_space(np.atleast_2d(contrast))
            residual = values[:, j] - nuisance @ np.linalg.lstsq(nuisance, values[:, j], rcond=None)[0]
            moved = np.empty(N_OBS)
            moved[order] = sign * residual
            _, test = fit(moved, design, covariate[:, j], contrast)
            expected = test.tvalue.item() if np.ndim(contrast) == 1 else test.fvalue
            np.testing.assert_allclose(stat[i_perm, j], expected, rtol=1e-8)


def test_permutation_test__covariates_are_joined_and_run_anyhow(study):
    values, covariate, design = study
    ids = [f"s{i:02d}" for i in range(N_OBS)]
    data = xr.DataArray(values, dims=("observation", "edge"), coords={"observation": ids})
    other = data.copy(data=covariate)
    options = {"n_perm": 60, "seed": 0}
    expected = permutation_test(data, design, {"t": T}, feature_covariates=other, **options)
    rows = np.random.default_rng(0).permutation(N_OBS)
    moved = permutation_test(data, design, {"t": T}, feature_covariates=other[rows], **options)
    xr.testing.assert_identical(moved, expected)
    lazy = permutation_test(
        data.chunk(edge=3), design, {"t": T}, feature_covariates=other.chunk(edge=2, observation=7), **options
    )
    xr.testing.assert_identical(lazy, expected)
    single = permutation_test(data, design, {"t": T}, feature_covariates=other, dtype="float32", **options)
    np.testing.assert_allclose(single["max_stat"], expected["max_stat"], rtol=1e-4)


def test_permutation_test__counts_on_a_covariate_equal_a_loop(study):
    """Given the relabellings, the counts of a plain loop over features, as PALM's -evperdat does it."""
    values, covariate, design = study
    order = ["a", "b", "c", "d"]
    frame = pd.DataFrame(design, columns=order)
    res = permutation_test(
        values, frame, {"c": {"feature_covariates": 1}}, n_perm=60, seed=3, feature_covariates=covariate
    ).sel(contrast="c")
    assert res["n_distinct"] > 1e12  # no two people have the same values of every feature
    table = res["permutation_table"].to_numpy()
    t = np.empty((60, N_FEATURE))
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    for i, places in enumerate(table):
        moved = np.empty_like(residual)
        moved[places] = residual
        for j in range(N_FEATURE):
            t[i, j] = sm.OLS(moved[:, j], np.column_stack([design, covariate[:, j]])).fit().tvalues[-1]
    np.testing.assert_allclose(res["stat"], t[0], rtol=1e-8)
    np.testing.assert_allclose(res["max_stat"], np.abs(t).max(axis=1), rtol=1e-8)
    np.testing.assert_array_equal(res["p_unc"], (np.abs(t) >= np.abs(t[0]) - 1e-9).mean(axis=0))
    at_least = np.abs(t).max(axis=1)[:, None] >= np.abs(t[0]) - 1e-9
    np.testing.assert_array_equal(res["p_fwe"], at_least.mean(axis=0))


def test_permutation_test__covariates_that_cannot_be_fitted_exclude_their_feature(study):
    values, covariate, design = study
    broken = covariate.copy()
    broken[0, 0] = np.nan
    broken[:, 1] = 3.0
    broken[:, 2] = (GROUP == 0) - 1.0 * (GROUP == 1)
    contrasts = {"t": T[:3], "covariate": [0, 0, 0, 1]}
    res = permutation_test(values, design[:, :3], contrasts, n_perm=60, seed=0, feature_covariates=broken)
    np.testing.assert_array_equal(res["excluded"][:, :4], [[1, 2, 2, 0]] * 2)
    assert np.isnan(res["p_fwe"][:, :3]).all()


def test_permutation_test__refuses_covariates(study):
    values, covariate, design = study
    with pytest.raises(SchemaError, match="as the data"):
        permutation_test(values, design, {"t": T}, n_perm=20, seed=0, feature_covariates=covariate[:, 1:])
    with pytest.raises(DesignError, match="E-TABLE-SHAPE"):
        permutation_test(values, design, {"t": T}, n_perm=20, seed=0, feature_covariates=covariate[1:])
    with pytest.raises(SchemaError, match="need freedman-lane"):
        permutation_test(values, design, {"t": T}, n_perm=20, seed=0, feature_covariates=covariate, regression="manly")
    for contrast in ([0, 0, 0, 0, 0], [0.0] * 4, [[1, 0, 0, 0, 1], [1, 0, 0, 0, 1]], [1.0, 0, 0, 0, 0, 0]):
        with pytest.raises(DesignError, match="E-CONTRAST"):
            permutation_test(values, design, {"t": contrast}, n_perm=20, seed=0, feature_covariates=covariate)
    with pytest.raises(DesignError, match="E-TOO-FEW"):
        permutation_test(values[:5], np.eye(5, 4), {"t": T}, n_perm=20, seed=0, feature_covariates=covariate[:5])
